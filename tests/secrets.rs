//! What must not be found, is looked for everywhere: in every file of a recording
//! while it is written and when it is sealed, in every value of every column, in
//! what the programs say and in metrics.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use arrow::ipc::writer::StreamWriter;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapedeck_recording::reader::read_file;
use tapedeck_recording::{ChunkKind, Outcome, Recording, ResponseRow, Table};

use crate::support::mock_llm::replies::{SSE_HEAD, chat_delta, http_chunk, json, sse};
use crate::support::mock_llm::{MockLlm, Received, Reply, Script, Step};
use crate::support::programs::{Ran, program, run};
use crate::support::proxy::{ProxyProcess, converse, post, rows};

const LONG: Duration = Duration::from_secs(10);

/// In every secret that is planted, and nowhere else.
const CANARY: &str = "canary";

/// In a prompt, an answer, and wherever else text is sent.
const QUESTION: &str = "the private question";
const ANSWER: &str = "the private answer";
const SESSION: &str = "the private session";
const OTHER: &str = "the private rest";
const TEXTS: [&str; 4] = [QUESTION, ANSWER, SESSION, OTHER];

const MODES: [(&str, &[&str]); 5] = [
    ("full", &["--content", "full"]),
    ("hashed", &["--content", "hashed"]),
    ("lengths", &["--content", "lengths"]),
    ("pattern", &["--redact", "re:the private \\w+"]),
    (
        "pointers",
        &[
            "--redact",
            "/messages/*/content",
            "--redact",
            "/choices/*/delta/content",
            "--redact",
            "/stop",
            "--redact",
            "/user",
            "--redact",
            "/error/message",
        ],
    ),
];

/// What an answer may quote: all of the request's secrets, and its texts.
fn quote(request: &Received) -> String {
    let of = |name| request.header(name).unwrap_or_default().to_owned();
    let headers = ["authorization", "x-api-key", "api-key", "cookie", "x-own"];
    let headers = headers.map(of).join(" and ");
    format!("{headers} at {} with {QUESTION} and {OTHER}", request.path)
}

/// An answer, a refusal and an error inside a stream, both of which quote; then one
/// that does not end.
fn answer(request: &Received) -> Reply {
    let mut steps = vec![Step::send(SSE_HEAD)];
    let mut event = |payload: &str| steps.push(Step::send(http_chunk(&sse(payload))));
    let message = serde_json::json!({"error": {"message": quote(request)}});
    match request.number % 4 {
        1 => return json(401, &message.to_string()),
        2 => event(&message.to_string()),
        number => {
            let finish = (number == 0).then_some("stop");
            let delta = format!(r#"{{"content":"{ANSWER}"}}"#);
            event(&chat_delta(&delta, finish));
        }
    }
    if request.number % 4 == 3 {
        steps.push(Step::Stall);
    } else {
        steps.push(Step::send("0\r\n\r\n"));
    }
    steps.into()
}

/// All files below `dir`, whole.
fn files_below(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            // A log may be gone by now: then its segment is there.
            found.push((path, bytes));
        }
    }
}

/// Where something may have leaked to, and what is there.
#[derive(Default)]
struct Places(Vec<(PathBuf, Vec<u8>)>);

impl Places {
    fn files(&mut self, dir: &Path) {
        files_below(dir, &mut self.0);
    }

    /// Every value of every column, uncompressed and one after the other.
    fn columns(&mut self, recording: &Path) {
        let recording = Recording::open(recording).unwrap();
        for table in Table::ALL {
            for file in recording.files(table) {
                for batch in read_file(file).unwrap() {
                    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                        let one = arrow::array::RecordBatch::try_from_iter([(
                            field.name(),
                            std::sync::Arc::clone(column),
                        )]);
                        let one = one.unwrap();
                        let mut writer = StreamWriter::try_new(Vec::new(), &one.schema()).unwrap();
                        writer.write(&one).unwrap();
                        let name = format!("{} column {}", file.display(), field.name());
                        self.0.push((name.into(), writer.into_inner().unwrap()));
                    }
                }
            }
        }
    }

    fn said(&mut self, ran: &Ran) {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        self.0.push(("stdout and stderr".into(), said.into_bytes()));
    }

    fn with(&self, text: &str) -> Vec<String> {
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|w| w == text.as_bytes());
        let places = self.0.iter().filter(|(_, bytes)| holds(bytes));
        places.map(|(path, _)| path.display().to_string()).collect()
    }

    /// The one judgement on all modes of all programs: no secret anywhere; no text
    /// but in `full`, where all of it is, or the search proves nothing.
    fn judge(&self, name: &str, mode: &str) {
        let holding = self.with(CANARY);
        assert!(holding.is_empty(), "{name} {mode}: {CANARY} in {holding:?}");
        for text in TEXTS {
            let holding = self.with(text);
            let in_log = holding.iter().any(|place| place.contains("/wal/"));
            let in_column = holding.iter().any(|place| place.contains(" column "));
            // Pointers remove what they are told to, and names of sessions.
            assert_eq!(
                (in_log, in_column),
                (mode == "full", mode == "full"),
                "{name} {mode}: {text:?} in {holding:?}"
            );
            let rest: Vec<_> = holding
                .iter()
                .filter(|p| *p != "stdout and stderr")
                .collect();
            assert!(
                mode == "full" || rest.is_empty(),
                "{name} {mode}: {text:?} in {rest:?}"
            );
        }
    }
}

