//! The report as text. Formats differ in how a table is drawn, not in content.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::parameters::percentile_name;
use crate::peer::Profile;
use crate::report::{Absent, RecordingReport, Report, Speed};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
    Markdown,
}

/// Percentiles of the table when none are asked for; JSON and CSV have all.
const SHOWN_PERCENTILES: [f64; 10] = [10.0, 25.0, 50.0, 66.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0];

/// Kinds of failure shown; the rest is counted.
const FAILURES_SHOWN: usize = 5;

/// Longest error text shown, in characters.
const ERROR_CHARS: usize = 120;

/// Width of the table of definitions: prose that wraps, unlike numbers.
const DEFINITIONS_WIDTH: u16 = 116;

/// Columns of the percentile table: heading, metric, decimals.
const PERCENTILE_COLUMNS: [(&str, &str, usize); 8] = [
    ("TTFT (ms)", "ttft_ms", 2),
    ("ITL (ms)", "itl_ms", 2),
    ("TPOT (ms)", "tpot_ms", 2),
    ("E2EL (ms)", "e2el_ms", 2),
    ("Input tokens", "input_tokens", 1),
    ("Output tokens", "output_tokens", 1),
    ("Output (tok/s)", "output_tokens_per_s", 2),
    ("Total (tok/s)", "total_tokens_per_s", 2),
];

/// A part of a report: text, or a table with its heading.
enum Block {
    Title(String),
    Line(String),
    Table {
        heading: &'static str,
        header: Vec<&'static str>,
        rows: Vec<Vec<String>>,
        numbers_from: usize,
    },
    /// Another tool's definitions beside ours.
    Definitions(Profile),
}

impl Report {
    /// The report as text, ending in a newline.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => format!("{:#}\n", self.to_json()),
            Format::Csv => self.csv(),
            Format::Table | Format::Markdown => self
                .blocks()
                .iter()
                .fold(String::new(), |text, block| text + &draw(block, format)),
        }
    }

    fn csv(&self) -> String {
        let profile = self.options.profile;
        let mut text = String::from("recording_id,name,metric,stat,value,unit,n");
        text.push_str(if profile.is_some() {
            ",profile\n"
        } else {
            "\n"
        });
        for recording in &self.recordings {
            for m in &recording.metrics {
                let fields = [
                    csv_field(&recording.recording_id),
                    csv_field(&recording.name),
                    csv_field(&m.metric),
                    csv_field(&m.stat),
                    m.value.map(|v| v.to_string()).unwrap_or_default(),
                    csv_field(&m.unit),
                    m.n.to_string(),
                ];
                text.push_str(&fields.join(","));
                if let Some(profile) = profile {
                    text.push_str(&format!(",{profile}"));
                }
                text.push('\n');
            }
        }
        text
    }

    fn blocks(&self) -> Vec<Block> {
        let shown = self.options.percentiles.as_deref();
        let shown = shown.unwrap_or(&SHOWN_PERCENTILES);
        let mut blocks = Vec::new();
        for recording in &self.recordings {
            if !blocks.is_empty() {
                blocks.push(Block::Line(String::new()));
            }
            blocks.push(title(recording));
            blocks.extend(health(recording));
            blocks.extend(self.options.profile.map(Block::Definitions));
            blocks.push(match self.options.profile {
                Some(profile) => summary_as(recording, profile),
                None => self.summary(recording),
            });
            blocks.push(percentiles(recording, shown));
            blocks.extend(speed(recording));
            blocks.extend(absent(recording));
            blocks.extend(failures(recording));
        }
        // Its columns are our own definitions.
        if self.recordings.len() > 1 && self.options.profile.is_none() {
            blocks.push(Block::Line(String::new()));
            blocks.push(overview(&self.recordings));
        }
        blocks
    }

    fn summary(&self, recording: &RecordingReport) -> Block {
        let counts = recording.counts;
        let value = |metric: &str, decimals| number(recording.value(metric, "value"), decimals);
        let mean = |metric: &str| number(recording.value(metric, "mean"), 2);
        let success = recording.value("success_rate", "value").map(|v| v * 100.0);
        let mut rows = vec![
            ("Duration (s)", number(recording.duration_s, 2)),
            ("Requests", counts.requests.to_string()),
            ("Succeeded", counts.succeeded.to_string()),
            ("Failed", counts.failed.to_string()),
            ("Unfinished", counts.unfinished.to_string()),
            ("Success rate (%)", number(success, 2)),
            ("Concurrency (time average)", value("concurrency", 2)),
            ("Request throughput (req/s)", value("request_throughput", 3)),
            (
                "Input throughput (tok/s)",
                value("input_token_throughput", 2),
            ),
            (
                "Output throughput (tok/s)",
                value("output_token_throughput", 2),
            ),
            (
                "Total throughput (tok/s)",
                value("total_token_throughput", 2),
            ),
            ("Mean TTFT (ms)", mean("ttft_ms")),
            ("Mean ITL (ms)", mean("itl_ms")),
            ("Mean TPOT (ms)", mean("tpot_ms")),
            ("Mean E2EL (ms)", mean("e2el_ms")),
        ];
        if !self.options.slos.is_empty() {
            let share = recording.value("goodput_share", "value").map(|v| v * 100.0);
            rows.push(("Goodput (req/s)", value("goodput", 3)));
            rows.push(("Goodput (% of requests)", number(share, 2)));
        }
        if let Some(f) = &recording.fidelity {
            let three = |a, b, c| format!("{a:.3} / {b:.3} / {c:.3}");
            rows.push((
                "Schedule lag p50 / p99 / max (ms)",
                three(f.lag_ms_p50, f.lag_ms_p99, f.lag_ms_max),
            ));
            rows.push((
                "Offset error p50 / p99 / max (ms)",
                three(
                    f.offset_error_ms_p50,
                    f.offset_error_ms_p99,
                    f.offset_error_ms_max,
                ),
            ));
        }
        let rows = rows.into_iter().map(|(key, v)| vec![key.to_owned(), v]);
        Block::Table {
            heading: "Summary",
            header: vec!["Metric", "Value"],
            rows: rows.collect(),
            numbers_from: 1,
        }
    }
}

