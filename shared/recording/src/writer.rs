//! The writer: one named thread behind a bounded queue.
//!
//! Rows are numbered in the order in which they reach the writer, over all
//! tables. A commit converts what has gathered to Arrow and appends it to the
//! log; a cut ends the segment, all tables at the same number, and hands it to
//! the sealer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tapedeck_clock::monotonic_ns;
use tapedeck_wire::word_enum;

use crate::columns::to_batch;
use crate::event::EventBatch;
use crate::files;
use crate::lock::{self, WAL_DIR};
use crate::manifest::{Manifest, State};
use crate::privacy::{Privacy, Scrubber};
use crate::queue::{Popped, Queue};
use crate::recover::Notes;
use crate::schema::Table;
use crate::sealer::{Closed, RETRY, Sealer, SealerStopped, store};
use crate::segment::{Cut, Rows, SealError, Tables};
use crate::sink::{Gauges, Message};
use crate::sync::{Syncer, sync};
use crate::wal::{Numbered, Wal};

pub use crate::queue::{QUEUE_BATCHES, QUEUE_BYTES};
pub use crate::sink::{Sink, Stopped};

/// When a segment is cut.
#[derive(Debug, Clone, Copy)]
pub struct SegmentLimits {
    pub rows: usize,
    pub bytes: usize,
    pub age: Duration,
}

impl Default for SegmentLimits {
    /// 256 Ki rows or 128 MiB bound the memory of the open segment; 300 s bound
    /// what a quiet recording keeps in its log.
    fn default() -> Self {
        Self {
            rows: 1 << 18,
            bytes: 128 << 20,
            age: Duration::from_secs(300),
        }
    }
}

word_enum! {
    /// What of an unsealed segment outlives its recorder: nothing, as there is no
    /// log (`none`); all that is older than 200 ms, and than 1 s if the machine
    /// dies too (`interval`); every batch that the writer has taken, whatever
    /// dies (`batch`: a sync each).
    Durability { None = "none", Interval = "interval", Batch = "batch" }
}

/// What to do when the disk refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskError {
    /// Stop: for a load, which is better ended than measured in part.
    Stop,
    /// Try again once a second. Meanwhile rows gather in memory, up to three
    /// segments and the queue; then [`Sink::offer`] drops and counts. For a proxy,
    /// whose traffic goes on in any case.
    DropAndRetry,
}

/// How a recording is written.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    pub limits: SegmentLimits,
    pub durability: Durability,
    pub on_disk_error: DiskError,
}

impl Default for WriterOptions {
    fn default() -> Self {
        SegmentLimits::default().into()
    }
}

impl From<SegmentLimits> for WriterOptions {
    fn from(limits: SegmentLimits) -> Self {
        Self {
            limits,
            durability: Durability::Interval,
            on_disk_error: DiskError::Stop,
        }
    }
}

/// A recording that could not be created or finished.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} is not empty\nhint: choose another --out, recordings are never overwritten", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is being written by another program", .0.display())]
    InUse(PathBuf),
    #[error("cannot create the recording {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the writer's threads")]
    Thread(#[source] std::io::Error),
    #[error("cannot write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("cannot lay out rows")]
    Arrow(#[from] arrow::error::ArrowError),
    #[error("{lost_events} events could not be recorded")]
    Incomplete {
        lost_events: u64,
        #[source]
        source: Box<WriteError>,
    },
    #[error("the writer thread ended early")]
    Panicked,
}

impl WriteError {
    /// True for what a disk may take back: no room, no access, no device.
    pub(crate) fn is_of_disk(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Seal(SealError::Io { .. }))
    }
}

