//! The only crate that reads a clock.
//!
//! Every instant of a recording is nanoseconds on `CLOCK_MONOTONIC` since the
//! recording started ([`RunClock`]). Wall time exists only as [`Anchor`] pairs.
//! Kernel receive stamps are `CLOCK_REALTIME`; [`StampConverter`] brings them on
//! to the run's clock with a pair of readings at most a millisecond old, so that
//! slewing of the wall clock reaches no latency, and a step of it can reach only
//! what was waiting to be read at that instant.

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
    realtime_minus_run_ns: i64,
    measured_ns: i64,
}

/// How long an offset between the clocks is used: at the kernel's largest slew
/// (500 ppm) it is then wrong by half a microsecond.
const OFFSET_LIFETIME_NS: i64 = 1_000_000;

impl StampConverter {
    #[must_use]
    pub fn new(clock: RunClock) -> Self {
        Self {
            clock,
            realtime_minus_run_ns: 0,
            measured_ns: i64::MIN / 2,
        }
    }

    /// The arrival instant of a segment stamped `stamp_ns` that this process saw
    /// at `seen_ns`. `None` when the stamp lies in the future by more than the
    /// clocks' reading error or over an hour back: the wall clock was set.
    pub fn convert(&mut self, stamp_ns: i64, seen_ns: i64) -> Option<i64> {
        if seen_ns - self.measured_ns > OFFSET_LIFETIME_NS {
            let anchor = Anchor::read();
            self.measured_ns = anchor.monotonic_ns - self.clock.origin_ns();
            self.realtime_minus_run_ns = anchor.realtime_ns - self.measured_ns;
        }
        bounded_arrival(stamp_ns - self.realtime_minus_run_ns, seen_ns)
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

    #[test]
    fn a_stamp_from_before_a_clock_step_is_refused() {
        assert_eq!(bounded_arrival(5_000_000, 1_000_000), None);
        assert_eq!(bounded_arrival(-2 * OLDEST_STAMP_NS, 0), None);
        assert_eq!(bounded_arrival(1_005_000, 1_000_000), Some(1_000_000));
    }
}
