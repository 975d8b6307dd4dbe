//! The metric definitions: headers against plans, and every `metrics/*.slt`.
//!
//! An `.slt` file builds recordings from literal rows and asks the views:
//!
//! ```text
//! recording NAME [dropped=N] [replays=NAME] [workload=HASH] [SETTING=JSON…]
//!                                 begins a recording; settings, where given, replace
//!                                 the default ones; `replays` names an earlier one
//! TABLE: column column …          then one row per line, up to an empty line;
//! 1 2.5ms say:to_be               `-` is NULL, ms and s make ns, `data` is taken as it is,
//!                                 other columns take defaults;
//!                                 `say:`, `answer:` and `ask:` make the payload of a chunk,
//!                                 of an answer and of a request with that text
//! # comment                       here or between blocks
//! slo ttft_ms=200                 options, before the first query
//! warmup 1s
//! percentiles 50 99
//! tokenizer                       one token a word
//! query
//! SELECT …                        up to a line of dashes
//! ----
//! expected rows                   up to an empty line; NULL is NULL
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value, json};
use tapedeck_analyze::models::{self, Model};
use tapedeck_analyze::{Parameters, Session, Slo, session};
use tapedeck_recording::columns::from_batch;
use tapedeck_recording::manifest::{Manifest, Workload};
use tapedeck_recording::{EventBatch, Table};

use crate::support::recording;
use crate::tokens;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn analyze_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../analyze")
}

async fn open(path: &Path, parameters: &Parameters) -> Session {
    let recordings = session::open_all(&[path.to_owned()]).unwrap();
    Session::open(recordings, parameters).await.unwrap()
}

/// One row as the lines of an `.slt` file have it.
async fn lines(session: &Session, sql: &str) -> Vec<String> {
    let query = session.query(sql).await;
    let query = query.unwrap_or_else(|e| panic!("{e:?}\n{sql}"));
    let batches = query
        .collect()
        .await
        .unwrap_or_else(|e| panic!("{e}\n{sql}"));
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in &batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            lines.push(cells.join(" "));
        }
    }
    lines
}

/// What an `.slt` file has said so far.
struct Script {
    dir: tempfile::TempDir,
    recordings: Vec<(Manifest, EventBatch)>,
    parameters: Parameters,
}

impl Script {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            recordings: Vec::new(),
            parameters: Parameters::default(),
        }
    }

    fn recording(&mut self, words: &str) {
        let mut words = words.split_whitespace();
        let mut manifest = recording::manifest(words.next().expect("a name"));
        let mut settings = Map::new();
        for word in words {
            let (key, value) = word.split_once('=').expect("KEY=VALUE");
            match key {
                "dropped" => manifest.dropped_events = value.parse().unwrap(),
                "replays" => {
                    let mut earlier = self.recordings.iter();
                    let found = earlier.find(|(m, _)| m.name == value);
                    let id = &found.expect("an earlier recording").0.recording_id;
                    settings.insert("replay_of_recording_id".into(), id.as_str().into());
                    settings.entry("speed").or_insert(1.0.into());
                }
                "workload" => {
                    manifest.workload = Some(Workload {
                        kind: "slt".into(),
                        path: None,
                        content_hash: Some(value.into()),
                        seed: 0,
                    });
                }
                _ => drop(settings.insert(key.into(), serde_json::from_str(value).unwrap())),
            }
        }
        if !settings.is_empty() {
            manifest.settings = settings.into();
        }
        self.recordings.push((manifest, EventBatch::default()));
    }

    fn rows(&mut self, table: Table, columns: &str, rows: &[&str]) {
        let (manifest, events) = self.recordings.last_mut().expect("a recording first");
        let schema = table.schema();
        let mut decoder = arrow::json::ReaderBuilder::new(schema.clone())
            .build_decoder()
            .unwrap();
        for row in rows {
            let mut object = defaults(table);
            object.insert("recording_id".into(), manifest.recording_id.clone().into());
            for (column, word) in columns.split_whitespace().zip(row.split_whitespace()) {
                assert!(schema.index_of(column).is_ok(), "no column {column}");
                let value = match column {
                    "data" if word != "-" && payload(word).is_none() => hex(word).into(),
                    _ => value(word),
                };
                object.insert(column.into(), value);
            }
            decoder.serialize(&[object]).unwrap();
        }
        let batch = decoder.flush().unwrap().unwrap();
        from_batch(table, &batch, events).unwrap();
    }

    async fn session(&mut self) -> Session {
        for (index, (manifest, events)) in self.recordings.drain(..).enumerate() {
            let dir = self.dir.path().join(format!("{index}"));
            recording::write(&dir, manifest, 1 << 18, [events]);
        }
        let recordings = session::open_all(&[self.dir.path().to_owned()]).unwrap();
        Session::open_keeping(recordings, &self.parameters, &session::SMALL_VIEWS)
            .await
            .unwrap()
    }
}

