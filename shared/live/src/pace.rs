//! The pacer: arrivals on absolute deadlines, never skipped, never shifted.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tapedeck_clock::RunClock;
use tapedeck_recording::Sink;
use tokio::sync::mpsc;

use crate::arrival::Arrival;
use crate::engine::{Gauges, Stop, StopLevel};
use crate::session::{Course, Heard};
use crate::worker::Assignment;

/// A free place among the requests in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// When it became free.
    freed_ns: i64,
    /// The worker that holds the idle connection of the request before: the next
    /// request goes there, or it would open another.
    worker: usize,
}

/// Slots of a run with a cap on requests in flight.
pub(crate) struct Slots {
    free: Receiver<Slot>,
    give_back: SyncSender<Slot>,
}

/// Gives its slot back when the request has ended, however it ended.
#[derive(Debug)]
pub(crate) struct SlotGuard {
    clock: RunClock,
    freed_ns: i64,
    worker: usize,
    give_back: SyncSender<Slot>,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        // The channel has room for every slot there is.
        self.give_back
            .try_send(Slot {
                freed_ns: self.clock.now_ns(),
                worker: self.worker,
            })
            .ok();
    }
}

impl Slots {
    /// `count` slots, spread over `workers`, all free from `start_ns`.
    pub(crate) fn new(count: usize, workers: usize, start_ns: i64) -> Self {
        // Room for every slot, so giving one back never waits.
        let (give_back, free) = sync_channel(count.max(1));
        for index in 0..count.max(1) {
            let slot = Slot {
                freed_ns: start_ns,
                worker: index % workers,
            };
            give_back.try_send(slot).ok();
        }
        Self { free, give_back }
    }
}

pub(crate) struct Pacer {
    pub(crate) clock: RunClock,
    pub(crate) stop: Arc<Stop>,
    pub(crate) sink: Sink,
    pub(crate) slots: Option<Slots>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) start_ns: i64,
    pub(crate) until_ns: i64,
    pub(crate) first_request_id: i64,
}

/// The pacer looks up from a long wait this often, to notice a stopped run.
const LOOK_UP: Duration = Duration::from_millis(50);
const LOOK_UP_NS: i64 = 50_000_000;

/// An arrival is with its worker this long before it is due, so that a pacer that
/// waits for a core makes nobody late. A run that is stopped still sends what was
/// handed over.
const AHEAD_NS: i64 = 5_000_000;

impl Pacer {
    /// Hands every arrival to a worker before it is due; returns how many.
    pub(crate) fn run(
        &self,
        arrivals: impl Iterator<Item = Arrival>,
        queues: &[mpsc::Sender<Assignment>],
    ) -> i64 {
        let mut sent: i64 = 0;
        let course = Arc::new(Course::new(
            self.first_request_id,
            self.until_ns,
            Arc::clone(&self.stop),
        ));
        tapedeck_clock::wake_on_time();
        for arrival in arrivals {
            let Some((t_scheduled_ns, slot)) = self.wait(&arrival) else {
                break;
            };
            let worker = slot.as_ref().map_or(sent as usize, |s| s.worker) % queues.len();
            // Waiting for a slot is load, not lateness.
            let freed_ns = slot.as_ref().map_or(t_scheduled_ns, |s| s.freed_ns);
            let t_ready_ns = t_scheduled_ns.max(freed_ns);
            self.gauges
                .pacer_lag
                .observe(self.clock.now_ns() - t_ready_ns);
            let assignment = Assignment {
                request_id: course.next_request_id(),
                heard: Heard::of(&arrival),
                arrival,
                t_scheduled_ns,
                t_ready_ns,
                slot,
                course: Arc::clone(&course),
            };
            // A worker that is gone reports its own error when it is joined.
            if queues[worker].blocking_send(assignment).is_err() {
                break;
            }
            sent += 1;
        }
        sent
    }

    /// Waits until `arrival` is to be handed over and a slot is free; returns the instant
    /// for which it was scheduled and the slot, or `None` when the run was stopped.
    fn wait(&self, arrival: &Arrival) -> Option<(i64, Option<SlotGuard>)> {
        match arrival.offset_ns {
            Some(due_ns) => self.wait_until(due_ns)?,
            None => self.clock.sleep_until(self.start_ns),
        }
        let Some(slots) = &self.slots else {
            let now_ns = self.clock.now_ns();
            return (!self.stopped()).then_some((arrival.offset_ns.unwrap_or(now_ns), None));
        };
        let slot = self.wait_for_slot(slots)?;
        let guard = SlotGuard {
            clock: self.clock,
            freed_ns: slot.freed_ns,
            worker: slot.worker,
            give_back: slots.give_back.clone(),
        };
        let t_scheduled_ns = arrival.offset_ns.unwrap_or(slot.freed_ns);
        (!self.stopped()).then_some((t_scheduled_ns, Some(guard)))
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
                self.clock.sleep_until(due_ns - AHEAD_NS);
                return Some(());
            }
            self.clock.sleep_until(now_ns + LOOK_UP_NS / 2);
        }
    }

    fn wait_for_slot(&self, slots: &Slots) -> Option<Slot> {
        loop {
            match slots.free.recv_timeout(LOOK_UP) {
                Ok(slot) => return Some(slot),
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
