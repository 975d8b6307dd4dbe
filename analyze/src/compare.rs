//! One side against another: `analyze compare BASE NEW`.
//!
//! Every number is a cell of the views under `sql/8_replay` and `sql/9_compare`;
//! the intervals around differences are resampled in `bootstrap` from rows of
//! those views. What may be wrong with the comparison (`doubt`) comes before it.

pub mod bootstrap;
pub(crate) mod doubt;
pub(crate) mod draw;
pub mod gate;
mod interval;
mod sides;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tapedeck_recording::Recording;

use crate::models::{self, Polarity};
use crate::parameters::{Parameters, Slo};
use crate::report::{self, Finding, Summary};
use crate::session::{self, Error, SMALL_VIEWS, Session};

use doubt::{Differing, Doubt};
use gate::{Gate, Of};
use sides::Side;

/// Version of the JSON comparison.
pub const COMPARE_VERSION: u32 = 1;

/// Percentiles that are always compared.
const PERCENTILES: [f64; 3] = [50.0, 90.0, 99.0];

/// What a comparison may be asked for.
#[derive(Debug, Clone, Default)]
pub struct CompareOptions {
    pub gates: Vec<Gate>,
    pub slos: Vec<Slo>,
    /// As in [`Parameters`].
    pub warmup_ms: f64,
    pub tokenizer: Option<PathBuf>,
    pub memory_limit_bytes: Option<usize>,
    /// Of the resampling.
    pub seed: u64,
}

impl CompareOptions {
    fn parameters(&self) -> Parameters {
        let mut percentiles = PERCENTILES.to_vec();
        percentiles.extend(self.gates.iter().filter_map(Gate::percentile));
        percentiles.sort_by(f64::total_cmp);
        percentiles.dedup();
        let default = Parameters::default();
        Parameters {
            warmup_ms: self.warmup_ms,
            percentiles,
            slos: self.slos.clone(),
            tokenizer: self.tokenizer.clone(),
            memory_limit_bytes: self
                .memory_limit_bytes
                .unwrap_or(default.memory_limit_bytes),
            ..default
        }
    }
}

/// One recording of a side.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub path: PathBuf,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub target: Option<String>,
    #[serde(flatten)]
    pub summary: Summary,
    /// Those of severity warning or error.
    pub findings: Vec<Finding>,
}

/// What a difference comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// The interval lies on the good side of 0.
    Better,
    /// On the bad side.
    Worse,
    /// Off 0, of a metric with no good side.
    Differs,
    /// No difference at all.
    Same,
    /// The interval has 0 in it.
    Noise,
    /// Too few values for an interval that could be believed.
    TooFew,
    /// A side has no value.
    NoData,
    /// No interval is made for this metric.
    NotJudged,
}

/// One row of `comparison`, and how sure it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Compared {
    pub metric: String,
    pub stat: String,
    pub unit: String,
    pub base: Option<f64>,
    pub new: Option<f64>,
    pub difference: Option<f64>,
    pub relative_difference: Option<f64>,
    /// Of the difference, with 95 % confidence.
    #[serde(skip_deserializing)]
    pub interval: Option<[f64; 2]>,
    #[serde(skip_deserializing, default = "not_judged")]
    pub judgement: Judgement,
    pub base_n: u64,
    pub new_n: u64,
    pub base_runs: u32,
    pub new_runs: u32,
    pub base_spread: Option<f64>,
    pub new_spread: Option<f64>,
}

const fn not_judged() -> Judgement {
    Judgement::NotJudged
}

impl Compared {
    /// Which way the metric improves, by the headers of the views.
    pub(crate) fn polarity(&self) -> Option<Polarity> {
        let views = ["request_latency", "throughput", "goodput", "chunk_gap"];
        let mut columns = views.iter().filter_map(|v| models::column(v, &self.metric));
        columns.next()?.polarity
    }
}

/// Why requests of the two sides belong together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pairing {
    /// `replay`, `original` or `body`, as view `compare_pair` has it.
    pub pairing: String,
    /// Pairs of requests.
    pub pairs: u64,
    /// Those that succeeded on both sides: their latencies are compared.
    pub succeeded: u64,
}

