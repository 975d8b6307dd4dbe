//! A recording or a trace becomes arrivals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{Phase, Recording, RequestRow, Table};

use crate::cli::{From, SourceArgs};
use crate::import::Imported;

/// A request of the source and when it is due.
#[derive(Debug, Clone)]
pub struct Planned {
    /// From the first planned request, ns, speed applied.
    pub offset_ns: i64,
    pub original: RequestRow,
    /// Of the source's response.
    pub input_tokens: Option<i32>,
    pub output_tokens: Option<i32>,
}

/// What the requests were taken from.
#[derive(Debug)]
pub struct Origin {
    pub name: String,
    /// `None` for a trace.
    pub recording_id: Option<String>,
    /// Hash and seed of the source; those of the replay's bodies may replace them.
    pub workload: Workload,
    /// How a trace was read; null for a recording.
    pub trace: Value,
    /// The dialect that a recording brings; null where it is a built-in one.
    pub dialect: Value,
    /// Whether block sizes are tokens.
    pub blocks_are_tokens: bool,
}

/// What is to be replayed.
#[derive(Debug)]
pub struct Plan {
    pub origin: Origin,
    pub requests: Vec<Planned>,
}

impl Plan {
    /// Whether a body is to be made.
    #[must_use]
    pub fn lacks_bodies(&self) -> bool {
        self.requests.iter().any(|p| p.original.body.is_none())
    }
}

/// Reads the source and settles what is sent when. The lengths of recorded
/// responses are read where `wants_lengths`, or where bodies are missing.
///
/// # Errors
/// When the source is no single recording and no trace, the filter does not hold
/// up as SQL, or nothing is left to send.
pub fn plan(args: &SourceArgs, wants_lengths: bool) -> Result<Plan> {
    let plan = if is_recording(args) {
        of_recording(args, wants_lengths)?
    } else {
        of_trace(args)?
    };
    if plan.requests.is_empty() {
        bail!("{} has no request to replay", args.source.display());
    }
    Ok(plan)
}

fn is_recording(args: &SourceArgs) -> bool {
    match args.from.from {
        Some(from) => from == From::Recording,
        None => !args.source.exists() || Recording::folders(&args.source).is_ok(),
    }
}

fn of_recording(args: &SourceArgs, wants_lengths: bool) -> Result<Plan> {
    let mut recordings = Recording::open_all(&args.source)?;
    if recordings.len() != 1 {
        bail!(
            "{} holds {} recordings\nhint: name one of them",
            args.source.display(),
            recordings.len()
        );
    }
    let recording = recordings.remove(0);
    let kept = kept(args, &args.source)?;
    let rows = recording.rows(Table::Requests)?.requests;
    let mut requests = select(rows, kept.as_ref(), args);
    let plan_lacks_bodies = requests.iter().any(|p| p.original.body.is_none());
    if wants_lengths || plan_lacks_bodies {
        add_lengths(&mut requests, &recording)?;
    }
    let manifest = recording.manifest;
    let unit = manifest.settings.pointer("/blocks/unit");
    Ok(Plan {
        origin: Origin {
            name: manifest.name,
            recording_id: Some(manifest.recording_id),
            workload: Workload {
                kind: "recording".to_owned(),
                path: Some(args.source.display().to_string()),
                content_hash: manifest.workload.and_then(|w| w.content_hash),
                seed: args.from.seed,
            },
            trace: Value::Null,
            dialect: manifest
                .settings
                .get("dialect")
                .cloned()
                .unwrap_or_default(),
            blocks_are_tokens: unit.is_none_or(|unit| unit == &json!("tokens")),
        },
        requests,
    })
}

fn add_lengths(requests: &mut [Planned], recording: &Recording) -> Result<()> {
    let responses = recording.rows(Table::Responses)?.responses;
    // The last attempt of a request is the one that counts.
    let mut last: BTreeMap<i64, (i32, Option<i32>, Option<i32>)> = BTreeMap::new();
    for row in responses {
        let entry = (row.attempt, row.input_tokens, row.output_tokens);
        let known = last.entry(row.request_id).or_insert(entry);
        if known.0 <= row.attempt {
            *known = entry;
        }
    }
    for planned in requests {
        if let Some((_, input, output)) = last.get(&planned.original.request_id) {
            planned.input_tokens = planned.input_tokens.or(*input);
            planned.output_tokens = *output;
        }
    }
    Ok(())
}

