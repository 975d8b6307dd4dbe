//! The report: what the summary views say about each recording.
//!
//! Nothing is computed here. Every number is a cell of a view; this module
//! asks for the rows and arranges them by recording.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapedeck_recording::Recording;

use crate::parameters::{DEFAULT_MEMORY_LIMIT_BYTES, DEFAULT_PERCENTILES, Parameters, Slo};
use crate::peer::Profile;
use crate::session::{self, Error, SMALL_VIEWS, Session};

/// Version of the JSON report.
pub const REPORT_VERSION: u32 = 1;

/// What a report may be asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportOptions {
    /// Requests sent in this first part of the measured phase are left out.
    pub warmup_ms: f64,
    /// Percentiles in 0..=100; the default list when `None`.
    pub percentiles: Option<Vec<f64>>,
    pub slos: Vec<Slo>,
    /// As in [`Parameters`].
    pub tokenizer: Option<PathBuf>,
    /// As in [`Parameters`]; its default when `None`.
    pub memory_limit_bytes: Option<usize>,
    /// Whose definitions the metrics follow; our own when `None`.
    pub profile: Option<Profile>,
}

impl ReportOptions {
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        let percentiles = self.percentiles.clone();
        Parameters {
            warmup_ms: self.warmup_ms,
            percentiles: percentiles.unwrap_or_else(|| DEFAULT_PERCENTILES.to_vec()),
            slos: self.slos.clone(),
            tokenizer: self.tokenizer.clone(),
            memory_limit_bytes: self
                .memory_limit_bytes
                .unwrap_or(DEFAULT_MEMORY_LIMIT_BYTES),
            ..Parameters::default()
        }
    }
}

/// Whether the numbers are the server's or the client's, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    #[serde(rename = "ok")]
    Ok,
    #[serde(rename = "client saturated")]
    ClientSaturated,
    #[serde(rename = "invalid")]
    Invalid,
}

impl Verdict {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientSaturated => "client saturated",
            Self::Invalid => "invalid",
        }
    }
}

/// Measured requests by fate, and events the recorder had to drop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub unfinished: u64,
    pub dropped_events: u64,
}

/// One number. `value` is `None` where it is undefined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub metric: String,
    /// `mean std min max p…`, or `value` where there is only one.
    pub stat: String,
    pub value: Option<f64>,
    pub unit: String,
    /// Values behind the number.
    pub n: u64,
}

/// One row of `recording_health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub finding: String,
    /// `ok info warning error`.
    pub severity: String,
    pub value: Option<f64>,
    pub detail: String,
}

/// One row of `failures`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub outcome: String,
    pub status: Option<i32>,
    pub error: Option<String>,
    pub n: u64,
    pub first_request_id: i64,
}

/// Numbers that another tool's definitions cannot give of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Absent {
    pub metric: String,
    pub reason: String,
    /// Requests without the number.
    pub n: u64,
}

/// How faithfully an open loop kept to its schedule: p50, p99 and worst, ms.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Fidelity {
    pub lag_ms_p50: f64,
    pub lag_ms_p99: f64,
    pub lag_ms_max: f64,
    pub offset_error_ms_p50: f64,
    pub offset_error_ms_p99: f64,
    pub offset_error_ms_max: f64,
}

/// One row of `speed_benchmark`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub input_tokens: Option<i64>,
    pub requests: u64,
    pub output_tokens_per_s: Option<f64>,
    pub gpu_memory_gib: Option<f64>,
}

/// The report on one recording.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordingReport {
    pub recording_id: String,
    pub path: PathBuf,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub target: Option<String>,
    pub verdict: Verdict,
    pub verdict_reason: String,
    pub counts: Counts,
    /// Length of the measured window.
    pub duration_s: Option<f64>,
    /// Scalars after the long-form latency metrics.
    pub metrics: Vec<Metric>,
    pub health: Vec<Finding>,
    /// Most frequent first.
    pub failures: Vec<Failure>,
    /// Of the profile the report was asked for.
    pub absent: Vec<Absent>,
    /// `None` for a closed loop.
    pub fidelity: Option<Fidelity>,
    /// Of a workload `speed_benchmark`, shortest prompts first.
    pub speed: Vec<Speed>,
}

impl RecordingReport {
    /// The value of `metric` and `stat`, where there is one.
    #[must_use]
    pub fn value(&self, metric: &str, stat: &str) -> Option<f64> {
        let mut metrics = self.metrics.iter();
        metrics
            .find(|m| m.metric == metric && m.stat == stat)?
            .value
    }
}