/// What Arrow's JSON reader makes bytes of.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// `-` NULL, `1.5ms` and `2s` ns, then whatever JSON makes of it, then text.
fn value(word: &str) -> Value {
    let instant = |number: &str, ns: f64| Some((number.parse::<f64>().ok()? * ns).round() as i64);
    let ms = word.strip_suffix("ms").and_then(|n| instant(n, 1e6));
    let s = word.strip_suffix('s').and_then(|n| instant(n, 1e9));
    match ms.or(s) {
        _ if word == "-" => Value::Null,
        _ if payload(word).is_some() => payload(word).into(),
        Some(ns) => ns.into(),
        None => serde_json::from_str(word).unwrap_or_else(|_| word.into()),
    }
}

/// The payload that carries a text, as the hexadecimal digits that Arrow reads.
fn payload(word: &str) -> Option<String> {
    let (shape, text) = word.split_once(':')?;
    let text = text.replace('_', " ");
    let payload = match shape {
        "say" => json!({"choices": [{"index": 0, "delta": {"content": text}}]}),
        "answer" => json!({"choices": [{"index": 0, "message": {"content": text}}]}),
        "ask" => json!({"messages": [{"role": "user", "content": text}]}),
        _ => return None,
    };
    let bytes = payload.to_string().into_bytes();
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn defaults(table: Table) -> Map<String, Value> {
    let row = match table {
        Table::Requests => json!({
            "attempt": 0, "phase": "measure", "api": "openai-chat", "method": "POST",
            "url_path": "/v1/chat/completions", "stream": true, "body_bytes": 0,
        }),
        Table::Chunks => json!({
            "attempt": 0, "choice_index": 0, "t_seen_ns": 0, "kind": "content", "bytes": 0,
        }),
        Table::Responses => json!({
            "attempt": 0, "outcome": "ok", "status": 200, "timestamp_source": "kernel",
            "body_bytes": 0, "chunk_count": 0, "malformed_chunks": 0,
        }),
        Table::Samples => json!({"labels": {}}),
        Table::Marks => json!({}),
    };
    row.as_object().cloned().unwrap()
}

/// Runs one file; returns what did not match.
async fn run(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut script = Script::new();
    let mut open_session = None;
    let mut failures = String::new();
    let mut rest = text.lines().enumerate();
    while let Some((number, line)) = rest.next() {
        let (word, tail) = line.split_once(' ').unwrap_or((line, ""));
        let table = Table::ALL
            .into_iter()
            .find(|t| word.strip_suffix(':') == Some(t.name()));
        let mut block = || -> Vec<&str> {
            rest.by_ref()
                .map(|(_, line)| line)
                .take_while(|line| !line.trim().is_empty())
                .filter(|line| !line.starts_with('#'))
                .collect()
        };
        match word {
            _ if table.is_some() => script.rows(table.unwrap(), tail, &block()),
            "recording" => script.recording(tail),
            "slo" => {
                let (metric, bound) = tail.split_once('=').unwrap();
                script.parameters.slos.push(Slo {
                    metric: metric.to_owned(),
                    bound: bound.parse().unwrap(),
                });
            }
            "tokenizer" => {
                script.parameters.tokenizer = Some(tokens::word_tokenizer(script.dir.path()));
            }
            "warmup" => script.parameters.warmup_ms = value(tail).as_f64().unwrap() / 1e6,
            "percentiles" => {
                let list = tail.split_whitespace().map(|p| p.parse().unwrap());
                script.parameters.percentiles = list.collect();
            }
            "query" => {
                let block = block();
                let cut = block.iter().position(|l| l.starts_with("----"));
                let (sql, expected) = block.split_at(cut.expect("---- after a query"));
                if open_session.is_none() {
                    open_session = Some(script.session().await);
                }
                let found = lines(open_session.as_ref().unwrap(), &sql.join("\n")).await;
                let expected: Vec<String> = expected[1..]
                    .iter()
                    .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                    .collect();
                if found != expected {
                    let file = path.file_name().unwrap().to_string_lossy();
                    writeln!(
                        failures,
                        "{file}:{}\n  expected {expected:#?}\n  found {found:#?}",
                        number + 1
                    )
                    .unwrap();
                }
            }
            _ => assert!(
                line.is_empty() || line.starts_with('#'),
                "{}:{}: {line}",
                path.display(),
                number + 1
            ),
        }
    }
    failures
}

#[test]
fn every_slt_file_finds_the_rows_it_expects() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("metrics");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "slt"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let failures: String = files.iter().map(|file| block_on(run(file))).collect();
    assert!(failures.is_empty(), "{failures}");
}