/// The owner of the writer thread. Dropping it seals what is queued, too, but
/// says nothing of errors.
#[derive(Debug)]
pub struct Writer {
    sink: Sink,
    /// Told to the sealer directly: the writer may be waiting for it.
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Manifest, WriteError>>>,
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
        options: impl Into<WriterOptions>,
    ) -> Result<Self, WriteError> {
        Self::create_scrubbed(dir, manifest, options, Scrubber::new(&Privacy::full()))
    }

    /// As [`Self::create`], with what `scrubber` does to every batch before it is
    /// written.
    ///
    /// # Errors
    /// When `dir` is not empty or cannot be written.
    pub fn create_scrubbed(
        dir: &Path,
        manifest: Manifest,
        options: impl Into<WriterOptions>,
        scrubber: Scrubber,
    ) -> Result<Self, WriteError> {
        let options = options.into();
        let lock = claim(dir)?;
        store(&manifest, dir)?;
        let sink = Sink {
            queue: Arc::new(Queue::default()),
            gauges: Arc::new(Gauges::new(options.durability != Durability::None)),
        };
        let ending = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ending);
        let mut state = WriterState::new(dir, manifest, options, &sink, ended, scrubber)?;
        let panicked = sink.clone();
        let thread = std::thread::Builder::new()
            .name("tapedeck-writer".into())
            .spawn(move || {
                let _guard = PanicGuard(panicked);
                let written = state.drain();
                let finished = state.finish(written);
                drop(lock);
                finished
            })
            .map_err(WriteError::Thread)?;
        Ok(Self {
            sink,
            ending,
            thread: Some(thread),
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
    pub fn finish(mut self) -> Result<Manifest, WriteError> {
        self.end().unwrap_or(Err(WriteError::Panicked))
    }

    fn end(&mut self) -> Option<Result<Manifest, WriteError>> {
        self.ending.store(true, Ordering::Relaxed);
        self.sink.queue.close();
        let thread = self.thread.take()?;
        Some(thread.join().unwrap_or(Err(WriteError::Panicked)))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Refuses a folder that holds anything at all, ours or not, and locks the new
/// recording for as long as the file is held.
fn claim(dir: &Path) -> Result<Option<std::fs::File>, WriteError> {
    let create_error = |source| WriteError::Create {
        path: dir.to_owned(),
        source,
    };
    files::create_dir(dir).map_err(create_error)?;
    let mut entries = std::fs::read_dir(dir).map_err(create_error)?;
    if entries.next().is_some() {
        return Err(WriteError::NotEmpty(dir.to_owned()));
    }
    files::restrict_dir(dir).map_err(create_error)?;
    // Of two that found the folder empty one makes this.
    match files::create_new_dir(&dir.join(WAL_DIR)) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(WriteError::InUse(dir.to_owned()));
        }
        made => made.map_err(create_error)?,
    }
    if let Some(parent) = dir.parent() {
        let is_here = parent.as_os_str().is_empty();
        files::sync_dir(if is_here { Path::new(".") } else { parent }).map_err(create_error)?;
    }
    match lock::exclusive(dir) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(WriteError::InUse(dir.to_owned())),
        // A file system without locks: the folder was empty and is ours.
        Err(_) => Ok(None),
    }
}

/// Longest that a row waits for its commit. The live layer keeps it for 20 ms
/// before: together well within 200 ms.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// Rows or bytes that are committed without waiting.
const COMMIT_ROWS: usize = 4096;
const COMMIT_BYTES: usize = 1 << 20;

/// Batches in the queue up to which the writer keeps up with those who fill it.
const KEEPING_UP: usize = 4;

/// Between two pieces of work: lets a thread that is ready have this core. A worker
/// that wakes up to stamp or to send would else wait until the kernel ends the
/// writer's turn, a millisecond or more. A writer that falls behind keeps its turn.
fn give_way(queue: &Queue<Message>) {
    if queue.len() <= KEEPING_UP {
        std::thread::yield_now();
    }
}

