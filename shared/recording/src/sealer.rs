//! The sealer: one thread that turns closed segments into sealed files.
//!
//! It owns the manifest. One segment is sealed at a time; handing over the next
//! waits until that is done, which bounds memory to two segments.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::manifest::{MANIFEST_FILE, Manifest, SegmentFile, State};
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

/// The sealer has stopped; joining it says why.
#[derive(Debug)]
pub(crate) struct SealerStopped;

#[derive(Debug)]
pub(crate) struct Sealer {
    segments: SyncSender<Box<Closed>>,
    thread: JoinHandle<Result<Manifest, WriteError>>,
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
        // No room: a segment is handed over only to a sealer that waits for it.
        let (segments, received) = sync_channel(0);
        let work = Work {
            dir: dir.to_owned(),
            manifest,
            on_disk_error,
            ending,
            gauges,
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-sealer".into())
            .spawn(move || work.run(&received, failed))?;
        Ok(Self { segments, thread })
    }

    /// Waits for the segment before and hands over this one.
    pub(crate) fn seal(&self, closed: Closed) -> Result<(), SealerStopped> {
        self.segments
            .send(Box::new(closed))
            .map_err(|_| SealerStopped)
    }

    /// The manifest after all segments handed over are sealed.
    pub(crate) fn finish(self) -> Result<Manifest, WriteError> {
        drop(self.segments);
        self.thread.join().map_err(|_| WriteError::Panicked)?
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
    fn run(
        mut self,
        segments: &Receiver<Box<Closed>>,
        failed: impl Fn(u64),
    ) -> Result<Manifest, WriteError> {
        while let Ok(closed) = segments.recv() {
            let unlogged = closed.unlogged;
            self.take(*closed).inspect_err(|_| failed(unlogged))?;
        }
        Ok(self.manifest)
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
