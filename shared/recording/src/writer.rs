//! The writer: one named thread behind a bounded queue.
//!
//! Rows are numbered in the order in which they reach the writer, over all
//! tables, and cut into segments by rows, bytes or age. A cut seals every table
//! at the same number.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tapedeck_clock::monotonic_ns;

use crate::event::{EventBatch, MarkRow, TimestampSource};
use crate::files;
use crate::manifest::{ClockAnchor, Manifest, State};
use crate::segment::{SealError, Tables, seal};

/// Batches between the sockets and the writer. The live layer makes batches of at
/// most 256 rows or 256 KiB and the one row that went over: ordinarily 64 MiB at
/// most, more where single payloads are larger than that.
pub const QUEUE_BATCHES: usize = 256;

/// When a segment is cut.
#[derive(Debug, Clone, Copy)]
pub struct SegmentLimits {
    pub rows: usize,
    pub bytes: usize,
    pub age: Duration,
}

impl Default for SegmentLimits {
    /// 256 Ki rows or 128 MiB bound the memory of the open segment; 300 s bound
    /// what a quiet recording holds back.
    fn default() -> Self {
        Self {
            rows: 1 << 18,
            bytes: 128 << 20,
            age: Duration::from_secs(300),
        }
    }
}

/// A recording that could not be created or finished.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} is not empty\nhint: choose another --out, recordings are never overwritten", .0.display())]
    NotEmpty(PathBuf),
    #[error("cannot create the recording {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the writer thread")]
    Thread(#[source] std::io::Error),
    #[error("cannot write {}", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the writer thread ended early")]
    Panicked,
}

/// The writer has stopped; [`Writer::finish`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the recording's writer has stopped")]
pub struct Stopped;

enum Message {
    Events(EventBatch),
    Anchor(ClockAnchor),
    Finish,
}

#[derive(Debug, Default)]
struct Gauges {
    queued_batches: AtomicUsize,
    failed: AtomicBool,
}

/// A cloneable handle that hands rows to the writer.
#[derive(Debug, Clone)]
pub struct Sink {
    queue: SyncSender<Message>,
    gauges: Arc<Gauges>,
}

impl Sink {
    /// Hands over a batch, waiting while the queue is full.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub fn push(&self, batch: EventBatch) -> Result<(), Stopped> {
        if batch.is_empty() {
            return Ok(());
        }
        self.send(Message::Events(batch))
    }

    /// Hands over a batch if there is room; gives it back otherwise.
    ///
    /// # Errors
    /// The batch, when the queue is full or the writer has stopped.
    #[expect(
        clippy::result_large_err,
        reason = "the batch goes back to a caller that counts what it drops"
    )]
    pub fn try_push(&self, batch: EventBatch) -> Result<(), EventBatch> {
        self.gauges.queued_batches.fetch_add(1, Ordering::Relaxed);
        self.queue.try_send(Message::Events(batch)).map_err(|e| {
            self.gauges.queued_batches.fetch_sub(1, Ordering::Relaxed);
            match e {
                TrySendError::Full(Message::Events(batch))
                | TrySendError::Disconnected(Message::Events(batch)) => batch,
                TrySendError::Full(_) | TrySendError::Disconnected(_) => EventBatch::default(),
            }
        })
    }

    /// Adds a clock anchor to the manifest.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub fn anchor(&self, anchor: ClockAnchor) -> Result<(), Stopped> {
        self.send(Message::Anchor(anchor))
    }

    /// Batches waiting for the writer.
    #[must_use]
    pub fn queued_batches(&self) -> usize {
        self.gauges.queued_batches.load(Ordering::Relaxed)
    }

    /// True once the writer met an error: nothing more is recorded.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.gauges.failed.load(Ordering::Relaxed)
    }

    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.gauges.queued_batches.fetch_add(1, Ordering::Relaxed);
        self.queue.send(message).map_err(|_| {
            // Also when the writer panicked and could not say so itself.
            self.gauges.failed.store(true, Ordering::Relaxed);
            self.gauges.queued_batches.fetch_sub(1, Ordering::Relaxed);
            Stopped
        })
    }
}

/// The owner of the writer thread.
#[derive(Debug)]
pub struct Writer {
    sink: Sink,
    thread: JoinHandle<Result<Manifest, WriteError>>,
}

