//! Reports, checks and the ways in which a recording can be unfit for them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tapedeck_analyze::check::{Broken, check};
use tapedeck_analyze::report::{Report, ReportOptions, Verdict, report};
use tapedeck_analyze::{Error, Format, Parameters, Session, Slo, session};
use tapedeck_recording::manifest::{Manifest, State};
use tapedeck_recording::{ChunkKind, EventBatch, Outcome, Phase, Recording};

use crate::support::programs::run;
use crate::support::recording::{self, MS, chunk, edit_manifest, request, response};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn report_on(path: &Path, options: &ReportOptions) -> Report {
    block_on(report(&[path.to_owned()], options)).unwrap()
}

/// Two requests of three chunks, 10 ms apart, and one that was refused.
fn sound_events() -> EventBatch {
    let mut events = EventBatch::default();
    for id in 0..2 {
        events.requests.push(request(id, id * 5 * MS));
        for index in 0..3 {
            let t_ns = id * 5 * MS + 20 * MS + i64::from(index) * 10 * MS;
            let row = chunk(id, index, ChunkKind::Content, t_ns);
            events.chunks.push(row, Some(b"x"));
        }
        events
            .responses
            .push(response(id, id * 5 * MS + 45 * MS, 3, Some(3)));
    }
    let mut refused = response(2, 60 * MS, 0, None);
    refused.outcome = Outcome::HttpError;
    refused.status = Some(503);
    refused.error = Some("overloaded | try\nlater".into());
    events.requests.push(request(2, 50 * MS));
    events.responses.push(refused);
    events
}

fn write(dir: &Path, events: EventBatch) -> PathBuf {
    recording::write(dir, recording::manifest("run"), 1 << 18, [events])
}

fn findings(path: &Path) -> Vec<Broken> {
    block_on(check(&Recording::open(path).unwrap())).unwrap()
}

/// Changes the manifest of `path` behind the recorder's back.
#[test]
fn the_json_report_has_the_published_shape() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let json: Value = report_on(&path, &ReportOptions::default()).to_json();
    assert_eq!(json["report_version"], 1);
    let recording = &json["recordings"][0];
    let keys: Vec<&String> = recording.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "recording_id",
            "path",
            "name",
            "labels",
            "verdict",
            "counts",
            "duration_s",
            "metrics"
        ]
    );
    assert_eq!(recording["name"], "run");
    assert_eq!(recording["labels"]["suite"], "tests");
    assert_eq!(recording["verdict"], "ok");
    assert_eq!(
        recording["counts"],
        serde_json::json!({
            "requests": 3, "succeeded": 2, "failed": 1, "unfinished": 0, "dropped_events": 0
        })
    );
    assert_eq!(recording["duration_s"], 0.06);
}

#[test]
fn the_json_report_has_every_metric_with_every_stat() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let json: Value = report_on(&path, &ReportOptions::default()).to_json();
    let recording = &json["recordings"][0];
    let metrics = recording["metrics"].as_array().unwrap();
    let find = |metric: &str, stat: &str| {
        let mut metrics = metrics.iter();
        let found = metrics.find(|m| m["metric"] == metric && m["stat"] == stat);
        found.unwrap_or_else(|| panic!("no {metric} {stat}"))
    };
    for metric in [
        "ttft_ms",
        "ttft_scheduled_ms",
        "ttfo_ms",
        "tpot_ms",
        "itl_ms",
        "e2el_ms",
        "e2el_scheduled_ms",
        "queue_delay_ms",
        "input_tokens",
        "output_tokens",
        "output_tokens_per_s",
        "total_tokens_per_s",
        "chunks_per_request",
    ] {
        for stat in ["mean", "std", "min", "max", "p1", "p50", "p99", "p99.9"] {
            assert!(find(metric, stat)["n"].is_u64());
        }
    }
    for metric in [
        "request_throughput",
        "input_token_throughput",
        "output_token_throughput",
        "total_token_throughput",
        "success_rate",
        "goodput",
        "concurrency",
    ] {
        find(metric, "value");
    }
    let ttft = serde_json::json!({
        "metric": "ttft_ms", "stat": "p50", "value": 20.0, "unit": "ms", "n": 2
    });
    assert_eq!(find("ttft_ms", "p50"), &ttft);
    // Undefined is null, never 0: no SLO was given, no prompt was counted.
    assert!(find("goodput", "value")["value"].is_null());
    assert!(find("input_tokens", "mean")["value"].is_null());
    assert_eq!(find("input_tokens", "mean")["n"], 0);
}

