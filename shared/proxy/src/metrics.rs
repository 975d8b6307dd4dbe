//! Counters of a running proxy, and their text form for Prometheus. Approximate,
//! for people who watch; a report reads the recording.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tapedeck_recording::{Outcome, Sink};
use tapedeck_wire::word_enum;

word_enum! {
    /// Why a request passed unrecorded.
    Reason {
        Path = "path",
        Upgrade = "upgrade",
        Off = "off",
        Sampled = "sampled",
        Upstream = "upstream",
    }
}

/// Upper bounds of the histogram's buckets, ns; one more takes the rest.
const BUCKETS_NS: [u64; 16] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    5_000_000_000,
];

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BUCKETS_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn observe(&self, ns: i64) {
        let ns = u64::try_from(ns).unwrap_or(0);
        let bucket = BUCKETS_NS.partition_point(|bound| *bound < ns);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = BUCKETS_NS
                .get(index)
                .map_or("+Inf".to_owned(), |ns| (*ns as f64 / 1e9).to_string());
            writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}").ok();
        }
        let sum_s = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        writeln!(text, "{name}_sum{{{labels}}} {sum_s}").ok();
        writeln!(text, "{name}_count{{{labels}}} {total}").ok();
    }
}

/// Requests of one server.
#[derive(Debug)]
struct OfUpstream {
    label: String,
    requests: AtomicU64,
    unanswered: AtomicU64,
}

/// What a proxy has done so far.
#[derive(Debug, Default)]
pub struct Metrics {
    upstreams: Vec<OfUpstream>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    unrecorded: [AtomicU64; Reason::ALL.len()],
    refused: AtomicU64,
    chunks: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    dropped_events: AtomicU64,
    connections: AtomicU64,
    open_connections: AtomicU64,
    added_up: Histogram,
    added_down: Histogram,
    waited_down: Histogram,
}

impl Metrics {
    /// Counters for servers called `upstreams`.
    pub(crate) fn new(upstreams: impl Iterator<Item = String>) -> Self {
        let upstreams = upstreams.map(|label| OfUpstream {
            label,
            requests: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
        });
        Self {
            upstreams: upstreams.collect(),
            ..Self::default()
        }
    }

