//! How long before its deadline an arrival wakes its worker.

use std::cell::Cell;

/// Waking a worker costs 20 to 150 µs where cores go idle, and that would be every
/// request's lag. So it is woken before the arrival is due, and polls its sockets
/// until the instant itself. What that polling costs is bounded by keeping the lead
/// no longer than nearly all wakes take: it follows the quantile [`Lead::IN_TIME`]
/// of what they took.
#[derive(Debug)]
pub(crate) struct Lead {
    ns: Cell<i64>,
}

impl Lead {
    const LEAST_NS: i64 = 20_000;
    /// At a thousand requests a second a quarter of one core.
    const MOST_NS: i64 = 250_000;
    const FIRST_NS: i64 = 150_000;
    /// How far one wake moves the lead.
    const STEP_NS: f64 = 10_000.0;
    /// Share of the wakes that should end before the deadline.
    const IN_TIME: f64 = 0.995;

    pub(crate) fn new() -> Self {
        Self {
            ns: Cell::new(Self::FIRST_NS),
        }
    }

    pub(crate) fn ns(&self) -> i64 {
        self.ns.get()
    }

    /// Learns from an arrival that woke its worker `early_ns` before it was due, or
    /// after where that is negative.
    pub(crate) fn observe(&self, early_ns: i64) {
        let share = if early_ns < 0 {
            Self::IN_TIME
        } else {
            Self::IN_TIME - 1.0
        };
        let moved_ns = self.ns() + (Self::STEP_NS * share) as i64;
        self.ns.set(moved_ns.clamp(Self::LEAST_NS, Self::MOST_NS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes of 0 to 100 µs, each as likely: the lead ends where all but a few are in
    /// time, and comes back from a spell of late ones.
    #[test]
    fn the_lead_follows_what_wakes_take() {
        let lead = Lead::new();
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
            let early_ns = lead.ns() - took_ns;
            lead.observe(early_ns);
            assert!((Lead::LEAST_NS..=Lead::MOST_NS).contains(&lead.ns()));
            in_time += u32::from(round >= 50_000 && early_ns >= 0);
        }
        assert!((49_600..=49_900).contains(&in_time), "{in_time} of 50000");
        assert!((80_000..120_000).contains(&lead.ns()));
    }
}
