//! The numbers of one request under every definition, and why they differ.

use super::super::{Explanation, Metric, Number, ProfileLine};
use super::text::wrap;
use super::{BOLD, CYAN, DIM, Page, YELLOW};

/// Columns of a metric's name.
const METRIC: usize = 15;

impl Page {
    pub(super) fn numbers(&mut self, e: &Explanation) {
        self.title("The same request under every definition");
        let names: Vec<&str> = e.profiles.iter().map(|p| p.profile).collect();
        let column = |name: &str| name.len().max(9) + 2;
        let room = self.style.width() - METRIC - column("Tapedeck");
        let mut band: Vec<usize> = Vec::new();
        let mut used = 0;
        for (index, name) in names.iter().enumerate() {
            if used + column(name) > room && !band.is_empty() {
                self.band(e, &band);
                self.line("");
                band.clear();
                used = 0;
            }
            used += column(name);
            band.push(index);
        }
        self.band(e, &band);
        let legend = "▲ above Tapedeck's number, ▼ below it, – no number";
        let legend = self.paint(DIM, legend);
        self.line("");
        self.line(&legend);
        self.title("Why");
        for profile in &e.profiles {
            self.why(e, profile);
        }
    }

    /// A part of the comparison: our own column and those of some profiles.
    fn band(&mut self, e: &Explanation, profiles: &[usize]) {
        let column = |name: &str| name.len().max(9) + 2;
        let mut head = format!("{:METRIC$}{:>9}  ", "", "Tapedeck");
        for index in profiles {
            let name = e.profiles[*index].profile;
            head += &format!("{name:>width$}  ", width = column(name) - 2);
        }
        let head = self.paint(BOLD, head.trim_end());
        self.line(&head);
        for metric in &e.metrics {
            let ours = cell(metric, metric.tapedeck);
            let mut line = format!("{:METRIC$}", label(&metric.metric));
            line += &self.paint(BOLD, &format!("{ours:>9}"));
            line += "  ";
            for index in profiles {
                let profile = &e.profiles[*index];
                let number = metric
                    .profiles
                    .iter()
                    .find(|n| n.profile == profile.profile);
                line += &self.compared(metric, &ours, number, column(profile.profile));
            }
            self.line(&line);
        }
    }

    /// One cell: the number and how it stands to ours.
    fn compared(
        &self,
        metric: &Metric,
        ours: &str,
        number: Option<&Number>,
        width: usize,
    ) -> String {
        let value = number.and_then(|n| n.value);
        let theirs = cell(metric, value);
        let mark = match (value, metric.tapedeck) {
            (Some(value), Some(tapedeck)) if theirs != ours => {
                if value > tapedeck {
                    "▲"
                } else {
                    "▼"
                }
            }
            _ => "",
        };
        let text = format!("{theirs:>width$}{mark:1} ", width = width - 2);
        match (value, mark) {
            (None, _) => self.paint(DIM, &text),
            (_, "") => text,
            _ => self.paint(YELLOW, &text),
        }
    }

    fn why(&mut self, e: &Explanation, profile: &ProfileLine) {
        let width = self.style.width();
        let indent = METRIC + 1;
        let mut texts = vec![format!("{}: {}", profile.tool, profile.differs)];
        for (metrics, reason) in absent(e, profile.profile) {
            texts.push(match metrics.len() {
                n if n == e.metrics.len() => format!("no number: {reason}"),
                _ => format!("no {}: {reason}", metrics.join(", ")),
            });
        }
        let mut name = self.paint(CYAN, &format!("{:indent$}", profile.profile));
        for (number, text) in texts.iter().enumerate() {
            for line in wrap(text, width - indent) {
                let line = if number > 0 {
                    self.paint(DIM, &line)
                } else {
                    line
                };
                self.line(&format!("{name}{line}"));
                name = " ".repeat(indent);
            }
        }
    }
}

/// Metrics without a number, by the reason.
fn absent<'a>(e: &'a Explanation, profile: &str) -> Vec<(Vec<&'static str>, &'a str)> {
    let mut reasons: Vec<(Vec<&'static str>, &str)> = Vec::new();
    for metric in &e.metrics {
        let number = metric.profiles.iter().find(|n| n.profile == profile);
        let Some(reason) = number.and_then(|n| n.reason.as_deref()) else {
            continue;
        };
        let name = name(&metric.metric);
        match reasons.iter_mut().find(|(_, known)| *known == reason) {
            Some((names, _)) => names.push(name),
            None => reasons.push((vec![name], reason)),
        }
    }
    reasons
}

fn cell(metric: &Metric, value: Option<f64>) -> String {
    let decimals = if metric.unit == "tokens" { 0 } else { 2 };
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"))
}

fn name(metric: &str) -> &'static str {
    match metric {
        "ttft_ms" => "TTFT",
        "tpot_ms" => "TPOT",
        "itl_ms" => "ITL",
        "e2el_ms" => "E2EL",
        "input_tokens" => "input tokens",
        "output_tokens" => "output tokens",
        _ => "tok/s",
    }
}

fn label(metric: &str) -> &'static str {
    match metric {
        "ttft_ms" => "TTFT ms",
        "tpot_ms" => "TPOT ms",
        "itl_ms" => "ITL mean ms",
        "e2el_ms" => "E2EL ms",
        "input_tokens" => "Input tokens",
        "output_tokens" => "Output tokens",
        _ => "tok/s",
    }
}
