//! The socket side of the writer: handing over rows, and counting those that
//! cannot be.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tapedeck_clock::monotonic_ns;

use crate::event::{EventBatch, MarkRow};
use crate::lag::{LogLag, Oldest};
use crate::manifest::ClockAnchor;
use crate::queue::{Queue, Refused};

/// The writer has stopped; [`Writer::finish`](crate::Writer::finish) says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the recording's writer has stopped")]
pub struct Stopped;

const ANCHOR_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) enum Message {
    Events {
        batch: EventBatch,
        /// When it was handed over, absolute monotonic ns.
        t_ns: i64,
    },
    Anchor(ClockAnchor),
}

impl Message {
    fn events(batch: EventBatch) -> Self {
        let t_ns = monotonic_ns();
        Self::Events { batch, t_ns }
    }

    fn t_ns(&self) -> Option<i64> {
        match self {
            Self::Events { t_ns, .. } => Some(*t_ns),
            Self::Anchor(_) => None,
        }
    }

    pub(crate) fn rows(&self) -> u64 {
        match self {
            Self::Events { batch, .. } => batch.len() as u64,
            Self::Anchor(_) => 0,
        }
    }
}

/// What sinks, writer and sealer tell each other beside the queue.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) failed: AtomicBool,
    pub(crate) has_log: bool,
    pub(crate) oldest: Oldest,
    /// The disk refused the last append to the log, or the last try to seal.
    pub(crate) log_refused: AtomicBool,
    pub(crate) seal_refused: AtomicBool,
    /// Events that nobody could be given, after the disk refused.
    pub(crate) lost: AtomicU64,
    /// What [`Sink::push`] has waited for room, over all threads.
    waited_ns: AtomicU64,
    /// Events that [`Sink::offer`] dropped and no mark speaks of yet, and the
    /// absolute instants between which that was.
    dropped: AtomicU64,
    dropped_from_ns: AtomicI64,
    dropped_to_ns: AtomicI64,
    /// Emptied batches on their way back to those who fill them.
    spare: Mutex<Vec<EventBatch>>,
}

/// Emptied batches that are kept, as a commit empties a dozen at once, and the most
/// that one of them may hold. A batch that grows from nothing is copied six times on
/// the way, and the pages that its end gives back to the kernel are faulted in again
/// by the next.
const SPARE_BATCHES: usize = 32;
const SPARE_BYTES: usize = 1 << 20;

impl Gauges {
    pub(crate) fn new(has_log: bool) -> Self {
        Self {
            has_log,
            ..Self::default()
        }
    }