    pub(crate) fn upstream_request(&self, index: usize) {
        self.upstreams[index]
            .requests
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn upstream_unanswered(&self, index: usize) {
        self.upstreams[index]
            .unanswered
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Events that found no room in the queue, or no writer.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.dropped_events.load(Ordering::Relaxed)
    }

    /// Recorded attempts that did not end well.
    #[must_use]
    pub fn failed_requests(&self) -> u64 {
        let outcomes = Outcome::ALL.iter().zip(&self.outcomes);
        outcomes
            .filter(|(outcome, _)| **outcome != Outcome::Ok)
            .map(|(_, count)| count.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn outcome(&self, outcome: Outcome) {
        if let Some(at) = Outcome::ALL.iter().position(|known| *known == outcome) {
            self.outcomes[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn unrecorded(&self, reason: Reason) {
        if let Some(at) = Reason::ALL.iter().position(|known| *known == reason) {
            self.unrecorded[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn chunk(&self) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_bytes(&self, bytes: usize) {
        self.request_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn response_bytes(&self, bytes: usize) {
        self.response_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, events: u64) {
        self.dropped_events.fetch_add(events, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// From the last byte of the client's request to the last byte sent upstream.
    pub(crate) fn request_added(&self, ns: i64) {
        self.added_up.observe(ns);
    }

    /// From the arrival of a read to its last byte written to the client.
    pub(crate) fn response_added(&self, ns: i64) {
        self.added_down.observe(ns);
    }

    /// From the arrival of a read to this process having it.
    pub(crate) fn response_waited(&self, ns: i64) {
        self.waited_down.observe(ns);
    }

    /// The counters in Prometheus' text format.
    #[must_use]
    pub fn text(&self, sink: &Sink) -> String {
        let mut text = String::new();
        let name = family(&mut text, "requests_total", "counter", "Recorded requests.");
        for (outcome, count) in Outcome::ALL.iter().zip(&self.outcomes) {
            let count = count.load(Ordering::Relaxed);
            writeln!(text, "{name}{{outcome=\"{}\"}} {count}", outcome.as_str()).ok();
        }
        let name = family(
            &mut text,
            "unrecorded_requests_total",
            "counter",
            "Requests passed on unrecorded.",
        );
        for (reason, count) in Reason::ALL.iter().zip(&self.unrecorded) {
            let count = count.load(Ordering::Relaxed);
            writeln!(text, "{name}{{reason=\"{}\"}} {count}", reason.as_str()).ok();
        }
        self.write_upstreams(&mut text);
        for (name, kind, help, value) in self.scalars(sink) {
            let name = family(&mut text, name, kind, help);
            writeln!(text, "{name} {value}").ok();
        }
        write_log_lag(&mut text, sink);
        let name = family(
            &mut text,
            "added_latency_seconds",
            "histogram",
            "Time that bytes spent in the proxy, by direction.",
        );
        self.added_up.write(&mut text, &name, "leg=\"request\"");
        self.added_down.write(&mut text, &name, "leg=\"response\"");
        let name = family(
            &mut text,
            "waited_seconds",
            "histogram",
            "Of it, time before the proxy's turn came: others had its core, or it served others.",
        );
        self.waited_down.write(&mut text, &name, "leg=\"response\"");
        text
    }

    fn write_upstreams(&self, text: &mut String) {
        type Counter = fn(&OfUpstream) -> &AtomicU64;
        let families: [(&str, &str, Counter); 2] = [
            (
                "upstream_requests_total",
                "Requests passed on, by server.",
                |of| &of.requests,
            ),
            (
                "upstream_unanswered_total",
                "Requests that got no answer, by server.",
                |of| &of.unanswered,
            ),
        ];
        for (name, help, counter) in families {
            let name = family(text, name, "counter", help);
            for upstream in &self.upstreams {
                let label = &upstream.label;
                let count = counter(upstream).load(Ordering::Relaxed);
                writeln!(text, "{name}{{upstream=\"{label}\"}} {count}").ok();
            }
        }
    }

    fn scalars(&self, sink: &Sink) -> [(&'static str, &'static str, &'static str, u64); 10] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            (
                "refused_requests_total",
                "counter",
                "Requests refused because recording could not keep up (--strict).",
                load(&self.refused),
            ),
            (
                "chunks_total",
                "counter",
                "Recorded stream events.",
                load(&self.chunks),
            ),
            (
                "request_bytes_total",
                "counter",
                "Body bytes from clients.",
                load(&self.request_bytes),
            ),
            (
                "response_bytes_total",
                "counter",
                "Body bytes to clients.",
                load(&self.response_bytes),
            ),
            (
                "dropped_events_total",
                "counter",
                "Rows lost because the recording's queue was full or its writer had stopped.",
                load(&self.dropped_events),
            ),
            (
                "connections_total",
                "counter",
                "Connections accepted.",
                load(&self.connections),
            ),
            (
                "open_connections",
                "gauge",
                "Connections of clients.",
                load(&self.open_connections),
            ),
            (
                "queued_batches",
                "gauge",
                "Batches waiting for the recording's writer.",
                sink.queued_batches() as u64,
            ),
            (
                "disk_refuses",
                "gauge",
                "1 while the disk refuses the recording and rows wait in memory.",
                u64::from(sink.disk_refuses()),
            ),
            (
                "recording_failed",
                "gauge",
                "1 once the recording's writer has stopped.",
                u64::from(sink.failed()),
            ),
        ]
    }
}

/// How far the recording's log is behind; nothing where there is no log.
fn write_log_lag(text: &mut String, sink: &Sink) {
    let Some(lag) = sink.log_lag() else {
        return;
    };
    let families = [
        (
            "wal_lag_seconds",
            "Age of the oldest row that is not in the log yet.",
            lag.unwritten,
        ),
        (
            "wal_sync_lag_seconds",
            "Age of the oldest row that is not known to be on the disk yet.",
            lag.unsynced,
        ),
    ];
    for (name, help, age) in families {
        let name = family(text, name, "gauge", help);
        writeln!(text, "{name} {}", age.as_secs_f64()).ok();
    }
}

/// Writes the head of a metric and returns its full name.
fn family(text: &mut String, name: &str, kind: &str, help: &str) -> String {
    let name = format!("tapedeck_proxy_{name}");
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_with_each_bound() {
        let histogram = Histogram::default();
        for ns in [-5, 10_000, 10_001, i64::MAX] {
            histogram.observe(ns);
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "l=\"1\"");
        let line = |bound: &str| {
            let start = format!("x_bucket{{l=\"1\",le=\"{bound}\"}} ");
            let found = text.lines().find_map(|l| l.strip_prefix(&start));
            found.unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(line("0.00001"), 2);
        assert_eq!(line("0.000025"), 3);
        assert_eq!(line("5"), 3);
        assert_eq!(line("+Inf"), 4);
    }
}
