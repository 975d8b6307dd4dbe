//! The only crate that reads a clock.
//!
//! Every instant of a recording is nanoseconds on `CLOCK_MONOTONIC` since the
//! recording started ([`RunClock`]). Wall time exists only as [`Anchor`] pairs.
//! Kernel receive stamps are `CLOCK_REALTIME`; [`StampConverter`] brings them on
//! to the run's clock with a pair of readings at most a millisecond old, so that
//! slewing of the wall clock reaches no latency. A step of the wall clock is seen
//! in the next pair; what was waiting to be read then gets the process stamp.

use nix::sys::prctl;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

const NS_PER_S: i64 = 1_000_000_000;

fn read_ns(clock: ClockId) -> i64 {
    // Both clocks used here exist on every Linux, so a failure cannot be met by
    // input; zero would be visible at once as a negative duration.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() * NS_PER_S + t.tv_nsec())
}

/// Absolute `CLOCK_MONOTONIC`, ns.
#[must_use]
pub fn monotonic_ns() -> i64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// Wall clock, ns since the Unix epoch. For anchors and names only.
#[must_use]
pub fn realtime_ns() -> i64 {
    read_ns(ClockId::CLOCK_REALTIME)
}

/// One simultaneous reading of both clocks, absolute ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub monotonic_ns: i64,
    pub realtime_ns: i64,
    /// Half the width of the monotonic readings around the wall reading.
    pub uncertainty_ns: i64,
}

impl Anchor {
    /// Reads both clocks; the narrowest of five sandwiches, so that a thread
    /// taken off its core between two readings does not shift the pair.
    #[must_use]
    pub fn read() -> Self {
        let mut best = Self::read_once();
        for _ in 0..4 {
            let next = Self::read_once();
            if next.uncertainty_ns < best.uncertainty_ns {
                best = next;
            }
        }
        best
    }

    fn read_once() -> Self {
        let before = monotonic_ns();
        let realtime_ns = realtime_ns();
        let width = monotonic_ns() - before;
        Self {
            monotonic_ns: before + width / 2,
            realtime_ns,
            uncertainty_ns: width / 2 + width % 2,
        }
    }
}

/// Nanoseconds since a recording started.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    origin_ns: i64,
}

impl RunClock {
    /// A clock whose zero is now.
    #[must_use]
    pub fn start() -> Self {
        Self::at(monotonic_ns())
    }

    /// A clock with its zero at an absolute `CLOCK_MONOTONIC` instant.
    #[must_use]
    pub fn at(origin_ns: i64) -> Self {
        Self { origin_ns }
    }

    #[must_use]
    pub fn origin_ns(&self) -> i64 {
        self.origin_ns
    }

    #[must_use]
    pub fn now_ns(&self) -> i64 {
        monotonic_ns() - self.origin_ns
    }

    /// Sleeps on the absolute deadline `t_ns` of this clock; returns at once when
    /// it has passed. Waking takes 25 µs and more where the core had gone idle, and
    /// 50 µs on top without [`wake_on_time`].
    pub fn sleep_until(&self, t_ns: i64) {
        if self.now_ns() < t_ns {
            sleep_until_monotonic(self.origin_ns + t_ns);
        }
    }
}

/// Asks the kernel to wake this thread at its deadlines rather than up to 50 µs
/// after them, which it does to wake several at once.
pub fn wake_on_time() {
    // Refused only where the kernel has no such setting: sleeps are then coarser.
    prctl::set_timerslack(1).ok();
}

fn sleep_until_monotonic(deadline_ns: i64) {
    if deadline_ns <= 0 {
        return;
    }
    let at = TimeSpec::new(deadline_ns / NS_PER_S, deadline_ns % NS_PER_S);
    // An interrupting signal ends the sleep early; the deadline is absolute, so
    // sleeping again is exact.
    while clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        ClockNanosleepFlags::TIMER_ABSTIME,
        &at,
    ) == Err(nix::errno::Errno::EINTR)
    {}
}