/// The summary in another tool's definitions: only what that tool has.
fn summary_as(recording: &RecordingReport, profile: Profile) -> Block {
    let value = |metric: &str, decimals| number(recording.value(metric, "value"), decimals);
    let mean = |metric: &str| number(recording.value(metric, "mean"), 2);
    let counted = format!("Requests that {profile} counts");
    let rows = [
        ("Duration (s)", value("duration", 2)),
        ("Requests", recording.counts.requests.to_string()),
        (counted.as_str(), value("succeeded", 0)),
        ("Request throughput (req/s)", value("request_throughput", 3)),
        (
            "Input throughput (tok/s)",
            value("input_token_throughput", 2),
        ),
        (
            "Output throughput (tok/s)",
            value("output_token_throughput", 2),
        ),
        (
            "Total throughput (tok/s)",
            value("total_token_throughput", 2),
        ),
        ("Mean TTFT (ms)", mean("ttft_ms")),
        ("Mean ITL (ms)", mean("itl_ms")),
        ("Mean TPOT (ms)", mean("tpot_ms")),
        ("Mean E2EL (ms)", mean("e2el_ms")),
    ];
    let rows = rows.into_iter().map(|(key, v)| vec![key.to_owned(), v]);
    Block::Table {
        heading: "Summary",
        header: vec!["Metric", "Value"],
        rows: rows.collect(),
        numbers_from: 1,
    }
}

fn title(recording: &RecordingReport) -> Block {
    let name = if recording.name.is_empty() {
        &recording.recording_id
    } else {
        &recording.name
    };
    let target = recording.target.as_deref();
    let target = target.map(|t| format!(", target {t}")).unwrap_or_default();
    let labels: Vec<String> = recording
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let labels = match labels.as_slice() {
        [] => String::new(),
        labels => format!(", {}", labels.join(" ")),
    };
    let path = recording.path.display();
    Block::Title(format!("{name} ({path}{target}{labels})"))
}