/// The SQL word of a header for a planned type.
fn sql_type(data_type: &arrow::datatypes::DataType) -> &'static str {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "TEXT",
        DataType::Int32 => "INT",
        DataType::Int64 => "BIGINT",
        DataType::Float64 => "DOUBLE",
        DataType::Boolean => "BOOLEAN",
        DataType::Binary => "BYTES",
        DataType::Map(..) => "MAP",
        DataType::List(_) => "LIST",
        _ => "a type no header can name",
    }
}

/// With a tokenizer, so that no view is left out.
async fn empty_session(dir: &Path) -> Session {
    let path = recording::write(&dir.join("r"), recording::manifest("empty"), 1 << 18, []);
    let parameters = Parameters {
        tokenizer: Some(tokens::word_tokenizer(dir)),
        ..Parameters::default()
    };
    open(&path, &parameters).await
}

/// The views that a session creates when it is asked about them.
async fn create_all(session: &Session) {
    // A question about one of the peers creates them all.
    session.query("SELECT * FROM peer_profile").await.unwrap();
    for model in models::compares() {
        let sql = format!("SELECT * FROM {}", model.name);
        session.query(&sql).await.unwrap();
    }
}

#[test]
fn headers_name_the_columns_and_types_that_are_planned() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let session = empty_session(dir.path()).await;
        create_all(&session).await;
        for model in models::all_views().chain(models::tables()) {
            let view = session.context().table(format!("\"{}\"", model.name)).await;
            let view = view.unwrap();
            let planned: Vec<(String, String)> = view
                .schema()
                .fields()
                .iter()
                .map(|f| (f.name().clone(), sql_type(f.data_type()).to_owned()))
                .collect();
            let header: Vec<(String, String)> = model
                .columns
                .iter()
                .map(|c| (c.name.clone(), c.sql_type.clone()))
                .collect();
            assert_eq!(header, planned, "{}", model.path);
            let is_parameter = model.columns.len() < 4 && models::view(model.name).is_none();
            // Of two sides, not of a recording.
            let is_of_sides = model.name == "comparison";
            assert!(
                is_parameter || is_of_sides || header[0].0 == "recording_id",
                "{}",
                model.path
            );
        }
    });
}

