//! What a recording holds at this instant: sealed files and, beside them, the
//! rows of the write-ahead log that are in none of them.
//!
//! A sealed file is named by the numbers of its cut, over all tables. Rows of the
//! log are passed over exactly when a sealed file of their own table covers their
//! numbers: this holds also where a crash came between the files of one cut, or
//! before the manifest named them, or before the log was removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::columns::from_batch;
use crate::event::{EventBatch, MarkRow, ResponseRow};
use crate::footer::Footer;
use crate::frame::Seed;
use crate::lock::{self, WAL_DIR};
use crate::manifest::{ClockAnchor, Manifest, RecoveredCounts, State};
use crate::reader::{ReadError, read_file};
use crate::scan::{Scanned, scan};
use crate::schema::Table;
use crate::segment::{Cut, Rows};
use crate::wal::WAL_EXTENSION;

/// Sealed files of each table, in the order of their rows.
pub(crate) type SealedFiles = [Vec<PathBuf>; 5];

/// Rows of one cut that are in no sealed file.
#[derive(Debug, Clone)]
pub(crate) struct Unsealed {
    pub(crate) cut: Cut,
    pub(crate) rows: Rows,
}

/// What the log adds to the sealed files.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    pub(crate) unsealed: Vec<Unsealed>,
    pub counts: RecoveredCounts,
    /// Somebody is writing the recording now: what looks torn is not finished.
    pub live: bool,
}

/// Manifest, sealed files and recovered rows of one instant.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) manifest: Manifest,
    pub(crate) sealed: SealedFiles,
    pub(crate) recovered: Recovered,
}

/// A segment is sealed every few seconds at the most, and reading one takes less;
/// an unlucky reader tries again this often.
const TRIES: usize = 20;

/// Reads `recording` as of one instant. While a recorder seals a segment, rows
/// move from the log to files: the two are taken together only if manifest and
/// files are the same before and after the log was read. `is_mine`: the caller
/// holds the lock, so that nobody else writes.
///
/// # Errors
/// When a file cannot be read, or the recording changes faster than it is read.
pub(crate) fn snapshot(recording: &Path, is_mine: bool) -> Result<Snapshot, ReadError> {
    let mut before = (Manifest::load(recording)?, sealed_files(recording)?);
    for _ in 0..TRIES {
        // Asked first: a recorder that dies after this has left a torn end, which is
        // then taken for one that is being written, as it was.
        let live = !is_mine && before.0.state == State::Open && lock::is_held(recording);
        let logs = read_logs(recording, &before.0)?;
        let after = (Manifest::load(recording)?, sealed_files(recording)?);
        if before == after {
            let (manifest, sealed) = after;
            return finish(recording, manifest, sealed, logs, live);
        }
        before = after;
    }
    Err(ReadError::Changing(recording.to_owned()))
}