#[test]
fn text_reports_open_with_the_verdict_and_name_the_failures() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let options = ReportOptions {
        percentiles: Some(vec![50.0, 99.9]),
        slos: vec![Slo {
            metric: "ttft_ms".to_owned(),
            bound: 30.0,
        }],
        ..ReportOptions::default()
    };
    let report = report_on(&path, &options);
    let text = report.render(Format::Table);
    let position = |part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("no {part}\n{text}"))
    };
    assert!(position("Verdict: ok") < position("Summary"));
    assert!(position("Goodput (req/s)") < position("p99.9"));
    assert!(position("p99.9") < position("overloaded | try later"));
    assert!(!text.contains('\u{1b}'), "no escape sequences");
    let markdown = report.render(Format::Markdown);
    assert!(markdown.contains("overloaded \\| try later"), "{markdown}");
    let csv = report.render(Format::Csv);
    assert!(csv.starts_with("recording_id,name,metric,stat,value,unit,n\n"));
    assert!(csv.contains(",run,ttft_ms,p99.9,20,ms,2\n"), "{csv}");
}

#[test]
fn several_recordings_are_reported_apart_in_the_order_of_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("a b [x]*?%é"), sound_events());
    write(&dir.path().join("b"), EventBatch::default());
    let report = report_on(dir.path(), &ReportOptions::default());
    let requests: Vec<u64> = report
        .recordings
        .iter()
        .map(|r| r.counts.requests)
        .collect();
    assert_eq!(requests, [3, 0]);
    assert_eq!(report.recordings[0].value("ttft_ms", "p50"), Some(20.0));
    assert_eq!(report.recordings[1].value("ttft_ms", "p50"), None);
}

#[test]
fn a_copy_of_a_recording_is_refused_and_the_same_path_twice_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let paths = [
        path.clone(),
        dir.path().join("../").join(dir.path()).join("r"),
    ];
    assert_eq!(session::open_all(&paths).unwrap().len(), 1);
    let id = Manifest::load(&path).unwrap().recording_id;
    let copy = write(&dir.path().join("copy"), EventBatch::default());
    edit_manifest(&copy, |m| m.recording_id = id);
    assert!(matches!(
        session::open_all(&[path, copy]),
        Err(Error::Twice { .. })
    ));
}

#[test]
fn an_open_recording_without_segments_has_empty_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    fs::create_dir(&path).unwrap();
    recording::manifest("open").store(&path).unwrap();
    let report = report_on(&path, &ReportOptions::default());
    assert_eq!(report.recordings[0].counts.requests, 0);
    let health = &report.recordings[0].health;
    let state = health.iter().find(|f| f.finding == "state").unwrap();
    assert_eq!(state.severity, "warning");
    let found = findings(&path);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].problem.contains("not finished"));
}

#[test]
fn a_sealed_file_that_is_gone_makes_the_numbers_invalid() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let segment = Manifest::load(&path).unwrap().segments[1].file.clone();
    fs::remove_file(path.join(&segment)).unwrap();
    assert_eq!(
        report_on(&path, &ReportOptions::default()).verdict(),
        Verdict::Invalid
    );
    let found = findings(&path);
    assert_eq!(
        (found[0].check.as_str(), &found[0].subject),
        ("file", &segment)
    );
}

#[test]
fn newer_formats_are_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    edit_manifest(&path, |m| m.format_version = 2);
    let error = session::open_all(&[path]).unwrap_err().to_string();
    assert!(error.contains("format version 2"), "{error}");
    assert!(error.contains("up to 1\nhint: "), "{error}");
}

