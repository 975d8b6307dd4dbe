//! A second opinion: the latency metrics recomputed with Polars straight from
//! the Parquet files, by another engine and another hand than the SQL.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;
use serde::Deserialize;
use tapedeck_analyze::{Parameters, Session, parameters, session};
use tapedeck_recording::{ChunkKind, EventBatch, Outcome, Phase, Recording, Table};

use crate::support::recording::{self, MS};

/// Two engines may add in another order; nothing else may differ.
const RELATIVE_TOLERANCE: f64 = 1e-9;
const REQUESTS: i64 = 3_000;
/// Small enough for a dozen segments, so that requests lie across files.
const SEGMENT_ROWS: usize = 8_192;
const KEY: [&str; 2] = ["request_id", "attempt"];

/// SplitMix64: all the randomness a fixed recording needs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: i64) -> i64 {
        (self.next() % bound as u64) as i64
    }

    fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }
}

/// A request of any fate: probes, failures, retries, unfinished and unstreamed
/// ones are there to be left out or treated apart by both sides.
fn attempt(request_id: i64, attempt: i32, random: &mut Random) -> EventBatch {
    let mut events = EventBatch::default();
    let t_scheduled_ns = request_id * 3 * MS + i64::from(attempt) * 500 * MS;
    let mut request = recording::request(request_id, t_scheduled_ns + random.below(MS));
    request.t_scheduled_ns = Some(t_scheduled_ns);
    request.attempt = attempt;
    if request_id < 5 {
        request.phase = Phase::Probe;
    }
    let mut t_ns = request.t_sent_ns.unwrap() + 20 * MS + random.below(200 * MS);
    events.requests.push(request);
    let is_streamed = !random.one_in(20);
    let is_counted = random.one_in(3);
    let chunks = if is_streamed {
        2 + random.below(40) as i32
    } else {
        0
    };
    for index in 0..chunks {
        let kind = match index {
            0 => ChunkKind::Role,
            1..4 => ChunkKind::Reasoning,
            _ if index == chunks - 1 => ChunkKind::Usage,
            _ if random.one_in(9) => ChunkKind::Tool,
            _ => ChunkKind::Content,
        };
        let mut chunk = recording::chunk(request_id, index, kind, t_ns);
        chunk.attempt = attempt;
        chunk.choice_index = (!random.one_in(4)).then(|| random.below(2) as i32);
        chunk.tokens = is_counted.then(|| 1 + random.below(3) as i32);
        events.chunks.push(chunk, Some(b"{\"choices\":[]}"));
        t_ns += random.below(40 * MS);
    }
    if random.one_in(50) {
        return events;
    }
    let usage = (!is_counted).then(|| 1 + random.below(80) as i32);
    let mut response = recording::response(request_id, t_ns, chunks, usage);
    response.attempt = attempt;
    if random.one_in(15) {
        response.outcome = Outcome::Truncated;
    }
    events.responses.push(response);
    events
}

fn write_recording(dir: &Path, seed: u64) {
    let mut random = Random(seed);
    let batches = (0..REQUESTS).flat_map(move |request_id| {
        let attempts = if random.one_in(30) { 2 } else { 1 };
        let batches: Vec<EventBatch> = (0..attempts)
            .map(|number| attempt(request_id, number, &mut random))
            .collect();
        batches
    });
    recording::write(dir, recording::manifest("oracle"), SEGMENT_ROWS, batches);
}

fn scan(dir: &Path, table: Table, columns: &[&str]) -> LazyFrame {
    let recording = Recording::open(dir).unwrap();
    let files = recording.files(table);
    assert!(files.len() > 1, "several segments of {}", table.name());
    let paths: Vec<PlRefPath> = files
        .iter()
        .map(|file| PlRefPath::new(file.to_str().unwrap()))
        .collect();
    let columns: Vec<Expr> = columns.iter().map(|name| col(*name)).collect();
    LazyFrame::scan_parquet_files(paths.into(), ScanArgsParquet::default())
        .unwrap()
        .select(columns)
}

fn keys() -> Vec<Expr> {
    KEY.iter().map(|name| col(*name)).collect()
}

fn ms(instants: Expr) -> Expr {
    instants.cast(DataType::Float64) / lit(1e6)
}

/// Last attempts in phase measure that ended well.
fn measured(dir: &Path) -> LazyFrame {
    let requests = scan(
        dir,
        Table::Requests,
        &[
            "request_id",
            "attempt",
            "phase",
            "t_scheduled_ns",
            "t_sent_ns",
        ],
    );
    let last = requests
        .clone()
        .group_by([col("request_id")])
        .agg([col("attempt").max()]);
    let responses = scan(
        dir,
        Table::Responses,
        &[
            "request_id",
            "attempt",
            "outcome",
            "t_end_ns",
            "output_tokens",
            "chunk_count",
        ],
    );
    requests
        .filter(col("phase").eq(lit("measure")))
        .join(last, keys(), keys(), JoinArgs::new(JoinType::Inner))
        .join(
            responses.filter(col("outcome").eq(lit("ok"))),
            keys(),
            keys(),
            JoinArgs::new(JoinType::Inner),
        )
}

fn content(dir: &Path) -> LazyFrame {
    let columns = [
        "request_id",
        "attempt",
        "chunk_index",
        "choice_index",
        "t_ns",
        "kind",
        "tokens",
    ];
    let is_content = ["reasoning", "content", "tool"]
        .into_iter()
        .map(|kind| col("kind").eq(lit(kind)))
        .reduce(Expr::or)
        .unwrap();
    scan(dir, Table::Chunks, &columns).filter(is_content)
}