/// How faithful a replay is: rows of the views `replay_…` and `prefix_reuse`.
#[derive(Debug, Clone, Serialize)]
pub struct Fidelity {
    pub replay: PathBuf,
    pub original: PathBuf,
    /// How the replay chose its instants, from its manifest.
    pub mode: Option<String>,
    /// Of its settings, those that move or leave out requests.
    pub settings: BTreeMap<String, Value>,
    pub schedule: Map<String, Value>,
    pub flight: Map<String, Value>,
    pub lengths: Vec<Map<String, Value>>,
    pub outcomes: Vec<Map<String, Value>>,
    pub original_prefix: Map<String, Value>,
    pub prefix: Map<String, Value>,
}

/// Two sides at one level of load.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What a sweep varied; `None` outside one.
    pub level: Option<String>,
    pub doubts: Vec<Doubt>,
    pub base: Vec<Run>,
    pub new: Vec<Run>,
    pub differing: Vec<Differing>,
    pub pairing: Option<Pairing>,
    pub metrics: Vec<Compared>,
    pub fidelity: Vec<Fidelity>,
}

/// What came of one `--fail-if`.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    pub fail_if: String,
    /// Outside a sweep, `None`.
    pub level: Option<String>,
    /// The number it was held against.
    pub found: Option<f64>,
    /// `None` where there is no number.
    pub holds: Option<bool>,
    /// One sentence.
    pub detail: String,
}

/// All levels of two sides.
#[derive(Debug, Clone, Serialize)]
pub struct Comparisons {
    pub compare_version: u32,
    pub comparisons: Vec<Comparison>,
    /// Levels that only one side has.
    pub unmatched: Vec<String>,
    pub gates: Vec<Judged>,
}

impl Comparisons {
    /// A gate holds, or could not be judged.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.gates.iter().any(|gate| gate.holds != Some(false))
    }
}

/// Two sides that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Session(#[from] Error),
    #[error(
        "{} has {base} and {} has {new}: none of one is in the other\n\
         hint: name one recording of each", base_path.display(), new_path.display()
    )]
    NoLevel {
        base: String,
        new: String,
        base_path: PathBuf,
        new_path: PathBuf,
    },
}

/// Compares the recordings at or below `new` with those at or below `base`.
///
/// # Errors
/// When a path holds no recording, one cannot be read, or the two are sweeps
/// without a common level.
pub async fn compare(
    base: &Path,
    new: &Path,
    options: &CompareOptions,
) -> Result<Comparisons, CompareError> {
    let open = |path: &Path| session::open_all(&[path.to_owned()]);
    let (base_side, new_side) = (open(base)?, open(new)?);
    refuse_same(&base_side, &new_side)?;
    let levels = sides::match_levels(base_side, new_side);
    if levels.matched.is_empty() {
        return Err(CompareError::NoLevel {
            base: levels.base_only.join("; "),
            new: levels.new_only.join("; "),
            base_path: base.to_owned(),
            new_path: new.to_owned(),
        });
    }
    let mut comparisons = Vec::new();
    for (level, side) in levels.matched {
        comparisons.push(compare_level(level, side, options).await?);
    }
    let only = |which: &str, names: Vec<String>| -> Vec<String> {
        let names = names.into_iter();
        names.map(|name| format!("{name}: {which} only")).collect()
    };
    let mut unmatched = only("base", levels.base_only);
    unmatched.extend(only("new", levels.new_only));
    let gates = comparisons
        .iter()
        .flat_map(|c| options.gates.iter().map(|gate| judge(gate, c)))
        .collect();
    Ok(Comparisons {
        compare_version: COMPARE_VERSION,
        comparisons,
        unmatched,
        gates,
    })
}

fn refuse_same(base: &[Recording], new: &[Recording]) -> Result<(), Error> {
    for recording in base {
        let id = &recording.manifest.recording_id;
        if let Some(twin) = new.iter().find(|r| r.manifest.recording_id == *id) {
            return Err(Error::Twice {
                first: recording.dir.clone(),
                second: twin.dir.clone(),
            });
        }
    }
    Ok(())
}

