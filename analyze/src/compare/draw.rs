//! A comparison as text: at most [`WIDTH`] columns, doubt first.

use std::path::Path;

use serde_json::{Map, Value};

use crate::render::{Format, csv_field, grid, visible};

use super::{Compared, Comparison, Comparisons, Fidelity, Judgement, Run};

/// Columns of a terminal that everything fits into, but for paths.
const WIDTH: usize = 100;

/// Settings that differ, shown; the rest is counted, JSON has all.
const SETTINGS_SHOWN: usize = 12;
/// Characters shown of a setting's value.
const SETTING_CHARS: usize = 32;

/// Rows of the table: heading, metric, factor. JSON and CSV have all metrics.
const SHOWN: [(&str, &str, f64); 11] = [
    ("TTFT (ms)", "ttft_ms", 1.0),
    ("TPOT (ms)", "tpot_ms", 1.0),
    ("ITL (ms)", "itl_ms", 1.0),
    ("E2EL (ms)", "e2el_ms", 1.0),
    ("Requests/s", "request_throughput", 1.0),
    ("Output tokens/s", "output_token_throughput", 1.0),
    ("Total tokens/s", "total_token_throughput", 1.0),
    ("Success (%)", "success_rate", 100.0),
    ("Goodput (req/s)", "goodput", 1.0),
    ("Goodput (%)", "goodput_share", 100.0),
    ("In flight", "concurrency", 1.0),
];

/// Text, or a table; formats differ in how it is drawn.
enum Block {
    Title(String),
    Line(String),
    Table {
        heading: String,
        header: Vec<&'static str>,
        rows: Vec<Vec<String>>,
        /// Leading columns that are words; those behind are numbers, aligned at the
        /// right, but for the last where that is a word.
        words: usize,
        ends_in_word: bool,
    },
}

impl Comparisons {
    /// As text, ending in a newline.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => {
                let json = serde_json::to_value(self).unwrap_or_default();
                format!("{json:#}\n")
            }
            Format::Csv => self.csv(),
            Format::Table | Format::Markdown => {
                let is_markdown = format == Format::Markdown;
                let blocks = self.blocks();
                let text = blocks.iter().map(|block| draw(block, is_markdown));
                text.collect()
            }
        }
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for comparison in &self.comparisons {
            if !blocks.is_empty() {
                blocks.push(Block::Line(String::new()));
            }
            blocks.extend(of_level(comparison));
        }
        if !self.unmatched.is_empty() {
            blocks.push(Block::Line(String::new()));
            let lines = self.unmatched.iter();
            blocks.extend(lines.map(|line| Block::Line(format!("not compared: {line}"))));
        }
        if !self.gates.is_empty() {
            blocks.push(gates(self));
        }
        blocks
    }

    fn csv(&self) -> String {
        let mut text = String::from(
            "level,metric,stat,unit,base,new,difference,relative_difference,low,high,judgement,\
             base_n,new_n,base_runs,new_runs,base_spread,new_spread\n",
        );
        let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
        for comparison in &self.comparisons {
            for m in &comparison.metrics {
                let level = comparison.level.as_deref().map(csv_field);
                let fields = [
                    level.unwrap_or_default(),
                    csv_field(&m.metric),
                    csv_field(&m.stat),
                    csv_field(&m.unit),
                    number(m.base),
                    number(m.new),
                    number(m.difference),
                    number(m.relative_difference),
                    number(m.interval.map(|i| i[0])),
                    number(m.interval.map(|i| i[1])),
                    m.judgement.word().replace(' ', "_"),
                    m.base_n.to_string(),
                    m.new_n.to_string(),
                    m.base_runs.to_string(),
                    m.new_runs.to_string(),
                    number(m.base_spread),
                    number(m.new_spread),
                ];
                text.push_str(&fields.join(","));
                text.push('\n');
            }
        }
        text
    }
}

impl Judgement {
    const fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Differs => "differs",
            Self::Same => "same",
            Self::Noise => "noise",
            Self::TooFew => "too few",
            Self::NoData => "no data",
            Self::NotJudged => "",
        }
    }
}

