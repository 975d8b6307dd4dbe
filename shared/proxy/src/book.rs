//! Rows of one worker on their way to the recording, which may be slower than the
//! traffic.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use tapedeck_clock::RunClock;
use tapedeck_recording::{EventBatch, MarkRow, Sink};

use crate::metrics::Metrics;

/// Rows and bytes after which a batch goes to the writer without waiting for the
/// next tick: what a worker holds at most, and the one row that went over.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 256 * 1024;

/// The batch that is being filled. Never waits: a batch that finds no room is
/// counted and dropped, and a mark says so as soon as there is room again.
#[derive(Debug)]
pub(crate) struct Book {
    clock: RunClock,
    sink: Sink,
    metrics: Arc<Metrics>,
    batch: RefCell<EventBatch>,
    /// Bytes of the bodies in the batch; payloads count themselves.
    body_bytes: Cell<usize>,
    /// Events dropped since the last mark.
    unmarked: Cell<u64>,
}

impl Book {
    pub(crate) fn new(clock: RunClock, sink: Sink, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            sink,
            metrics,
            batch: RefCell::default(),
            body_bytes: Cell::new(0),
            unmarked: Cell::new(0),
        }
    }

    /// Adds rows, with bodies of `body_bytes`, to the batch.
    pub(crate) fn record(&self, body_bytes: usize, add: impl FnOnce(&mut EventBatch)) {
        let mut batch = self.batch.borrow_mut();
        add(&mut batch);
        self.body_bytes.set(self.body_bytes.get() + body_bytes);
        let bytes = self.body_bytes.get() + batch.chunks.payloads.len();
        if batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            drop(batch);
            self.flush();
        }
    }

    /// Hands the batch over if there is room for it.
    pub(crate) fn flush(&self) {
        let batch = self.take();
        if batch.is_empty() {
            return;
        }
        match self.sink.try_push(batch) {
            Ok(()) => self.unmarked.set(0),
            Err(batch) => self.drop_events(&batch),
        }
    }

    /// Hands the last batch over, waiting for room: there is no traffic left that
    /// could be held up.
    pub(crate) fn close(&self) {
        let batch = self.take();
        let events = events_of(&batch);
        if self.sink.push(batch).is_err() {
            self.metrics.dropped(events);
        }
    }

    /// True while events are being lost.
    pub(crate) fn is_losing(&self) -> bool {
        self.unmarked.get() > 0 || self.sink.failed()
    }

    /// The batch, with a mark in front of it where events were dropped before it.
    fn take(&self) -> EventBatch {
        self.body_bytes.set(0);
        let mut batch = self.batch.take();
        let dropped = self.unmarked.get();
        if dropped > 0 {
            batch.marks.push(MarkRow {
                t_ns: self.clock.now_ns(),
                name: DROPPED.into(),
                detail: format!(r#"{{"events":{dropped}}}"#).into(),
            });
        }
        batch
    }

    fn drop_events(&self, batch: &EventBatch) {
        let events = events_of(batch);
        self.unmarked.set(self.unmarked.get() + events);
        self.metrics.dropped(events);
    }
}

const DROPPED: &str = "dropped";

/// Rows of a batch, without marks of earlier losses: those are written again.
fn events_of(batch: &EventBatch) -> u64 {
    let marks = batch.marks.iter().filter(|m| &*m.name == DROPPED).count();
    (batch.len() - marks) as u64
}
