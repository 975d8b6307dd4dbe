//! `analyze shell`, driven as a pipe drives it, and the parts of it that are pure.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use proptest::prelude::*;
use tapedeck_analyze::models;
use tapedeck_analyze::shell::completion::Words;
use tapedeck_analyze::shell::statements::{Next, next};
use tapedeck_recording::{ChunkKind, EventBatch};

use crate::support::programs::{Ran, program, run};
use crate::support::recording::{self, MS, chunk, request, response};

/// A recording of `requests` requests of one chunk, labelled `engine`.
fn record(dir: &Path, engine: &str, requests: i64) -> PathBuf {
    let mut events = EventBatch::default();
    for id in 0..requests {
        events.requests.push(request(id, id * MS));
        let row = chunk(id, 0, ChunkKind::Content, (id + 20) * MS);
        events.chunks.push(row, Some(b"x"));
        events
            .responses
            .push(response(id, (id + 30) * MS, 1, Some(3)));
    }
    let mut manifest = recording::manifest(engine);
    manifest
        .labels
        .insert("engine".to_owned(), engine.to_owned());
    recording::write(&dir.join(engine), manifest, 1 << 18, [events])
}

fn shell(recordings: &Path, input: &str) -> Ran {
    shell_bytes(recordings, input.as_bytes())
}

fn shell_bytes(recordings: &Path, input: &[u8]) -> Ran {
    let mut child = program("analyze")
        .args(["shell".as_ref(), recordings.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn bytes_that_are_no_text_end_their_statement_and_not_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 3);
    let input = b"\\format csv\nSELECT '\xff' AS a;\nSELECT 'b' AS b;\n";
    let ran = shell_bytes(&path, input).expect(2);
    assert_eq!(ran.stdout, "b\nb\n");
    assert!(ran.stderr.contains("no UTF-8"), "{}", ran.stderr);
}

#[test]
fn statements_of_a_pipe_are_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 3);
    let input = "\\format csv\n\
                 SELECT count(*) AS n\n  FROM requests; SELECT 'a;b' AS text -- not; here\n;\n\
                 \\format json\n\
                 SELECT max(request_id) AS last FROM requests";
    let ran = shell(&path, input).expect(0);
    assert_eq!(ran.stdout, "n\n3\ntext\na;b\n[{\"last\":2}]\n");
    assert_eq!(ran.stderr, "");
}

#[test]
fn an_error_ends_its_statement_and_shows_in_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 1);
    let input = "\\format csv\nSELECT nothing;\nSELEC 1;\n\\x\n\\d nothing\nDROP TABLE requests;\nSELECT 1 AS one;\n";
    let ran = shell(&path, input).expect(2);
    assert_eq!(ran.stdout, "one\n1\n");
    let errors: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|l| l.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 5, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("no command \\x\nhint: "),
        "{}",
        ran.stderr
    );
    let unclosed = shell(&path, "SELECT 'a;\n").expect(2);
    assert!(
        unclosed.stderr.contains("inside a quote"),
        "{}",
        unclosed.stderr
    );
    shell(&path, "\\q\nSELECT nothing;\n").expect(0);
}

#[test]
fn a_long_table_is_cut_with_its_true_length_and_a_csv_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 150);
    let ran = shell(&path, "SELECT request_id FROM requests;").expect(0);
    assert!(
        ran.stdout
            .ends_with("150 rows, the first 100 shown (\\rows N)\n"),
        "{}",
        ran.stdout
    );
    let rows = |ran: &Ran| ran.stdout.lines().count();
    assert_eq!(rows(&ran), 100 + 5);
    let ran = shell(&path, "\\rows 7\nSELECT request_id FROM requests;").expect(0);
    assert_eq!(rows(&ran), 7 + 5);
    let ran = shell(&path, "\\format csv\nSELECT request_id FROM requests;").expect(0);
    assert_eq!(rows(&ran), 150 + 1);
    let file = dir.path().join("rows.csv");
    let input = format!(
        "\\format csv\n\\o {}\nSELECT 1 AS a;\nSELECT 2 AS b;\n\\o\nSELECT 3 AS c;\n",
        file.display()
    );
    assert_eq!(shell(&path, &input).expect(0).stdout, "c\n3\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "a\n1\nb\n2\n");
}