fn of_level(comparison: &Comparison) -> Vec<Block> {
    let side = |runs: &[Run]| {
        let first = &runs[0].path;
        match (runs.len(), first.parent()) {
            (1, _) | (_, None) => first.display().to_string(),
            (_, Some(folder)) => folder.display().to_string(),
        }
    };
    let level = comparison.level.as_deref();
    let level = level.map(|l| format!(", {l}")).unwrap_or_default();
    let mut blocks = vec![
        Block::Title(format!(
            "{} against {}{level}",
            side(&comparison.new),
            side(&comparison.base)
        )),
        sides(comparison),
    ];
    blocks.push(doubts(comparison));
    blocks.extend(differing(comparison));
    blocks.extend(metrics(comparison));
    blocks.extend(spread(comparison));
    blocks.extend(comparison.fidelity.iter().flat_map(fidelity));
    blocks
}

fn sides(comparison: &Comparison) -> Block {
    let mut rows = Vec::new();
    for (side, runs) in [("base", &comparison.base), ("new", &comparison.new)] {
        for run in runs {
            let counts = run.summary.counts;
            let labels = run.labels.iter().map(|(k, v)| format!("{k}={v}"));
            rows.push(vec![
                side.to_owned(),
                shortened(folder(&run.path), SETTING_CHARS),
                shortened(labels.collect::<Vec<_>>().join(" "), SETTING_CHARS),
                counts.requests.to_string(),
                counts.succeeded.to_string(),
                format!("{:.1}", run.summary.duration_s.unwrap_or_default()),
                run.summary.verdict.as_str().to_owned(),
            ]);
        }
    }
    Block::Table {
        heading: String::new(),
        header: vec![
            "",
            "recording",
            "labels",
            "requests",
            "ok",
            "seconds",
            "verdict",
        ],
        rows,
        words: 3,
        ends_in_word: true,
    }
}

fn folder(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn shortened(text: String, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text,
    }
}

fn doubts(comparison: &Comparison) -> Block {
    let rows = comparison.doubts.iter();
    let rows = rows.map(|d| vec![d.weight.as_str().to_owned(), d.text.clone()]);
    let mut rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        rows.push(vec!["nothing speaks against it".to_owned()]);
    }
    Block::Table {
        heading: "Before believing it".to_owned(),
        header: Vec::new(),
        rows,
        words: 2,
        ends_in_word: false,
    }
}

fn differing(comparison: &Comparison) -> Vec<Block> {
    let all = &comparison.differing;
    if all.is_empty() {
        return Vec::new();
    }
    let shown = |value: &Option<String>| {
        let value = value.clone().unwrap_or_else(|| "–".to_owned());
        shortened(value, SETTING_CHARS)
    };
    let rows = all.iter().take(SETTINGS_SHOWN);
    let rows = rows.map(|d| {
        vec![
            shortened(d.name.clone(), SETTING_CHARS),
            shown(&d.base),
            shown(&d.new),
        ]
    });
    let mut blocks = vec![Block::Table {
        heading: "Set differently".to_owned(),
        header: vec!["", "base", "new"],
        rows: rows.collect(),
        words: 3,
        ends_in_word: false,
    }];
    if all.len() > SETTINGS_SHOWN {
        let more = all.len() - SETTINGS_SHOWN;
        blocks.push(Block::Line(format!(
            "  … and {more} more; --format json has all"
        )));
    }
    blocks
}

fn metrics(comparison: &Comparison) -> Vec<Block> {
    let mut rows = Vec::new();
    for (heading, metric, factor) in SHOWN {
        let of_metric = comparison.metrics.iter().filter(|m| m.metric == metric);
        let is_goodput = metric.starts_with("goodput");
        let mut heading = heading;
        for row in of_metric.filter(|m| !is_goodput || m.base.or(m.new).is_some()) {
            rows.push(metric_row(std::mem::take(&mut heading), row, factor));
        }
    }
    let heading = match &comparison.pairing {
        Some(pairing) => {
            let why = match pairing.pairing.as_str() {
                "replay" => "one side replays the other",
                "original" => "both replay one original",
                _ => "the same bodies in the same order",
            };
            format!(
                "Latencies of {} pairs of requests ({why}; {} succeeded on both sides)",
                pairing.pairs, pairing.succeeded
            )
        }
        None => "Latencies of all successful requests, not paired".to_owned(),
    };
    let has_too_few = rows.iter().any(|row| row.last() == Some(&too_few()));
    let mut blocks = vec![
        Block::Table {
            heading,
            header: vec![
                "",
                "",
                "base",
                "new",
                "difference",
                "95 % interval",
                "relative",
                "",
            ],
            rows,
            words: 2,
            ends_in_word: true,
        },
        Block::Line(how_sure(comparison).to_owned()),
    ];
    if has_too_few {
        blocks.push(Block::Line(
            "  too few: less than 5 values beyond the percentile, or less than 8 runs of requests."
                .to_owned(),
        ));
    }
    blocks
}