/// What to know before believing a number: the verdict always, the rest only
/// where there is something to see.
fn health(recording: &RecordingReport) -> Vec<Block> {
    let verdict = recording.verdict.as_str();
    let mut blocks = vec![Block::Line(format!(
        "Verdict: {verdict} ({})",
        recording.verdict_reason
    ))];
    let rows: Vec<Vec<String>> = recording
        .health
        .iter()
        .filter(|f| f.severity != "ok" && f.finding != "verdict")
        .map(|f| vec![f.severity.clone(), f.finding.clone(), f.detail.clone()])
        .collect();
    if rows.is_empty() {
        blocks.push(Block::Line(
            "Recording health: nothing to report".to_owned(),
        ));
    } else {
        blocks.push(Block::Table {
            heading: "Recording health",
            header: vec!["Severity", "Finding", "Detail"],
            rows,
            numbers_from: usize::MAX,
        });
    }
    blocks
}

/// Recordings side by side: what a sweep is decided by.
fn overview(recordings: &[RecordingReport]) -> Block {
    let row = |r: &RecordingReport| {
        let success = r.value("success_rate", "value").map(|v| v * 100.0);
        let folder = r.path.file_name().unwrap_or(r.path.as_os_str());
        vec![
            folder.to_string_lossy().into_owned(),
            r.counts.requests.to_string(),
            number(success, 1),
            number(r.value("concurrency", "value"), 1),
            number(r.value("request_throughput", "value"), 2),
            number(r.value("output_token_throughput", "value"), 1),
            number(r.value("output_tokens_per_s", "mean"), 1),
            number(r.value("ttft_ms", "mean"), 1),
            number(r.value("ttft_ms", "p99"), 1),
            number(r.value("tpot_ms", "mean"), 2),
            number(r.value("tpot_ms", "p99"), 2),
            r.verdict.as_str().to_owned(),
        ]
    };
    Block::Table {
        heading: "Overview",
        header: vec![
            "Recording",
            "Requests",
            "Success (%)",
            "Concurrency",
            "Req/s",
            "Output (tok/s)",
            "Per user (tok/s)",
            "TTFT mean (ms)",
            "TTFT p99",
            "TPOT mean (ms)",
            "TPOT p99",
            "Verdict",
        ],
        rows: recordings.iter().map(row).collect(),
        numbers_from: 1,
    }
}

fn percentiles(recording: &RecordingReport, shown: &[f64]) -> Block {
    let mut header = vec!["Percentile"];
    header.extend(PERCENTILE_COLUMNS.iter().map(|(heading, _, _)| *heading));
    let rows = shown.iter().map(|p| {
        let stat = percentile_name(*p);
        let cells = PERCENTILE_COLUMNS
            .iter()
            .map(|(_, metric, decimals)| number(recording.value(metric, &stat), *decimals));
        std::iter::once(stat.clone()).chain(cells).collect()
    });
    Block::Table {
        heading: "Percentiles",
        header,
        rows: rows.collect(),
        numbers_from: 1,
    }
}

/// The table that EvalScope's speed benchmark ends with.
fn speed(recording: &RecordingReport) -> Option<Block> {
    let row = |s: &Speed| {
        let tokens = s.input_tokens.map(|n| n.to_string());
        vec![
            tokens.unwrap_or_else(|| "-".to_owned()),
            s.requests.to_string(),
            number(s.output_tokens_per_s, 2),
            number(s.gpu_memory_gib, 2),
        ]
    };
    let rows: Vec<Vec<String>> = recording.speed.iter().map(row).collect();
    (!rows.is_empty()).then_some(Block::Table {
        heading: "Speed benchmark",
        header: vec![
            "Input tokens",
            "Requests",
            "Speed (tok/s)",
            "GPU memory (GiB)",
        ],
        rows,
        numbers_from: 0,
    })
}

/// Why the tool has no number where the tables above have a dash.
fn absent(recording: &RecordingReport) -> Option<Block> {
    let row = |a: &Absent| vec![a.metric.clone(), a.reason.clone(), a.n.to_string()];
    let rows: Vec<Vec<String>> = recording.absent.iter().map(row).collect();
    (!rows.is_empty()).then_some(Block::Table {
        heading: "Not there",
        header: vec!["Metric", "Reason", "Requests"],
        rows,
        numbers_from: 2,
    })
}

