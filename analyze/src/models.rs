//! The metric definitions: one SQL view per file, embedded, with headers that
//! programs read.
//!
//! A header opens its file: `-- name: grain.`, `-- Reads: a, b.`, notes as
//! `-- Key: text` (a profile of another tool has its definitions there), then one
//! line per column with name, type, unit, polarity and meaning. A file that calls
//! our functions says `-- requires: tapedeck` as well. The same lines feed
//! the schema test, [`reference()`] (METRICS.md) and the direction of an SLO.
//! Path order is dependency order: a file reads only recorded tables, tables of
//! the session and views of earlier files.

use std::collections::BTreeSet;
use std::sync::LazyLock;

/// One file under `sql/`, `tables/` or `checks/`.
#[derive(Debug, Clone)]
pub struct Model {
    /// Path below `sql/`, for example `1_base/outcome.sql`.
    pub path: &'static str,
    /// View name: the file's stem.
    pub name: &'static str,
    /// The file as it is.
    pub sql: &'static str,
    /// What one row is.
    pub grain: String,
    /// Tables and views it mentions.
    pub reads: Vec<String>,
    /// Further lines of the form `-- Key: text`, in order.
    pub notes: Vec<(String, String)>,
    pub columns: Vec<Column>,
    /// It calls functions that only this program has.
    pub requires_tapedeck: bool,
}

impl Model {
    /// The text of the note called `key`.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<&str> {
        let mut notes = self.notes.iter();
        notes.find(|(k, _)| k == key).map(|(_, text)| text.as_str())
    }
}

/// One column of a view, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// `TEXT`, `INT`, `BIGINT`, `DOUBLE`, `BOOLEAN`; in tables also `BYTES`, `MAP`, `LIST`.
    pub sql_type: String,
    /// `None` where the header has a dash.
    pub unit: Option<String>,
    pub polarity: Option<Polarity>,
    pub meaning: String,
}

/// Which way a value improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polarity {
    Lower,
    Higher,
}

macro_rules! sql_files {
    ($root:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../", $root, "/", $path)))),+]
    };
}

/// The files under `sql/` with our own definitions, in path order (a test compares
/// with the folder).
const VIEWS: &[(&str, &str)] = sql_files![
    "sql":
    "1_base/answer_chunk.sql",
    "1_base/content_chunk.sql",
    "1_base/metric.sql",
    "1_base/outcome.sql",
    "1_base/server_metric.sql",
    "1_base/tokenized.sql",
    "1_base/window.sql",
    "2_request/chunk_gap.sql",
    "2_request/chunk_stream.sql",
    "2_request/flight.sql",
    "2_request/flight_level.sql",
    "2_request/read_lag.sql",
    "2_request/request_latency.sql",
    "2_request/request_metric.sql",
    "2_request/slo_met.sql",
    "3_summary/client_load.sql",
    "3_summary/concurrency.sql",
    "3_summary/failures.sql",
    "3_summary/goodput.sql",
    "3_summary/latency_percentiles.sql",
    "3_summary/schedule_fidelity.sql",
    "3_summary/schedule_lag.sql",
    "3_summary/server_summary.sql",
    "3_summary/server_vs_client.sql",
    "3_summary/speed_benchmark.sql",
    "3_summary/steady_state.sql",
    "3_summary/throughput.sql",
    "3_summary/timeline.sql",
    "3_summary/verdict.sql",
    "4_report/recording_health.sql",
    "4_report/scalar_metric.sql",
];

/// The definitions of other tools. A session creates them when it is asked about
/// them.
const PEER_VIEWS: &[(&str, &str)] = sql_files![
    "sql":
    "5_peer_facts/peer_chunk.sql",
    "5_peer_facts/peer_profile.sql",
    "5_peer_facts/peer_request.sql",
    "5_peer_facts/peer_token.sql",
    "5_peer_facts/peer_token_gap.sql",
    "5_peer_facts/peer_token_stream.sql",
    "6_peer/peer_aiperf.sql",
    "6_peer/peer_aphrodite.sql",
    "6_peer/peer_byzer_perf.sql",
    "6_peer/peer_evalscope.sql",
    "6_peer/peer_evalscope_0_8.sql",
    "6_peer/peer_guidellm.sql",
    "6_peer/peer_inference_perf.sql",
    "6_peer/peer_llm_perf.sql",
    "6_peer/peer_llmperf.sql",
    "6_peer/peer_mlperf.sql",
    "6_peer/peer_sglang.sql",
    "6_peer/peer_vllm.sql",
    "7_peer_summary/peer_answer.sql",
    "7_peer_summary/peer_metric.sql",
    "7_peer_summary/peer_rate.sql",
    "7_peer_summary/peer_sample.sql",
    "7_peer_summary/peer_spread.sql",
    "7_peer_summary/peer_summary.sql",
];

