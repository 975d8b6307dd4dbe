//! The pacer: arrivals on absolute deadlines, never skipped, never shifted.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tapedeck_clock::RunClock;
use tapedeck_recording::Sink;
use tokio::sync::mpsc;

use crate::arrival::{Arrival, Arrivals, ClientTimes};
use crate::engine::{Deadline, Gauges, Stop, StopLevel};
use crate::session::{Course, Heard};
use crate::worker::{Assignment, as_ns};

/// A free place among the requests in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// When it became free.
    freed_ns: i64,
    /// The worker that holds the idle connection of the request before: the next
    /// request goes there, or it would open another.
    worker: usize,
    /// Its number, from 0: in a closed loop that of the client.
    client: usize,
}

/// Slots of a run with a cap on requests in flight. Each begins once, is taken and
/// given back, and may end.
pub(crate) struct Slots {
    free: Receiver<Slot>,
    give_back: SyncSender<Slot>,
    count: usize,
    workers: usize,
    start_ns: i64,
    times: ClientTimes,
    begun: Cell<usize>,
    ended: Cell<usize>,
}

/// Gives its slot back when the request has ended, however it ended.
#[derive(Debug)]
pub(crate) struct SlotGuard {
    clock: RunClock,
    freed_ns: i64,
    worker: usize,
    client: usize,
    give_back: SyncSender<Slot>,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        // The channel has room for every slot there is.
        self.give_back
            .try_send(Slot {
                freed_ns: self.clock.now_ns(),
                worker: self.worker,
                client: self.client,
            })
            .ok();
    }
}

impl Slots {
    /// `count` slots, spread over `workers`, that begin from `start_ns` on.
    pub(crate) fn new(count: usize, workers: usize, start_ns: i64, times: ClientTimes) -> Self {
        let count = count.max(1);
        // Room for every slot, so giving one back never waits.
        let (give_back, free) = sync_channel(count);
        Self {
            free,
            give_back,
            count,
            workers,
            start_ns,
            times,
            begun: Cell::new(0),
            ended: Cell::new(0),
        }
    }

    fn begins_ns(&self, client: usize) -> i64 {
        let ramp_ns = i128::from(as_ns(self.times.ramp_up));
        let after_ns = ramp_ns * client as i128 / self.count as i128;
        self.start_ns.saturating_add(after_ns as i64)
    }

    /// When the next one begins; `None` when all have.
    fn next_begins_ns(&self) -> Option<i64> {
        let next = self.begun.get();
        (next < self.count).then(|| self.begins_ns(next))
    }

    fn begin(&self) -> Slot {
        let client = self.begun.get();
        self.begun.set(client + 1);
        Slot {
            freed_ns: self.begins_ns(client),
            worker: client % self.workers,
            client,
        }
    }

    /// Whether the client of `slot` has had its time, which is counted from
    /// `counts_from_ns` at the earliest.
    fn is_over(&self, slot: &Slot, counts_from_ns: Option<i64>) -> bool {
        let (Some(longest), Some(from_ns)) = (self.times.duration, counts_from_ns) else {
            return false;
        };
        let from_ns = from_ns.max(self.begins_ns(slot.client));
        slot.freed_ns >= from_ns.saturating_add(as_ns(longest))
    }

    /// A slot that was taken and will not be given back.
    fn end(&self) {
        self.ended.set(self.ended.get() + 1);
    }

    fn all_ended(&self) -> bool {
        self.ended.get() == self.count
    }

    fn guard(&self, clock: RunClock, slot: Slot) -> SlotGuard {
        SlotGuard {
            clock,
            freed_ns: slot.freed_ns,
            worker: slot.worker,
            client: slot.client,
            give_back: self.give_back.clone(),
        }
    }
}

/// An arrival whose time has come.
struct Due {
    arrival: Arrival,
    t_scheduled_ns: i64,
    slot: Option<SlotGuard>,
}