fn too_few() -> String {
    Judgement::TooFew.word().to_owned()
}

/// What the intervals are.
fn how_sure(comparison: &Comparison) -> &'static str {
    if comparison.base.len() > 1 && comparison.new.len() > 1 {
        "  Intervals from the spread over runs (Welch). Of 20 rows one may be called different by chance."
    } else {
        "  Intervals by resampling runs of requests. Of 20 rows one may be called different by chance."
    }
}

fn metric_row(heading: &str, row: &Compared, factor: f64) -> Vec<String> {
    let scaled = |v: Option<f64>| v.map(|v| v * factor);
    let (base, new) = (scaled(row.base), scaled(row.new));
    let decimals = decimals(base.or(new));
    let plain = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"));
    let signed = |v: f64| format!("{:+.decimals$}", v + 0.0);
    let difference = scaled(row.difference).map(signed);
    let interval = row
        .interval
        .map(|[low, high]| format!("{} … {}", signed(low * factor), signed(high * factor)));
    let relative = row
        .relative_difference
        .map(|r| format!("{:+.1} %", r * 100.0));
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let stat = if row.stat == "value" { "" } else { &row.stat };
    vec![
        heading.to_owned(),
        stat.to_owned(),
        plain(base),
        plain(new),
        or_dash(difference),
        or_dash(interval),
        or_dash(relative),
        row.judgement.word().to_owned(),
    ]
}

/// Four digits that mean something.
fn decimals(value: Option<f64>) -> usize {
    match value.unwrap_or_default().abs() {
        v if v >= 1_000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    }
}

fn spread(comparison: &Comparison) -> Option<Block> {
    if comparison.base.len() < 2 && comparison.new.len() < 2 {
        return None;
    }
    let mut rows = Vec::new();
    for (heading, metric, factor) in SHOWN {
        let of_metric = comparison.metrics.iter().filter(|m| m.metric == metric);
        let mut heading = heading;
        for row in of_metric.filter(|m| m.base_spread.or(m.new_spread).is_some()) {
            let side = |value: Option<f64>, spread: Option<f64>| {
                let decimals = decimals(value.map(|v| v * factor));
                let share = value.zip(spread).filter(|(v, _)| *v != 0.0);
                [
                    spread.map_or_else(|| "–".to_owned(), |s| format!("{:.decimals$}", s * factor)),
                    share.map_or_else(String::new, |(v, s)| {
                        format!("{:.1} %", s / v.abs() * 100.0)
                    }),
                ]
            };
            let mut cells = vec![std::mem::take(&mut heading).to_owned(), row.stat.clone()];
            cells.extend(side(row.base, row.base_spread));
            cells.extend(side(row.new, row.new_spread));
            rows.push(cells);
        }
    }
    let (base, new) = (comparison.base.len(), comparison.new.len());
    Some(Block::Table {
        heading: format!("Spread over runs, standard deviation ({base} of base, {new} of new)"),
        header: vec!["", "", "base", "", "new", ""],
        rows,
        words: 2,
        ends_in_word: false,
    })
}

/// A number of a row, with `decimals`; a dash where it is NULL.
fn cell(row: &Map<String, Value>, column: &str, decimals: usize) -> String {
    let value = row.get(column).and_then(Value::as_f64);
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"))
}

/// Three numbers of a row, each with three decimals.
fn three(row: &Map<String, Value>, name: &str) -> String {
    let stats = ["p50", "p99", "max"].map(|stat| cell(row, &format!("{name}_{stat}"), 3));
    stats.join(" / ")
}