fn in_ns(duration: Duration) -> i64 {
    monotonic_ns().saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

/// Why the writer stops before its queue is closed.
#[derive(Debug)]
enum Halt {
    Error(WriteError),
    /// The sealer knows.
    Sealer,
}

impl From<WriteError> for Halt {
    fn from(error: WriteError) -> Self {
        Self::Error(error)
    }
}

impl From<arrow::error::ArrowError> for Halt {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Error(error.into())
    }
}

impl From<SealerStopped> for Halt {
    fn from(_: SealerStopped) -> Self {
        Self::Sealer
    }
}

/// The log and what makes it durable.
#[derive(Debug)]
struct Log {
    wal: Wal,
    /// `None` where the writer syncs every commit itself.
    syncer: Option<Syncer>,
    /// After a refusal: when to try again, absolute monotonic ns.
    try_again_ns: Option<i64>,
}

struct WriterState {
    dir: PathBuf,
    options: WriterOptions,
    start_ns: i64,
    queue: Arc<Queue<Message>>,
    gauges: Arc<Gauges>,
    sealer: Sealer,
    log: Option<Log>,
    scrubber: Scrubber,
    /// Taken from the queue, not yet committed.
    pending: Vec<EventBatch>,
    pending_rows: usize,
    pending_bytes: usize,
    commit_at_ns: i64,
    /// Committed, not yet cut.
    open: Rows,
    /// Rows of `open` that are in no log.
    unlogged: u64,
    notes: Notes,
    /// Number of the first row of the open segment.
    first_seq: u64,
    next_seq: u64,
    /// When the open segment is cut for its age, absolute monotonic ns.
    cut_at_ns: i64,
}

impl WriterState {
    fn new(
        dir: &Path,
        manifest: Manifest,
        options: WriterOptions,
        sink: &Sink,
        ending: Arc<AtomicBool>,
        scrubber: Scrubber,
    ) -> Result<Self, WriteError> {
        let log = match options.durability {
            Durability::None => None,
            durability => {
                let wal = Wal::new(dir, &manifest.recording_id)?;
                let syncer = (durability == Durability::Interval)
                    .then(|| Syncer::start(wal.dir().to_owned(), Arc::clone(&sink.gauges)))
                    .transpose()
                    .map_err(WriteError::Thread)?;
                Some(Log {
                    wal,
                    syncer,
                    try_again_ns: None,
                })
            }
        };
        let start_ns = manifest.monotonic_start_ns;
        let failed = {
            let sink = sink.clone();
            move |unlogged| {
                sink.gauges.lost.fetch_add(unlogged, Ordering::Relaxed);
                sink.stop();
            }
        };
        let gauges = Arc::clone(&sink.gauges);
        let on_disk_error = options.on_disk_error;
        let sealer = Sealer::start(dir, manifest, on_disk_error, ending, gauges, failed)
            .map_err(WriteError::Thread)?;
        Ok(Self {
            dir: dir.to_owned(),
            options,
            start_ns,
            queue: Arc::clone(&sink.queue),
            gauges: Arc::clone(&sink.gauges),
            sealer,
            log,
            scrubber,
            pending: Vec::new(),
            pending_rows: 0,
            pending_bytes: 0,
            commit_at_ns: i64::MAX,
            open: Rows::default(),
            unlogged: 0,
            notes: Notes::default(),
            first_seq: 0,
            next_seq: 0,
            cut_at_ns: in_ns(options.limits.age),
        })
    }

    /// Works until the queue is closed and empty, or the disk refuses.
    fn drain(&mut self) -> Result<(), Halt> {
        loop {
            let until_ns = self.cut_at_ns.min(self.commit_at_ns);
            let left_ns = until_ns.saturating_sub(monotonic_ns());
            let left = Duration::from_nanos(u64::try_from(left_ns).unwrap_or(0));
            match self.queue.pop(left) {
                Popped::Item(Message::Events { batch, t_ns }) => {
                    self.gauges.oldest.taken(t_ns);
                    self.take(batch);
                }
                Popped::Item(Message::Anchor(anchor)) => self.notes.anchors.push(anchor),
                Popped::Timeout => {}
                Popped::Closed if self.gauges.failed.load(Ordering::Relaxed) => {
                    return Err(Halt::Sealer);
                }
                Popped::Closed => return Ok(()),
            }
            self.commit_and_cut_if_due()?;
        }
    }

