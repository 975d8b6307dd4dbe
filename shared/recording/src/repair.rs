//! `record repair`: what a dead recorder left in its log becomes sealed files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::columns::to_batch;
use crate::event::{EventBatch, MarkRow};
use crate::files::{self, TEMPORARY};
use crate::lock::{self, WAL_DIR};
use crate::manifest::{MANIFEST_FILE, Manifest, RecoveredCounts, SegmentFile, State};
use crate::reader::{ReadError, Recording, read_file};
use crate::recover::{list, unlisted, wal_files};
use crate::schema::Table;
use crate::segment::{Cut, Described, Rows, SealError, Tables, hash_file, seal};

/// Name of the mark that a repair leaves in a recording.
const MARK: &str = "recovered";

/// A recording that could not be repaired. What is in it stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("{} is being written\nhint: repair it when its recorder has ended", .0.display())]
    InUse(PathBuf),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a repair did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// Its recorder had ended it, or it was repaired before.
    NothingToDo,
    Recovered(RecoveredCounts),
}

/// Seals everything that only the log of `recording` holds, says so in manifest
/// and marks, and empties the log. A second repair changes nothing; one that was
/// itself interrupted is taken up where it was.
///
/// # Errors
/// When somebody writes the recording, or it cannot be read or written.
pub fn repair(recording: &Path) -> Result<Repaired, RepairError> {
    // A wrong path is told before anything else, and where there is nothing to do
    // nothing is written.
    let is_open = Recording::manifest_of(recording)?.state == State::Open;
    if !is_open && wal_files(recording)?.is_empty() {
        return Ok(Repaired::NothingToDo);
    }
    let _lock = lock(recording)?;
    let opened = Recording::open_locked(recording)?;
    let repaired = match opened.manifest.state {
        State::Open => Repaired::Recovered(make_whole(&opened)?),
        State::Sealed | State::Recovered => Repaired::NothingToDo,
    };
    clean(recording)?;
    Ok(repaired)
}

fn write_error(path: PathBuf) -> impl FnOnce(std::io::Error) -> RepairError {
    move |source| RepairError::Write { path, source }
}

fn lock(recording: &Path) -> Result<File, RepairError> {
    let folder = recording.join(WAL_DIR);
    // Recordings of early versions have none.
    files::create_dir(&folder).map_err(write_error(folder.clone()))?;
    let locked = lock::exclusive(recording).map_err(write_error(folder))?;
    locked.ok_or_else(|| RepairError::InUse(recording.to_owned()))
}

fn make_whole(recording: &Recording) -> Result<RecoveredCounts, RepairError> {
    let mut manifest = recording.manifest.clone();
    let recovered = recording.recovered();
    // Sealed before its recorder died, but not listed.
    for table in Table::ALL {
        let files = unlisted(&recording.dir, &recording.manifest, recording.files(table));
        for path in files {
            manifest.segments.push(describe(table, path)?);
        }
    }
    for part in &recovered.unsealed {
        seal_rows(
            recording,
            part.cut,
            &part.rows,
            Tables::NonEmpty,
            &mut manifest,
        )?;
    }
    let counts = close(recording, &mut manifest)?;
    manifest.state = State::Recovered;
    manifest.recovered = Some(counts);
    crash_point!("repair::before_manifest", &recording.dir);
    let path = recording.dir.join(MANIFEST_FILE);
    manifest
        .store(&recording.dir)
        .map_err(write_error(path))
        .map(|()| counts)
}

fn seal_rows(
    recording: &Recording,
    cut: Cut,
    rows: &Rows,
    tables: Tables,
    manifest: &mut Manifest,
) -> Result<(), RepairError> {
    let id = &recording.manifest.recording_id;
    seal(
        &recording.dir,
        id,
        cut,
        rows,
        tables,
        &mut manifest.segments,
    )?;
    Ok(())
}

fn describe(table: Table, path: &Path) -> Result<SegmentFile, RepairError> {
    let io_error = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    let mut described = Described::default();
    for batch in read_file(path)? {
        described.add(&batch);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = format!("{}/{name}", table.name());
    let blake3 = hash_file(path).map_err(io_error)?;
    Ok(described.file(file, Some(blake3)))
}

/// The last segment: a mark that tells of the repair, and an empty file for each
/// table that has none, so that every reader finds all five.
fn close(recording: &Recording, manifest: &mut Manifest) -> Result<RecoveredCounts, RepairError> {
    let marks = recording.rows(Table::Marks)?.marks;
    if let Some(mark) = marks.iter().find(|mark| &*mark.name == MARK) {
        // An interrupted repair got this far, and what it had sealed by then is no
        // longer counted.
        return Ok(serde_json::from_str(&mark.detail).unwrap_or(recording.recovered().counts));
    }
    let cuts = manifest.segments.iter();
    let cuts = cuts.filter_map(|s| Cut::of_file(Path::new(&s.file)));
    let seq = cuts.map(|cut| cut.last_seq + 1).max().unwrap_or(0);
    let counts = recording.recovered().counts;
    let mut events = EventBatch::default();
    events.marks.push(MarkRow {
        t_ns: last_instant_ns(recording, manifest)?,
        name: MARK.into(),
        detail: json!(counts).to_string().into(),
    });
    let cut = Cut {
        first_seq: seq,
        last_seq: seq,
    };
    let mut rows = Rows::default();
    let arrow_error = |source| SealError::Arrow {
        path: recording.dir.join(cut.file(Table::Marks)),
        source,
    };
    let batch = to_batch(Table::Marks, &[events]).map_err(arrow_error)?;
    rows.push(Table::Marks, batch).map_err(arrow_error)?;
    seal_rows(recording, cut, &rows, Tables::All, manifest)?;
    Ok(counts)
}

/// The latest instant that the recording knows of.
fn last_instant_ns(recording: &Recording, manifest: &Manifest) -> Result<i64, RepairError> {
    let sealed = manifest.segments.iter().filter_map(|s| s.max_t_ns).max();
    let marks = recording.rows(Table::Marks)?.marks;
    let marked = marks.iter().map(|mark| mark.t_ns).max();
    Ok(sealed.max(marked).unwrap_or(0))
}

/// Removes the log, all of which is sealed, and files that never got their name.
fn clean(recording: &Path) -> Result<(), RepairError> {
    let mut left = wal_files(recording)?;
    let extension = TEMPORARY.trim_start_matches('.');
    left.extend(list(recording, extension)?);
    for table in Table::ALL {
        left.extend(list(&recording.join(table.name()), extension)?);
    }
    for path in left {
        fs::remove_file(&path).map_err(write_error(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