/// One side against another: files under `sql/` that come last. A session creates
/// them when it is asked about them.
const COMPARE_VIEWS: &[(&str, &str)] = sql_files![
    "sql":
    "8_replay/prefix_reuse.sql",
    "8_replay/replay_original.sql",
    "8_replay/replay_request.sql",
    "9_compare/compare_end.sql",
    "9_compare/compare_pair.sql",
    "9_compare/compare_request.sql",
    "9_compare/compare_unit_memory.sql",
    "9_compare/compare_value.sql",
    "9_compare/comparison.sql",
    "9_compare/replay_flight.sql",
    "9_compare/replay_length.sql",
    "9_compare/replay_outcome.sql",
    "9_compare/replay_schedule.sql",
];

/// Every file under `tables/`: headers of what views read and nobody defines.
const TABLES: &[(&str, &str)] = sql_files![
    "tables":
    "chunks.sql",
    "marks.sql",
    "params.sql",
    "percentiles.sql",
    "profiles.sql",
    "recordings.sql",
    "requests.sql",
    "responses.sql",
    "samples.sql",
    "sides.sql",
    "slos.sql",
];

/// Every file under `checks/`: queries whose rows are findings.
const CHECKS: &[(&str, &str)] = sql_files![
    "checks":
    "chunk_before_sent.sql",
    "chunk_count.sql",
    "chunk_index_gap.sql",
    "chunk_without_request.sql",
    "duplicate_chunk.sql",
    "duplicate_request.sql",
    "duplicate_response.sql",
    "end_before_chunk.sql",
    "negative_length.sql",
    "read_index_backwards.sql",
    "recording_id.sql",
    "response_without_request.sql",
    "seen_before_arrival.sql",
    "time_backwards.sql",
    "unfinished_request.sql",
    "unknown_word.sql",
];

static MODELS: LazyLock<Vec<Model>> =
    LazyLock::new(|| VIEWS.iter().map(|(path, sql)| parse(path, sql)).collect());

static PEER_MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    PEER_VIEWS
        .iter()
        .map(|(path, sql)| parse(path, sql))
        .collect()
});

static COMPARE_MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    COMPARE_VIEWS
        .iter()
        .map(|(path, sql)| parse(path, sql))
        .collect()
});

static TABLE_MODELS: LazyLock<Vec<Model>> =
    LazyLock::new(|| TABLES.iter().map(|(path, sql)| parse(path, sql)).collect());

static CHECK_MODELS: LazyLock<Vec<Model>> =
    LazyLock::new(|| CHECKS.iter().map(|(path, sql)| parse(path, sql)).collect());

/// All views of our own definitions, in dependency order.
#[must_use]
pub fn views() -> &'static [Model] {
    &MODELS
}

/// The views of other tools' definitions, in dependency order; they come after
/// [`views`] and start with `peer_`.
#[must_use]
pub fn peers() -> &'static [Model] {
    &PEER_MODELS
}

/// The views of a comparison, in dependency order; they come after [`peers`].
#[must_use]
pub fn compares() -> &'static [Model] {
    &COMPARE_MODELS
}

/// Every view, in dependency order.
pub fn all_views() -> impl DoubleEndedIterator<Item = &'static Model> {
    views().iter().chain(peers()).chain(compares())
}

/// The tables that views are made of, recorded and of the session.
#[must_use]
pub fn tables() -> &'static [Model] {
    &TABLE_MODELS
}

/// All invariants of a recording, as queries that return what breaks them.
#[must_use]
pub fn checks() -> &'static [Model] {
    &CHECK_MODELS
}

/// `goals` and all views that they are built from.
pub(crate) fn needed_for(goals: &[&'static str]) -> BTreeSet<&'static str> {
    let mut needed: BTreeSet<&str> = goals.iter().copied().collect();
    // Later files read earlier ones, so one pass from the end finds all.
    for model in all_views().rev() {
        if needed.contains(model.name) {
            needed.extend(model.reads.iter().map(String::as_str));
        }
    }
    needed
}

/// The view called `name`.
#[must_use]
pub fn view(name: &str) -> Option<&'static Model> {
    all_views().find(|m| m.name == name)
}

/// The view or table called `name`.
#[must_use]
pub fn named(name: &str) -> Option<&'static Model> {
    view(name).or_else(|| TABLE_MODELS.iter().find(|m| m.name == name))
}

/// The header's line about `column` of `view`.
#[must_use]
pub fn column(view_name: &str, column: &str) -> Option<&'static Column> {
    view(view_name)?.columns.iter().find(|c| c.name == column)
}

