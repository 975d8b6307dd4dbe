//! `--fail-if`: a bound on a comparison, for whoever decides by it without looking.

use std::fmt;
use std::str::FromStr;

use crate::models;

/// Names of fidelity that a gate can bound begin in these views.
const FIDELITY_VIEWS: [&str; 2] = ["replay_schedule", "replay_flight"];

/// Which way the bound is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Above,
    AtLeast,
    Below,
    AtMost,
}

const OPERATORS: [(&str, Operator); 4] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    (">", Operator::Above),
    ("<", Operator::Below),
];

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// The new side's own value.
    New,
    /// New minus base.
    Difference,
    /// The same over base.
    RelativeDifference,
}

/// One `--fail-if`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    pub(crate) metric: String,
    /// `None` where a metric has only one.
    pub(crate) stat: Option<String>,
    operator: Operator,
    /// Percent where it is relative.
    threshold: f64,
    pub(crate) of: Of,
    text: String,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Gate {
    /// The percentile that it asks for.
    pub(crate) fn percentile(&self) -> Option<f64> {
        percentile(self.stat.as_deref()?)
    }

    /// The column of a fidelity view, where it bounds fidelity.
    pub(crate) fn fidelity_column(&self) -> Option<String> {
        let name = match &self.stat {
            Some(stat) => format!("{}_{stat}", self.metric),
            None => self.metric.clone(),
        };
        fidelity_names().any(|known| known == name).then_some(name)
    }

    /// Whether `found`, as a ratio where it is relative, is beyond the bound.
    pub(crate) fn holds(&self, found: f64) -> bool {
        let found = match self.of {
            Of::RelativeDifference => found * 100.0,
            Of::New | Of::Difference => found,
        };
        match self.operator {
            Operator::Above => found > self.threshold,
            Operator::AtLeast => found >= self.threshold,
            Operator::Below => found < self.threshold,
            Operator::AtMost => found <= self.threshold,
        }
    }
}

fn percentile(stat: &str) -> Option<f64> {
    let p: f64 = stat.strip_prefix('p')?.parse().ok()?;
    (0.0..=100.0).contains(&p).then_some(p)
}

fn fidelity_names() -> impl Iterator<Item = &'static str> {
    let views = FIDELITY_VIEWS.iter().filter_map(|name| models::view(name));
    let columns = views.flat_map(|view| &view.columns);
    columns
        .filter(|c| c.sql_type != "TEXT" && c.name != "speed")
        .map(|c| c.name.as_str())
}

fn known() -> String {
    let requests = models::metric_names("metric");
    let scalars = models::metric_names("scalar_metric");
    let list = |names: Vec<&str>| names.join(", ");
    format!(
        "hint: with .mean, .p50, .p99 …: {}\nhint: alone: {}\nhint: of a replay: {}",
        list(requests),
        list(scalars),
        list(fidelity_names().collect())
    )
}

const EXAMPLES: &str = "hint: 'ttft_ms.p99 > +5%' (against base), 'ttft_ms.p99 > +20' (difference), \
                        'success_rate < 0.99' (of NEW alone)";

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = OPERATORS
            .iter()
            .filter_map(|(sign, operator)| Some((text.find(sign)?, *sign, *operator)))
            // `>=` stands before `>` in the list.
            .min_by_key(|(place, _, _)| *place);
        let Some((place, sign, operator)) = found else {
            return Err(format!("no >, >=, < or <= in it\n{EXAMPLES}"));
        };
        let (name, bound) = (text[..place].trim(), text[place + sign.len()..].trim());
        let (number, is_percent) = match bound.strip_suffix('%') {
            Some(number) => (number.trim(), true),
            None => (bound, false),
        };
        let threshold = number.parse::<f64>().ok().filter(|n| n.is_finite());
        let threshold = threshold.ok_or_else(|| format!("{bound:?} is no number\n{EXAMPLES}"))?;
        let of = match (is_percent, number.starts_with(['+', '-'])) {
            (true, _) => Of::RelativeDifference,
            (false, true) => Of::Difference,
            (false, false) => Of::New,
        };
        let (metric, stat) = name_of(name)?;
        let gate = Self {
            metric,
            stat,
            operator,
            threshold,
            of,
            text: text.trim().to_owned(),
        };
        if gate.of != Of::New && gate.fidelity_column().is_some() {
            return Err(format!(
                "{name} has no base to differ from\nhint: a bound without sign or %: '{name} {sign} {}'",
                number.trim_start_matches(['+', '-'])
            ));
        }
        Ok(gate)
    }
}

/// Metric and stat of `ttft_ms.p99`, `success_rate` or `drift_ms`.
fn name_of(name: &str) -> Result<(String, Option<String>), String> {
    let (metric, stat) = match name.split_once('.') {
        Some((metric, stat)) => (metric, Some(stat)),
        None => (name, None),
    };
    let of_requests = models::metric_names("metric").contains(&metric);
    let is_scalar = models::metric_names("scalar_metric").contains(&metric);
    let owned = |stat: Option<&str>| Ok((metric.to_owned(), stat.map(str::to_owned)));
    match stat {
        Some("mean") if of_requests => owned(stat),
        Some(p) if of_requests && percentile(p).is_some() => owned(stat),
        Some(other) if of_requests => Err(format!(
            "{metric} has no stat {other:?}\nhint: {metric}.mean, or a percentile such as {metric}.p99"
        )),
        None if of_requests => Err(format!(
            "which stat of {metric}?\nhint: {metric}.mean, or a percentile such as {metric}.p99"
        )),
        None | Some("value") if is_scalar => owned(None),
        _ => {
            let column = name.replace('.', "_");
            if fidelity_names().any(|known| known == column) {
                owned(stat)
            } else {
                Err(format!("no metric is called {name:?}\n{}", known()))
            }
        }
    }
}
