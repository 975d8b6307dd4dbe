//! Bad input and bad servers: one clear message, the right exit code, nothing
//! overwritten.

use std::fs;

use tapedeck_recording::{Outcome, Recording, Table};

use crate::support::mock_llm::replies::{json, whole};
use crate::support::mock_llm::{MockLlm, Reply, Script, Step};
use crate::support::programs::{Ran, run, run_line};

/// One line, or one line and a hint.
#[track_caller]
fn expect_one_message(ran: &Ran, words: &[&str]) {
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("error: "), "{}", ran.stderr);
    let rest = &lines[1..];
    assert!(
        rest.iter().all(|line| line.starts_with("hint: ")),
        "{}",
        ran.stderr
    );
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "{word:?} is missing in: {}",
            ran.stderr
        );
    }
    assert!(!ran.stderr.contains("panicked"));
    assert_eq!(ran.stdout, "");
}

#[test]
fn bad_input_is_one_message_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("bad.jsonl"), "fine\n{\"model\":\n").unwrap();
    fs::write(path("empty.txt"), "\n\n").unwrap();
    fs::write(path("latin.txt"), b"caf\xe9\n").unwrap();
    fs::create_dir(path("taken")).unwrap();
    fs::write(path("taken/file"), "precious").unwrap();
    let load = |rest: String| run_line("record", &format!("load {rest}"));
    let out = path("out");
    for (arguments, words) in [
        (
            format!("--url http://127.0.0.1:1 --model m --prompt x --out {out}"),
            vec!["probe", "refused"],
        ),
        (
            format!("--url http://127.0.0.1:1 --prompt x --out {out}"),
            vec!["model", "hint: "],
        ),
        (format!("--url ftp://h --prompt x --out {out}"), vec!["ftp"]),
        (
            format!("--url nonsense --prompt x --out {out}"),
            vec!["nonsense"],
        ),
        (
            format!("--url sim:?bogus=1 --prompt x --out {out}"),
            vec!["bogus"],
        ),
        (format!("--url sim: --out {out}"), vec!["nothing to send"]),
        (
            format!(
                "--url sim: --dataset line_by_line --dataset-path {} --out {out}",
                path("none")
            ),
            vec!["none"],
        ),
        (
            format!(
                "--url sim: --dataset line_by_line --dataset-path {} --out {out}",
                path("bad.jsonl")
            ),
            vec!["bad.jsonl line 2", "--skip-bad"],
        ),
        (
            format!(
                "--url sim: --dataset line_by_line --dataset-path {} --out {out}",
                path("latin.txt")
            ),
            vec!["line 1", "UTF-8"],
        ),
        (
            format!(
                "--url sim: --dataset line_by_line --dataset-path {} --out {out}",
                path("empty.txt")
            ),
            vec!["no prompt"],
        ),
        (
            format!("--url sim: --prompt @{} --out {out}", path("none")),
            vec!["none"],
        ),
        (
            format!("--url sim: --prompt x --parallel 1 2 3 --number 1 2 --out {out}"),
            vec!["--number"],
        ),
        (
            format!("--url sim: --prompt x --out {}", path("taken")),
            vec!["not an empty folder"],
        ),
        (
            format!(
                "--url https://127.0.0.1:1 --cacert {} --prompt x --out {out}",
                path("none")
            ),
            vec!["--cacert"],
        ),
    ] {
        let ran = load(arguments).expect(2);
        expect_one_message(&ran, &words);
    }
    assert!(!dir.path().join("out").exists(), "nothing was left behind");
    assert_eq!(fs::read_to_string(path("taken/file")).unwrap(), "precious");
}

