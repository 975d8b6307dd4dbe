//! The sealer: one thread that turns closed segments into sealed files.
//!
//! It owns the manifest. One segment is sealed at a time. While that lasts a few
//! more may wait, so that rows go on into the log at their usual pace; then handing
//! one over waits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::manifest::{MANIFEST_FILE, Manifest, SegmentFile, State};
use crate::queue::{Popped, Queue};
use crate::recover::Notes;
use crate::segment::{Cut, Rows, Tables, seal};
use crate::sink::Gauges;
use crate::writer::{DiskError, WriteError};

/// A segment that takes no more rows.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) cut: Cut,
    pub(crate) rows: Rows,
    pub(crate) tables: Tables,
    /// State of the recording once this is sealed.
    pub(crate) state: State,
    pub(crate) notes: Notes,
    /// The segment's file of the log, removed last.
    pub(crate) wal: Option<PathBuf>,
    /// Rows that are in no log: lost if this cannot be sealed.
    pub(crate) unlogged: u64,
}

/// Between two tries on a disk that refuses.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Closed segments that wait for the sealer at most, and their memory. With the
/// defaults of a segment one is being sealed, one waits and one is open; shorter ones,
/// which are cut by age, are more and not larger.
pub(crate) const WAITING_SEGMENTS: usize = 4;
const WAITING_BYTES: usize = 128 << 20;

/// The sealer looks up this often; it is woken when there is something to do.
const LOOK_UP: Duration = Duration::from_secs(60);

type Segments = Queue<Box<Closed>>;

/// The sealer has stopped; joining it says why.
#[derive(Debug)]
pub(crate) struct SealerStopped;

#[derive(Debug)]
pub(crate) struct Sealer {
    segments: Arc<Segments>,
    thread: Option<JoinHandle<Result<Manifest, WriteError>>>,
}

/// Whoever waits on either side must not wait for a thread that is gone.
struct CloseGuard(Arc<Segments>);

impl Drop for CloseGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.segments.close();
    }
}

impl Sealer {
    /// Once `ending` is set an error is final, whatever was chosen. `failed` is
    /// called when the disk has refused for good, with the number of rows that went
    /// with it.
    pub(crate) fn start(
        dir: &Path,
        manifest: Manifest,
        on_disk_error: DiskError,
        ending: Arc<AtomicBool>,
        gauges: Arc<Gauges>,
        failed: impl Fn(u64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let segments = Arc::new(Segments::new(WAITING_SEGMENTS, WAITING_BYTES));
        let theirs = CloseGuard(Arc::clone(&segments));
        let work = Work {
            dir: dir.to_owned(),
            manifest,
            on_disk_error,
            ending,
            gauges,
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-sealer".into())
            .spawn(move || work.run(&theirs.0, failed))?;
        Ok(Self {
            segments,
            thread: Some(thread),
        })
    }

    /// Hands over a segment, waiting while there is no room for it.
    pub(crate) fn seal(&self, closed: Closed) -> Result<(), SealerStopped> {
        let bytes = closed.rows.size_bytes();
        self.segments
            .push(Box::new(closed), bytes)
            .map_err(|_| SealerStopped)
    }

    /// The manifest after all segments handed over are sealed.
    pub(crate) fn finish(mut self) -> Result<Manifest, WriteError> {
        self.segments.close();
        let thread = self.thread.take().ok_or(WriteError::Panicked)?;
        thread.join().map_err(|_| WriteError::Panicked)?
    }
}

struct Work {
    dir: PathBuf,
    manifest: Manifest,
    on_disk_error: DiskError,
    ending: Arc<AtomicBool>,
    gauges: Arc<Gauges>,
}

impl Work {
    fn run(mut self, segments: &Segments, failed: impl Fn(u64)) -> Result<Manifest, WriteError> {
        loop {
            let closed = match segments.pop(LOOK_UP) {
                Popped::Item(closed) => closed,
                Popped::Timeout => continue,
                Popped::Closed => return Ok(self.manifest),
            };
            let mut unlogged = closed.unlogged;
            self.take(*closed).inspect_err(|_| {
                // Those that wait go the same way.
                segments.close();
                while let Popped::Item(waiting) = segments.pop(Duration::ZERO) {
                    unlogged += waiting.unlogged;
                }
                failed(unlogged);
            })?;
        }
    }

    fn take(&mut self, closed: Closed) -> Result<(), WriteError> {
        let mut files = Vec::new();
        self.persist(|work| {
            let id = &work.manifest.recording_id;
            seal(
                &work.dir,
                id,
                closed.cut,
                &closed.rows,
                closed.tables,
                &mut files,
            )
            .map_err(WriteError::Seal)
        })?;
        self.list(files, closed.notes, closed.state);
        crash_point!("seal::before_manifest", &self.dir);
        self.persist(|work| store(&work.manifest, &work.dir))?;
        if let Some(wal) = closed.wal {
            crash_point!("seal::before_wal_removal", &wal);
            // What is left behind is passed over by readers and `record repair`.
            drop(std::fs::remove_file(wal));
        }
        Ok(())
    }

    fn list(&mut self, files: Vec<SegmentFile>, notes: Notes, state: State) {
        self.manifest.segments.extend(files);
        notes.apply(&mut self.manifest);
        self.manifest.state = state;
    }

    /// Does `step` until the disk lets it, or once, as was chosen.
    fn persist(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        loop {
            let is_last = self.ending.load(Ordering::Relaxed);
            let done = step(self);
            let refused = &self.gauges.seal_refused;
            refused.store(done.is_err(), Ordering::Relaxed);
            match done {
                Err(error)
                    if error.is_of_disk()
                        && self.on_disk_error == DiskError::DropAndRetry
                        && !is_last =>
                {
                    std::thread::sleep(RETRY);
                }
                done => return done,
            }
        }
    }
}

pub(crate) fn store(manifest: &Manifest, dir: &Path) -> Result<(), WriteError> {
    manifest.store(dir).map_err(|source| WriteError::File {
        path: dir.join(MANIFEST_FILE),
        source,
    })
}
