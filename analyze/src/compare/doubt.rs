//! What to know before believing a comparison.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tapedeck_recording::Recording;

use crate::report::Verdict;

use super::{Comparison, Fidelity, Run};

/// How much it weighs, from heavy to light.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    Error,
    Warning,
    Info,
}

impl Weight {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// A reason why the two sides may differ, or seem to, other than the servers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Doubt {
    pub weight: Weight,
    pub text: String,
}

/// A setting, a label or a fact of the machine that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differing {
    pub name: String,
    pub base: Option<String>,
    pub new: Option<String>,
}

/// A share by which answers may differ in length before times are compared with a
/// grain of salt.
const LENGTH_DIFFERENCE: f64 = 0.02;

/// Characters shown of a setting.
const MOST_CHARS: usize = 200;

/// Of the first recording of each side. Settings that only one kind of run has (a
/// load's, a replay's) do not count where the kinds differ.
pub(super) fn differing(base: &Recording, new: &Recording) -> Vec<Differing> {
    let (of_base, of_new) = (facts(base), facts(new));
    let is_replay = |r: &Recording| r.manifest.settings.get("speed").is_some();
    let same_kind = is_replay(base) == is_replay(new);
    let mut names: Vec<&String> = of_base.keys().chain(of_new.keys()).collect();
    names.sort();
    names.dedup();
    let pairs = names.into_iter().map(|name| Differing {
        name: name.clone(),
        base: of_base.get(name).cloned(),
        new: of_new.get(name).cloned(),
    });
    pairs
        .filter(|d| d.base != d.new)
        .filter(|d| same_kind || d.base.is_some() == d.new.is_some() || !is_setting(&d.name))
        .collect()
}

fn is_setting(name: &str) -> bool {
    !name.starts_with("label ") && !name.starts_with("host ")
}

fn facts(recording: &Recording) -> BTreeMap<String, String> {
    let manifest = &recording.manifest;
    let mut facts = BTreeMap::new();
    flatten("", &manifest.settings, &mut facts);
    // Which repetition it is, is the point of one.
    facts.remove("repeat");
    let labels = manifest.labels.iter().filter(|(name, _)| *name != "repeat");
    facts.extend(labels.map(|(name, value)| (format!("label {name}"), value.clone())));
    let workload = manifest.workload.as_ref();
    let mut put = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| (name.to_owned(), value)));
    };
    put("workload", workload.map(|w| w.kind.clone()));
    put(
        "workload hash",
        workload.and_then(|w| w.content_hash.clone()),
    );
    put("target", manifest.target.clone());
    put("recorded by", Some(manifest.tool.clone()));
    put("timestamps", manifest.timestamp_source.clone());
    put("host cpu", manifest.host.cpu.clone());
    put("host cores", manifest.host.cores.map(|n| n.to_string()));
    put("host kernel", manifest.host.kernel.clone());
    facts
}

fn flatten(path: &str, value: &Value, facts: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, value) in members {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                flatten(&path, value, facts);
            }
        }
        Value::String(text) => drop(facts.insert(path.to_owned(), cut(text))),
        other => drop(facts.insert(path.to_owned(), cut(&other.to_string()))),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Heaviest first.
pub(super) fn doubts(comparison: &Comparison) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for (side, runs) in [("BASE", &comparison.base), ("NEW", &comparison.new)] {
        for run in runs {
            doubts.extend(of_run(side, run, runs.len() > 1));
        }
    }
    doubts.extend(of_work(comparison));
    doubts.extend(comparison.fidelity.iter().flat_map(of_replay));
    doubts.extend(of_runs(comparison));
    doubts.sort_by_key(|doubt| doubt.weight);
    doubts
}

