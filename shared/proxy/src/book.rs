//! Rows of one worker on their way to the recording, which may be slower than the
//! traffic.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use tapedeck_recording::EventBatch;

use crate::metrics::Metrics;
use crate::recorder::Recorder;

/// Rows and bytes after which a batch goes to the writer without waiting for the
/// next tick: what a worker holds at most, and the one row that went over.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 256 * 1024;

/// How long the last batch may wait for room: there is no traffic left that could
/// be held up, but a disk that refuses must not hold up the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The batch that is being filled. Never waits: a batch that finds no room is
/// counted and dropped, and the writer marks it as soon as it takes rows again.
#[derive(Debug)]
pub(crate) struct Book {
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    batch: RefCell<EventBatch>,
    /// Bytes of the bodies in the batch; payloads count themselves.
    body_bytes: Cell<usize>,
    /// The last batch was dropped.
    losing: Cell<bool>,
}

impl Book {
    pub(crate) fn new(recorder: Arc<Recorder>, metrics: Arc<Metrics>) -> Self {
        Self {
            recorder,
            metrics,
            batch: RefCell::default(),
            body_bytes: Cell::new(0),
            losing: Cell::new(false),
        }
    }

    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Adds rows on the proxy's clock, with bodies of `body_bytes`, to the batch.
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
        self.hand_over(Duration::ZERO);
    }

    /// Hands the last batch over.
    pub(crate) fn close(&self) {
        self.hand_over(CLOSE_PATIENCE);
    }

    /// True while events are being lost.
    pub(crate) fn is_losing(&self) -> bool {
        if self.losing.get() && self.recorder.sink.has_room() {
            self.losing.set(false);
        }
        self.losing.get() || self.recorder.sink.failed()
    }

    fn hand_over(&self, patience: Duration) {
        self.body_bytes.set(0);
        let events = self.batch.borrow().len() as u64;
        if events == 0 {
            return;
        }
        let mut batch = self.batch.replace(self.recorder.sink.spare());
        batch.shift(-self.recorder.start_ns);
        let taken = self.recorder.sink.offer_within(batch, patience);
        self.losing.set(!taken);
        if !taken {
            self.metrics.dropped(events);
        }
    }
}
