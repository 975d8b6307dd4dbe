//! How late the client itself was, counted where it happens at the price of two
//! relaxed adds, and read once a second by the telemetry thread.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Steps within each doubling: a quantile is at most 1/32 above the true one.
const STEPS: usize = 32;
const STEP_BITS: u32 = STEPS.ilog2();
/// Doublings above [`STEPS`] ns: up to 2^40 ns, 18 minutes. What is later counts
/// as the last; the maximum is exact.
const DOUBLINGS: usize = 35;
const BUCKETS: usize = STEPS * (DOUBLINGS + 1);

/// Counts lags from any thread. Whoever drains it has those since the last time.
#[derive(Debug)]
pub struct LagRecorder {
    buckets: Box<[AtomicU64; BUCKETS]>,
    max_ns: AtomicI64,
}

impl Default for LagRecorder {
    fn default() -> Self {
        Self {
            buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]),
            max_ns: AtomicI64::new(0),
        }
    }
}

impl LagRecorder {
    /// Counts one lag; what came early was not late.
    pub fn observe(&self, lag_ns: i64) {
        let lag_ns = lag_ns.max(0);
        self.buckets[bucket(lag_ns.unsigned_abs())].fetch_add(1, Ordering::Relaxed);
        // Mostly one load: a new maximum is rare.
        if lag_ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(lag_ns, Ordering::Relaxed);
        }
    }

    /// What was observed since the last drain.
    pub fn drain(&self) -> Lags {
        let mut lags = Lags::default();
        for (count, bucket) in lags.counts.iter_mut().zip(self.buckets.iter()) {
            *count = bucket.swap(0, Ordering::Relaxed);
        }
        lags.max_ns = self.max_ns.swap(0, Ordering::Relaxed);
        lags
    }
}

/// Lags of some span of time.
#[derive(Debug, Clone)]
pub struct Lags {
    counts: Box<[u64; BUCKETS]>,
    max_ns: i64,
}

impl Default for Lags {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            max_ns: 0,
        }
    }
}

impl Lags {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest; `None` when there was none.
    #[must_use]
    pub fn max_ns(&self) -> Option<i64> {
        (self.count() > 0).then_some(self.max_ns)
    }

    /// The lag that `share` of them do not exceed, rounded up by less than a 32nd,
    /// by rank; `None` when there was none.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> Option<i64> {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(top_ns(at).min(self.max_ns))
    }

    /// Adds those of `other`.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += more;
        }
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

/// Below [`STEPS`] ns a bucket is one ns wide, then each doubling has [`STEPS`].
fn bucket(ns: u64) -> usize {
    let doubling = ns.max(1).ilog2().saturating_sub(STEP_BITS);
    let step = (ns >> doubling) as usize;
    (doubling as usize * STEPS + step).min(BUCKETS - 1)
}

/// The longest lag of a bucket.
fn top_ns(bucket: usize) -> i64 {
    let doubling = (bucket / STEPS).saturating_sub(1);
    let step = (bucket - doubling * STEPS) as i64;
    ((step + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lag_is_in_a_bucket_that_ends_less_than_a_32nd_above_it() {
        let mut ns: i64 = 0;
        let mut last = 0;
        while ns < 1 << 40 {
            let at = bucket(ns.unsigned_abs());
            assert!(at >= last, "buckets do not fall");
            last = at;
            let top = top_ns(at);
            assert!(
                top >= ns && top - ns <= ns / 32,
                "{ns} in a bucket to {top}"
            );
            assert_eq!(bucket(top.unsigned_abs()), at);
            assert_eq!(bucket((top + 1).unsigned_abs()), (at + 1).min(BUCKETS - 1));
            ns += 1 + ns / 7;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_observed_since_the_last_drain() {
        let recorder = LagRecorder::default();
        assert_eq!(recorder.drain().quantile_ns(0.99), None);
        assert_eq!(recorder.drain().max_ns(), None);
        (1..=1000).for_each(|us| recorder.observe(us * 1000));
        recorder.observe(-5);
        let mut run = recorder.drain();
        assert_eq!((run.count(), run.max_ns()), (1001, Some(1_000_000)));
        let p50 = run.quantile_ns(0.5).unwrap();
        assert!((500_000..520_000).contains(&p50), "{p50}");
        assert_eq!(run.quantile_ns(1.0), Some(1_000_000));
        recorder.observe(7);
        let second = recorder.drain();
        assert_eq!(second.quantile_ns(0.99), Some(7));
        run.add(&second);
        assert_eq!((run.count(), run.max_ns()), (1002, Some(1_000_000)));
    }
}