fn finish(
    recording: &Path,
    mut manifest: Manifest,
    sealed: SealedFiles,
    logs: BTreeMap<u64, Scanned>,
    live: bool,
) -> Result<Snapshot, ReadError> {
    let mut recovered = Recovered {
        live,
        ..Recovered::default()
    };
    if manifest.state == State::Open {
        merge(&mut recovered, logs, &sealed, &listed(recording, &manifest))?;
        Notes::unlisted(recording, &manifest, &sealed, &recovered)?.apply(&mut manifest);
    }
    Ok(Snapshot {
        manifest,
        sealed,
        recovered,
    })
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> ReadError {
    move |source| ReadError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Names in `dir` that end in `extension`, sorted; none where there is no folder.
pub(crate) fn list(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, ReadError> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn sealed_files(recording: &Path) -> Result<SealedFiles, ReadError> {
    let mut files = SealedFiles::default();
    for table in Table::ALL {
        files[table as usize] = list(&recording.join(table.name()), "parquet")?;
    }
    Ok(files)
}

/// Files of the log, in the order of their rows.
pub(crate) fn wal_files(recording: &Path) -> Result<Vec<PathBuf>, ReadError> {
    list(&recording.join(WAL_DIR), WAL_EXTENSION)
}

/// The log by the number of each file's first row.
fn read_logs(recording: &Path, manifest: &Manifest) -> Result<BTreeMap<u64, Scanned>, ReadError> {
    let mut logs = BTreeMap::new();
    // A log that outlived the end of its recording is sealed whole.
    if manifest.state != State::Open {
        return Ok(logs);
    }
    let seed = Seed::of(&manifest.recording_id);
    for path in wal_files(recording)? {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let Some(first_seq) = stem.and_then(|stem| stem.parse().ok()) else {
            continue;
        };
        match scan(&path, first_seq, seed) {
            Ok(scanned) => drop(logs.insert(first_seq, scanned)),
            // Sealed since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&path)(error)),
        }
    }
    Ok(logs)
}

/// The cuts that have sealed files: by first number, the last one and the files.
fn sealed_cuts(sealed: &SealedFiles) -> BTreeMap<u64, (u64, Vec<&PathBuf>)> {
    let mut cuts: BTreeMap<u64, (u64, Vec<&PathBuf>)> = BTreeMap::new();
    for path in sealed.iter().flatten() {
        if let Some(cut) = Cut::of_file(path) {
            let known = cuts.entry(cut.first_seq).or_default();
            known.0 = known.0.max(cut.last_seq);
            known.1.push(path);
        }
    }
    cuts
}

/// Adds what the log holds and no sealed file does, and counts what neither does.
fn merge(
    recovered: &mut Recovered,
    logs: BTreeMap<u64, Scanned>,
    sealed: &SealedFiles,
    listed: &BTreeSet<PathBuf>,
) -> Result<(), ReadError> {
    let cuts = sealed_cuts(sealed);
    let mut firsts: Vec<u64> = logs.keys().chain(cuts.keys()).copied().collect();
    firsts.sort_unstable();
    firsts.dedup();
    let last_log = logs.keys().next_back().copied();
    let mut logs = logs;
    let mut end_seq = 0;
    for (index, &first_seq) in firsts.iter().enumerate() {
        // Between two cuts: numbered, and neither sealed nor in a log.
        recovered.counts.lost_rows += first_seq.saturating_sub(end_seq);
        let files = cuts.get(&first_seq);
        let sealed_end = files.map(|(last_seq, _)| last_seq + 1);
        let Some(log) = logs.remove(&first_seq) else {
            end_seq = end_seq.max(sealed_end.unwrap_or(first_seq));
            // A cut that was being sealed and has no log any more, or never had one.
            if let Some((last_seq, files)) = files
                && !recovered.live
                && !files.iter().all(|path| listed.contains(*path))
            {
                let numbered = last_seq + 1 - first_seq;
                recovered.counts.lost_rows += numbered.saturating_sub(rows_of(files)?);
            }
            continue;
        };
        let next = firsts.get(index + 1).copied();
        // The log's own word is the last resort: its end may be torn.
        end_seq = sealed_end.or(next).unwrap_or(log.end_seq);
        if recovered.live && last_log == Some(first_seq) {
            // What looks torn is being written.
            end_seq = log.rows_end_seq;
        } else {
            recovered.counts.torn_bytes += log.torn_bytes;
        }
        let sealed_rows = rows_of(files.map_or(&[], |(_, files)| files))?;
        let rows = unsealed_rows(log, sealed, first_seq)?;
        let present = sealed_rows + rows.len();
        recovered.counts.rows += rows.len();
        recovered.counts.lost_rows += (end_seq - first_seq).saturating_sub(present);
        if !rows.is_empty() {
            let last_seq = end_seq - 1;
            recovered.unsealed.push(Unsealed {
                cut: Cut {
                    first_seq,
                    last_seq,
                },
                rows,
            });
        }
    }
    Ok(())
}

/// Paths of the files that the manifest lists.
fn listed(recording: &Path, manifest: &Manifest) -> BTreeSet<PathBuf> {
    let segments = manifest.segments.iter();
    segments.map(|s| recording.join(&s.file)).collect()
}

fn rows_of(files: &[&PathBuf]) -> Result<u64, ReadError> {
    files.iter().try_fold(0, |rows, path| {
        Ok(rows + u64::try_from(Footer::read(path)?.rows).unwrap_or(0))
    })
}

/// Rows of `log` that no sealed file of their table covers.
fn unsealed_rows(log: Scanned, sealed: &SealedFiles, first_seq: u64) -> Result<Rows, ReadError> {
    let mut rows = Rows::default();
    for numbered in log.rows {
        let cut = Cut {
            first_seq: numbered.first_seq,
            last_seq: numbered.first_seq + (numbered.batch.num_rows() as u64).saturating_sub(1),
        };
        let files = sealed[numbered.table as usize].iter();
        let is_sealed = files
            .filter_map(|path| Cut::of_file(path))
            .any(|file| file.contains(cut));
        if !is_sealed {
            rows.push(numbered.table, numbered.batch)
                .map_err(|source| ReadError::Arrow {
                    path: PathBuf::from(format!("{WAL_DIR}/{first_seq:012}.{WAL_EXTENSION}")),
                    source,
                })?;
        }
    }
    Ok(rows)
}

/// What the manifest repeats from rows.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) anchors: Vec<ClockAnchor>,
    /// `kernel`, `process` or `mixed`.
    pub(crate) source: Option<&'static str>,
    pub(crate) dropped_events: u64,
}

impl Notes {
    /// Of all rows that the manifest does not know of yet.
    fn unlisted(
        recording: &Path,
        manifest: &Manifest,
        sealed: &SealedFiles,
        recovered: &Recovered,
    ) -> Result<Self, ReadError> {
        let mut events = EventBatch::default();
        for table in [Table::Responses, Table::Marks] {
            for path in unlisted(recording, manifest, &sealed[table as usize]) {
                for batch in read_file(path)? {
                    read_rows(table, &batch, path, &mut events)?;
                }
            }
            for unsealed in &recovered.unsealed {
                for batch in unsealed.rows.of(table) {
                    read_rows(table, batch, &recording.join(WAL_DIR), &mut events)?;
                }
            }
        }
        let mut notes = Self::default();
        notes.add(&events);
        let anchors = events.marks.iter().filter(|m| &*m.name == "anchor");
        notes.anchors.extend(anchors.filter_map(anchor));
        Ok(notes)
    }

    pub(crate) fn add(&mut self, events: &EventBatch) {
        // A response without a single arrival says nothing about the source.
        let arrived = |r: &&ResponseRow| r.t_headers_ns.is_some();
        for response in events.responses.iter().filter(arrived) {
            self.source = mixed(self.source, response.timestamp_source.as_str());
        }
        let drops = events.marks.iter().filter(|m| &*m.name == "dropped");
        self.dropped_events += drops.map(dropped_events).sum::<u64>();
    }

    pub(crate) fn apply(self, manifest: &mut Manifest) {
        for anchor in self.anchors {
            if !manifest.anchors.contains(&anchor) {
                manifest.anchors.push(anchor);
            }
        }
        if let Some(source) = self.source {
            let known = manifest.timestamp_source.get_or_insert(source.to_owned());
            if known != source {
                "mixed".clone_into(known);
            }
        }
        manifest.dropped_events += self.dropped_events;
    }
}

fn mixed(known: Option<&'static str>, word: &'static str) -> Option<&'static str> {
    match known {
        Some(known) if known != word => Some("mixed"),
        _ => Some(word),
    }
}

fn field(mark: &MarkRow, name: &str) -> Option<Value> {
    let detail: Value = serde_json::from_str(&mark.detail).ok()?;
    detail.get(name).cloned()
}

fn dropped_events(mark: &MarkRow) -> u64 {
    field(mark, "events").and_then(|v| v.as_u64()).unwrap_or(1)
}

fn anchor(mark: &MarkRow) -> Option<ClockAnchor> {
    Some(ClockAnchor {
        monotonic_ns: field(mark, "monotonic_ns")?.as_i64()?,
        realtime_ns: field(mark, "realtime_ns")?.as_i64()?,
    })
}

fn read_rows(
    table: Table,
    batch: &arrow::array::RecordBatch,
    path: &Path,
    events: &mut EventBatch,
) -> Result<(), ReadError> {
    from_batch(table, batch, events).map_err(|source| ReadError::Rows {
        path: path.to_owned(),
        source,
    })
}

/// Files among `sealed` that the manifest does not list.
pub(crate) fn unlisted<'a>(
    recording: &'a Path,
    manifest: &'a Manifest,
    sealed: &'a [PathBuf],
) -> impl Iterator<Item = &'a PathBuf> {
    let listed = listed(recording, manifest);
    sealed.iter().filter(move |path| !listed.contains(*path))
}

#[cfg(test)]
mod tests;
