//! The invariants of a recording.
//!
//! Files first (manifest against disk, footers, every column decodes), then the
//! rows: each query under `checks/` returns what breaks one invariant.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tapedeck_recording::footer::Footer;
use tapedeck_recording::manifest::{MANIFEST_FILE, SegmentFile, State};
use tapedeck_recording::reader::read_file;
use tapedeck_recording::schema::FORMAT_VERSION;
use tapedeck_recording::segment::hash_file;
use tapedeck_recording::{Recording, Table};

use crate::models;
use crate::parameters::Parameters;
use crate::session::{Error, Session, ran_without_log};

/// Rows shown of one broken invariant; the rest is counted.
const ROWS_SHOWN: usize = 5;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Name of the invariant: a file under `checks/`, or `file`.
    pub check: String,
    /// Which request, table or file.
    pub subject: String,
    pub problem: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.check, self.subject, self.problem)
    }
}

/// Everything that is wrong with `recording`; empty when it is sound.
///
/// # Errors
/// When the checks themselves cannot be run, for example on a newer format.
/// Files that do not decode are findings, not errors.
pub async fn check(recording: &Recording) -> Result<Vec<Broken>, Error> {
    let mut broken = check_files(recording);
    let incomplete: Vec<Broken> = unfinished(recording)
        .into_iter()
        .chain(missing(recording))
        .collect();
    if !broken.is_empty() {
        broken.extend(incomplete);
        broken.push(file_problem(
            "rows",
            "were not checked, because of the files named above",
        ));
        return Ok(broken);
    }
    broken.extend(incomplete);
    let session = Session::open_tables(vec![recording.clone()], &Parameters::default())?;
    for model in models::checks() {
        broken.extend(run(&session, model).await?);
    }
    Ok(broken)
}

/// What a recorder that died left undone.
fn unfinished(recording: &Recording) -> Option<Broken> {
    let log = recording.recovered();
    let is_open = recording.manifest.state == State::Open;
    (is_open && !log.live).then(|| {
        let counts = log.counts;
        let problem = format!(
            "was not finished by its recorder: {} rows are only in its log, {} rows are lost, \
             {} bytes are torn",
            counts.rows, counts.lost_rows, counts.torn_bytes
        );
        file_problem(MANIFEST_FILE, problem)
    })
}

/// What a repair could not bring back.
fn missing(recording: &Recording) -> Option<Broken> {
    let manifest = &recording.manifest;
    let counts = manifest.recovered.unwrap_or_default();
    let has_no_log = ran_without_log(&manifest.settings);
    let problem = if manifest.state == State::Sealed || recording.recovered().live {
        return None;
    } else if has_no_log {
        "ran without a log (--durability none): what came after the last sealed file is lost, \
         its number is not known"
            .to_owned()
    } else if counts.lost_rows > 0 {
        format!("{} rows were recorded and are lost", counts.lost_rows)
    } else {
        return None;
    };
    Some(file_problem(MANIFEST_FILE, problem))
}

#[derive(Deserialize)]
struct Row {
    subject: String,
    problem: String,
}

async fn run(session: &Session, model: &models::Model) -> Result<Vec<Broken>, Error> {
    let rows: Vec<Row> = session.rows(model.sql).await?;
    let total = rows.len();
    let named = |subject: String, problem: String| Broken {
        check: model.name.to_owned(),
        subject,
        problem,
    };
    let mut rows: Vec<(String, String)> =
        rows.into_iter().map(|r| (r.subject, r.problem)).collect();
    rows.sort();
    rows.truncate(ROWS_SHOWN);
    let mut broken: Vec<Broken> = rows.into_iter().map(|(s, p)| named(s, p)).collect();
    if total > ROWS_SHOWN {
        let rest = format!("{} more", total - ROWS_SHOWN);
        broken.push(named(rest, format!("break the rule: {}", model.grain)));
    }
    Ok(broken)
}

fn file_problem(subject: &str, problem: impl Into<String>) -> Broken {
    Broken {
        check: "file".to_owned(),
        subject: subject.to_owned(),
        problem: problem.into(),
    }
}

/// The manifest's segments against the files that are there.
fn check_files(recording: &Recording) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut listed = BTreeSet::new();
    for segment in &recording.manifest.segments {
        if !listed.insert(segment.file.clone()) {
            broken.push(file_problem(&segment.file, "is in the manifest twice"));
        } else if let Some(problem) = check_segment(recording, segment) {
            broken.push(file_problem(&segment.file, problem));
        }
    }
    for table in Table::ALL {
        for path in recording.files(table) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let file = format!("{}/{name}", table.name());
            // A recorder may have died between sealing a file and listing it.
            let is_open = recording.manifest.state == State::Open;
            if !listed.contains(&file) && !is_open {
                broken.push(file_problem(&file, "is not in the manifest"));
            }
        }
    }
    broken
}

fn check_segment(recording: &Recording, segment: &SegmentFile) -> Option<String> {
    let path = recording.dir.join(&segment.file);
    if !path.is_file() {
        return Some("is in the manifest and not on disk".to_owned());
    }
    let footer = match Footer::read(&path) {
        Ok(footer) => footer,
        Err(error) => return Some(format!("does not open: {}", chain(&error))),
    };
    let id = &recording.manifest.recording_id;
    let rows = i64::try_from(segment.rows).unwrap_or(i64::MAX);
    match (footer.version, footer.recording_id) {
        (None, _) => Some("has no format version in its footer".to_owned()),
        (Some(found), _) if found > FORMAT_VERSION => Some(format!(
            "has format version {found}, this program reads up to {FORMAT_VERSION}"
        )),
        (_, None) => Some("has no recording_id in its footer".to_owned()),
        (_, Some(found)) if found != *id => Some(format!("is of recording {found}, not {id}")),
        _ if footer.rows != rows => Some(format!(
            "holds {} rows, the manifest says {rows}",
            footer.rows
        )),
        _ => check_hash(&path, segment).or_else(|| decode(&path, &segment.file)),
    }
}

/// Where the manifest knows the file's hash, a flipped byte shows in it.
fn check_hash(path: &Path, segment: &SegmentFile) -> Option<String> {
    let expected = segment.blake3.as_ref()?;
    match hash_file(path) {
        Ok(found) if found == *expected => None,
        Ok(found) => Some(format!(
            "has changed since it was sealed: its BLAKE3 is {found}, the manifest says {expected}"
        )),
        Err(error) => Some(format!("does not read: {error}")),
    }
}

/// Decodes every column, because a flipped byte in a payload shows nowhere else.
/// One file at a time: the limits of a segment bound the memory.
fn decode(path: &Path, file: &str) -> Option<String> {
    let batches = match read_file(path) {
        Ok(batches) => batches,
        Err(error) => return Some(format!("does not decode: {}", chain(&error))),
    };
    let table = Table::ALL.into_iter().find(|t| {
        file.strip_prefix(t.name())
            .is_some_and(|f| f.starts_with('/'))
    });
    let Some(table) = table else {
        return Some("lies in no table's folder".to_owned());
    };
    let expected = table.schema();
    for batch in &batches {
        let found = batch.schema_ref();
        let missing = expected
            .fields()
            .iter()
            .find(|field| found.index_of(field.name()).is_err());
        if let Some(field) = missing {
            return Some(format!("has no column {}", field.name()));
        }
    }
    None
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
