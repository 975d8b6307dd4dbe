//! Whether sealed files are still what their recorder sealed.
//!
//! The manifest has the BLAKE3 of each. Hashing runs at the speed of memory and is
//! remembered under `derived/`: a file whose length, inode and time of change are
//! those of its last look is not read again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use serde::{Deserialize, Serialize};
use tapedeck_recording::Recording;
use tapedeck_recording::manifest::SegmentFile;
use tapedeck_recording::segment::hash_file;

use crate::derived::{self, FOLDER};

const MEMORY: &str = "sealed.json";

/// A file as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    bytes: u64,
    inode: u64,
    changed_s: i64,
    changed_ns: i64,
    blake3: String,
}

impl Seen {
    /// `None` where the file is not there: that is counted elsewhere.
    fn of(path: &Path, blake3: String) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        // The time of change: unlike that of writing, nobody can set it.
        Some(Self {
            bytes: file.len(),
            inode: file.ino(),
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
            blake3,
        })
    }
}

/// Sealed files of `recording` that are not what the manifest says: their hash is
/// another, or they cannot be read. Files without a hash there are passed over.
pub(crate) fn damaged(recording: &Recording) -> Vec<String> {
    let memory = recording.dir.join(FOLDER).join(MEMORY);
    let known: BTreeMap<String, Seen> = fs::read(&memory)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let found = look(recording, &known);
    // Nothing is kept beside a recording that is still written.
    let is_new = found != known && derived::is_whole(recording);
    if is_new && let Ok(text) = serde_json::to_vec(&found) {
        // A folder that cannot be written costs the next look its time.
        let kept = derived::create_folder(&recording.dir);
        kept.and_then(|()| derived::replace(&memory, &text)).ok();
    }
    let segments = recording.manifest.segments.iter();
    let expected = segments.filter_map(|s| Some((&s.file, s.blake3.as_ref()?)));
    expected
        .filter(|(file, _)| recording.dir.join(file).is_file())
        .filter(|(file, hash)| found.get(*file).is_none_or(|seen| seen.blake3 != **hash))
        .map(|(file, _)| file.clone())
        .collect()
}

/// Every file as it is; those that `known` has unchanged are not read.
fn look(recording: &Recording, known: &BTreeMap<String, Seen>) -> BTreeMap<String, Seen> {
    let see = |segment: &SegmentFile| {
        let path = recording.dir.join(&segment.file);
        if let Some(before) = known.get(&segment.file)
            && Seen::of(&path, before.blake3.clone()).as_ref() == Some(before)
        {
            return Some((segment.file.clone(), before.clone()));
        }
        // Before the content is read: what changes meanwhile is looked at again.
        let seen = Seen::of(&path, String::new())?;
        let blake3 = hash_file(&path).ok()?;
        Some((segment.file.clone(), Seen { blake3, ..seen }))
    };
    let segments = &recording.manifest.segments;
    let with_hash: Vec<&SegmentFile> = segments.iter().filter(|s| s.blake3.is_some()).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = with_hash.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let parts = with_hash.chunks(share);
        let parts = parts.map(|part| {
            scope.spawn(move || part.iter().filter_map(|s| see(s)).collect::<Vec<_>>())
        });
        // All are started before the first is waited for.
        let parts: Vec<_> = parts.collect();
        let seen = parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_default());
        seen.collect()
    })
}