#[test]
fn unknown_flag_values_name_the_known_ones() {
    for (line, word) in [
        ("load --url sim: --prompt x --api nonsense", "openai-chat"),
        ("load --url sim: --prompt x --rate 0", "positive"),
        (
            "load --url sim: --prompt x --read-timeout never",
            "duration",
        ),
        ("load --url sim: --prompt x --header nonsense", "KEY=VALUE"),
        ("load --url sim: --prompt x --extra-body [1]", "JSON object"),
        ("load --url sim: --prompt x --content secret", "full"),
    ] {
        let ran = run_line("record", line).expect(2);
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}

#[test]
fn a_failed_probe_gives_the_servers_own_message() {
    let answer = json(404, r#"{"error":{"message":"no such model: m"}}"#);
    let mock = MockLlm::start(Script::always(answer));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url {} --model m --prompt x --out {}",
        mock.url(),
        out.display()
    );
    let ran = run_line("record", &line).expect(2);
    expect_one_message(&ran, &["no such model: m", "404"]);
    assert!(!out.exists());
}

/// A proxy's answer to plain HTTP, and a framework's to a slash too many.
fn redirect(status: u16) -> Reply {
    let location = "location: https://u:s3cret@elsewhere:8443/v1/chat/completions?key=s3cret\r\n";
    let head_and_body = whole(status, "text/plain", location, "over there");
    vec![Step::send(head_and_body)].into()
}

#[test]
fn a_redirect_is_not_followed_and_says_where_it_leads() {
    let told = "redirected to https://elsewhere:8443/v1/chat/completions, not followed";
    for status in [301, 307, 308] {
        let mock = MockLlm::start(Script::always(redirect(status)));
        let dir = tempfile::tempdir().unwrap();
        let load = |name: &str, more: &str| {
            let out = dir.path().join(name);
            let line = format!(
                "load --url {} --prompt x --number 2 --no-report {more} --out {}",
                mock.url(),
                out.display()
            );
            run_line("record", &line)
        };
        let probed = load("probed", "--model m").expect(2);
        expect_one_message(&probed, &[told, &status.to_string(), "hint: ", "--url"]);
        // Neither does the key go to another host in search of a model.
        let asked = load("asked", "--header x-api-key=s3cret").expect(2);
        expect_one_message(
            &asked,
            &["redirected to https://elsewhere:8443/", "not followed"],
        );
        let sent = load("sent", "--model m --no-probe").expect(1);
        for ran in [probed, asked, sent] {
            assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
        }
        let recording = Recording::open(&dir.path().join("sent")).unwrap();
        let responses = recording.rows(Table::Responses).unwrap().responses;
        assert_eq!(responses.len(), 2);
        for response in responses {
            assert_eq!(response.outcome, Outcome::HttpError);
            assert_eq!(response.status, Some(i32::from(status)));
            assert_eq!(response.error.as_deref(), Some(told));
            assert_eq!(response.body.as_deref(), Some(&b"over there"[..]));
        }
    }
}

#[test]
fn all_requests_failing_is_a_finding_that_says_why() {
    let answer = json(500, r#"{"error":{"message":"out of memory"}}"#);
    let mock = MockLlm::start(Script::always(answer));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url {} --model m --prompt x --number 5 --no-probe --json --out {}",
        mock.url(),
        out.display()
    );
    let ran = run_line("record", &line).expect(1);
    assert!(ran.stderr.contains("all 5 requests"), "{}", ran.stderr);
    assert!(ran.stderr.contains("out of memory"), "{}", ran.stderr);
    assert!(out.join("recording.json").exists(), "the failures are data");
}

#[test]
fn the_analyzer_refuses_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r").display().to_string();
    let line = format!(
        "load --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --prompt x --number 2 --json --out {out}"
    );
    run_line("record", &line).expect(0);
    let ran = run("analyze", ["query", &out, "SELECT nonsense FROM requests"]).expect(2);
    // DataFusion adds the names there are, on a line of their own.
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("nonsense") && ran.stderr.contains("request_id"));
    let errors = ran.stderr.lines().filter(|l| l.starts_with("error: "));
    assert_eq!((errors.count(), ran.stdout.as_str()), (1, ""));
    let ran = run("analyze", ["report", "/nonexistent"]).expect(2);
    expect_one_message(&ran, &["/nonexistent"]);
    let manifest = format!("{out}/recording.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("\"format_version\": 1", "\"format_version\": 99"),
    )
    .unwrap();
    let ran = run("analyze", ["report", &out]).expect(2);
    expect_one_message(&ran, &["99", "up to 1"]);
}
