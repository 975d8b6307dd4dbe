//! The pacer: arrivals on absolute deadlines, never skipped, never shifted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
    pub(crate) hand_over: Arc<HandOver>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) start_ns: i64,
    pub(crate) until_ns: i64,
    pub(crate) first_request_id: i64,
}

/// The pacer looks up from a long wait this often, to notice a stopped run.
const LOOK_UP: Duration = Duration::from_millis(50);
const LOOK_UP_NS: i64 = 50_000_000;

/// How long before its deadline an arrival is handed to its worker.
///
/// Waking the pacer and then the worker costs 50 to 150 µs where cores go idle,
/// and that would be every request's lag. So the arrival is on its way before it is
/// due, and the worker, awake by then, polls its sockets until the instant itself.
/// What that polling costs is bounded by keeping the lead no longer than nearly
/// all hand-overs take: it follows the quantile [`HandOver::IN_TIME`] of what they
/// took.
#[derive(Debug)]
pub(crate) struct HandOver {
    lead_ns: AtomicI64,
}

impl HandOver {
    const LEAST_NS: i64 = 20_000;
    /// At a thousand requests a second a quarter of one core.
    const MOST_NS: i64 = 250_000;
    const FIRST_NS: i64 = 150_000;
    /// How far one hand-over moves the lead.
    const STEP_NS: f64 = 10_000.0;
    /// Share of the hand-overs that should end before the deadline.
    const IN_TIME: f64 = 0.995;

    pub(crate) fn new() -> Self {
        Self {
            lead_ns: AtomicI64::new(Self::FIRST_NS),
        }
    }

    pub(crate) fn lead_ns(&self) -> i64 {
        self.lead_ns.load(Ordering::Relaxed)
    }

    /// Learns from an arrival that reached its worker `early_ns` before it was due,
    /// or after where that is negative.
    pub(crate) fn observe(&self, early_ns: i64) {
        let share = if early_ns < 0 {
            Self::IN_TIME
        } else {
            Self::IN_TIME - 1.0
        };
        let moved_ns = self.lead_ns() + (Self::STEP_NS * share) as i64;
        // Two workers may overwrite each other's step, which costs a step.
        let lead_ns = moved_ns.clamp(Self::LEAST_NS, Self::MOST_NS);
        self.lead_ns.store(lead_ns, Ordering::Relaxed);
    }
}

impl Pacer {
    /// Hands every arrival to a worker when it is due; returns how many.
    pub(crate) fn run(
        &self,
        arrivals: impl Iterator<Item = Arrival>,
        queues: &[mpsc::Sender<Assignment>],
    ) -> i64 {
        let mut sent: i64 = 0;
        let course = Arc::new(Course::new(
            self.first_request_id,
            self.start_ns,
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

    /// Waits until `arrival` is all but due and a slot is free; returns the instant
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
                self.clock.sleep_until(due_ns - self.hand_over.lead_ns());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Hand-overs of 0 to 100 µs, each as likely: the lead ends where all but a
    /// few are in time, and comes back from a spell of late ones.
    #[test]
    fn the_lead_follows_what_hand_overs_take() {
        let hand_over = HandOver::new();
        let mut state = 1_u64;
        let mut in_time = 0;
        for round in 0..100_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let took_ns = match round {
                20_000..20_100 => 5_000_000,
                _ => (state >> 33) as i64 % 100_000,
            };
            let early_ns = hand_over.lead_ns() - took_ns;
            hand_over.observe(early_ns);
            let lead_ns = hand_over.lead_ns();
            assert!((HandOver::LEAST_NS..=HandOver::MOST_NS).contains(&lead_ns));
            in_time += u32::from(round >= 50_000 && early_ns >= 0);
        }
        assert!((49_600..=49_900).contains(&in_time), "{in_time} of 50000");
        assert!((80_000..120_000).contains(&hand_over.lead_ns()));
    }
}