#[test]
fn the_shell_describes_every_table_and_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 1);
    let known = || models::tables().iter().chain(models::views());
    let mut input = "\\d\n\\?\n".to_owned();
    for model in known() {
        input.push_str(&format!("\\d {}\n", model.name));
    }
    input.push_str("\\sql request_latency\n");
    let ran = shell(&path, &input).expect(0);
    for model in known() {
        assert!(
            ran.stdout.contains(&format!("│ {} ", model.name)),
            "{}",
            model.name
        );
        assert!(
            ran.stdout
                .contains(&format!("{}: {}\n", model.name, model.grain))
        );
    }
    assert!(ran.stdout.contains("TTFT") || ran.stdout.contains("CREATE VIEW request_latency"));
    assert!(ran.stdout.contains("\\timing"));
}

#[test]
fn timing_says_how_long_a_statement_took() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "vllm", 1);
    let ran = shell(&path, "SELECT 1;\n\\timing\nSELECT 1;\n").expect(0);
    assert_eq!(ran.stderr.matches("Time: ").count(), 1, "{}", ran.stderr);
}

#[test]
fn labels_tell_the_rows_of_several_recordings_apart() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), "vllm", 3);
    record(dir.path(), "sglang", 2);
    let sql = "SELECT r.labels['engine'] AS engine, count(*) AS n, avg(l.ttft_ms) AS ttft_ms \
               FROM request_latency AS l JOIN recordings AS r USING (recording_id) \
               WHERE r.labels['suite'] = 'tests' AND r.labels['none'] IS NULL \
               GROUP BY engine ORDER BY engine";
    let arguments = [
        "query",
        dir.path().to_str().unwrap(),
        sql,
        "--format",
        "csv",
    ];
    let ran = run("analyze", arguments).expect(0);
    assert_eq!(ran.stdout, "engine,n,ttft_ms\nsglang,2,20.0\nvllm,3,20.0\n");
}

#[test]
fn only_a_semicolon_outside_quotes_and_comments_ends_a_statement() {
    assert_eq!(next("SELECT 1; rest"), Next::Statement("SELECT 1", " rest"));
    assert_eq!(next(" ;; SELECT 1;"), Next::Statement("SELECT 1", ""));
    assert_eq!(
        next("SELECT ';', \"a;\" /*;*/ --;\n;x"),
        Next::Statement("SELECT ';', \"a;\" /*;*/ --;\n", "x")
    );
    assert_eq!(
        next("SELECT 'it''s;';"),
        Next::Statement("SELECT 'it''s;'", "")
    );
    assert_eq!(
        next("\\d chunks \nSELECT"),
        Next::Command("d chunks", "SELECT")
    );
    for open in ["SELECT 1", "SELECT ';", "/* ;", "/*/;", "SELECT \";"] {
        assert_eq!(next(open), Next::Open, "{open}");
    }
    for blank in ["", " \n", "-- only; this", "/* ; */ ;"] {
        assert_eq!(next(blank), Next::Blank, "{blank}");
    }
}

proptest! {
    #[test]
    fn no_text_is_lost_or_breaks_the_splitting(text in "[a;'\"/*\\\\ é\n-]{0,40}") {
        let mut rest = text.as_str();
        loop {
            let shorter = match next(rest) {
                Next::Statement(sql, after) => {
                    prop_assert!(!sql.trim().is_empty());
                    after
                }
                Next::Command(_, after) => after,
                Next::Open | Next::Blank => break,
            };
            prop_assert!(shorter.len() < rest.len());
            prop_assert!(text.ends_with(shorter));
            rest = shorter;
        }
    }
}

#[test]
fn a_half_typed_word_becomes_what_is_known() {
    let words = Words::new(["approx_median".to_owned()]);
    let complete = |line: &str| words.complete(line, line.len());
    let known = ["ttft_ms", "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p99"];
    assert_eq!(complete("SELECT ttft_m").1, known);
    assert_eq!(complete("SELECT ttft_m").0, 7);
    assert_eq!(complete("selec").1, ["select"]);
    assert_eq!(complete("SELECT approx_m").1, ["approx_median"]);
    assert_eq!(complete("FROM request_l").1, ["request_latency"]);
    assert_eq!(
        complete("\\d reque").1,
        ["request_latency", "request_metric", "requests"]
    );
    assert_eq!(complete("\\forma").1, ["format"]);
    assert_eq!(complete("\\format j").1, ["json"]);
    assert!(complete("SELECT ").1.is_empty());
    assert!(complete("é").1.is_empty());
}