    /// Keeps the room of a batch that has been emptied.
    pub(crate) fn keep(&self, batch: EventBatch) {
        let room = 1..=SPARE_BYTES;
        if batch.is_empty()
            && room.contains(&batch.spare_bytes())
            && let Ok(mut spare) = self.spare.lock()
            && spare.len() < SPARE_BATCHES
        {
            spare.push(batch);
        }
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    fn drop_events(&self, events: u64) {
        let now_ns = monotonic_ns();
        if self.dropped.fetch_add(events, Ordering::Relaxed) == 0 {
            self.dropped_from_ns.store(now_ns, Ordering::Relaxed);
        }
        self.dropped_to_ns.store(now_ns, Ordering::Relaxed);
    }

    /// A mark about what was dropped since the last one.
    pub(crate) fn dropped_mark(&self, start_ns: i64) -> Option<MarkRow> {
        let events = self.dropped.swap(0, Ordering::Relaxed);
        if events == 0 {
            return None;
        }
        let since_start = |t: &AtomicI64| t.load(Ordering::Relaxed) - start_ns;
        let from_ns = since_start(&self.dropped_from_ns);
        let to_ns = since_start(&self.dropped_to_ns);
        let detail = format!(r#"{{"events":{events},"from_ns":{from_ns},"to_ns":{to_ns}}}"#);
        Some(MarkRow {
            t_ns: to_ns,
            name: "dropped".into(),
            detail: detail.into(),
        })
    }
}

/// A cloneable handle that hands rows to the writer.
#[derive(Debug, Clone)]
pub struct Sink {
    pub(crate) queue: Arc<Queue<Message>>,
    pub(crate) gauges: Arc<Gauges>,
}

impl Sink {
    /// An empty batch, with the room of an earlier one where there is one.
    #[must_use]
    pub fn spare(&self) -> EventBatch {
        let spare = self.gauges.spare.lock().ok();
        spare.and_then(|mut spare| spare.pop()).unwrap_or_default()
    }

    /// Hands over a batch, waiting while the queue is full.
    ///
    /// # Errors
    /// When the writer has stopped; the events count as lost.
    pub fn push(&self, batch: EventBatch) -> Result<(), Stopped> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes = batch.size_bytes();
        let pushed = match self.queue.try_push(Message::events(batch), bytes) {
            Ok(()) => return Ok(()),
            Err(Refused::Full(message)) => self.wait_for_room(message, bytes),
            Err(Refused::Closed(message)) => Err(message.rows()),
        };
        pushed.map_err(|rows| {
            self.gauges.lost.fetch_add(rows, Ordering::Relaxed);
            Stopped
        })
    }

    /// The rows that were lost, when the writer has stopped.
    fn wait_for_room(&self, message: Message, bytes: usize) -> Result<(), u64> {
        let from_ns = monotonic_ns();
        let pushed = self.queue.push(message, bytes);
        let waited_ns = (monotonic_ns() - from_ns).unsigned_abs();
        self.gauges
            .waited_ns
            .fetch_add(waited_ns, Ordering::Relaxed);
        pushed.map_err(|message| message.rows())
    }

    /// What [`Sink::push`] has waited for room so far, ns over all threads.
    #[must_use]
    pub fn waited_ns(&self) -> u64 {
        self.gauges.waited_ns.load(Ordering::Relaxed)
    }

    /// Nothing more is recorded, and nobody waits for room any longer.
    pub(crate) fn stop(&self) {
        self.gauges.fail();
        self.queue.close();
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
        let bytes = batch.size_bytes();
        match self.queue.try_push(Message::events(batch), bytes) {
            Err(
                Refused::Full(Message::Events { batch, .. })
                | Refused::Closed(Message::Events { batch, .. }),
            ) => Err(batch),
            _ => Ok(()),
        }
    }

    /// Hands over a batch if there is room, and drops it otherwise: then a mark
    /// `dropped` with the number of events and the instants follows as soon as
    /// rows are taken again. Returns whether the batch was taken.
    pub fn offer(&self, batch: EventBatch) -> bool {
        self.offer_within(batch, Duration::ZERO)
    }

    /// As [`Self::offer`], waiting up to `patience` for room.
    pub fn offer_within(&self, batch: EventBatch, patience: Duration) -> bool {
        if batch.is_empty() {
            return true;
        }
        let (events, bytes) = (batch.len() as u64, batch.size_bytes());
        let message = Message::events(batch);
        let taken = self.queue.push_within(message, bytes, patience).is_ok();
        if !taken {
            self.gauges.drop_events(events);
        }
        taken
    }

    /// Adds a clock anchor to the manifest. One that finds no room for a second is
    /// left out: whoever waits here must not wait for a disk.
    pub fn anchor(&self, anchor: ClockAnchor) {
        let message = Message::Anchor(anchor);
        self.queue.push_within(message, 0, ANCHOR_PATIENCE).ok();
    }

    /// Batches waiting for the writer.
    #[must_use]
    pub fn queued_batches(&self) -> usize {
        self.queue.len()
    }

    /// How far the log lags behind; `None` without a log.
    #[must_use]
    pub fn log_lag(&self) -> Option<LogLag> {
        let queued_ns = self.queue.oldest(Message::t_ns);
        let gauges = &self.gauges;
        gauges.has_log.then(|| gauges.oldest.lag(queued_ns))
    }

    /// Whether a small batch would be taken now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.has_room(0)
    }

    /// True while the disk refuses what it is given: rows wait in memory.
    #[must_use]
    pub fn disk_refuses(&self) -> bool {
        let refused = [&self.gauges.log_refused, &self.gauges.seal_refused];
        refused.iter().any(|r| r.load(Ordering::Relaxed))
    }

    /// True once the writer met an error: nothing more is recorded.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.gauges.failed.load(Ordering::Relaxed)
    }
}