async fn compare_level(
    level: Option<String>,
    side: Side,
    options: &CompareOptions,
) -> Result<Comparison, Error> {
    let differing = doubt::differing(&side.base[0], &side.new[0]);
    let base_count = side.base.len();
    let mut recordings = side.base;
    recordings.extend(side.new);
    let session = Session::open_derived(recordings, &options.parameters(), &SMALL_VIEWS).await?;
    let views: Vec<&str> = models::compares().iter().map(|m| m.name).collect();
    session.add_sides(base_count).await?;
    session.add_comparison(&views).await?;
    let mut base = runs(&session).await?;
    let new = base.split_off(base_count);
    let pairing = pairing(&session).await?;
    let mut metrics: Vec<Compared> = session.rows(METRICS).await?;
    interval::judge(&session, &mut metrics, pairing.is_some(), options.seed).await?;
    let fidelity = fidelity(&session).await?;
    let mut comparison = Comparison {
        level,
        doubts: Vec::new(),
        base,
        new,
        differing,
        pairing,
        metrics,
        fidelity,
    };
    comparison.doubts = doubt::doubts(&comparison);
    Ok(comparison)
}

const METRICS: &str = "
SELECT
  c.metric, c.stat, c.unit, c.base, c.new, c.difference, c.relative_difference,
  c.base_n, c.new_n, c.base_runs, c.new_runs, c.base_spread, c.new_spread
FROM comparison AS c
LEFT JOIN percentiles AS p ON p.stat = c.stat
ORDER BY c.metric_index, p.p NULLS FIRST";

const FINDINGS: &str = "
SELECT recording_id, finding, severity, value, detail
FROM recording_health
WHERE severity IN ('warning', 'error')
ORDER BY recording_id, finding_index";

/// Every recording of `session`, in its order.
async fn runs(session: &Session) -> Result<Vec<Run>, Error> {
    let summaries = report::summaries(session).await?.into_iter();
    let mut summaries: BTreeMap<String, Summary> =
        summaries.map(|s| (s.recording_id.clone(), s)).collect();
    let mut findings = report::by_recording::<Finding>(session, FINDINGS).await?;
    let recordings = session.recordings().iter();
    let runs = recordings.filter_map(|recording| {
        let manifest = &recording.manifest;
        let id = &manifest.recording_id;
        Some(Run {
            path: recording.dir.clone(),
            name: manifest.name.clone(),
            labels: manifest.labels.clone(),
            target: manifest.target.clone().filter(|target| !target.is_empty()),
            // The views have a row for every recording.
            summary: summaries.remove(id)?,
            findings: findings.remove(id).unwrap_or_default(),
        })
    });
    Ok(runs.collect())
}

async fn pairing(session: &Session) -> Result<Option<Pairing>, Error> {
    let rows: Vec<Pairing> = session
        .rows(
            "SELECT pairing, count(*) AS pairs,
               (SELECT count(*) FROM compare_request WHERE side = 'base') AS succeeded
             FROM compare_pair GROUP BY pairing",
        )
        .await?;
    Ok(rows.into_iter().next())
}

/// Rows of `sql`, by recording.
async fn maps(
    session: &Session,
    sql: &str,
) -> Result<BTreeMap<String, Vec<Map<String, Value>>>, Error> {
    report::by_recording::<Map<String, Value>>(session, sql).await
}

/// Settings of a replay that are no matter of timing or choice.
const PLAIN_SETTINGS: [&str; 17] = [
    "attempts",
    "content",
    "dialect",
    "durability",
    "mode",
    "model",
    "number",
    "pin_output",
    "probe",
    "replay_of_recording_id",
    "server_metrics",
    "simulator",
    "synthesis",
    "timeouts",
    "trace",
    "warm_connections",
    "workers",
];

async fn fidelity(session: &Session) -> Result<Vec<Fidelity>, Error> {
    let mut schedules = maps(session, "SELECT * FROM replay_schedule").await?;
    if schedules.is_empty() {
        return Ok(Vec::new());
    }
    let mut flights = maps(session, "SELECT * FROM replay_flight").await?;
    let lengths = "SELECT * FROM replay_length ORDER BY direction";
    let mut lengths = maps(session, lengths).await?;
    let outcomes = "SELECT * FROM replay_outcome ORDER BY original_outcome, outcome";
    let mut outcomes = maps(session, outcomes).await?;
    let prefixes = maps(session, "SELECT * FROM prefix_reuse").await?;
    let prefix = |id: &str| {
        let rows = prefixes.get(id).and_then(|rows| rows.first());
        rows.cloned().unwrap_or_default()
    };
    let recordings = session.recordings();
    let mut found = Vec::new();
    for replay in recordings {
        let id = &replay.manifest.recording_id;
        for schedule in schedules.remove(id).unwrap_or_default() {
            let original_id = schedule["original_recording_id"].as_str();
            let original_id = original_id.unwrap_or_default().to_owned();
            let mut all = recordings.iter();
            let original = all.find(|r| r.manifest.recording_id == original_id);
            let settings = &replay.manifest.settings;
            let first = |rows: Option<Vec<Map<String, Value>>>| rows.and_then(|mut r| r.pop());
            found.push(Fidelity {
                replay: replay.dir.clone(),
                original: original.map(|r| r.dir.clone()).unwrap_or_default(),
                mode: settings
                    .get("mode")
                    .and_then(|m| m.as_str())
                    .map(str::to_owned),
                settings: moving(settings),
                schedule,
                flight: first(flights.remove(id)).unwrap_or_default(),
                lengths: lengths.remove(id).unwrap_or_default(),
                outcomes: outcomes.remove(id).unwrap_or_default(),
                original_prefix: prefix(&original_id),
                prefix: prefix(id),
            });
        }
    }
    Ok(found)
}