/// The metrics that an SLO can bound: of which a request has one value, and that
/// the report names. So the columns of `request_latency` that view `metric`
/// lists; its `itl_ms` has a value per gap and is no column.
pub fn slo_metrics() -> impl Iterator<Item = &'static str> {
    let named = view("metric").map_or("", |m| m.sql);
    let columns = view("request_latency").map_or(&[][..], |m| &m.columns);
    let names = columns.iter().map(|c| c.name.as_str());
    names.filter(move |name| named.contains(&format!("'{name}'")))
}

/// The metrics that the rows of `view_name` name, in the order of a report: the
/// second value of every row that its SQL lists.
pub(crate) fn metric_names(view_name: &str) -> Vec<&'static str> {
    let lines = view(view_name).map_or("", |m| m.sql).lines();
    let rows = lines.filter(|line| line.trim_start().starts_with('('));
    rows.filter_map(|line| line.split('\'').nth(1)).collect()
}

/// Reads a header. Lines that are not of its shape are left out; the test that
/// compares headers with planned schemas finds them missing.
fn parse(path: &'static str, sql: &'static str) -> Model {
    let file = path.rsplit('/').next().unwrap_or(path);
    let mut model = Model {
        path,
        name: file.strip_suffix(".sql").unwrap_or(file),
        sql,
        grain: String::new(),
        reads: Vec::new(),
        notes: Vec::new(),
        columns: Vec::new(),
        requires_tapedeck: false,
    };
    for line in sql.lines().map_while(|line| line.strip_prefix("--")) {
        if let Some(column) = line.strip_prefix("   ") {
            model.columns.extend(parse_column(column));
        } else if let Some(reads) = line.strip_prefix(" Reads: ") {
            let names = reads.trim_end_matches('.').split(", ");
            model.reads.extend(names.map(str::to_owned));
        } else if line.starts_with(" requires: tapedeck") {
            model.requires_tapedeck = true;
        } else if let Some((key, text)) = line.split_once(": ") {
            if model.grain.is_empty() {
                model.grain = text.to_owned();
            } else {
                let note = (key.trim().to_owned(), text.to_owned());
                model.notes.push(note);
            }
        }
    }
    model
}

fn parse_column(line: &str) -> Option<Column> {
    let mut rest = line.trim_start();
    let mut word = || {
        let (word, tail) = rest.split_once(' ')?;
        rest = tail.trim_start();
        Some(word.to_owned())
    };
    let (name, sql_type, unit, polarity) = (word()?, word()?, word()?, word()?);
    Some(Column {
        name,
        sql_type,
        unit: (unit != "-").then_some(unit),
        polarity: match polarity.as_str() {
            "lower" => Some(Polarity::Lower),
            "higher" => Some(Polarity::Higher),
            _ => None,
        },
        meaning: rest.to_owned(),
    })
}

/// The text of METRICS.md: every view, table and column, from the headers.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from the headers of `analyze/sql/` and `analyze/tables/`; `UPDATE_METRICS=1 cargo test` rewrites it.\n\
         `analyze sql NAME` prints a definition.\n",
    );
    for model in all_views() {
        text.push_str(&describe(model));
    }
    text.push_str("\n# Tables\n\nWhat the views are made of.\n");
    for model in tables() {
        text.push_str(&describe(model));
    }
    text
}

fn describe(model: &Model) -> String {
    let mut letters = model.grain.chars();
    let capital = letters.next().map(|c| c.to_ascii_uppercase());
    let grain: String = capital.into_iter().chain(letters).collect();
    let name = model.name;
    let origin = if model.reads.is_empty() {
        String::new()
    } else {
        format!("\n`{}`, reads {}.", model.path, model.reads.join(", "))
    };
    let requires = if model.requires_tapedeck {
        " Requires functions of Tapedeck."
    } else {
        ""
    };
    let mut text = format!("\n## {name}\n\n{grain}{origin}{requires}\n\n");
    for (key, note) in &model.notes {
        text.push_str(&format!("- {key}: {note}\n"));
    }
    if !model.notes.is_empty() {
        text.push('\n');
    }
    text.push_str("| column | type | unit | better | meaning |\n|---|---|---|---|---|\n");
    for column in &model.columns {
        let better = match column.polarity {
            Some(Polarity::Lower) => "lower",
            Some(Polarity::Higher) => "higher",
            None => "",
        };
        let unit = column.unit.as_deref().unwrap_or_default();
        let (name, sql_type, meaning) = (&column.name, &column.sql_type, &column.meaning);
        text.push_str(&format!(
            "| `{name}` | {sql_type} | {unit} | {better} | {meaning} |\n"
        ));
    }
    text
}
