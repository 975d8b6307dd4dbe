//! What lies below a folder, the readable and the unreadable.
//!
//! A report stops at the first recording that it cannot read, because its numbers
//! would be those of something else than was asked for. A listing goes on: it is
//! how one finds out which recording that is.

use std::path::{Path, PathBuf};

use tapedeck_recording::Recording;
use tapedeck_recording::manifest::MANIFEST_FILE;
use tapedeck_recording::reader::ReadError;

use crate::parameters::Parameters;
use crate::report::{self, Summary};
use crate::session::{Error, Session};

/// How many folders below the root a recording may lie, as
/// [`Recording::open_all`] has it.
const DEPTH: usize = 2;

/// A recording, or what stands in its place.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dir: PathBuf,
    /// `None` where not even the manifest can be read.
    pub(crate) recording: Option<Recording>,
    /// `None` where the views have no row for it.
    pub(crate) summary: Result<Option<Summary>, Error>,
}

/// Every recording at or below `root`, ordered by path.
///
/// # Errors
/// When there is none, or `root` itself cannot be read.
pub(crate) async fn below(root: &Path) -> Result<Vec<Entry>, Error> {
    let mut dirs = Vec::new();
    find(root, DEPTH, &mut dirs)?;
    if dirs.is_empty() {
        return Err(ReadError::NotFound(root.to_owned()).into());
    }
    dirs.sort_by(|a, b| a.0.cmp(&b.0));
    let mut readable: Vec<Recording> = Vec::new();
    let mut entries = Vec::new();
    for (dir, opened) in dirs {
        match opened.and_then(|recording| refuse_copy(&readable, recording)) {
            Ok(recording) => readable.push(recording),
            Err(error) => entries.push(Entry {
                dir,
                recording: None,
                summary: Err(error),
            }),
        }
    }
    entries.extend(summarize(readable).await);
    entries.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(entries)
}

type Opened = (PathBuf, Result<Recording, Error>);

/// A folder that cannot be listed is an entry too, unless it is the root.
fn find(path: &Path, depth: usize, found: &mut Vec<Opened>) -> Result<(), Error> {
    if path.join(MANIFEST_FILE).is_file() {
        let opened = Recording::open(path).map_err(Error::Read);
        found.push((path.to_owned(), opened));
        return Ok(());
    }
    if depth == 0 || !path.is_dir() {
        return Ok(());
    }
    let io_error = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    for entry in path.read_dir().map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        let dir = entry.path();
        if entry.file_type().map_err(io_error)?.is_dir()
            && let Err(error) = find(&dir, depth - 1, found)
        {
            found.push((dir, Err(error)));
        }
    }
    Ok(())
}

/// Rows of two copies would count twice in one session.
fn refuse_copy(readable: &[Recording], recording: Recording) -> Result<Recording, Error> {
    let id = &recording.manifest.recording_id;
    let twin = readable.iter().find(|r| r.manifest.recording_id == *id);
    match twin {
        None => Ok(recording),
        Some(twin) => Err(Error::Twice {
            first: twin.dir.clone(),
            second: recording.dir,
        }),
    }
}

/// One session for all is fastest. When it fails each recording gets its own, so
/// that only those whose files are broken go without a summary.
async fn summarize(recordings: Vec<Recording>) -> Vec<Entry> {
    let together = summaries(recordings.clone()).await.ok();
    let mut entries = Vec::new();
    for recording in recordings {
        let id = &recording.manifest.recording_id;
        let summary = match &together {
            Some(all) => Ok(all.iter().find(|s| s.recording_id == *id).cloned()),
            None => summaries(vec![recording.clone()])
                .await
                .map(|mut own| own.pop()),
        };
        entries.push(Entry {
            dir: recording.dir.clone(),
            recording: Some(recording),
            summary,
        });
    }
    entries
}

async fn summaries(recordings: Vec<Recording>) -> Result<Vec<Summary>, Error> {
    let kept = ["outcome", "request_latency"];
    let session = Session::open_keeping(recordings, &Parameters::default(), &kept).await?;
    report::summaries(&session).await
}
