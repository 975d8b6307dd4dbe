//! One request and its answer, between the sockets and the journal.
//!
//! The answer's bytes are forwarded first and looked at when they have left:
//! frames wait here until the flush that wrote them, at most one read of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use http::response::Parts;
use tapedeck_live::connect::{ConnectInstants, Connection};
use tapedeck_live::tap::ReadStamp;
use tapedeck_recording::Pairs;
use tapedeck_wire::response::End;

use crate::journal::{Journal, Opened};
use crate::metrics::Reason;
use crate::upload::{Upload, UploadBody};
use crate::worker::Worker;

/// How and when an answer ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    /// The answer itself tells where its body ends.
    pub(crate) delimited: bool,
    pub(crate) last_read: Option<ReadStamp>,
    pub(crate) now_ns: i64,
}

pub(crate) struct Exchange {
    worker: Rc<Worker>,
    upload: Rc<Upload>,
    /// `None` once it is closed, or where nothing is to be recorded.
    journal: RefCell<Option<Box<Journal>>>,
    /// Frames handed to hyper and not flushed yet.
    unflushed: RefCell<Vec<(ReadStamp, Bytes)>>,
    ended: RefCell<Option<Ended>>,
    /// The last byte sent upstream has been noted.
    sent: Cell<bool>,
}

impl Exchange {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        upload: &Rc<Upload>,
        journal: Option<Box<Journal>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: Rc::clone(worker),
            upload: Rc::clone(upload),
            journal: RefCell::new(journal),
            unflushed: RefCell::default(),
            ended: RefCell::new(None),
            sent: Cell::new(false),
        })
    }

    pub(crate) fn connecting(&self, instants: ConnectInstants) {
        self.write(|journal| journal.connecting(instants));
    }

    pub(crate) fn connected(&self, conn_id: i64, reused: bool) {
        self.write(|journal| journal.connected(conn_id, reused));
    }

    /// Notes when the request had been sent, as soon as it has been.
    pub(crate) fn note_sent(&self, connection: &Connection<UploadBody>) {
        if self.sent.get() || !self.upload.ended() {
            return;
        }
        let Some(t_sent_ns) = connection.tap.sent_ns(self.upload.bytes()) else {
            return;
        };
        self.sent.set(true);
        if let Some(t_received_ns) = self.upload.t_received_ns() {
            let added_ns = t_sent_ns - t_received_ns;
            self.worker.metrics.request_added(added_ns);
        }
        self.open();
        self.write(|journal| journal.sent(t_sent_ns));
    }

    pub(crate) fn answered(&self, head: &Parts, read: Option<ReadStamp>) {
        self.open();
        self.write(|journal| journal.answered(head, read));
    }

    /// A frame was handed to hyper; `flush_tells` says whether a flush will say
    /// that it has left.
    pub(crate) fn frame(&self, read: ReadStamp, data: &Bytes, flush_tells: bool) {
        self.worker.metrics.response_bytes(data.len());
        self.unflushed.borrow_mut().push((read, data.clone()));
        if !flush_tells {
            self.flushed(None);
        }
    }

    pub(crate) fn trailers(&self, trailers: Pairs) {
        self.write(|journal| journal.trailers(trailers));
    }

    /// The answer is over; it is closed with the flush that ends it.
    pub(crate) fn end(&self, ended: Ended, flush_tells: bool) {
        self.ended.replace(Some(ended));
        if !flush_tells {
            self.flushed(None);
        }
    }

    /// Everything handed out so far was written to the client at `t_ns`, or is
    /// known to be given up.
    pub(crate) fn flushed(&self, t_ns: Option<i64>) {
        let frames = self.unflushed.take();
        for (read, data) in &frames {
            if let Some(t_ns) = t_ns {
                let metrics = &self.worker.metrics;
                metrics.response_added(t_ns - read.t_ns);
                metrics.response_waited(read.t_seen_ns - read.t_ns);
            }
            self.write(|journal| journal.frame(*read, data, t_ns));
        }
        if let Some(ended) = self.ended.take() {
            self.close(ended, t_ns);
        }
    }

    /// Ends an attempt that got no answer; another one may follow.
    pub(crate) fn fail_attempt(&self, end: End, another: bool) {
        self.open();
        self.sent.set(false);
        if another {
            self.write(|journal| journal.next_attempt(end));
        } else {
            self.close(self.worker.ended(end), None);
        }
    }

    /// The client left, or the proxy was stopped. Nothing is left to do for an
    /// answer that is over.
    fn abandon(&self) {
        if self.ended.borrow().is_some() {
            return;
        }
        let error = if self.worker.stopping.get() {
            "the proxy was stopped"
        } else {
            "the client left"
        };
        let end = End::Cancelled {
            error: error.to_owned(),
        };
        self.open();
        self.ended.replace(Some(self.worker.ended(end)));
        self.flushed(None);
    }

    /// Settles what is recorded of the request, once.
    fn open(&self) {
        let mut journal = self.journal.borrow_mut();
        let opened = journal.as_mut().map(|journal| journal.open());
        if opened == Some(Opened::SampledOut) {
            journal.take();
            drop(journal);
            self.worker.metrics.unrecorded(Reason::Sampled);
        }
    }

    fn close(&self, ended: Ended, t_client_end_ns: Option<i64>) {
        let journal = self.journal.take();
        if let Some(journal) = journal {
            journal.close(ended, t_client_end_ns);
        }
    }

    fn write(&self, write: impl FnOnce(&mut Journal)) {
        if let Some(journal) = self.journal.borrow_mut().as_mut() {
            write(journal);
        }
    }
}

/// Whoever works for an exchange holds this; dropping it before the end means
/// that hyper gave the exchange up, and it does that when the client leaves.
pub(crate) struct Guard(pub(crate) Rc<Exchange>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