    fn take(&mut self, mut batch: EventBatch) {
        if self.pending_rows == 0 {
            self.commit_at_ns = in_ns(COMMIT_EVERY);
        }
        let now_ns = monotonic_ns() - self.start_ns;
        self.scrubber.scrub(&mut batch, now_ns);
        self.notes.add(&batch);
        self.pending_bytes += batch.size_bytes();
        self.pending_rows += batch.len();
        self.pending.push(batch);
        give_way(&self.queue);
    }

    fn commit_and_cut_if_due(&mut self) -> Result<(), Halt> {
        let now_ns = monotonic_ns();
        let limits = self.options.limits;
        let rows = self.pending_rows;
        let cut = now_ns >= self.cut_at_ns
            || self.open.len() + rows as u64 >= limits.rows as u64
            || self.open.size_bytes() + self.pending_bytes >= limits.bytes;
        let commit = cut
            || now_ns >= self.commit_at_ns
            || rows >= COMMIT_ROWS
            || self.pending_bytes >= COMMIT_BYTES
            // What waits already shares one sync.
            || (self.options.durability == Durability::Batch && self.queue.len() == 0);
        if commit {
            self.commit()?;
        }
        if cut {
            self.cut_at_ns = in_ns(limits.age);
            if !self.open.is_empty() {
                self.cut(Tables::NonEmpty, State::Open)?;
            }
        }
        Ok(())
    }

    /// Numbers the pending rows, appends them to the log and to the open segment.
    /// When the log refuses they are in the segment all the same.
    fn commit(&mut self) -> Result<(), Halt> {
        if let Some(mark) = self.gauges.dropped_mark(self.start_ns) {
            let mut dropped = EventBatch::default();
            dropped.marks.push(mark);
            self.take(dropped);
        }
        self.commit_at_ns = i64::MAX;
        if self.pending_rows == 0 {
            return Ok(());
        }
        let numbered = self.number()?;
        let logged = self.append(&numbered);
        for rows in numbered {
            self.open.push(rows.table, rows.batch)?;
        }
        logged
    }