/// A row where requests were given up, as their originals were.
fn given_up(schedule: &Map<String, Value>) -> Option<(&'static str, String)> {
    let n = schedule.get("cancelled_again").and_then(Value::as_i64);
    n.filter(|n| *n > 0).map(|_| {
        let name = "Given up again, error p50 / p99 / max (ms)";
        (name, three(schedule, "cancel_error_ms"))
    })
}

fn fidelity(fidelity: &Fidelity) -> Vec<Block> {
    let schedule = &fidelity.schedule;
    let settings = fidelity.settings.iter();
    let settings = settings.map(|(name, value)| format!(", {name} {value}"));
    let heading = format!(
        "Fidelity of {} to {}: mode {}{}",
        folder(&fidelity.replay),
        folder(&fidelity.original),
        fidelity.mode.as_deref().unwrap_or("unknown"),
        settings.collect::<String>()
    );
    let three = |name: &str| three(schedule, name);
    let mut rows = vec![
        ("Requests replayed / missing / extra", {
            let counts = ["replayed", "missing", "extra"].map(|c| cell(schedule, c, 0));
            counts.join(" / ")
        }),
        (
            "Schedule error p50 / p99 / max (ms)",
            three("schedule_error_ms"),
        ),
        (
            "Inter-arrival error p50 / p99 / max (ms)",
            three("inter_arrival_error_ms"),
        ),
        (
            "Drift, last tenth − first tenth (ms)",
            cell(schedule, "drift_ms", 3),
        ),
        ("Sent before an earlier one", cell(schedule, "overtook", 0)),
        ("Bodies that differ, of those known", {
            let counts = ["bodies_differ", "bodies_compared"].map(|c| cell(schedule, c, 0));
            counts.join(" of ")
        }),
        ("Other outcomes", cell(schedule, "outcomes_differ", 0)),
    ];
    rows.extend(given_up(schedule));
    rows.extend(fidelity.lengths.iter().map(length));
    rows.extend(flight(&fidelity.flight));
    rows.extend(prefix(fidelity));
    let rows = rows.into_iter();
    let mut blocks = vec![Block::Table {
        heading,
        header: Vec::new(),
        rows: rows
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect(),
        words: 2,
        ends_in_word: false,
    }];
    let outcomes = fidelity.outcomes.iter().map(|row| {
        let word = |name: &str| {
            row.get(name)
                .and_then(Value::as_str)
                .unwrap_or("–")
                .to_owned()
        };
        vec![word("original_outcome"), word("outcome"), cell(row, "n", 0)]
    });
    blocks.push(Block::Table {
        heading: "How requests ended".to_owned(),
        header: vec!["original", "replay", "requests"],
        rows: outcomes.collect(),
        words: 2,
        ends_in_word: false,
    });
    blocks
}

fn length(row: &Map<String, Value>) -> (&'static str, String) {
    let is_input = row.get("direction").and_then(Value::as_str) == Some("input");
    let name = if is_input {
        "Input tokens, as the server counts"
    } else {
        "Output tokens"
    };
    if row.get("compared").and_then(Value::as_u64) == Some(0) {
        return (name, "not known of both".to_owned());
    }
    let text = format!(
        "{} of {} differ, mean {}, max {}; {} for {}",
        cell(row, "differ", 0),
        cell(row, "compared", 0),
        cell(row, "error_mean", 2),
        cell(row, "error_max", 0),
        cell(row, "tokens", 0),
        cell(row, "original_tokens", 0)
    );
    (name, text)
}

fn flight(row: &Map<String, Value>) -> Option<(&'static str, String)> {
    (!row.is_empty()).then(|| {
        let text = format!(
            "{} for {}; off by {} in the mean, {} at most",
            cell(row, "in_flight", 2),
            cell(row, "original_in_flight", 2),
            cell(row, "in_flight_error_mean", 2),
            cell(row, "in_flight_error_max", 0)
        );
        ("In flight, time average", text)
    })
}