fn failures(recording: &RecordingReport) -> Vec<Block> {
    let all = &recording.failures;
    if all.is_empty() {
        return Vec::new();
    }
    let rows = all.iter().take(FAILURES_SHOWN).map(|f| {
        let error = f.error.as_deref().unwrap_or("-").replace(['\n', '\r'], " ");
        let error = match error.char_indices().nth(ERROR_CHARS) {
            Some((cut, _)) => format!("{}…", &error[..cut]),
            None => error,
        };
        vec![
            f.outcome.clone(),
            f.status.map_or_else(|| "-".to_owned(), |s| s.to_string()),
            error,
            f.n.to_string(),
            f.first_request_id.to_string(),
        ]
    });
    let mut blocks = vec![Block::Table {
        heading: "Failures",
        header: vec!["Outcome", "Status", "Error", "Requests", "First request"],
        rows: rows.collect(),
        numbers_from: 3,
    }];
    if all.len() > FAILURES_SHOWN {
        let more = all.len() - FAILURES_SHOWN;
        blocks.push(Block::Line(format!("… and {more} more kinds of failure")));
    }
    blocks
}

/// A number as shown; what is undefined is a dash, never 0.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.decimals$}"))
}

fn draw(block: &Block, format: Format) -> String {
    let is_markdown = format == Format::Markdown;
    match block {
        Block::Title(text) if is_markdown => format!("## {text}\n\n"),
        Block::Title(text) => format!("{text}\n{}\n", "=".repeat(text.chars().count().min(80))),
        Block::Line(text) if is_markdown => format!("{text}\n\n"),
        Block::Line(text) => format!("{text}\n"),
        Block::Definitions(profile) => draw_definitions(*profile, is_markdown),
        Block::Table {
            heading,
            header,
            rows,
            numbers_from,
        } => {
            let mut table = grid(header, rows, is_markdown);
            for (index, column) in table.column_iter_mut().enumerate() {
                if index >= *numbers_from {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            if is_markdown {
                format!("### {heading}\n\n{table}\n\n")
            } else {
                format!("\n{heading}\n{table}\n")
            }
        }
    }
}

fn draw_definitions(profile: Profile, is_markdown: bool) -> String {
    let header = ["", profile.name(), "Tapedeck"];
    let rows: Vec<Vec<String>> = profile
        .aspects()
        .into_iter()
        .map(|a| vec![a.aspect.to_owned(), a.theirs.to_owned(), a.ours.to_owned()])
        .collect();
    let mut table = grid(&header, &rows, is_markdown);
    if !is_markdown {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(DEFINITIONS_WIDTH);
    }
    let (tool, differs) = (profile.tool(), profile.differs());
    let what = format!("The numbers below follow the definitions of {tool}, not Tapedeck's.");
    if is_markdown {
        format!("### Definitions\n\n{what} It {differs}.\n\n{table}\n\n")
    } else {
        format!("\nDefinitions\n{what}\nIt {differs}.\n{table}\n")
    }
}

/// What a model wrote must not steer the terminal it is shown on.
pub(crate) fn visible(c: char) -> char {
    match c {
        '\n' => '\n',
        c if c.is_control() => '·',
        c => c,
    }
}

/// A table without colours or wrapping, so that output reads the same in a pipe.
pub(crate) fn grid<H: ToString>(header: &[H], rows: &[Vec<String>], is_markdown: bool) -> Table {
    let mut table = Table::new();
    table
        .load_preset(if is_markdown {
            ASCII_MARKDOWN
        } else {
            UTF8_FULL_CONDENSED
        })
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().map(ToString::to_string));
    for row in rows {
        let escape = |cell: &String| {
            if is_markdown {
                cell.replace('|', "\\|")
            } else {
                cell.chars().map(visible).collect()
            }
        };
        table.add_row(row.iter().map(escape));
    }
    table
}

/// A CSV field, quoted where it must be (RFC 4180).
pub(crate) fn csv_field(text: &str) -> String {
    let needs_quotes = text.is_empty() || text.contains(['"', ',', '\n', '\r']);
    if needs_quotes {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