#[test]
fn a_listing_shows_readable_recordings_beside_unreadable_ones() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let good = write(&dir.path().join("good"), sound_events());
    let id = Manifest::load(&good).unwrap().recording_id;
    let newer = write(&dir.path().join("newer"), EventBatch::default());
    edit_manifest(&newer, |m| m.format_version = 2);
    let copy = write(&dir.path().join("other/copy"), EventBatch::default());
    edit_manifest(&copy, |m| m.recording_id = id);
    let torn = write(&dir.path().join("torn"), sound_events());
    let segment = torn.join(&Manifest::load(&torn).unwrap().segments[0].file);
    fs::write(segment, b"PAR1 no more PAR1").unwrap();
    write(&dir.path().join("zero"), EventBatch::default());

    let ran = run("analyze", ["ls", root]).expect(0);
    let row = |name: &str| {
        let path = dir.path().join(name).display().to_string();
        let mut lines = ran.stdout.lines();
        let line = lines.find(|line| line.split_whitespace().any(|word| word == path));
        line.unwrap_or_else(|| panic!("no {name} in {}", ran.stdout))
    };
    assert!(row("good").contains(" ok "), "{}", ran.stdout);
    assert!(!row("zero").contains("not read"), "{}", ran.stdout);
    for (name, why) in [
        ("newer", "format version 2"),
        ("other/copy", "are the same recording"),
        ("torn", "is not a sealed segment"),
    ] {
        assert!(row(name).contains("not read"), "{}", ran.stdout);
        let opening = format!("{}: error: ", dir.path().join(name).display());
        let told = ran.stderr.lines().find(|line| line.starts_with(&opening));
        assert!(told.is_some_and(|t| t.contains(why)), "{}", ran.stderr);
    }
}

#[test]
fn a_listing_of_nothing_readable_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let nothing = run("analyze", ["ls", root]).expect(2).stderr;
    assert!(nothing.contains("no recording at"), "{nothing}");
    let newer = write(&dir.path().join("newer"), EventBatch::default());
    edit_manifest(&newer, |m| m.format_version = 2);
    let ran = run("analyze", ["ls", root]).expect(2);
    assert!(ran.stdout.contains("not read"), "{}", ran.stdout);
}

#[test]
fn a_check_goes_on_past_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("c"), sound_events());
    let newer = write(&dir.path().join("b"), sound_events());
    edit_manifest(&newer, |m| m.format_version = 99);
    let mut two = sound_events();
    two.responses.push(response(0, 45 * MS, 3, Some(3)));
    write(&dir.path().join("a"), two);
    let ran = run("analyze", ["check", dir.path().to_str().unwrap()]).expect(2);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].contains("duplicate_response"), "{lines:?}");
    assert!(lines.last().unwrap().ends_with("/c: sound"), "{lines:?}");
    assert!(ran.stderr.contains("/b: error: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("format version 99"), "{}", ran.stderr);
    assert_eq!(ran.stdout.matches("/b: ").count(), 0);
}

#[test]
fn a_query_cannot_change_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let target = dir.path().join("out.parquet");
    block_on(async {
        let recordings = session::open_all(&[path]).unwrap();
        let parameters = Parameters::default();
        let session = Session::open(recordings, &parameters).await.unwrap();
        let copy = format!("COPY requests TO '{}'", target.display());
        for sql in [
            copy.as_str(),
            "DROP VIEW outcome",
            "SET a.b = 1",
            "SELECT 1; SELECT 2",
        ] {
            assert!(session.query(sql).await.is_err(), "{sql}");
        }
        let error = session.query("SELECT * FROM nope").await.unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("table 'nope' not found\nhint: "),
            "{error}"
        );
    });
    assert!(!target.exists());
}

#[test]
fn a_condition_picks_requests_and_can_do_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let matching = |condition: &str| {
        block_on(tapedeck_analyze::matching_requests(
            std::slice::from_ref(&path),
            condition,
        ))
    };
    let ids = matching("model = 'm' AND t_sent_ns >= 5e6").unwrap();
    assert_eq!(Vec::from_iter(ids), [1, 2]);
    assert!(matching("model = 'other'").unwrap().is_empty());
    for condition in ["nope = 1", "1 = 1; DROP TABLE requests", "", "request_id +"] {
        assert!(matching(condition).is_err(), "{condition}");
    }
}

#[test]
fn a_sound_recording_has_no_findings() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    assert_eq!(findings(&path), []);
}

/// `events` after `break_it`, and the invariant that must be named.
fn assert_found(name: &str, break_it: impl FnOnce(&mut EventBatch)) {
    let dir = tempfile::tempdir().unwrap();
    let mut events = sound_events();
    break_it(&mut events);
    let found = findings(&write(&dir.path().join("r"), events));
    let is_named = |b: &Broken| b.check == name && b.subject.starts_with("request 1 attempt 0");
    assert!(found.iter().any(is_named), "{name} not in {found:#?}");
}