fn prefix(fidelity: &Fidelity) -> Vec<(&'static str, String)> {
    let share = |row: &Map<String, Value>, column: &str| {
        let value = row.get(column).and_then(Value::as_f64);
        value.map(|v| format!("{:.1} %", v * 100.0))
    };
    let both = |name, column| {
        let (new, base) = (
            share(&fidelity.prefix, column),
            share(&fidelity.original_prefix, column),
        );
        let is_known = new.is_some() || base.is_some();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        is_known.then(|| (name, format!("{} for {}", or_dash(new), or_dash(base))))
    };
    [
        both("Prompt tokens from the cache", "cached_ratio"),
        both("Blocks that an endless cache would hit", "ideal_hit_ratio"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn gates(comparisons: &Comparisons) -> Block {
    let rows = comparisons.gates.iter().map(|gate| {
        let word = match gate.holds {
            Some(true) => "FAILED",
            Some(false) => "passed",
            None => "NO DATA",
        };
        let level = gate.level.as_deref();
        let level = level.map(|l| format!(" ({l})")).unwrap_or_default();
        vec![
            word.to_owned(),
            format!("{}{level}", gate.fail_if),
            gate.detail.clone(),
        ]
    });
    Block::Table {
        heading: "--fail-if".to_owned(),
        header: Vec::new(),
        rows: rows.collect(),
        words: 3,
        ends_in_word: false,
    }
}

fn draw(block: &Block, is_markdown: bool) -> String {
    match block {
        Block::Title(text) if is_markdown => format!("## {text}\n\n"),
        Block::Title(text) => format!("{text}\n{}\n", "═".repeat(text.chars().count().min(WIDTH))),
        Block::Line(text) if is_markdown => format!("{}\n\n", text.trim_start()),
        Block::Line(text) => format!("{text}\n"),
        Block::Table {
            heading,
            header,
            rows,
            ..
        } if is_markdown => {
            let width = rows.iter().map(Vec::len).max().unwrap_or(header.len());
            let mut header = header.clone();
            header.resize(width, "");
            let heading = match heading.as_str() {
                "" => String::new(),
                text => format!("### {text}\n\n"),
            };
            format!("{heading}{}\n\n", grid(&header, rows, true))
        }
        Block::Table {
            heading,
            header,
            rows,
            words,
            ends_in_word,
        } => {
            let heading = match heading.as_str() {
                "" => String::new(),
                text => format!("\n{text}\n"),
            };
            let is_left = |column: usize, columns: usize| {
                column < *words || (*ends_in_word && column + 1 == columns)
            };
            heading + &aligned(header, rows, is_left)
        }
    }
}

/// Columns two apart, with a rule below the header; what is too long for the line
/// wraps under its own column.
fn aligned(
    header: &[&str],
    rows: &[Vec<String>],
    is_left: impl Fn(usize, usize) -> bool,
) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(header.len());
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| length(cell)).max().unwrap_or(0);
        longest.max(header.get(column).map_or(0, |h| length(h)))
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::from(" ");
        for (column, cell) in cells.iter().enumerate() {
            let cell: String = cell.chars().map(visible).collect();
            let gap = " ".repeat(widths[column].saturating_sub(length(&cell)));
            text.push(' ');
            if is_left(column, columns) {
                text.push_str(&format!("{cell}{gap} "));
            } else {
                text.push_str(&format!("{gap}{cell} "));
            }
        }
        wrapped(text.trim_end(), &widths) + "\n"
    };
    let mut text = String::new();
    if !header.is_empty() {
        text.push_str(&line(header.to_vec()));
        let ruled = 2 * columns + widths.iter().sum::<usize>();
        text.push_str(&format!(
            "  {}\n",
            "─".repeat(ruled.saturating_sub(2).min(WIDTH - 2))
        ));
    }
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Breaks `line` at spaces behind [`WIDTH`]; what follows stands below the last
/// column.
fn wrapped(line: &str, widths: &[usize]) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    let (_, before) = widths.split_last().unwrap_or((&0, &[]));
    let indent = (2 + before.iter().map(|w| w + 2).sum::<usize>()).min(WIDTH / 2);
    let mut text = String::new();
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > WIDTH {
        let spaces = (indent + 1..=WIDTH).rev();
        let cut = spaces.clone().find(|i| rest[*i] == ' ');
        // A word longer than the line stays whole.
        let Some(cut) = cut.or_else(|| (WIDTH..rest.len()).find(|i| rest[*i] == ' ')) else {
            break;
        };
        let tail = rest.split_off(cut);
        text.extend(rest);
        text.push('\n');
        rest = " ".repeat(indent).chars().collect();
        rest.extend(tail.into_iter().skip(1));
    }
    text.extend(rest);
    text
}
