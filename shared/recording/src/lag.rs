//! How far the log lags behind the rows, for those who watch.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tapedeck_clock::monotonic_ns;

/// How long rows have been waiting, since they were handed over; zero where none
/// wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLag {
    /// The oldest row that is not in the log.
    pub unwritten: Duration,
    /// The oldest row that would not outlive the machine.
    pub unsynced: Duration,
}

/// Nobody waits.
const NONE: i64 = i64::MAX;

/// When the oldest row of each stage was handed over, absolute monotonic ns.
#[derive(Debug)]
pub(crate) struct Oldest {
    /// With the writer, not yet in the log.
    pending_ns: AtomicI64,
    /// In the log, no sync has begun since.
    written_ns: AtomicI64,
    /// In the log, being synced.
    syncing_ns: AtomicI64,
}

impl Default for Oldest {
    fn default() -> Self {
        Self {
            pending_ns: AtomicI64::new(NONE),
            written_ns: AtomicI64::new(NONE),
            syncing_ns: AtomicI64::new(NONE),
        }
    }
}

impl Oldest {
    /// The writer took rows that were handed over at `t_ns`.
    pub(crate) fn taken(&self, t_ns: i64) {
        self.pending_ns.fetch_min(t_ns, Ordering::Relaxed);
    }

    /// All that the writer took is in the log.
    pub(crate) fn written(&self) {
        // In this order: in between a row is seen twice rather than not at all.
        let oldest_ns = self.pending_ns.load(Ordering::Relaxed);
        self.written_ns.fetch_min(oldest_ns, Ordering::Relaxed);
        self.pending_ns.store(NONE, Ordering::Relaxed);
    }

    /// A sync begins of all that is in the log.
    pub(crate) fn sync_begins(&self) {
        let oldest_ns = self.written_ns.swap(NONE, Ordering::Relaxed);
        self.syncing_ns.fetch_min(oldest_ns, Ordering::Relaxed);
    }

    /// It has succeeded. After one that has not, its rows wait on.
    pub(crate) fn synced(&self) {
        self.syncing_ns.store(NONE, Ordering::Relaxed);
    }

    /// The lag with rows since `queued_ns` still in the queue.
    pub(crate) fn lag(&self, queued_ns: Option<i64>) -> LogLag {
        let now_ns = monotonic_ns();
        let load = |t: &AtomicI64| t.load(Ordering::Relaxed);
        let waiting = |oldest_ns: i64| match oldest_ns {
            NONE => Duration::ZERO,
            t_ns => Duration::from_nanos(u64::try_from(now_ns - t_ns).unwrap_or(0)),
        };
        let unwritten_ns = load(&self.pending_ns).min(queued_ns.unwrap_or(NONE));
        let in_log_ns = load(&self.written_ns).min(load(&self.syncing_ns));
        LogLag {
            unwritten: waiting(unwritten_ns),
            unsynced: waiting(unwritten_ns.min(in_log_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wait_until_they_are_written_and_until_they_are_synced() {
        let oldest = Oldest::default();
        let nobody = LogLag {
            unwritten: Duration::ZERO,
            unsynced: Duration::ZERO,
        };
        assert_eq!(oldest.lag(None), nobody);
        let second_ago = monotonic_ns() - 1_000_000_000;
        oldest.taken(second_ago);
        oldest.taken(second_ago + 1);
        let second = Duration::from_secs(1);
        assert!(oldest.lag(None).unwritten >= second);
        oldest.written();
        assert_eq!(oldest.lag(None).unwritten, Duration::ZERO);
        assert!(oldest.lag(None).unsynced >= second);
        oldest.sync_begins();
        let (later, queued) = (second_ago + 2, second_ago + 3);
        oldest.taken(later);
        oldest.written();
        oldest.synced();
        assert!(
            oldest.lag(None).unsynced >= second,
            "the later row is not synced"
        );
        oldest.sync_begins();
        oldest.synced();
        assert_eq!(oldest.lag(None), nobody);
        assert!(oldest.lag(Some(queued)).unwritten >= Duration::from_millis(999));
    }

    #[test]
    fn a_sync_that_failed_leaves_its_rows_waiting() {
        let oldest = Oldest::default();
        oldest.taken(monotonic_ns() - 1_000_000_000);
        oldest.written();
        oldest.sync_begins();
        oldest.sync_begins();
        assert!(oldest.lag(None).unsynced >= Duration::from_secs(1));
    }
}