/// Lengths, kinds and ends are there in every mode; bodies, payloads and texts of
/// errors in no lesser one.
fn judge_rows(name: &str, mode: &str, recording: &Path) {
    let is_lesser = matches!(mode, "hashed" | "lengths");
    let rows = rows(recording);
    assert_eq!(rows.requests.len(), 4, "{name} {mode}");
    for request in &rows.requests {
        assert!(request.body_bytes > 0, "{name} {mode}");
        assert_eq!(request.body.is_none(), is_lesser, "{name} {mode}");
        let has_hash = request.body_hash.is_some();
        assert_eq!(has_hash, mode != "lengths", "{name} {mode}");
    }
    let chunks = &rows.chunks.rows;
    assert!(chunks.iter().any(|c| c.kind == ChunkKind::Content));
    assert!(chunks.iter().all(|c| c.payload.is_none() == is_lesser));
    let ends_in_stop = |r: &ResponseRow| r.finish_reason.as_deref() == Some("stop");
    assert!(rows.responses.iter().any(ends_in_stop), "{name} {mode}");
    let mut refusals = rows.responses.iter();
    let refusal = refusals.find(|r| r.outcome == Outcome::HttpError);
    let refusal = refusal.expect("a refusal");
    if is_lesser {
        assert_eq!(refusal.error.as_deref(), Some("http_error"));
    }
    assert_eq!(refusal.body.is_none(), is_lesser, "{name} {mode}");
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what} never came");
}

/// Until the log holds all that has come: four requests, three whole answers and
/// the beginning of the last one.
fn wait_for_log(recording: &Path) {
    wait_for("every row in the log", || {
        let Ok(recording) = Recording::open(recording) else {
            return false;
        };
        let rows = |table| recording.rows(table).unwrap();
        let mut chunks = rows(Table::Chunks).chunks.rows.into_iter();
        rows(Table::Requests).requests.len() == 4
            && rows(Table::Responses).responses.len() >= 3
            && chunks.any(|c| c.request_id == 3)
    });
}

/// At once: the second signal does not wait for answers. What it said until then.
fn stop(child: &mut Child) -> String {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    // One that comes before the first was taken notice of is none.
    while !said.contains("stopping") && stderr.read_line(&mut said).unwrap() > 0 {}
    kill(pid, Signal::SIGINT).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    said
}