#[test]
fn every_broken_invariant_of_the_rows_is_named_with_its_request() {
    // Rows 3..6 of the chunks are those of request 1.
    assert_found("duplicate_request", |e| e.requests.push(request(1, 5 * MS)));
    assert_found("duplicate_response", |e| {
        e.responses.push(e.responses[1].clone());
    });
    assert_found("duplicate_chunk", |e| e.chunks.rows[4].chunk_index = 0);
    assert_found("chunk_index_gap", |e| e.chunks.rows[5].chunk_index = 7);
    assert_found("read_index_backwards", |e| e.chunks.rows[5].read_index = 0);
    assert_found("time_backwards", |e| e.chunks.rows[5].t_ns = 26 * MS);
    assert_found("seen_before_arrival", |e| e.chunks.rows[4].t_seen_ns = 0);
    assert_found("chunk_before_sent", |e| e.chunks.rows[3].t_ns = 4 * MS);
    assert_found("end_before_chunk", |e| {
        e.responses[1].t_end_ns = Some(30 * MS);
    });
    assert_found("chunk_count", |e| e.responses[1].chunk_count = 4);
    assert_found("negative_length", |e| e.chunks.rows[4].bytes = -1);
    assert_found("unfinished_request", |e| drop(e.responses.remove(1)));
    assert_found("response_without_request", |e| drop(e.requests.remove(1)));
    assert_found("chunk_without_request", |e| drop(e.requests.remove(1)));
}

/// A comment inside an unfinished event is recorded before that event and may
/// come in a later read than the event's last byte.
fn with_a_comment_inside_an_event() -> EventBatch {
    let mut events = sound_events();
    let [_, comment, event] = &mut events.chunks.rows[3..6] else {
        panic!("request 1 has three chunks");
    };
    comment.kind = ChunkKind::Comment;
    std::mem::swap(&mut comment.t_ns, &mut event.t_ns);
    std::mem::swap(&mut comment.t_seen_ns, &mut event.t_seen_ns);
    std::mem::swap(&mut comment.read_index, &mut event.read_index);
    events
}

#[test]
fn a_comment_inside_an_unfinished_event_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [ChunkKind::Comment, ChunkKind::Other, ChunkKind::Error] {
        let mut events = with_a_comment_inside_an_event();
        events.chunks.rows[4].kind = kind;
        let path = write(&dir.path().join(kind.as_str()), events);
        assert_eq!(findings(&path), [], "{kind:?}");
    }
}

#[test]
fn content_that_goes_backwards_past_a_comment_is_found() {
    let before_the_first = |e: &mut EventBatch| {
        *e = with_a_comment_inside_an_event();
        let first = &mut e.chunks.rows[3];
        (first.read_index, first.t_ns, first.t_seen_ns) = (2, 45 * MS, 45 * MS);
    };
    assert_found("time_backwards", before_the_first);
    assert_found("read_index_backwards", before_the_first);
    let below_zero = |e: &mut EventBatch| {
        *e = with_a_comment_inside_an_event();
        e.chunks.rows[4].read_index = -1;
    };
    assert_found("read_index_backwards", below_zero);
}

#[test]
fn many_rows_that_break_one_invariant_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventBatch::default();
    for id in 0..50 {
        let mut row = request(id, 0);
        row.phase = Phase::Measure;
        events.requests.push(row.clone());
        events.requests.push(row);
    }
    let mut found = findings(&write(&dir.path().join("r"), events));
    found.retain(|broken| broken.check == "duplicate_request");
    assert_eq!(found.len(), 6);
    assert_eq!(found[5].subject, "45 more");
}

#[test]
fn files_that_lie_about_themselves_are_findings() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let original = Manifest::load(&path).unwrap();
    let problem = |edit: &dyn Fn(&mut Manifest)| {
        edit_manifest(&path, edit);
        let found = findings(&path);
        original.store(&path).unwrap();
        found.first().map(ToString::to_string).unwrap_or_default()
    };
    let rows = problem(&|m| m.segments[0].rows += 1);
    assert!(
        rows.ends_with("holds 3 rows, the manifest says 4"),
        "{rows}"
    );
    let stranger = problem(&|m| m.recording_id = "other".to_owned());
    assert!(stranger.contains("not other"), "{stranger}");
    let unlisted = problem(&|m| drop(m.segments.remove(0)));
    assert!(unlisted.ends_with("is not in the manifest"), "{unlisted}");
    let twice = problem(&|m| m.segments.push(m.segments[0].clone()));
    assert!(twice.ends_with("is in the manifest twice"), "{twice}");
    assert_eq!(problem(&|m| m.state = State::Recovered), "");

    let segment = path.join(&original.segments[1].file);
    fs::write(&segment, b"PAR1 no more PAR1").unwrap();
    let broken = problem(&|_| ());
    assert!(broken.contains("does not open"), "{broken}");
}