/// The report on one or more recordings.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// In the order in which they were named.
    pub recordings: Vec<RecordingReport>,
    pub options: ReportOptions,
}

impl Report {
    /// The worst verdict of all recordings; `Ok` when there are none.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.recordings.iter().map(|r| r.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }

    /// The report as JSON of version [`REPORT_VERSION`].
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let recordings = self.recordings.iter().map(|r| {
            let mut recording = serde_json::json!({
                "recording_id": r.recording_id,
                "path": r.path.to_string_lossy(),
                "name": r.name,
                "labels": r.labels,
                "verdict": r.verdict,
                "counts": r.counts,
                "duration_s": r.duration_s,
                "metrics": r.metrics,
            });
            if !r.speed.is_empty() {
                recording["speed_benchmark"] = serde_json::json!(r.speed);
            }
            if self.options.profile.is_some() {
                recording["absent"] = serde_json::json!(r.absent);
            }
            recording
        });
        let mut report = serde_json::json!({
            "report_version": REPORT_VERSION,
            "recordings": recordings.collect::<Vec<_>>(),
        });
        if let Some(profile) = self.options.profile {
            report["as"] = serde_json::json!({
                "profile": profile.name(),
                "tool": profile.tool(),
                "differs": profile.differs(),
                "definitions": profile.aspects(),
            });
        }
        report
    }
}

/// Reports on every recording at or below `paths`.
///
/// # Errors
/// When a path holds no recording, one cannot be read, or an SLO names a metric
/// that requests do not have.
pub async fn report(paths: &[PathBuf], options: &ReportOptions) -> Result<Report, Error> {
    let recordings = session::open_all(paths)?;
    let parameters = options.parameters();
    let session = Session::open_derived(recordings, &parameters, &SMALL_VIEWS).await?;
    if let Some(profile) = options.profile {
        session
            .add_peers(&[profile], &["peer_summary", "peer_metric"])
            .await?;
    }
    let mut facts = Facts::query(&session, options.profile).await?;
    let recordings = session.recordings();
    Ok(Report {
        recordings: recordings.iter().map(|r| facts.take(r)).collect(),
        options: options.clone(),
    })
}

/// Counts, duration and verdict of one recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub recording_id: String,
    pub verdict: Verdict,
    pub reason: String,
    pub duration_s: Option<f64>,
    #[serde(flatten)]
    pub counts: Counts,
}

const SUMMARY: &str = "
SELECT
  g.recording_id, v.verdict, v.reason, t.duration_s,
  t.requests, t.succeeded, t.failed, t.unfinished, g.dropped_events
FROM recordings AS g
JOIN verdict AS v ON v.recording_id = g.recording_id
JOIN throughput AS t ON t.recording_id = g.recording_id";

/// Counts and verdict of every recording of `session`.
///
/// # Errors
/// When a file cannot be read.
pub async fn summaries(session: &Session) -> Result<Vec<Summary>, Error> {
    session.rows(SUMMARY).await
}

const LATENCIES: &str = "
SELECT l.recording_id, l.metric, l.stat, l.value, l.unit, l.n
FROM latency_percentiles AS l
JOIN metric AS m
  ON m.recording_id = l.recording_id AND m.metric = l.metric
LEFT JOIN percentiles AS p ON p.stat = l.stat
ORDER BY
  l.recording_id,
  m.metric_index,
  p.p NULLS FIRST,
  CASE l.stat WHEN 'mean' THEN 0 WHEN 'std' THEN 1 WHEN 'min' THEN 2 ELSE 3 END";

const SCALARS: &str = "
SELECT recording_id, metric, stat, value, unit, n
FROM scalar_metric
ORDER BY recording_id, metric_index";

/// Of the profile that the session was given.
const PEER: &str = "
SELECT s.recording_id, s.metric, s.stat, s.value, s.unit, s.n
FROM peer_summary AS s
LEFT JOIN percentiles AS p ON p.stat = s.stat
ORDER BY
  s.recording_id,
  s.metric_index,
  p.p NULLS FIRST,
  CASE s.stat WHEN 'mean' THEN 0 WHEN 'std' THEN 1 WHEN 'min' THEN 2 ELSE 3 END";

/// What a tool does not have, or a recording cannot give.
const ABSENT: &str = "
SELECT recording_id, metric, reason, count(*) AS n
FROM peer_metric
WHERE reason IS NOT NULL
GROUP BY recording_id, metric, metric_index, reason
ORDER BY recording_id, metric_index, reason";

