//! What lies below a folder, the readable and the unreadable.
//!
//! A report stops at the first recording that it cannot read, because its numbers
//! would be those of something else than was asked for. A listing goes on: it is
//! how one finds out which recording that is.

use std::path::{Path, PathBuf};

use tapedeck_recording::Recording;

use crate::parameters::Parameters;
use crate::report::{self, Summary};
use crate::session::{Error, Session};

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
    let mut readable: Vec<Recording> = Vec::new();
    let mut entries = Vec::new();
    for (dir, opened) in Recording::below(root)? {
        let opened = opened.map_err(Error::Read);
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