pub(crate) struct Pacer {
    pub(crate) clock: RunClock,
    pub(crate) stop: Arc<Stop>,
    pub(crate) sink: Sink,
    pub(crate) slots: Option<Slots>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) start_ns: i64,
    pub(crate) until: Deadline,
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
        mut arrivals: impl Arrivals,
        queues: &[mpsc::Sender<Assignment>],
    ) -> i64 {
        let mut sent: i64 = 0;
        let course = Arc::new(Course::new(
            self.first_request_id,
            self.start_ns,
            self.until.clone(),
        ));
        tapedeck_clock::wake_on_time();
        while let Some(due) = self.next(&mut arrivals) {
            let Due {
                arrival,
                t_scheduled_ns,
                slot,
            } = due;
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
                t_planned_ns: t_scheduled_ns,
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

    /// The next arrival, when it is due; `None` when there is none or the run was
    /// stopped.
    fn next(&self, arrivals: &mut impl Arrivals) -> Option<Due> {
        match &self.slots {
            Some(slots) if arrivals.clients().is_some() => self.next_of_clients(slots, arrivals),
            _ => {
                let arrival = arrivals.next_of(0)?;
                let (t_scheduled_ns, slot) = self.wait(&arrival)?;
                Some(Due {
                    arrival,
                    t_scheduled_ns,
                    slot,
                })
            }
        }
    }

    /// What the next client that is free sends.
    fn next_of_clients(&self, slots: &Slots, arrivals: &mut impl Arrivals) -> Option<Due> {
        self.clock.sleep_until(self.start_ns);
        loop {
            let slot = self.wait_for_slot(slots, arrivals.counts_from_ns())?;
            if self.stopped() {
                return None;
            }
            match arrivals.next_of(slot.client) {
                Some(arrival) => {
                    return Some(Due {
                        arrival,
                        t_scheduled_ns: slot.freed_ns,
                        slot: Some(slots.guard(self.clock, slot)),
                    });
                }
                None => slots.end(),
            }
        }
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
        let slot = self.wait_for_slot(slots, None)?;
        let guard = slots.guard(self.clock, slot);
        let t_scheduled_ns = arrival.offset_ns.unwrap_or(slot.freed_ns);
        (!self.stopped()).then_some((t_scheduled_ns, Some(guard)))
    }

    fn wait_until(&self, due_ns: i64) -> Option<()> {
        if due_ns >= self.until.t_ns() {
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

    /// The next slot that begins or is given back; `None` when all have ended or the
    /// run was stopped.
    fn wait_for_slot(&self, slots: &Slots, counts_from_ns: Option<i64>) -> Option<Slot> {
        while !slots.all_ended() {
            let until_begin_ns = slots.next_begins_ns().map(|ns| ns - self.clock.now_ns());
            let wait = match until_begin_ns {
                None => LOOK_UP,
                Some(..=0) => return Some(slots.begin()),
                Some(ns) => Duration::from_nanos(ns.unsigned_abs()).min(LOOK_UP),
            };
            match slots.free.recv_timeout(wait) {
                Ok(slot) if slots.is_over(&slot, counts_from_ns) => slots.end(),
                Ok(slot) => return Some(slot),
                Err(RecvTimeoutError::Timeout) if !self.stopped() => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn stopped(&self) -> bool {
        self.stop.level() != StopLevel::Run
            || self.sink.failed()
            || self.gauges.is_broken()
            || self.clock.now_ns() >= self.until.t_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_begin_evenly_and_end_after_their_own_time() {
        let times = ClientTimes {
            ramp_up: Duration::from_secs(1),
            duration: Some(Duration::from_secs(3)),
        };
        let slots = Slots::new(4, 3, 50, times);
        let mut begun = Vec::new();
        while let Some(begins_ns) = slots.next_begins_ns() {
            let slot = slots.begin();
            assert_eq!(slot.freed_ns, begins_ns);
            begun.push((slot.client, slot.worker, begins_ns - 50));
        }
        let quarter_ns = 250_000_000;
        let expected: Vec<_> = (0..4).map(|n| (n, n % 3, n as i64 * quarter_ns)).collect();
        assert_eq!(begun, expected);
        for (client, _, begins_ns) in begun {
            let freed = |freed_ns| Slot {
                freed_ns: 50 + begins_ns + freed_ns,
                worker: 0,
                client,
            };
            let begun = Some(i64::MIN);
            assert!(!slots.is_over(&freed(2_999_999_999), begun));
            assert!(slots.is_over(&freed(3_000_000_000), begun));
            // A warm-up takes nothing of it, where it ended after the client began.
            assert!(!slots.is_over(&freed(i64::MAX - begins_ns - 50), None));
            let end_ns = begins_ns.max(500_000_000) + 3_000_000_000;
            let warmed_up = Some(50 + 500_000_000);
            assert!(!slots.is_over(&freed(end_ns - begins_ns - 1), warmed_up));
            assert!(slots.is_over(&freed(end_ns - begins_ns), warmed_up));
        }
        (0..4).for_each(|_| slots.end());
        assert!(slots.all_ended());
    }
}