const HEALTH: &str = "
SELECT recording_id, finding, severity, value, detail
FROM recording_health
ORDER BY recording_id, finding_index";

const FAILURES: &str = "
SELECT recording_id, outcome, status, error, n, first_request_id
FROM failures
ORDER BY recording_id, n DESC, first_request_id";

const FIDELITY: &str = "
SELECT
  recording_id, lag_ms_p50, lag_ms_p99, lag_ms_max,
  offset_error_ms_p50, offset_error_ms_p99, offset_error_ms_max
FROM schedule_fidelity
WHERE scheduled > 0";

const SPEED: &str = "
SELECT recording_id, input_tokens, requests, output_tokens_per_s, gpu_memory_gib
FROM speed_benchmark
ORDER BY recording_id, input_tokens";

/// EvalScope's speed benchmark ends with a table of its own.
fn is_speed_benchmark(recording: &Recording) -> bool {
    let workload = recording.manifest.workload.as_ref();
    workload.is_some_and(|workload| workload.kind.starts_with("speed_benchmark"))
}

#[derive(Deserialize)]
struct OfRecording<T> {
    recording_id: String,
    #[serde(flatten)]
    row: T,
}

pub(crate) type ByRecording<T> = BTreeMap<String, Vec<T>>;

pub(crate) async fn by_recording<T>(session: &Session, sql: &str) -> Result<ByRecording<T>, Error>
where
    T: serde::de::DeserializeOwned,
{
    let mut grouped = ByRecording::new();
    for item in session.rows::<OfRecording<T>>(sql).await? {
        grouped.entry(item.recording_id).or_default().push(item.row);
    }
    Ok(grouped)
}

/// Rows of all recordings, by recording id.
struct Facts {
    summaries: BTreeMap<String, Summary>,
    latencies: ByRecording<Metric>,
    scalars: ByRecording<Metric>,
    health: ByRecording<Finding>,
    failures: ByRecording<Failure>,
    absent: ByRecording<Absent>,
    fidelity: ByRecording<Fidelity>,
    speed: ByRecording<Speed>,
}

impl Facts {
    async fn query(session: &Session, profile: Option<Profile>) -> Result<Self, Error> {
        let summaries = summaries(session).await?.into_iter();
        let (latencies, scalars, absent) = match profile {
            Some(_) => (
                by_recording(session, PEER).await?,
                ByRecording::new(),
                by_recording(session, ABSENT).await?,
            ),
            None => (
                by_recording(session, LATENCIES).await?,
                by_recording(session, SCALARS).await?,
                ByRecording::new(),
            ),
        };
        Ok(Self {
            summaries: summaries.map(|s| (s.recording_id.clone(), s)).collect(),
            latencies,
            scalars,
            absent,
            health: by_recording(session, HEALTH).await?,
            failures: by_recording(session, FAILURES).await?,
            fidelity: by_recording(session, FIDELITY).await?,
            speed: match session.recordings().iter().any(is_speed_benchmark) {
                true => by_recording(session, SPEED).await?,
                false => ByRecording::new(),
            },
        })
    }

    fn take(&mut self, recording: &Recording) -> RecordingReport {
        let manifest = &recording.manifest;
        let id = &manifest.recording_id;
        let summary = self.summaries.remove(id);
        let mut metrics = self.latencies.remove(id).unwrap_or_default();
        metrics.extend(self.scalars.remove(id).unwrap_or_default());
        RecordingReport {
            recording_id: id.clone(),
            path: recording.dir.clone(),
            name: manifest.name.clone(),
            labels: manifest.labels.clone(),
            target: manifest.target.clone(),
            // The verdict view has a row for every recording.
            verdict: summary.as_ref().map_or(Verdict::Invalid, |s| s.verdict),
            verdict_reason: summary
                .as_ref()
                .map(|s| s.reason.clone())
                .unwrap_or_default(),
            counts: summary.as_ref().map(|s| s.counts).unwrap_or_default(),
            duration_s: summary.and_then(|s| s.duration_s),
            metrics,
            health: self.health.remove(id).unwrap_or_default(),
            failures: self.failures.remove(id).unwrap_or_default(),
            absent: self.absent.remove(id).unwrap_or_default(),
            fidelity: self.fidelity.remove(id).and_then(|mut rows| rows.pop()),
            speed: match is_speed_benchmark(recording) {
                true => self.speed.remove(id).unwrap_or_default(),
                false => Vec::new(),
            },
        }
    }
}