/// Converts kernel receive stamps (`CLOCK_REALTIME`) to a run's clock.
#[derive(Debug)]
pub struct StampConverter {
    clock: RunClock,
    /// The last pair; `None` before the first stamp.
    anchor: Option<Anchor>,
    /// No stamp is taken before this instant of the run's clock.
    distrust_until_ns: i64,
}

/// How long an offset between the clocks is used: at the kernel's largest slew
/// (500 ppm) it is then wrong by half a microsecond.
const OFFSET_LIFETIME_NS: i64 = 1_000_000;
/// A stamp of this age may be a late reader's or a clock's that was just set
/// back; a new pair tells, unless the last one is quite new. Late readers are
/// busy ones, and a pair costs them 0.4 µs.
const OLD_STAMP_NS: i64 = 1_000_000;
const NEW_PAIR_NS: i64 = 50_000;
/// The offset changes by at most 500 ppm where nobody sets the wall clock; twice
/// that is still no step.
const LARGEST_SLEW: i64 = 1_000;
/// After a step, stamps from before it may wait in sockets this long.
const STEP_DISTRUST_NS: i64 = NS_PER_S;

impl StampConverter {
    #[must_use]
    pub fn new(clock: RunClock) -> Self {
        Self {
            clock,
            anchor: None,
            distrust_until_ns: i64::MIN,
        }
    }

    /// The arrival instant of a segment stamped `stamp_ns` that this process saw
    /// at `seen_ns`. `None` when the stamp lies in the future by more than the
    /// clocks' reading error or over an hour back, and within a second of a step
    /// of the wall clock.
    pub fn convert(&mut self, stamp_ns: i64, seen_ns: i64) -> Option<i64> {
        self.convert_with(stamp_ns, seen_ns, Anchor::read)
    }

    fn convert_with(
        &mut self,
        stamp_ns: i64,
        seen_ns: i64,
        read: impl FnOnce() -> Anchor,
    ) -> Option<i64> {
        let run_ns = |anchor: Anchor| anchor.monotonic_ns - self.clock.origin_ns();
        let arrival = |anchor: Anchor| stamp_ns - (anchor.realtime_ns - run_ns(anchor));
        let fresh = self.anchor.filter(|anchor| {
            let since_ns = seen_ns - run_ns(*anchor);
            let is_old = seen_ns - arrival(*anchor) > OLD_STAMP_NS;
            since_ns <= OFFSET_LIFETIME_NS && (!is_old || since_ns <= NEW_PAIR_NS)
        });
        let anchor = fresh.unwrap_or_else(read);
        let t_ns = arrival(anchor);
        if self.anchor.is_some_and(|last| last.stepped_to(anchor)) {
            self.distrust_until_ns = seen_ns + STEP_DISTRUST_NS;
        }
        self.anchor = Some(anchor);
        if seen_ns < self.distrust_until_ns {
            return None;
        }
        bounded_arrival(t_ns, seen_ns)
    }
}

impl Anchor {
    /// True when the wall clock was set between `self` and `later`.
    fn stepped_to(self, later: Self) -> bool {
        let elapsed_ns = later.monotonic_ns - self.monotonic_ns;
        let change_ns = later.realtime_ns - self.realtime_ns - elapsed_ns;
        let error_ns = self.uncertainty_ns + later.uncertainty_ns + READING_ERROR_NS;
        change_ns.abs() > error_ns + elapsed_ns / LARGEST_SLEW
    }
}

/// A stamp may lie this far after the instant the process read the bytes: the
/// reading error of the offset between the clocks.
const READING_ERROR_NS: i64 = 20_000;
const OLDEST_STAMP_NS: i64 = 3600 * NS_PER_S;

