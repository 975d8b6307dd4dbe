//! The body of a recorded answer: its writes at their instants.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use tapedeck_clock::monotonic_ns;
use tapedeck_simulator::host::Peer;
use tapedeck_simulator::timer::{Sleep, Timers};

use super::answer::{Answer, End};
use super::tally::{InFlight, Tally};

/// How long after its end an answer breaks off whose client had left: a client that
/// leaves at the same instant again must be the first to go.
const AFTER_CLIENT_LEFT_NS: i64 = 1_000_000_000;

/// The recorded stream broke off here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the recorded answer breaks off here")]
pub(crate) struct BrokeOff;

/// Instants of one answer: absolute deadlines, so that a late write shifts no later
/// one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// When the request was whole, absolute `CLOCK_MONOTONIC`.
    pub(crate) t_received_ns: i64,
    pub(crate) speed: f64,
}

impl Pace {
    /// The deadline of what was recorded `due_ns` after its request was sent.
    pub(crate) fn at(self, due_ns: i64) -> i64 {
        // A cast saturates: a wait of centuries is one that never ends.
        let wait_ns = (due_ns as f64 / self.speed).round() as i64;
        self.t_received_ns.saturating_add(wait_ns)
    }
}

/// One answer on its way out.
#[derive(Debug)]
pub(crate) struct Paced {
    answer: Rc<Answer>,
    pace: Pace,
    timers: Rc<Timers>,
    peer: Peer,
    tally: Arc<Tally>,
    /// `None` when all is written and the client may never leave.
    in_flight: Option<InFlight>,
    sleep: Option<Sleep>,
    /// Writes handed over.
    written: usize,
    /// Something was handed over since hyper last flushed.
    unflushed: bool,
}

impl Paced {
    pub(crate) fn new(
        answer: Rc<Answer>,
        pace: Pace,
        timers: Rc<Timers>,
        peer: Peer,
        (tally, in_flight): (Arc<Tally>, InFlight),
    ) -> Self {
        Self {
            answer,
            pace,
            timers,
            peer,
            tally,
            in_flight: Some(in_flight),
            sleep: None,
            written: 0,
            unflushed: false,
        }
    }

    /// Ready when `due_ns` has come and what was handed over before has left: hyper
    /// gathers frames for as long as it gets any and flushes when there is none, so
    /// saying "none yet" gives each its own write.
    fn poll_due(&mut self, cx: &mut Context<'_>, due_ns: i64) -> Poll<()> {
        if self.unflushed {
            self.unflushed = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let timers = &self.timers;
        let sleep = self.sleep.get_or_insert_with(|| timers.sleep_until(due_ns));
        ready!(Pin::new(sleep).poll(cx));
        self.sleep = None;
        Poll::Ready(())
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        let due_ns = self.pace.at(self.answer.end_due_ns);
        match self.answer.end {
            End::Whole => {
                // What arrived at once is sent at once, the end included.
                let last = self.answer.writes.last();
                if last.is_none_or(|write| write.due_ns < self.answer.end_due_ns) {
                    ready!(self.poll_due(cx, due_ns));
                }
                Poll::Ready(None)
            }
            End::BrokenOff { reset } => {
                ready!(self.poll_due(cx, due_ns));
                if reset {
                    self.peer.reset_at_close();
                }
                Poll::Ready(Some(Err(BrokeOff)))
            }
            End::ClientLeft => {
                self.in_flight = None;
                ready!(self.poll_due(cx, due_ns.saturating_add(AFTER_CLIENT_LEFT_NS)));
                Poll::Ready(Some(Err(BrokeOff)))
            }
            End::Silence => {
                self.in_flight = None;
                // One more poll, for the flush; hyper itself sees the client leave.
                if self.unflushed {
                    self.unflushed = false;
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        // What follows the last write, hyper need not ask for.
        if self.written < self.answer.writes.len() {
            self.tally.left_early();
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        let at = self.written;
        let Some(write) = self.answer.writes.get(at).copied() else {
            return self.poll_end(cx);
        };
        let due_ns = self.pace.at(write.due_ns);
        ready!(self.poll_due(cx, due_ns));
        self.tally.late(monotonic_ns() - due_ns);
        let start = at.checked_sub(1).map_or(0, |i| self.answer.writes[i].end);
        self.written += 1;
        self.unflushed = true;
        let bytes = self.answer.bytes.slice(start..write.end);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