/// One row per measured request with the columns the SQL must agree on.
fn requests(dir: &Path) -> LazyFrame {
    let streams = content(dir)
        .sort(
            ["request_id", "attempt", "chunk_index"],
            SortMultipleOptions::default(),
        )
        .group_by_stable(keys())
        .agg([
            col("t_ns").first().alias("t_first_ns"),
            col("t_ns").last().alias("t_last_ns"),
            col("tokens")
                .first()
                .fill_null(lit(1))
                .alias("first_tokens"),
        ]);
    let streamed = scan(dir, Table::Chunks, &["request_id", "attempt", "tokens"])
        .filter(col("tokens").is_not_null())
        .group_by(keys())
        .agg([col("tokens")
            .cast(DataType::Int64)
            .sum()
            .alias("streamed_tokens")]);
    let left = || JoinArgs::new(JoinType::Left);
    let is_unstreamed = col("chunk_count").eq(lit(0));
    let done = when(is_unstreamed)
        .then(col("t_end_ns"))
        .otherwise(col("t_last_ns"));
    let tokens = coalesce(&[
        col("output_tokens").cast(DataType::Int64),
        col("streamed_tokens"),
    ]);
    measured(dir)
        .join(streams, keys(), keys(), left())
        .join(streamed, keys(), keys(), left())
        .with_columns([done.alias("t_done_ns"), tokens.alias("all_tokens")])
        .with_column((col("all_tokens") - col("first_tokens")).alias("rest"))
        .select([
            ms(col("t_first_ns") - col("t_sent_ns")).alias("ttft_ms"),
            ms(col("t_first_ns") - col("t_scheduled_ns")).alias("ttft_scheduled_ms"),
            ms(col("t_done_ns") - col("t_sent_ns")).alias("e2el_ms"),
            when(col("all_tokens").gt_eq(lit(2)).and(col("rest").gt(lit(0))))
                .then(
                    ms(col("t_last_ns") - col("t_first_ns")) / col("rest").cast(DataType::Float64),
                )
                .otherwise(lit(NULL))
                .alias("tpot_ms"),
            col("all_tokens")
                .cast(DataType::Float64)
                .alias("output_tokens"),
        ])
}

fn gaps(dir: &Path) -> LazyFrame {
    let choice = ["request_id", "attempt", "choice_index"];
    content(dir)
        .join(
            measured(dir),
            keys(),
            keys(),
            JoinArgs::new(JoinType::Inner),
        )
        .sort(
            ["request_id", "attempt", "chunk_index"],
            SortMultipleOptions::default(),
        )
        .with_column(
            col("t_ns")
                .shift(lit(1))
                .over(choice.map(col))
                .unwrap()
                .alias("previous"),
        )
        .select([ms(col("t_ns") - col("previous")).alias("itl_ms")])
}

/// Stats of every column, as `metric.stat`; `n` counts what is not NULL.
fn stats(values: &LazyFrame, into: &mut BTreeMap<String, f64>) {
    let percentiles = Parameters::default().percentiles;
    let schema = values.clone().collect_schema().unwrap();
    for name in schema.iter_names() {
        let v = || col(name.clone());
        let mut columns = vec![
            v().mean().alias("mean"),
            v().std(0).alias("std"),
            v().min().alias("min"),
            v().max().alias("max"),
            v().count().cast(DataType::Float64).alias("n"),
        ];
        columns.extend(percentiles.iter().map(|p| {
            v().quantile(lit(p / 100.0), QuantileMethod::Linear)
                .alias(parameters::percentile_name(*p))
        }));
        let row = values.clone().select(columns).collect().unwrap();
        for column in row.columns() {
            let value = column.f64().unwrap().get(0).unwrap();
            into.insert(format!("{name}.{}", column.name()), value);
        }
    }
}

#[derive(Deserialize)]
struct Stat {
    metric: String,
    stat: String,
    value: Option<f64>,
    n: u64,
}

fn sql_stats(dir: &Path) -> Vec<Stat> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let recordings = session::open_all(&[dir.to_owned()]).unwrap();
        let kept = ["outcome", "request_latency"];
        let session = Session::open_keeping(recordings, &Parameters::default(), &kept)
            .await
            .unwrap();
        let sql = "SELECT metric, stat, value, n FROM latency_percentiles";
        session.rows(sql).await.unwrap()
    })
}

#[test]
fn polars_finds_the_same_latencies_in_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("recording");
    write_recording(&dir, 7);
    let mut expected = BTreeMap::new();
    stats(&requests(&dir), &mut expected);
    stats(&gaps(&dir), &mut expected);
    let mut compared = 0;
    for found in sql_stats(&dir) {
        let Some(value) = expected.get(&format!("{}.{}", found.metric, found.stat)) else {
            continue;
        };
        let name = format!("{} {}", found.metric, found.stat);
        let sql_value = found.value.unwrap_or_else(|| panic!("{name} is NULL"));
        let difference = (sql_value - value).abs();
        assert!(
            difference <= RELATIVE_TOLERANCE * value.abs(),
            "{name}: SQL {sql_value}, Polars {value}"
        );
        assert_eq!(
            found.n as f64,
            expected[&format!("{}.n", found.metric)],
            "{name}"
        );
        compared += 1;
    }
    let stats_each = 4 + Parameters::default().percentiles.len();
    assert_eq!(compared, 6 * stats_each, "every stat of six metrics");
}