fn of_trace(args: &SourceArgs) -> Result<Plan> {
    let imported = Imported::load(&args.source, &args.from)?;
    let kept = match &args.filter {
        Some(_) => {
            let dir = tempfile::tempdir().context("cannot make a folder for --where")?;
            let path = dir.path().join("trace");
            imported.write_for_sql(&path)?;
            kept(args, &path)?
        }
        None => None,
    };
    let rows = &imported.trace.rows;
    // Rows are in order of arrival: what --limit leaves out is not even built.
    let indices = (0..rows.len())
        .filter(|index| {
            kept.as_ref()
                .is_none_or(|kept| kept.contains(&(*index as i64)))
        })
        .take(args.limit.map_or(usize::MAX, |n| n as usize));
    let originals = indices.map(|index| imported.request(index)).collect();
    let mut requests = select(originals, None, args);
    for planned in &mut requests {
        let row = &rows[planned.original.request_id as usize];
        planned.output_tokens = row.output_tokens.and_then(|n| i32::try_from(n).ok());
    }
    Ok(Plan {
        origin: Origin {
            name: imported.name(),
            recording_id: None,
            workload: imported.workload(),
            trace: imported.settings(),
            dialect: imported.dialect(),
            blocks_are_tokens: true,
        },
        requests,
    })
}

/// Ids of the requests that `--where` keeps of the recording in `path`; `None` for
/// all.
fn kept(args: &SourceArgs, path: &Path) -> Result<Option<BTreeSet<i64>>> {
    let filter = args.filter.as_deref();
    filter.map(|filter| matching(path, filter)).transpose()
}

/// Ids of the requests of the recording in `path` for which `filter` holds.
///
/// # Errors
/// When it does not hold up as SQL.
pub(crate) fn matching(path: &Path, filter: &str) -> Result<BTreeSet<i64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let paths = [path.to_owned()];
    runtime
        .block_on(tapedeck_analyze::matching_requests(&paths, filter))
        .with_context(|| format!("--where {filter}"))
}

/// First attempts but for probes, in order of arrival, at offsets relative to the
/// first one kept.
fn select(rows: Vec<RequestRow>, kept: Option<&BTreeSet<i64>>, args: &SourceArgs) -> Vec<Planned> {
    let mut due: Vec<(i64, RequestRow)> = rows
        .into_iter()
        .filter(|row| row.attempt == 0 && row.phase != Phase::Probe)
        .filter(|row| kept.is_none_or(|kept| kept.contains(&row.request_id)))
        .filter_map(|row| Some((arrived_ns(&row)?, row)))
        .collect();
    due.sort_by_key(|(t_ns, row)| (*t_ns, row.request_id));
    due.truncate(args.limit.map_or(usize::MAX, |n| n as usize));
    let first_ns = due.first().map_or(0, |(t_ns, _)| *t_ns);
    due.into_iter()
        .map(|(t_ns, original)| Planned {
            offset_ns: scaled(t_ns - first_ns, args.speed),
            input_tokens: original.input_tokens,
            output_tokens: None,
            original,
        })
        .collect()
}

/// When the original came: at the proxy, by its schedule, or when it was sent.
fn arrived_ns(row: &RequestRow) -> Option<i64> {
    row.t_received_ns.or(row.t_scheduled_ns).or(row.t_sent_ns)
}

/// Exact for speed 1: an offset in ns fits the 53 bits of a float for 104 days.
fn scaled(offset_ns: i64, speed: f64) -> i64 {
    (offset_ns as f64 / speed).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_divided_once_and_do_not_drift() {
        for i in 0..100_000 {
            let offset_ns = i * 3_370_001;
            assert_eq!(scaled(offset_ns, 1.0), offset_ns);
            assert_eq!(scaled(offset_ns * 2, 2.0), offset_ns);
        }
    }
}