fn bounded_arrival(t_ns: i64, seen_ns: i64) -> Option<i64> {
    let age_ns = seen_ns - t_ns;
    if (-READING_ERROR_NS..=OLDEST_STAMP_NS).contains(&age_ns) {
        Some(t_ns.min(seen_ns))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_never_ends_before_its_deadline() {
        let clock = RunClock::start();
        for step in 1..20 {
            let deadline_ns = step * 300_000;
            clock.sleep_until(deadline_ns);
            assert!(clock.now_ns() >= deadline_ns);
        }
    }

    #[test]
    fn a_stamp_converts_to_between_its_neighbouring_readings() {
        let clock = RunClock::start();
        let mut converter = StampConverter::new(clock);
        for _ in 0..1000 {
            let before = clock.now_ns();
            let stamp = realtime_ns();
            let seen = clock.now_ns();
            let t_ns = converter.convert(stamp, seen).expect("no clock was set");
            assert!(t_ns <= seen);
            assert!(t_ns >= before - READING_ERROR_NS);
        }
    }

    /// A wall clock that is `offset_ns` ahead of the run's at `t_ns`.
    fn pair(t_ns: i64, offset_ns: i64) -> Anchor {
        Anchor {
            monotonic_ns: t_ns,
            realtime_ns: t_ns + offset_ns,
            uncertainty_ns: 100,
        }
    }

    #[test]
    fn no_stamp_is_taken_around_a_step_of_the_wall_clock() {
        const AHEAD: i64 = 1_000 * NS_PER_S;
        for step in [30 * NS_PER_S, -30 * NS_PER_S, 100_000, -100_000] {
            let mut converter = StampConverter::new(RunClock::at(0));
            let t = 5 * NS_PER_S;
            let first = converter.convert_with(t + AHEAD, t + 50, || pair(t + 60, AHEAD));
            assert_eq!(first, Some(t));
            // Stamped before the step, read after it; then stamped after it.
            let later = t + 2_000_000;
            for stamp in [later + AHEAD, later + AHEAD + step] {
                let new = || pair(later + 60, AHEAD + step);
                let t_ns = converter.convert_with(stamp, later + 50, new);
                assert_eq!(t_ns, None, "step {step}");
            }
            // Stamped before the step by another connection, read half a second on.
            let waited = later + NS_PER_S / 2;
            let t_ns = converter.convert_with(later + AHEAD, waited, || pair(waited, AHEAD + step));
            assert_eq!(t_ns, None, "step {step}");
            let calm = later + 2 * NS_PER_S;
            let t_ns = converter.convert_with(calm + AHEAD + step, calm + 50, || {
                pair(calm + 60, AHEAD + step)
            });
            assert_eq!(t_ns, Some(calm), "step {step}");
        }
    }

    #[test]
    fn a_clock_set_back_within_the_life_of_a_pair_is_noticed_by_the_stamps_age() {
        let mut converter = StampConverter::new(RunClock::at(0));
        let t = 5 * NS_PER_S;
        converter.convert_with(t, t + 50, || pair(t + 60, 0));
        let soon = t + 300_000;
        let step = -30 * NS_PER_S;
        let t_ns = converter.convert_with(soon + step, soon + 50, || pair(soon + 60, step));
        assert_eq!(t_ns, None);
    }

    #[test]
    fn a_late_reader_keeps_the_kernels_stamp_and_slewing_is_no_step() {
        let mut converter = StampConverter::new(RunClock::at(0));
        let t = 5 * NS_PER_S;
        for second in 0..5 {
            let stamp = t + second * NS_PER_S;
            let slewed = second * 500_000;
            let seen = stamp + 40_000_000;
            let t_ns = converter.convert_with(stamp + slewed, seen, || pair(seen + 60, slewed));
            assert_eq!(t_ns, Some(stamp));
        }
    }

    #[test]
    fn a_stamp_from_before_a_clock_step_is_refused() {
        assert_eq!(bounded_arrival(5_000_000, 1_000_000), None);
        assert_eq!(bounded_arrival(-2 * OLDEST_STAMP_NS, 0), None);
        assert_eq!(bounded_arrival(1_005_000, 1_000_000), Some(1_000_000));
    }
}
