//! Which recordings are held against which, and the tables that say so.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use serde::Serialize;
use tapedeck_recording::Recording;
use tapedeck_recording::schema::RECORDING_ID;

use crate::models;
use crate::rows;
use crate::session::{Error, Session, arrow_error};

/// Views of a comparison that others read many times: at most one row a request.
const KEPT_VIEWS: [&str; 3] = ["replay_request", "compare_pair", "compare_request"];

/// Recordings to hold against each other; neither is empty.
pub(super) struct Side {
    pub(super) base: Vec<Recording>,
    pub(super) new: Vec<Recording>,
}

pub(super) struct Levels {
    /// With its name where there are several.
    pub(super) matched: Vec<(Option<String>, Side)>,
    pub(super) base_only: Vec<String>,
    pub(super) new_only: Vec<String>,
}

/// The settings that a sweep varies, as one line: repetitions of a level have the
/// same.
fn level(recording: &Recording) -> String {
    let settings = &recording.manifest.settings;
    let names = ["parallel", "rate_per_s", "number", "speed"];
    let set = names.iter().filter_map(|name| {
        let value = settings.get(*name).filter(|v| !v.is_null())?;
        let name = name.trim_end_matches("_per_s");
        Some(format!("{name} {value}"))
    });
    let set: Vec<String> = set.collect();
    set.join(", ")
}

/// In the order of the recordings' folders.
fn by_level(recordings: Vec<Recording>) -> Vec<(String, Vec<Recording>)> {
    let mut places = BTreeMap::new();
    let mut levels: Vec<(String, Vec<Recording>)> = Vec::new();
    for recording in recordings {
        let level = level(&recording);
        let place = *places.entry(level.clone()).or_insert(levels.len());
        if place == levels.len() {
            levels.push((level, Vec::new()));
        }
        levels[place].1.push(recording);
    }
    levels
}

/// One level on each side is compared whatever it is; of several those that both
/// sides have.
pub(super) fn match_levels(base: Vec<Recording>, new: Vec<Recording>) -> Levels {
    let (mut base, mut new) = (by_level(base), by_level(new));
    let mut levels = Levels {
        matched: Vec::new(),
        base_only: Vec::new(),
        new_only: Vec::new(),
    };
    if let ([_], [_]) = (base.as_slice(), new.as_slice()) {
        let sides = base.pop().zip(new.pop());
        levels
            .matched
            .extend(sides.map(|((_, base), (_, new))| (None, Side { base, new })));
        return levels;
    }
    for (level, recordings) in base {
        match new.iter().position(|(name, _)| *name == level) {
            Some(place) => {
                let (_, new) = new.remove(place);
                let base = recordings;
                levels.matched.push((Some(level), Side { base, new }));
            }
            None => levels.base_only.push(level),
        }
    }
    levels
        .new_only
        .extend(new.into_iter().map(|(level, _)| level));
    levels
}

#[derive(Serialize)]
struct SideRow<'a> {
    recording_id: &'a str,
    side: &'static str,
}

impl Session {
    /// Table `sides`: the first `base_count` recordings are the base.
    pub(crate) async fn add_sides(&self, base_count: usize) -> Result<(), Error> {
        let recordings = self.recordings().iter().enumerate();
        let rows = recordings.map(|(index, recording)| SideRow {
            recording_id: &recording.manifest.recording_id,
            side: if index < base_count { "base" } else { "new" },
        });
        let rows: Vec<SideRow<'_>> = rows.collect();
        let columns = [(RECORDING_ID, DataType::Utf8), ("side", DataType::Utf8)];
        let batch = rows::to_batch(&rows::schema(&columns), &rows).map_err(arrow_error)?;
        self.register_batch("sides", batch)
    }

    /// Creates those of [`models::compares`] that `goals` need and that are not
    /// there; without table `sides`, the first recording is the base.
    ///
    /// # Errors
    /// When a file is unreadable.
    pub(crate) async fn add_comparison(&self, goals: &[&'static str]) -> Result<(), Error> {
        let is_there = |name| self.context().table_exist(name).map_err(Error::Query);
        if !is_there("sides")? {
            self.add_sides(1).await?;
        }
        let needed = models::needed_for(goals);
        for model in models::compares() {
            if needed.contains(model.name) && !is_there(model.name)? {
                self.create_view(model, KEPT_VIEWS.contains(&model.name))
                    .await?;
            }
        }
        Ok(())
    }
}
