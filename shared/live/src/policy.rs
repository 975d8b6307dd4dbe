//! What becomes of an attempt beside sending it: when another follows it, and
//! which are broken off on purpose.

use std::time::{Duration, UNIX_EPOCH};

use tapedeck_clock::realtime_ns;
use tapedeck_recording::{Outcome, Pairs};

/// How the attempts of a run's requests are treated. The default sends each request
/// once and lets it end.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AttemptPolicy {
    /// Further attempts of a request at most, beside the one that replaces a
    /// connection the server had closed.
    pub retries: u32,
    /// Wait as long as the server says, up to [`MAX_RETRY_AFTER`].
    pub obey_retry_after: bool,
    pub cancel: Option<Cancellation>,
    /// A request that would leave later than this after its planned instant is
    /// dropped: not sent, marked `late_dropped` and counted.
    pub max_lateness: Option<Duration>,
    /// Decides about jitter and about who is cancelled.
    pub seed: u64,
}

/// Requests that the client gives up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cancellation {
    /// Share of requests, 0 to 1; which ones depends on seed and request id alone.
    pub rate: f64,
    pub after: CancelAfter,
}

/// When a request is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAfter {
    /// So long after it is written to its connection.
    Time(Duration),
    /// With the read that brings this many content-bearing chunks.
    Chunks(u32),
}

/// Wait before the first retry; it doubles for each further one, up to the longest.
/// These two, and the jitter, are those of OpenAI's and Anthropic's client libraries.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);
/// A wait is shortened by up to this share, so that those who failed together do
/// not come back together.
const JITTER: f64 = 0.25;

/// Longest wait that a server's `Retry-After` is obeyed for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How an attempt ended, as far as it decides about another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) outcome: Outcome,
    pub(crate) status: Option<i32>,
    pub(crate) chunk_count: i32,
    pub(crate) headers: Option<&'a Pairs>,
}

impl AttemptPolicy {
    /// How long to wait before the attempt after `ended`, if there is to be one;
    /// `retried` came before. An answer that had begun is never asked for again:
    /// nobody could tell its first part from the second's.
    pub(crate) fn wait(&self, ended: Ended<'_>, request_id: i64, retried: u32) -> Option<Duration> {
        let worth_it = match ended.outcome {
            Outcome::ConnectionError | Outcome::Timeout => ended.chunk_count == 0,
            Outcome::HttpError => matches!(ended.status, Some(408 | 429 | 500..=599)),
            _ => false,
        };
        if retried >= self.retries || !worth_it {
            return None;
        }
        let doubled = FIRST_BACKOFF.saturating_mul(1 << retried.min(8));
        let draw = unit(self.seed, request_id as u64, u64::from(retried) + 1);
        let backoff = doubled.min(LONGEST_BACKOFF).mul_f64(1.0 - JITTER * draw);
        let asked = ended.headers.filter(|_| self.obey_retry_after);
        let asked = asked.and_then(retry_after);
        Some(asked.map_or(backoff, |asked| asked.min(MAX_RETRY_AFTER)))
    }

    /// When request `request_id` is given up, if it is.
    pub(crate) fn cancels(&self, request_id: i64) -> Option<CancelAfter> {
        let cancel = self.cancel?;
        let chosen = unit(self.seed, request_id as u64, 0) < cancel.rate;
        chosen.then_some(cancel.after)
    }
}

/// `Retry-After` as a wait from now: seconds, or a date by the server's own clock
/// where it says what that shows.
fn retry_after(headers: &Pairs) -> Option<Duration> {
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.trim())
    };
    let date_ns = |text: &str| {
        let date = httpdate::parse_http_date(text).ok()?;
        let since = date.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(since.as_nanos()).ok()
    };
    let value = header("retry-after")?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let now_ns = header("date").and_then(date_ns).unwrap_or_else(realtime_ns);
    let wait_ns = date_ns(value)?.saturating_sub(now_ns);
    Some(Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(0)))
}