/// Runs a sender until the request that never ends is under way, looks at the log,
/// stops it, and looks at everything.
fn record(name: &str, mode: &str, arguments: &[&str], mock: &MockLlm, out: &Path) {
    let before = mock.ledger().len();
    let mut child = program(name)
        .args(arguments)
        .args(["--no-report", "--no-progress", "--out"])
        .arg(out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the last request", || mock.ledger().len() >= before + 4);
    wait_for_log(out);
    let mut places = Places::default();
    places.files(out);
    let stderr = stop(&mut child);
    let ran: Ran = child.wait_with_output().unwrap().into();
    let ran = Ran { stderr, ..ran }.expect(0);
    places.said(&ran);
    places.files(out);
    places.columns(out);
    places.judge(name, mode);
    judge_rows(name, mode, out);
    if mode == "full" {
        return;
    }
    // What is left keeps the invariants and gives a report.
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let report = ["report", out.to_str().unwrap(), "--format", "json"];
    let report = run("analyze", report).expect(0);
    let said: String = report.stdout.split_whitespace().collect();
    assert!(said.contains(r#""requests":4"#), "{said}");
}

#[test]
fn no_secret_is_anywhere_and_no_text_where_none_may_be() {
    let mock = MockLlm::start(Script::new(answer));
    let dir = tempfile::tempdir().unwrap();
    let with_user = mock.url().replace("//", "//canary-user:canary-password@");
    let url = format!("{with_user}/v1?api-key=canary-url&v=1");
    let sender = [
        "--url",
        &url,
        "--api-key",
        "canary-key",
        "--header",
        "x-api-key=canary-x-api-key",
        "api-key: canary-api-key",
        "Cookie=a=canary-cookie; b=canary-crumb",
        "X-Own=canary-own",
        &format!("x-session-id={SESSION}"),
        "--no-probe",
    ];
    let extra = serde_json::json!({"user": OTHER}).to_string();
    let texts = [
        "--prompt",
        QUESTION,
        "--stop",
        OTHER,
        "--extra-body",
        &extra,
    ];
    for (mode, flags) in MODES {
        let out = dir.path().join(mode);
        let head = ["load", "--model", "m", "--number", "4"];
        let line = [&head[..], &sender, &texts, flags].concat();
        record("record", mode, &line, &mock, &out);
    }
    let source = dir.path().join("full");
    let again = ["run", source.to_str().unwrap(), "--where"];
    let filter = format!("CAST(body AS VARCHAR) LIKE '%{OTHER}%'");
    for (mode, flags) in MODES {
        let out = dir.path().join(format!("again-{mode}"));
        let line = [&again[..], &[&filter], &sender, flags].concat();
        record("replay", mode, &line, &mock, &out);
    }
    // What was redacted can be sent again: its bodies are whole documents.
    for mode in ["pattern", "pointers"] {
        let (source, out) = (dir.path().join(mode), dir.path().join(format!("of-{mode}")));
        let line = ["run", source.to_str().unwrap(), "--where", "1 = 1"];
        let line = [&line[..], &sender].concat();
        let before = mock.ledger().len();
        record_quietly(&line, &mock, &out);
        for served in &mock.ledger()[before..] {
            let body = served.request.json().expect("JSON");
            let content = body["messages"][0]["content"].as_str();
            assert_eq!(content, Some("[redacted]"), "{mode}: {body}");
            assert_eq!(body["model"], "m");
        }
    }
}

fn record_quietly(line: &[&str], mock: &MockLlm, out: &Path) {
    let before = mock.ledger().len();
    let mut child = program("replay")
        .args(line)
        .args(["--json", "--no-progress", "--out"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the last request", || mock.ledger().len() >= before + 4);
    stop(&mut child);
    child.wait().unwrap();
}

#[test]
fn the_proxy_keeps_no_secret_and_no_text_where_none_may_be() {
    for (mode, flags) in MODES {
        let mock = MockLlm::start(Script::new(answer));
        let dir = tempfile::tempdir().unwrap();
        let field = [flags, &["--session-field", "/metadata/session"]].concat();
        let proxy = ProxyProcess::start(&mock.url(), dir.path(), &field);
        let headers = "Authorization: Bearer canary-key\r\nCookie: a=canary-cookie; b=canary-crumb\r\n\
            x-api-key: canary-x-api-key\r\napi-key: canary-api-key\r\nx-own: canary-own\r\n";
        let named = format!("{headers}x-session-id: {SESSION}\r\n");
        let body = serde_json::json!({
            "model": "m", "stream": true, "stop": [OTHER], "user": OTHER,
            "messages": [{"role": "user", "content": QUESTION}],
        });
        let path = "/v1/chat/completions?api_key=canary-url&v=1";
        let request = post(path, &named, &body.to_string());
        for _ in 0..3 {
            converse(proxy.addr, &request, LONG);
        }
        // This one does not end.
        converse(proxy.addr, &request, Duration::from_millis(300));
        wait_for_log(&ProxyProcess::recording(dir.path()));
        let mut places = Places::default();
        places.files(dir.path());
        places
            .0
            .push(("metrics".into(), proxy.metrics().into_bytes()));
        places.said(&proxy.stop().expect(0));
        places.files(dir.path());
        let recording = ProxyProcess::recording(dir.path());
        places.columns(&recording);
        places.judge("proxy", mode);
        judge_rows("proxy", mode, &recording);
    }
}
