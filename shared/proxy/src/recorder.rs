//! The recording that new requests go to; it may change while the proxy runs.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tapedeck_recording::{Privacy, Sink};

/// One recording that is being written. Whoever still writes to it holds the
/// [`Arc`] it is in.
#[derive(Debug)]
pub struct Recorder {
    pub(crate) sink: Sink,
    pub(crate) privacy: Privacy,
    /// Its t = 0 on the proxy's clock.
    pub(crate) start_ns: i64,
    next_request_id: AtomicI64,
}

impl Recorder {
    #[must_use]
    pub fn new(sink: Sink, privacy: Privacy, start_ns: i64) -> Arc<Self> {
        Arc::new(Self {
            sink,
            privacy,
            start_ns,
            next_request_id: AtomicI64::new(0),
        })
    }

    pub(crate) fn next_request_id(&self) -> i64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// The recorder of requests that begin now. Those in flight end in the one they
/// began in.
#[derive(Debug)]
pub struct Current(Mutex<Arc<Recorder>>);

impl Current {
    #[must_use]
    pub fn new(recorder: Arc<Recorder>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(recorder)))
    }

    pub(crate) fn get(&self) -> Arc<Recorder> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Workers follow at their next tick; when they and the requests in flight have
    /// let go of the old one, nothing more is written to it.
    pub fn replace(&self, recorder: Arc<Recorder>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
    }
}