/// Those that are set, to something else than what leaves everything as it was.
fn moving(settings: &Value) -> BTreeMap<String, Value> {
    let all = settings.as_object().into_iter().flatten();
    let is_set = |name: &str, value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Number(n) => n.as_f64() != Some(0.0) && !(once(name) && n.as_u64() == Some(1)),
        _ => true,
    };
    all.filter(|(name, value)| is_set(name, value) && !PLAIN_SETTINGS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Settings that count how often everything is sent.
fn once(name: &str) -> bool {
    ["copies", "loop_times"].contains(&name)
}

/// What `gate` says of `comparison`.
fn judge(gate: &Gate, comparison: &Comparison) -> Judged {
    let found = match gate.fidelity_column() {
        Some(column) => fidelity_value(gate, comparison, &column),
        None => compared_value(gate, comparison),
    };
    let holds = found.as_ref().ok().map(|(value, _)| gate.holds(*value));
    Judged {
        fail_if: gate.to_string(),
        level: comparison.level.clone(),
        found: found.as_ref().ok().map(|(value, _)| *value),
        holds,
        detail: match found {
            Ok((_, shown)) => shown,
            Err(reason) => reason,
        },
    }
}

/// Of all replays the first that `gate` fails, else the one farthest from 0.
fn fidelity_value(
    gate: &Gate,
    comparison: &Comparison,
    column: &str,
) -> Result<(f64, String), String> {
    let rows = comparison.fidelity.iter();
    let cells = rows.filter_map(|f| f.schedule.get(column).or_else(|| f.flight.get(column)));
    let values: Vec<f64> = cells.filter_map(Value::as_f64).collect();
    let failing = values.iter().copied().find(|value| gate.holds(*value));
    let farthest = || {
        values
            .iter()
            .copied()
            .max_by(|a, b| a.abs().total_cmp(&b.abs()))
    };
    match failing.or_else(farthest) {
        Some(value) => Ok((value, format!("{column} is {value:.6}"))),
        None if comparison.fidelity.is_empty() => {
            Err("neither side is a replay of the other".to_owned())
        }
        None => Err(format!("{column} is not known of this replay")),
    }
}

fn compared_value(gate: &Gate, comparison: &Comparison) -> Result<(f64, String), String> {
    let stat = gate.stat.as_deref().unwrap_or("value");
    let mut rows = comparison.metrics.iter();
    let row = rows.find(|row| row.metric == gate.metric && row.stat == stat);
    let row = row.ok_or_else(|| "there is no such row".to_owned())?;
    let side = |value: Option<f64>, name: &str| match value {
        Some(value) => Ok(value),
        None => Err(format!("{name} has no value of it")),
    };
    let new = side(row.new, "NEW")?;
    if gate.of == Of::New {
        return Ok((new, format!("NEW has {new:.6} {}", row.unit)));
    }
    let base = side(row.base, "BASE")?;
    let shown = format!("BASE has {base:.6} and NEW {new:.6} {}", row.unit);
    match gate.of {
        Of::RelativeDifference => {
            let relative = row.relative_difference;
            let relative = relative.ok_or_else(|| "a share of 0 is no number".to_owned())?;
            Ok((relative, format!("{shown}: {:+.2} %", relative * 100.0)))
        }
        Of::New | Of::Difference => {
            let difference = row.difference.unwrap_or(new - base);
            Ok((difference, format!("{shown}: {difference:+.6}")))
        }
    }
}
