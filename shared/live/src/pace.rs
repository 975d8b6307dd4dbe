//! The pacer: arrivals on absolute deadlines, never skipped, never shifted.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tapedeck_clock::RunClock;
use tapedeck_recording::Sink;
use tokio::sync::mpsc;

use crate::arrival::Arrival;
use crate::engine::{Stop, StopLevel};
use crate::worker::Assignment;

/// Slots of a run with a cap on requests in flight. A free slot is the instant
/// at which it became free.
pub(crate) struct Slots {
    free: Receiver<i64>,
    give_back: SyncSender<i64>,
}

impl Slots {
    /// `count` slots, all free from `start_ns`.
    pub(crate) fn new(count: usize, start_ns: i64) -> Self {
        // Room for every slot, so giving one back never waits.
        let (give_back, free) = sync_channel(count.max(1));
        for _ in 0..count.max(1) {
            give_back.try_send(start_ns).ok();
        }
        Self { free, give_back }
    }
}

pub(crate) struct Pacer {
    pub(crate) clock: RunClock,
    pub(crate) stop: Arc<Stop>,
    pub(crate) sink: Sink,
    pub(crate) slots: Option<Slots>,
    pub(crate) start_ns: i64,
    pub(crate) until_ns: i64,
    pub(crate) first_request_id: i64,
}

/// The pacer looks up from a long wait this often, to notice a stopped run.
const LOOK_UP: Duration = Duration::from_millis(50);
const LOOK_UP_NS: i64 = 50_000_000;

/// Spun rather than slept before a deadline: a sleeping thread wakes 50 to 100 µs
/// late. Short, for on two cores the spinning is taken from the workers.
const SPIN_NS: i64 = 60_000;

impl Pacer {
    /// Hands every arrival to a worker when it is due; returns how many.
    pub(crate) fn run(
        &self,
        arrivals: impl Iterator<Item = Arrival>,
        queues: &[mpsc::Sender<Assignment>],
    ) -> i64 {
        let mut sent = 0;
        self.clock.sleep_until(self.start_ns, SPIN_NS);
        for arrival in arrivals {
            let Some(t_scheduled_ns) = self.wait(&arrival) else {
                break;
            };
            let queue = &queues[sent as usize % queues.len()];
            let assignment = Assignment {
                request_id: self.first_request_id + sent,
                arrival,
                t_scheduled_ns,
                slot: self.slots.as_ref().map(|s| s.give_back.clone()),
            };
            // A worker that is gone reports its own error when it is joined.
            if queue.blocking_send(assignment).is_err() {
                break;
            }
            sent += 1;
        }
        sent
    }

    /// Waits until `arrival` is due and a slot is free; returns the instant for
    /// which it was scheduled, or `None` when the run was stopped.
    fn wait(&self, arrival: &Arrival) -> Option<i64> {
        if let Some(due_ns) = arrival.offset_ns {
            self.wait_until(due_ns)?;
        }
        let freed_ns = match &self.slots {
            Some(slots) => self.wait_for_slot(slots)?,
            None => self.clock.now_ns(),
        };
        (!self.stopped()).then_some(arrival.offset_ns.unwrap_or(freed_ns))
    }

    fn wait_until(&self, due_ns: i64) -> Option<()> {
        if due_ns >= self.until_ns {
            return None;
        }
        loop {
            if self.stopped() {
                return None;
            }
            let now_ns = self.clock.now_ns();
            if due_ns - now_ns <= LOOK_UP_NS {
                self.clock.sleep_until(due_ns, SPIN_NS);
                return Some(());
            }
            self.clock.sleep_until(now_ns + LOOK_UP_NS / 2, 0);
        }
    }

    fn wait_for_slot(&self, slots: &Slots) -> Option<i64> {
        loop {
            match slots.free.recv_timeout(LOOK_UP) {
                Ok(freed_ns) => return Some(freed_ns),
                Err(RecvTimeoutError::Timeout) if !self.stopped() => {}
                Err(_) => return None,
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.level() != StopLevel::Run
            || self.sink.failed()
            || self.clock.now_ns() >= self.until_ns
    }
}