#[test]
fn a_file_that_requires_nothing_of_ours_is_plain_datafusion() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let session = empty_session(dir.path()).await;
        create_all(&session).await;
        let plain = datafusion::prelude::SessionContext::new();
        let tables = models::tables().iter().map(|m| (m, true));
        let views = models::all_views().map(|m| (m, m.requires_tapedeck));
        let mut ours = 0;
        for (model, is_given) in tables.chain(views) {
            if !is_given {
                let created = plain.sql(model.sql).await;
                created.unwrap_or_else(|e| panic!("{}: {e}", model.path));
                continue;
            }
            ours += usize::from(model.requires_tapedeck);
            let table = session.context().table(model.name).await.unwrap();
            let empty = RecordBatch::new_empty(Arc::new(table.schema().as_arrow().clone()));
            plain.register_batch(model.name, empty).unwrap();
        }
        assert_eq!(ours, 7, "functions of ours are the exception");
        let rows = plain.table("latency_percentiles").await.unwrap();
        assert_eq!(rows.count().await.unwrap(), 0);
    });
}

/// Words of the file's SQL that are names of tables or views.
fn mentioned(model: &Model, known: &[&str]) -> Vec<String> {
    let body: String = model
        .sql
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .map(|line| format!("{line}\n"))
        .collect();
    let body = body.replace('"', "");
    let words: Vec<&str> = body.split_whitespace().collect();
    let mut names: Vec<String> = words
        .windows(2)
        .filter(|pair| matches!(pair[0], "FROM" | "JOIN"))
        .map(|pair| pair[1].trim_matches([')', '(', ';', ',']).to_owned())
        .filter(|name| known.contains(&name.as_str()))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_file_reads_what_its_header_says_and_only_earlier_views() {
    let mut known: Vec<&str> = models::tables().iter().map(|m| m.name).collect();
    let mut all = known.clone();
    all.extend(models::all_views().map(|m| m.name));
    for model in models::all_views().chain(models::checks()) {
        let mut reads = model.reads.clone();
        reads.sort();
        let others: Vec<&str> = all.iter().copied().filter(|n| *n != model.name).collect();
        assert_eq!(reads, mentioned(model, &others), "{}", model.path);
        for name in &reads {
            assert!(
                known.contains(&name.as_str()),
                "{} reads {name}",
                model.path
            );
        }
        known.push(model.name);
    }
}

fn sql_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sql_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_sql_file_is_embedded_in_path_order() {
    let views: Vec<&Model> = models::all_views().collect();
    let checks: Vec<&Model> = models::checks().iter().collect();
    let tables: Vec<&Model> = models::tables().iter().collect();
    for (folder, embedded) in [("sql", views), ("checks", checks), ("tables", tables)] {
        let root = analyze_dir().join(folder);
        let mut files = Vec::new();
        sql_files(&root, &mut files);
        files.sort();
        let paths: Vec<String> = files
            .iter()
            .map(|f| f.strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
            .collect();
        let embedded: Vec<&str> = embedded.iter().map(|m| m.path).collect();
        assert_eq!(paths, embedded);
    }
}

#[test]
fn metrics_md_is_what_the_headers_say() {
    let path = analyze_dir().join("METRICS.md");
    if std::env::var_os("UPDATE_METRICS").is_some() {
        std::fs::write(&path, models::reference()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == models::reference(),
        "analyze/METRICS.md is stale: run UPDATE_METRICS=1 cargo test --test e2e metrics_md"
    );
}

#[test]
fn percentiles_of_all_metrics_take_one_pass_and_no_sort_of_the_values() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = recording::write(&dir.path().join("r"), recording::manifest("r"), 1 << 18, []);
        let recordings = session::open_all(&[path]).unwrap();
        let kept = ["outcome", "request_latency"];
        let parameters = Parameters::default();
        let session = Session::open_keeping(recordings, &parameters, &kept)
            .await
            .unwrap();
        let plan = lines(&session, "EXPLAIN SELECT * FROM latency_percentiles").await;
        let plan = plan.join("\n");
        let physical = &plan[plan.find("physical_plan").unwrap()..];
        let scans = physical.matches("file_type=parquet").count();
        let sorts = physical.lines().filter(|l| l.contains("SortExec"));
        // Of the percentiles that were asked for, a handful.
        let of_values = sorts.filter(|l| !l.contains("[p@"));
        assert_eq!(of_values.count(), 0, "{physical}");
        assert_eq!(scans, 2, "of chunks and requests: {physical}");
    });
}