/// A number from 0 to below 1 that depends on all three: SplitMix64 over their mix.
fn unit(seed: u64, id: u64, purpose: u64) -> f64 {
    let mix = |mut x: u64| {
        x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let bits = mix(mix(mix(seed) ^ id) ^ purpose);
    // 53 bits are what a float holds exactly.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(outcome: Outcome, status: Option<i32>) -> Ended<'static> {
        Ended {
            outcome,
            status,
            chunk_count: 0,
            headers: None,
        }
    }

    fn twice() -> AttemptPolicy {
        AttemptPolicy {
            retries: 2,
            ..AttemptPolicy::default()
        }
    }

    #[test]
    fn only_what_may_end_better_is_sent_again() {
        let retried = |outcome, status| twice().wait(ended(outcome, status), 0, 0).is_some();
        assert!(retried(Outcome::ConnectionError, None));
        assert!(retried(Outcome::Timeout, None));
        for status in [408, 429, 500, 502, 503, 504, 529] {
            assert!(retried(Outcome::HttpError, Some(status)), "{status}");
        }
        for status in [400, 401, 404, 409, 422, 301] {
            assert!(!retried(Outcome::HttpError, Some(status)), "{status}");
        }
        for outcome in [
            Outcome::Ok,
            Outcome::Truncated,
            Outcome::Malformed,
            Outcome::StreamError,
            Outcome::Cancelled,
        ] {
            assert!(!retried(outcome, Some(200)), "{outcome:?}");
        }
        let begun = Ended {
            chunk_count: 1,
            ..ended(Outcome::Timeout, Some(200))
        };
        assert_eq!(twice().wait(begun, 0, 0), None);
        let failed = ended(Outcome::ConnectionError, None);
        assert_eq!(twice().wait(failed, 0, 2), None);
        assert_eq!(AttemptPolicy::default().wait(failed, 0, 0), None);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_are_seeded() {
        let policy = AttemptPolicy {
            retries: 100,
            ..AttemptPolicy::default()
        };
        let failed = ended(Outcome::ConnectionError, None);
        for (retried, longest_ms) in [(0, 500), (1, 1000), (3, 4000), (5, 8000), (99, 8000)] {
            let wait = policy.wait(failed, 7, retried).unwrap();
            let longest = Duration::from_millis(longest_ms);
            assert!(wait <= longest && wait >= longest.mul_f64(0.75), "{wait:?}");
            assert_eq!(Some(wait), policy.wait(failed, 7, retried));
        }
        let waits: std::collections::BTreeSet<_> =
            (0..100).map(|id| policy.wait(failed, id, 0)).collect();
        assert!(waits.len() > 90);
    }

    #[test]
    fn a_servers_wait_is_obeyed_within_bounds() {
        let wait = |pairs: &[(&str, &str)]| {
            let pairs: Pairs = pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect();
            let ended = Ended {
                headers: Some(&pairs),
                ..ended(Outcome::HttpError, Some(429))
            };
            let policy = AttemptPolicy {
                obey_retry_after: true,
                ..twice()
            };
            policy.wait(ended, 0, 0).unwrap().as_secs_f64()
        };
        assert_eq!(wait(&[("retry-after", "3")]), 3.0);
        assert_eq!(wait(&[("retry-after", " 0.25 ")]), 0.25);
        assert_eq!(wait(&[("retry-after", "86400")]), 60.0);
        let date = ("date", "Sun, 06 Nov 1994 08:49:30 GMT");
        let in_7_s = ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(wait(&[date, in_7_s]), 7.0);
        // By our own clock that date is past.
        assert_eq!(wait(&[in_7_s]), 0.0);
        for nonsense in ["", "soon", "nan", "-1e400"] {
            let waited = wait(&[("retry-after", nonsense)]);
            assert!(waited <= 0.5, "{nonsense}: {waited}");
        }
    }

    #[test]
    fn a_tenth_is_cancelled_and_always_the_same_tenth() {
        let policy = |seed| AttemptPolicy {
            seed,
            cancel: Some(Cancellation {
                rate: 0.1,
                after: CancelAfter::Chunks(1),
            }),
            ..AttemptPolicy::default()
        };
        let chosen = |seed| {
            let policy = policy(seed);
            (0..10_000)
                .filter(move |id| policy.cancels(*id).is_some())
                .collect::<Vec<_>>()
        };
        assert!((900..1100).contains(&chosen(0).len()));
        assert_eq!(chosen(0), chosen(0));
        assert_ne!(chosen(0), chosen(1));
    }
}