fn of_run(side: &str, run: &Run, is_one_of_many: bool) -> Vec<Doubt> {
    let who = match run.path.file_name().filter(|_| is_one_of_many) {
        Some(name) => format!("{side} {}", name.to_string_lossy()),
        None => side.to_owned(),
    };
    let mut doubts = Vec::new();
    let verdict = run.summary.verdict;
    if verdict != Verdict::Ok {
        doubts.push(Doubt {
            weight: match verdict {
                Verdict::Invalid => Weight::Error,
                _ => Weight::Warning,
            },
            text: format!("{who} is {}: {}", verdict.as_str(), run.summary.reason),
        });
    }
    let findings = run.findings.iter().filter(|f| f.finding != "verdict");
    doubts.extend(findings.map(|finding| Doubt {
        weight: match finding.severity.as_str() {
            "error" => Weight::Error,
            _ => Weight::Warning,
        },
        text: format!("{who}: {}", finding.detail),
    }));
    let counts = run.summary.counts;
    if counts.failed > 0 {
        doubts.push(Doubt {
            weight: Weight::Warning,
            text: format!(
                "{who}: {} of {} requests failed; latencies are of the others",
                counts.failed, counts.requests
            ),
        });
    }
    doubts
}

/// Whether both sides did the same.
fn of_work(comparison: &Comparison) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let differs = |name: &str| {
        let mut all = comparison.differing.iter();
        all.find(|d| d.name == name && d.base.is_some() && d.new.is_some())
    };
    if comparison.pairing.is_none() && differs("workload hash").is_some() {
        doubts.push(Doubt {
            weight: Weight::Warning,
            text: "the two sides sent different requests (workload hash)".to_owned(),
        });
    }
    if let Some(stamps) = differs("timestamps") {
        doubts.push(Doubt {
            weight: Weight::Warning,
            text: format!(
                "arrivals were stamped by {} in BASE and by {} in NEW",
                stamps.base.as_deref().unwrap_or("nobody"),
                stamps.new.as_deref().unwrap_or("nobody")
            ),
        });
    }
    if comparison.pairing.is_some() {
        doubts.push(Doubt {
            weight: Weight::Info,
            text: "rates are each side's own: their intervals are wider than those of the paired latencies"
                .to_owned(),
        });
    }
    let mut lengths = comparison.metrics.iter();
    let length = lengths.find(|m| m.metric == "output_tokens" && m.stat == "mean");
    let share = length.and_then(|row| row.relative_difference);
    if let Some(share) = share.filter(|share| share.abs() > LENGTH_DIFFERENCE) {
        doubts.push(Doubt {
            weight: Weight::Warning,
            text: format!(
                "answers of NEW have {:+.1} % tokens: E2EL and throughput are of other work",
                share * 100.0
            ),
        });
    }
    doubts
}

/// Whether a replay did what its original did.
fn of_replay(fidelity: &Fidelity) -> Vec<Doubt> {
    let count = |name: &str| fidelity.schedule.get(name).and_then(Value::as_i64);
    let differ = count("bodies_differ").filter(|n| *n > 0);
    let bodies = differ.map(|n| {
        let of = count("bodies_compared").unwrap_or(n);
        (
            Weight::Warning,
            format!("{n} of {of} replayed bodies differ from their originals"),
        )
    });
    let speed = fidelity.schedule.get("speed").and_then(Value::as_f64);
    let speed = speed.filter(|speed| *speed != 1.0).map(|speed| {
        (
            Weight::Info,
            format!(
                "replayed at speed {speed}: another load, and other latencies, than the original's"
            ),
        )
    });
    let reshaped = fidelity.schedule.get("reshaped_by").and_then(Value::as_str);
    let reshaped = reshaped.map(|flags| {
        (
            Weight::Info,
            format!(
                "replayed with {flags}: requests did not have the original's offsets; schedule errors are against the replay's own plan"
            ),
        )
    });
    let mode = fidelity.mode.as_deref();
    let mode = mode.filter(|mode| *mode != "open" && reshaped.is_none());
    let mode = mode.map(|mode| {
        (
            Weight::Info,
            format!("mode {mode}: requests waited for answers; that is part of the schedule error"),
        )
    });
    let all = [bodies, speed, reshaped, mode].into_iter().flatten();
    all.map(|(weight, text)| Doubt { weight, text }).collect()
}

/// Whether chance was given a chance to show.
fn of_runs(comparison: &Comparison) -> Option<Doubt> {
    let (base, new) = (comparison.base.len(), comparison.new.len());
    (base < 2 || new < 2).then(|| Doubt {
        weight: Weight::Info,
        text: match (base, new) {
            (1, 1) => "one run a side: how much runs differ from each other is not known",
            (1, _) => "one run of BASE: how much its runs differ from each other is not known",
            _ => "one run of NEW: how much its runs differ from each other is not known",
        }
        .to_owned(),
    })
}