#[test]
fn payloads_are_text_and_their_json_is_within_reach() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventBatch::default();
    events.requests.push(request(0, 0));
    let payloads: [&[u8]; 4] = [
        br#"{"usage":null,"timings":{"prompt_ms":1.5,"by":"llama"}}"#,
        br#"{"timings":{"prompt_ms":[1]}}"#,
        b"not json",
        b"\xff\x00",
    ];
    for (index, payload) in (0..).zip(payloads) {
        let row = chunk(0, index, ChunkKind::Content, i64::from(index) * MS);
        events.chunks.push(row, Some(payload));
    }
    let path = write(&dir.path().join("r"), events);
    let query = |sql: &str, format: &str| {
        let arguments = ["query", path.to_str().unwrap(), sql, "--format", format];
        run("analyze", arguments).expect(0).stdout
    };
    let found = "SELECT json_extract_string(data, '/timings/prompt_ms') AS ms, \
                        json_extract_string(data, '/usage') AS usage, \
                        json_extract_string(CAST('\"a\"' AS VARCHAR), '') AS whole \
                 FROM chunks ORDER BY chunk_index";
    assert_eq!(
        query(found, "csv"),
        "ms,usage,whole\n1.5,,a\n[1],,a\n,,a\n,,a\n"
    );
    let shown = "SELECT data FROM chunks WHERE chunk_index >= 2 ORDER BY chunk_index";
    assert_eq!(query(shown, "csv"), "data\nnot json\n\\xff00\n");
    assert_eq!(
        serde_json::from_str::<Value>(&query(shown, "json")).unwrap(),
        serde_json::json!([{"data": "not json"}, {"data": "\\xff00"}])
    );
    let document = r#"{"n": 1.10, "big": [7, {"x": 1e999, "a/b": "\u00e9"}], "n": 2.50 }"#;
    let cells = ["/n", "/big/1/x", "/big/1/a~1b", "/big/01", "/big/2", "/big"];
    let cells = cells.map(|pointer| format!("json_extract_string('{document}', '{pointer}')"));
    let rows = format!("SELECT unnest([{}]) AS found", cells.join(", "));
    assert_eq!(
        query(&rows, "csv"),
        "found\n2.50\n1e999\n\u{e9}\n\n\n\"[7, {\"\"x\"\": 1e999, \"\"a/b\"\": \"\"\\u00e9\"\"}]\"\n",
        "numbers and documents as they are written, the last of two names"
    );
    let wrong = "SELECT json_extract_string(data, 'timings') FROM chunks";
    let refused = run("analyze", ["query", path.to_str().unwrap(), wrong]).expect(2);
    assert!(
        refused.stderr.contains("is not a JSON pointer"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_question_that_fails_leaves_the_file_of_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("r"), sound_events());
    let file = dir.path().join("rows.csv");
    let ask = |sql: &str| {
        let (path, file) = (path.to_str().unwrap(), file.to_str().unwrap());
        run(
            "analyze",
            ["query", path, sql, "--format", "csv", "-o", file],
        )
    };
    ask("SELECT 1 AS n").expect(0);
    let wrong = "SELECT json_extract_string(data, 'no pointer') FROM chunks";
    ask(wrong).expect(2);
    assert_eq!(fs::read_to_string(&file).unwrap(), "n\n1\n");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "nothing beside"
    );
    ask("SELECT 2 AS n").expect(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "n\n2\n");
    let stdout = std::path::Path::new("/dev/stdout");
    if stdout.exists() {
        let arguments = [
            "query",
            path.to_str().unwrap(),
            "SELECT 3 AS n",
            "--format",
            "csv",
        ];
        let ran = run(
            "analyze",
            arguments.into_iter().chain(["-o", "/dev/stdout"]),
        )
        .expect(0);
        assert_eq!(ran.stdout, "n\n3\n", "a device is written to as it is");
    }
}