impl Writer {
    /// Creates the recording `dir` (missing or empty), writes its first manifest
    /// and starts the writer.
    ///
    /// # Errors
    /// When `dir` is not empty or cannot be written.
    pub fn create(
        dir: &Path,
        manifest: Manifest,
        limits: SegmentLimits,
    ) -> Result<Self, WriteError> {
        claim(dir)?;
        store(&manifest, dir)?;
        let (queue, receiver) = sync_channel(QUEUE_BATCHES);
        let gauges = Arc::new(Gauges::default());
        let state = WriterState {
            dir: dir.to_owned(),
            manifest,
            limits,
            gauges: Arc::clone(&gauges),
            open: EventBatch::default(),
            open_rows: 0,
            open_bytes: 0,
            cut_at_ns: cut_at_ns(limits.age),
            next_seq: 0,
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-writer".into())
            .spawn(move || state.run(&receiver))
            .map_err(WriteError::Thread)?;
        Ok(Self {
            sink: Sink { queue, gauges },
            thread,
        })
    }

    #[must_use]
    pub fn sink(&self) -> Sink {
        self.sink.clone()
    }

    /// Seals what is queued and returns the final manifest. Rows that other
    /// [`Sink`]s push after this call are refused.
    ///
    /// # Errors
    /// What stopped the writer, or what the last seal met.
    pub fn finish(self) -> Result<Manifest, WriteError> {
        // A writer that already stopped reports through its thread.
        self.sink.send(Message::Finish).ok();
        self.thread.join().map_err(|_| WriteError::Panicked)?
    }
}

/// Refuses a folder that holds anything at all, ours or not.
fn claim(dir: &Path) -> Result<(), WriteError> {
    let create_error = |source| WriteError::Create {
        path: dir.to_owned(),
        source,
    };
    files::create_dir(dir).map_err(create_error)?;
    let mut entries = std::fs::read_dir(dir).map_err(create_error)?;
    if entries.next().is_some() {
        return Err(WriteError::NotEmpty(dir.to_owned()));
    }
    files::restrict_dir(dir).map_err(create_error)
}

fn store(manifest: &Manifest, dir: &Path) -> Result<(), WriteError> {
    manifest.store(dir).map_err(|source| WriteError::Manifest {
        path: dir.join(crate::manifest::MANIFEST_FILE),
        source,
    })
}

fn cut_at_ns(age: Duration) -> i64 {
    monotonic_ns().saturating_add(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX))
}

struct WriterState {
    dir: PathBuf,
    manifest: Manifest,
    limits: SegmentLimits,
    gauges: Arc<Gauges>,
    open: EventBatch,
    open_rows: usize,
    open_bytes: usize,
    /// When the open segment is cut for its age, absolute monotonic ns.
    cut_at_ns: i64,
    /// Number of the first row of the open segment.
    next_seq: u64,
}

impl WriterState {
    fn run(mut self, queue: &Receiver<Message>) -> Result<Manifest, WriteError> {
        let result = self.drain(queue).and_then(|()| self.finish());
        if result.is_err() {
            self.gauges.failed.store(true, Ordering::Relaxed);
        }
        result.map(|()| self.manifest)
    }

    fn drain(&mut self, queue: &Receiver<Message>) -> Result<(), WriteError> {
        loop {
            let left_ns = self.cut_at_ns.saturating_sub(monotonic_ns());
            let left = Duration::from_nanos(u64::try_from(left_ns).unwrap_or(0));
            match queue.recv_timeout(left) {
                Ok(message) => {
                    self.gauges.queued_batches.fetch_sub(1, Ordering::Relaxed);
                    match message {
                        Message::Events(batch) => self.append(batch)?,
                        Message::Anchor(anchor) => self.manifest.anchors.push(anchor),
                        Message::Finish => return Ok(()),
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.cut(Tables::NonEmpty, State::Open)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn append(&mut self, mut batch: EventBatch) -> Result<(), WriteError> {
        self.note_sources(&batch);
        self.note_drops(&batch.marks);
        self.open_rows += batch.len();
        self.open_bytes += batch.size_bytes();
        self.open.append(&mut batch);
        // A busy queue never times out, so the age is looked at here too.
        if self.open_rows >= self.limits.rows
            || self.open_bytes >= self.limits.bytes
            || monotonic_ns() >= self.cut_at_ns
        {
            self.cut(Tables::NonEmpty, State::Open)?;
        }
        Ok(())
    }

    fn note_sources(&mut self, batch: &EventBatch) {
        // A response without a single arrival says nothing about the source.
        let arrived = batch.responses.iter().filter(|r| r.t_headers_ns.is_some());
        for source in arrived.map(|r| r.timestamp_source) {
            let word = source.as_str();
            let known = self
                .manifest
                .timestamp_source
                .get_or_insert(word.to_owned());
            if known != word {
                *known = "mixed".to_owned();
            }
        }
        debug_assert_eq!(TimestampSource::ALL.len(), 2, "mixed means both");
    }

    fn note_drops(&mut self, marks: &[MarkRow]) {
        let drops = marks.iter().filter(|m| &*m.name == "dropped");
        for detail in drops.map(|m| &*m.detail) {
            let count = serde_json::from_str::<serde_json::Value>(detail)
                .ok()
                .and_then(|v| v.get("events")?.as_u64());
            self.manifest.dropped_events += count.unwrap_or(1);
        }
    }

    /// Seals the open segment, all tables on one cut, and stores the manifest.
    fn cut(&mut self, tables: Tables, state: State) -> Result<(), WriteError> {
        self.cut_at_ns = cut_at_ns(self.limits.age);
        let rows = self.open_rows as u64;
        if rows == 0 && tables == Tables::NonEmpty {
            return Ok(());
        }
        let last_seq = self.next_seq + rows.saturating_sub(1);
        let id = self.manifest.recording_id.clone();
        let files = seal(
            &self.dir,
            &id,
            (self.next_seq, last_seq),
            &self.open,
            tables,
        )?;
        self.manifest.segments.extend(files);
        self.manifest.state = state;
        self.open = EventBatch::default();
        self.open_rows = 0;
        self.open_bytes = 0;
        self.next_seq += rows;
        store(&self.manifest, &self.dir)
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        self.cut(Tables::All, State::Sealed)
    }
}

#[cfg(test)]
mod tests;
