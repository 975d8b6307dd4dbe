//! How one recording stands to its SLOs: what a search for the highest load asks
//! after every trial. The numbers are the analyzer's.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use tapedeck_analyze::models::{self, Polarity};
use tapedeck_analyze::parameters::percentile_name;
pub use tapedeck_analyze::report::Verdict;
use tapedeck_analyze::session::{self, SMALL_VIEWS};
use tapedeck_analyze::{Parameters, Session, Slo};

/// One recording against its SLOs.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Measured.
    pub requests: u64,
    /// Those that meet every SLO.
    pub good_requests: u64,
    /// Succeeded requests per second.
    pub request_throughput: Option<f64>,
    /// For each SLO the value that the wanted share of requests keeps to.
    pub held: Vec<Held>,
    pub verdict: Verdict,
    pub reason: String,
}

/// A percentile of a metric that an SLO bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub metric: String,
    /// As in `p99`; of a metric where higher is better, the low end.
    pub stat: String,
    pub bound: f64,
    /// `None` where it is undefined.
    pub value: Option<f64>,
}

const FACTS: &str = "
SELECT
  g.requests, g.good_requests, t.request_throughput, v.verdict, v.reason
FROM goodput AS g
JOIN throughput AS t ON t.recording_id = g.recording_id
JOIN verdict AS v ON v.recording_id = g.recording_id";

const PERCENTILES: &str = "SELECT metric, stat, value FROM latency_percentiles";

#[derive(Deserialize)]
struct Facts {
    requests: u64,
    good_requests: u64,
    request_throughput: Option<f64>,
    verdict: Verdict,
    reason: String,
}

#[derive(Deserialize)]
struct Percentile {
    metric: String,
    stat: String,
    value: Option<f64>,
}

/// Judges the recording `path` by `slos`, of which a request is to meet every one
/// and `share` of all requests are to.
///
/// # Errors
/// When the recording cannot be analyzed.
pub fn judge(path: &Path, slos: &[Slo], share: f64) -> Result<Judgement> {
    let held: Vec<(f64, Held)> = slos.iter().map(|slo| held(slo, share)).collect();
    let mut percentiles: Vec<f64> = held.iter().map(|(p, _)| *p).collect();
    percentiles.sort_by(f64::total_cmp);
    percentiles.dedup_by(|a, b| a.total_cmp(b).is_eq());
    let parameters = Parameters {
        percentiles,
        slos: slos.to_vec(),
        ..Parameters::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let (facts, rows) = runtime.block_on(async {
        let recordings = session::open_all(&[path.to_owned()])?;
        let session = Session::open_derived(recordings, &parameters, &SMALL_VIEWS).await?;
        let facts = session.rows::<Facts>(FACTS).await?;
        let rows = session.rows::<Percentile>(PERCENTILES).await?;
        Ok::<_, session::Error>((facts, rows))
    })?;
    let facts = facts.into_iter().next();
    let facts = facts.context("the recording has no summary")?;
    let value = |held: &Held| {
        let row = rows
            .iter()
            .find(|row| row.metric == held.metric && row.stat == held.stat);
        row.and_then(|row| row.value)
    };
    Ok(Judgement {
        requests: facts.requests,
        good_requests: facts.good_requests,
        request_throughput: facts.request_throughput,
        held: held
            .into_iter()
            .map(|(_, held)| Held {
                value: value(&held),
                ..held
            })
            .collect(),
        verdict: facts.verdict,
        reason: facts.reason,
    })
}

fn held(slo: &Slo, share: f64) -> (f64, Held) {
    let polarity = models::column("request_latency", &slo.metric).and_then(|c| c.polarity);
    let share = match polarity {
        Some(Polarity::Higher) => 1.0 - share,
        _ => share,
    };
    // 0.29 × 100 is a little below 29.
    let p = (share * 1e8).round() / 1e6;
    let held = Held {
        metric: slo.metric.clone(),
        stat: percentile_name(p),
        bound: slo.bound,
        value: None,
    };
    (p, held)
}
