//! What a user chooses about the metrics. It reaches SQL as rows of the tables
//! `params`, `percentiles` and `slos`, never as text.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde::Serialize;

use crate::models;
use crate::rows;

/// An SLO: a bound on one metric that every request has one value of.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    /// One of [`models::slo_metrics`], for example `ttft_ms`.
    pub metric: String,
    /// Most allowed; least for metrics where higher is better.
    pub bound: f64,
}

/// An SLO on what no request has one value of: nothing would ever meet it, or
/// everything, without a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no request has one value of {metric}\nhint: an SLO can bound {known}")]
pub struct UnknownMetric {
    pub metric: String,
    /// Names, separated by commas.
    pub known: String,
}

impl Slo {
    /// An SLO on a metric that requests have.
    ///
    /// # Errors
    /// When `metric` is none of [`models::slo_metrics`].
    pub fn new(metric: &str, bound: f64) -> Result<Self, UnknownMetric> {
        let slo = Self {
            metric: metric.to_owned(),
            bound,
        };
        slo.check().map(|()| slo)
    }

    /// Fields are open to callers, so a session asks again.
    pub(crate) fn check(&self) -> Result<(), UnknownMetric> {
        if models::slo_metrics().any(|known| known == self.metric) {
            return Ok(());
        }
        Err(UnknownMetric {
            metric: self.metric.clone(),
            known: models::slo_metrics().collect::<Vec<_>>().join(", "),
        })
    }
}

/// What a user may choose about the metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Requests sent in this first part of the measured phase are left out.
    pub warmup_ms: f64,
    /// In 0..=100.
    pub percentiles: Vec<f64>,
    pub slos: Vec<Slo>,
    /// p99 of dispatch or read lag beyond which the client was the bottleneck.
    pub saturated_lag_ms: f64,
    /// p99 of dispatch or read lag beyond which the numbers describe the client.
    pub invalid_lag_ms: f64,
    /// Share of a core that a worker wants, or of all its cores that the process
    /// has, beyond which the client was the bottleneck of a closed loop.
    pub saturated_cpu_ratio: f64,
    /// Share of the time that workers wait for the recording's disk, beyond which
    /// the client was the bottleneck.
    pub saturated_wait_ratio: f64,
    /// Counts where nobody else did, for every recording; without one each
    /// recording's own is taken, where its manifest names one that is still there.
    pub tokenizer: Option<PathBuf>,
    /// What operators that sort, join and group may hold; beyond it they go to the
    /// disk, and those that cannot end the question with an error.
    pub memory_limit_bytes: usize,
}

/// Enough for the reports of 200 million chunks.
pub const DEFAULT_MEMORY_LIMIT_BYTES: usize = 2 << 30;

/// Percentiles of a report when none are asked for.
pub const DEFAULT_PERCENTILES: [f64; 13] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 66.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.9,
];

impl Default for Parameters {
    fn default() -> Self {
        Self {
            warmup_ms: 0.0,
            percentiles: DEFAULT_PERCENTILES.to_vec(),
            slos: Vec::new(),
            // Reasons in sql/3_summary/verdict.sql.
            saturated_lag_ms: 10.0,
            invalid_lag_ms: 100.0,
            saturated_cpu_ratio: 0.9,
            saturated_wait_ratio: 0.1,
            tokenizer: None,
            memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES,
        }
    }
}

/// The stat of a percentile: `p50`, `p99.9`.
#[must_use]
pub fn percentile_name(p: f64) -> String {
    format!("p{p}")
}

impl Parameters {
    /// The tables `params`, `percentiles` and `slos`.
    pub(crate) fn tables(&self) -> Result<[(&'static str, RecordBatch); 3], ArrowError> {
        let param = |name, value| ParamRow { name, value };
        let params = [
            param("warmup_ms", self.warmup_ms),
            param("saturated_lag_ms", self.saturated_lag_ms),
            param("invalid_lag_ms", self.invalid_lag_ms),
            param("saturated_cpu_ratio", self.saturated_cpu_ratio),
            param("saturated_wait_ratio", self.saturated_wait_ratio),
        ];
        let percentiles = self.percentiles.iter().map(|p| PercentileRow {
            stat: percentile_name(*p),
            p: *p,
        });
        let slos = self.slos.iter().map(SloRow::of);
        let float = DataType::Float64;
        Ok([
            (
                "params",
                rows::to_batch(
                    &rows::schema(&[("name", DataType::Utf8), ("value", float.clone())]),
                    &params,
                )?,
            ),
            (
                "percentiles",
                rows::to_batch(
                    &rows::schema(&[("stat", DataType::Utf8), ("p", float.clone())]),
                    &percentiles.collect::<Vec<_>>(),
                )?,
            ),
            (
                "slos",
                rows::to_batch(
                    &rows::schema(&[
                        ("metric", DataType::Utf8),
                        ("at_most", float.clone()),
                        ("at_least", float),
                    ]),
                    &slos.collect::<Vec<_>>(),
                )?,
            ),
        ])
    }
}

#[derive(Serialize)]
struct ParamRow {
    name: &'static str,
    value: f64,
}

#[derive(Serialize)]
struct PercentileRow {
    stat: String,
    p: f64,
}

#[derive(Serialize)]
struct SloRow {
    metric: String,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl SloRow {
    /// The header of `request_latency` says which way the metric improves;
    /// what improves neither way is bounded from above.
    fn of(slo: &Slo) -> Self {
        let polarity = models::column("request_latency", &slo.metric).and_then(|c| c.polarity);
        let higher = polarity == Some(models::Polarity::Higher);
        Self {
            metric: slo.metric.clone(),
            at_most: (!higher).then_some(slo.bound),
            at_least: higher.then_some(slo.bound),
        }
    }
}
