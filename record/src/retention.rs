//! Deleting old recordings of a proxy: only whole sealed ones, in the folders they
//! were made in.

use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tapedeck_clock::realtime_ns;
use tapedeck_recording::Manifest;
use tapedeck_recording::manifest::{MANIFEST_FILE, State};
use tapedeck_run::output::is_folder_name;

use crate::cli::Limit;

/// Beginning of the name under which a recording is deleted: readers never see
/// half of one.
const REMOVED: &str = ".removed-";

/// What may be kept of the recordings that proxies called `name` made in `root`.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) root: PathBuf,
    pub(crate) name: String,
    pub(crate) limits: Vec<Limit>,
}

#[derive(Debug)]
struct Found {
    path: PathBuf,
    /// UUIDv7: ids sort by creation.
    id: String,
    /// When it was sealed, ns since the Unix epoch; `None` while it is not.
    sealed_ns: Option<i64>,
    bytes: u64,
}

impl Retention {
    /// Deletes what is beyond the limits, oldest first, and says so.
    pub(crate) fn sweep(&self) {
        if self.limits.is_empty() {
            return;
        }
        let mut found = self.recordings();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        let mut bytes: u64 = found.iter().map(|f| f.bytes).sum();
        for recording in &found {
            let Some(sealed_ns) = recording.sealed_ns else {
                continue;
            };
            let age_ns = u128::try_from(realtime_ns() - sealed_ns).unwrap_or(0);
            let over = self.limits.iter().any(|limit| match limit {
                Limit::Age(age) => age_ns > age.as_nanos(),
                Limit::Bytes(most) => bytes > *most,
            });
            if over && remove(&recording.path) {
                bytes -= recording.bytes;
            }
        }
    }

    fn recordings(&self) -> Vec<Found> {
        // A root that cannot be read now can be later; recording says what it meets.
        let entries = std::fs::read_dir(&self.root).into_iter().flatten();
        entries
            .flatten()
            .filter_map(|entry| self.look_at(&entry))
            .collect()
    }

    fn look_at(&self, entry: &DirEntry) -> Option<Found> {
        let file_name = entry.file_name();
        let file_name = file_name.to_str()?;
        // What is only linked here was not made here.
        if !entry.file_type().ok()?.is_dir() {
            return None;
        }
        let path = entry.path();
        if let Some(removed) = file_name.strip_prefix(REMOVED) {
            if is_folder_name(removed, &self.name) {
                std::fs::remove_dir_all(&path).ok();
            }
            return None;
        }
        if !is_folder_name(file_name, &self.name) {
            return None;
        }
        let manifest = Manifest::load(&path).ok()?;
        let made_by_a_proxy = manifest.workload.is_some_and(|w| w.kind == "proxy");
        if !made_by_a_proxy || manifest.name != self.name {
            return None;
        }
        let whole = matches!(manifest.state, State::Sealed | State::Recovered);
        let manifest_file = path.join(MANIFEST_FILE).metadata().ok()?;
        Some(Found {
            id: manifest.recording_id,
            sealed_ns: whole.then(|| modified_ns(&manifest_file)),
            bytes: bytes_below(&path),
            path,
        })
    }
}

fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
}

/// Room that a folder takes, by the lengths of its files. What cannot be read
/// counts as nothing.
pub(crate) fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn remove(path: &Path) -> bool {
    match remove_whole(path) {
        Ok(()) => eprintln!("removed {} (--retain)", path.display()),
        Err(ref error) => eprintln!("warning: cannot remove {}: {error}", path.display()),
    }
    !path.exists()
}

fn remove_whole(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let removed = path.with_file_name(format!("{REMOVED}{name}"));
    std::fs::rename(path, &removed)?;
    std::fs::remove_dir_all(&removed)
}
