//! What was served, counted where it happens and read from other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tapedeck_live::lag::{LagRecorder, Lags};

use super::matching::Rule;

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    by_rule: [AtomicU64; Rule::ALL.len()],
    missed: AtomicU64,
    /// Answers whose client left before their end.
    left_early: AtomicU64,
    /// Distinct recorded answers that were given.
    given: AtomicU64,
    in_flight: AtomicU64,
    /// From the instant a write was due to when it was handed over.
    late: LagRecorder,
    /// Drained so far.
    lags: Mutex<Lags>,
}

/// One request that is being answered.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Tally>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counts at one instant.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) by_rule: [(Rule, u64); Rule::ALL.len()],
    pub(crate) missed: u64,
    pub(crate) left_early: u64,
    pub(crate) given: u64,
    pub(crate) in_flight: u64,
    pub(crate) lags: Lags,
}

impl Tally {
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn matched(&self, rule: Rule, first_time: bool) {
        add(&self.by_rule[rule as usize], 1);
        add(&self.given, u64::from(first_time));
    }

    pub(crate) fn missed(&self) {
        add(&self.missed, 1);
    }

    pub(crate) fn left_early(&self) {
        add(&self.left_early, 1);
    }

    pub(crate) fn late(&self, lag_ns: i64) {
        self.late.observe(lag_ns);
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn counts(&self) -> Counts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        lags.add(&self.late.drain());
        Counts {
            by_rule: Rule::ALL.map(|rule| (rule, load(&self.by_rule[rule as usize]))),
            missed: load(&self.missed),
            left_early: load(&self.left_early),
            given: load(&self.given),
            in_flight: load(&self.in_flight),
            lags: lags.clone(),
        }
    }
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

/// Shares of the lags that are told.
const SHARES: [(&str, f64); 2] = [("p50", 0.5), ("p99", 0.99)];

impl Counts {
    pub(crate) fn requests(&self) -> u64 {
        self.by_rule.iter().map(|(_, count)| count).sum::<u64>() + self.missed
    }

    /// Lags in ms, by the name of their statistic; null before any write.
    fn lags_ms(&self) -> Vec<(&'static str, Option<f64>)> {
        let ms = |ns: i64| ns as f64 / 1e6;
        let mut lags: Vec<_> = SHARES
            .iter()
            .map(|(name, share)| (*name, self.lags.quantile_ns(*share).map(ms)))
            .collect();
        lags.push(("max", self.lags.max_ns().map(ms)));
        lags
    }

    pub(crate) fn to_json(&self) -> Value {
        let matched = self.by_rule.iter();
        let matched = matched.map(|(rule, n)| (rule.as_str().to_owned(), json!(n)));
        let late = self.lags_ms().into_iter();
        let late = late.map(|(stat, ms)| (stat.to_owned(), json!(ms)));
        json!({
            "requests": self.requests(),
            "matched": matched.collect::<Map<String, Value>>(),
            "missed": self.missed,
            "left_early": self.left_early,
            "answers_given": self.given,
            "writes": self.lags.count(),
            "write_late_ms": late.collect::<Map<String, Value>>(),
        })
    }

    /// A line for people.
    pub(crate) fn summary(&self) -> String {
        let matched = self.by_rule.iter();
        let matched: Vec<_> = matched
            .map(|(rule, n)| format!("{n} by {}", rule.as_str()))
            .collect();
        let late = self.lags_ms().into_iter();
        let late: Vec<_> = late
            .filter_map(|(stat, ms)| Some(format!("{stat} {:.3} ms", ms?)))
            .collect();
        let late = match late.is_empty() {
            true => String::new(),
            false => format!("; {} writes, late {}", self.lags.count(), late.join(", ")),
        };
        format!(
            "answered {} requests: {}, {} missed, {} left early{late}",
            self.requests(),
            matched.join(", "),
            self.missed,
            self.left_early
        )
    }

    /// For Prometheus.
    pub(crate) fn metrics(&self, answers: usize) -> String {
        let mut text = String::from("# TYPE tapedeck_serve_requests_total counter\n");
        let rules = self.by_rule.iter().map(|(rule, n)| (rule.as_str(), *n));
        for (rule, n) in rules.chain([("miss", self.missed)]) {
            text.push_str(&format!(
                "tapedeck_serve_requests_total{{match=\"{rule}\"}} {n}\n"
            ));
        }
        for (kind, name, value) in [
            ("gauge", "tapedeck_serve_answers", answers as u64),
            ("counter", "tapedeck_serve_answers_given_total", self.given),
            (
                "counter",
                "tapedeck_serve_left_early_total",
                self.left_early,
            ),
            ("gauge", "tapedeck_serve_in_flight", self.in_flight),
        ] {
            text.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
        }
        text.push_str("# TYPE tapedeck_serve_write_late_seconds gauge\n");
        for (stat, ms) in self.lags_ms() {
            if let Some(ms) = ms {
                text.push_str(&format!(
                    "tapedeck_serve_write_late_seconds{{stat=\"{stat}\"}} {}\n",
                    ms / 1e3
                ));
            }
        }
        text
    }
}