    fn number(&mut self) -> Result<Vec<Numbered>, Halt> {
        let mut numbered = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            let batch = to_batch(table, &self.pending)?;
            let first_seq = self.next_seq;
            if batch.num_rows() > 0 {
                self.next_seq += batch.num_rows() as u64;
                numbered.push(Numbered {
                    table,
                    first_seq,
                    batch,
                });
                give_way(&self.queue);
            }
        }
        for mut batch in self.pending.drain(..) {
            batch.clear();
            self.gauges.keep(batch);
        }
        (self.pending_rows, self.pending_bytes) = (0, 0);
        Ok(numbered)
    }

    fn append(&mut self, numbered: &[Numbered]) -> Result<(), Halt> {
        let rows: usize = numbered.iter().map(|n| n.batch.num_rows()).sum();
        self.unlogged += rows as u64;
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        if log.try_again_ns.is_some_and(|at| monotonic_ns() < at) {
            return Ok(());
        }
        let path = log.wal.path(self.first_seq);
        let synced = match log
            .wal
            .append(self.first_seq, numbered, || give_way(&self.queue))
        {
            Ok(file) => {
                self.unlogged -= rows as u64;
                match &log.syncer {
                    Some(syncer) => syncer.note(file),
                    None => {
                        let oldest = &self.gauges.oldest;
                        oldest.written();
                        oldest.sync_begins();
                        sync(&file, log.wal.dir()).inspect(|()| oldest.synced())
                    }
                }
            }
            Err(error) => Err(error),
        };
        self.gauges
            .log_refused
            .store(synced.is_err(), Ordering::Relaxed);
        match synced {
            Ok(()) => {
                // The log has a hole where the disk refused: sealing closes it.
                if log.try_again_ns.take().is_some() {
                    self.cut_at_ns = monotonic_ns();
                }
                Ok(())
            }
            Err(_) if self.options.on_disk_error == DiskError::DropAndRetry => {
                log.try_again_ns = Some(in_ns(RETRY));
                // Parquet takes a tenth of the room, and gives that of the log back.
                // Once it is refused as well rows gather in memory.
                if !self.gauges.seal_refused.load(Ordering::Relaxed) {
                    self.cut_at_ns = monotonic_ns();
                }
                Ok(())
            }
            Err(source) => Err(WriteError::File { path, source }.into()),
        }
    }

    /// Hands the open segment to the sealer, all tables on one cut, waiting while
    /// others wait for it.
    fn cut(&mut self, tables: Tables, state: State) -> Result<(), Halt> {
        let closed = Closed {
            cut: Cut {
                first_seq: self.first_seq,
                last_seq: self.first_seq + self.open.len().saturating_sub(1),
            },
            rows: std::mem::take(&mut self.open),
            tables,
            state,
            notes: std::mem::take(&mut self.notes),
            wal: self.log.as_mut().and_then(|log| log.wal.rotate()),
            unlogged: std::mem::take(&mut self.unlogged),
        };
        self.first_seq = self.next_seq;
        let unlogged = closed.unlogged;
        self.sealer.seal(closed).map_err(|stopped| {
            self.gauges.lost.fetch_add(unlogged, Ordering::Relaxed);
            stopped.into()
        })
    }

    /// Takes to the log what is still queued, and tries to seal it: when the one is
    /// refused the other may be not, as Parquet takes a tenth of the room.
    fn rescue(&mut self) {
        while let Popped::Item(message) = self.queue.pop(Duration::ZERO) {
            if let Message::Events { batch, .. } = message {
                self.take(batch);
            }
            if self.pending_bytes >= COMMIT_BYTES {
                self.commit().ok();
            }
        }
        self.commit().ok();
        if !self.open.is_empty() {
            self.cut(Tables::NonEmpty, State::Open).ok();
        }
    }

    /// Seals what is left, after whatever happened.
    fn finish(mut self, written: Result<(), Halt>) -> Result<Manifest, WriteError> {
        let ended = match written {
            Ok(()) => self
                .commit()
                .and_then(|()| self.cut(Tables::All, State::Sealed)),
            Err(halt) => Err(halt),
        };
        if ended.is_err() {
            self.gauges.fail();
            self.queue.close();
            self.rescue();
        }
        let sealed = self.sealer.finish();
        let error = match (ended, sealed) {
            (Ok(()), Ok(manifest)) => return Ok(manifest),
            (Err(Halt::Error(error)), _) | (_, Err(error)) => error,
            (Err(Halt::Sealer), Ok(_)) => WriteError::Panicked,
        };
        self.gauges.fail();
        match self.gauges.lost.load(Ordering::Relaxed) {
            0 => Err(error),
            lost_events => {
                note_lost(&self.dir, lost_events);
                Err(WriteError::Incomplete {
                    lost_events,
                    source: Box::new(error),
                })
            }
        }
    }
}

/// Whoever waits for room in the queue must not wait for a thread that is gone.
struct PanicGuard(Sink);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Lost rows count as dropped ones, so that no report calls the recording whole.
/// On a disk that refuses even this, the message of the run is all there is.
fn note_lost(dir: &Path, lost_events: u64) {
    if let Ok(mut manifest) = Manifest::load(dir) {
        manifest.dropped_events += lost_events;
        manifest.store(dir).ok();
    }
}

#[cfg(test)]
mod tests;
