//! `replay serve`: recorded answers given again, at the recorded pace.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tapedeck_recording::{
    ChunkKind, ChunkRow, EventBatch, Outcome, RequestRow, ResponseRow, body_hash,
};

use crate::support::answers::{all, script};
use crate::support::mock_llm::{MockLlm, Script, replies};
use crate::support::programs::{Ran, program, run, run_line};
use crate::support::proxy::{Finish, Seen, address, converse, post, rows};
use crate::support::recording::{MS, chunk, manifest, request, response, write};

/// A running `replay serve`. Killed when it is dropped without [`Self::stop`].
struct ServeProcess {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
    addr: SocketAddr,
}

impl ServeProcess {
    fn start(recording: &Path, further: &[&str]) -> Self {
        let mut child = program("replay")
            .arg("serve")
            .arg(recording)
            .args(["--listen", "127.0.0.1:0", "--json"])
            .args(further)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let addr = address(&mut stderr, &mut said, "serving ");
        Self {
            child,
            stderr,
            said,
            addr,
        }
    }

    fn ask(&self, request: &[u8]) -> Seen {
        converse(self.addr, request, Duration::from_secs(5))
    }

    /// The answer to a chat request.
    fn chat(&self, body: &str) -> Seen {
        self.ask(&post("/v1/chat/completions", "", body))
    }

    /// Stops it; what it said and its JSON.
    fn stop(mut self, code: i32) -> (Ran, Value) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.stderr.read_to_string(&mut self.said).unwrap();
        let mut stdout = String::new();
        let pipe = self.child.stdout.as_mut().unwrap();
        pipe.read_to_string(&mut stdout).unwrap();
        let ran = Ran {
            code: self.child.wait().unwrap().code(),
            stdout,
            stderr: self.said.clone(),
        };
        let ran = ran.expect(code);
        let counts = serde_json::from_str(&ran.stdout).unwrap();
        (ran, counts)
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One attempt, its chunks in their order and how it ended.
struct Exchange {
    request: RequestRow,
    response: ResponseRow,
    chunks: Vec<(ChunkRow, Vec<u8>)>,
}

/// The last attempts of a recording, by their bodies.
fn exchanges(path: &Path) -> BTreeMap<Vec<u8>, Exchange> {
    let events: EventBatch = rows(path);
    let mut found = BTreeMap::new();
    for (request, response) in events.requests.iter().zip(&events.responses) {
        let key = (request.request_id, request.attempt);
        assert_eq!(key, (response.request_id, response.attempt));
        let of_attempt = |c: &&ChunkRow| (c.request_id, c.attempt) == key;
        let chunks = events.chunks.rows.iter().filter(of_attempt);
        let data = |c: &ChunkRow| events.chunks.payload(c).unwrap().to_vec();
        let mut chunks: Vec<_> = chunks.map(|c| (c.clone(), data(c))).collect();
        chunks.sort_by_key(|(c, _)| c.chunk_index);
        let exchange = Exchange {
            request: request.clone(),
            response: response.clone(),
            chunks,
        };
        found.insert(request.body.clone().unwrap().to_vec(), exchange);
    }
    found
}

impl Exchange {
    /// Everything about the answer but its instants.
    fn content(&self) -> String {
        let response = &self.response;
        let chunks = self.chunks.iter().map(|(c, data)| {
            let names = (c.event.as_deref(), c.event_id.as_deref());
            (
                c.kind,
                c.choice_index,
                names,
                data.escape_ascii().to_string(),
            )
        });
        format!(
            "{:?}",
            (
                response.outcome,
                response.status,
                response.finish_reason.as_deref(),
                response.output_tokens,
                response.malformed_chunks,
                response.body.as_ref().map(|b| b.escape_ascii().to_string()),
                chunks.collect::<Vec<_>>(),
            )
        )
    }

    /// From `from_ns` to the headers, each chunk and the end.
    fn offsets(&self, from_ns: i64) -> Vec<i64> {
        let response = &self.response;
        let chunks = self.chunks.iter().map(|(c, _)| Some(c.t_ns));
        let instants = [response.t_headers_ns].into_iter().chain(chunks);
        instants.flatten().map(|t_ns| t_ns - from_ns).collect()
    }
}

fn record_cases(url: &str, cases: &Path, out: &Path) {
    let line = format!(
        "load --url {url} --no-probe --parallel 64 --read-timeout 1s --json --dataset line_by_line \
         --dataset-path {} --out {}",
        cases.display(),
        out.display()
    );
    run_line("record", &line).expect(0);
}

#[test]
fn every_awkward_answer_is_given_again_and_nothing_early() {
    let dir = tempfile::tempdir().unwrap();
    let cases = dir.path().join("cases.jsonl");
    let lines = all().into_iter().map(|answer| {
        let messages = serde_json::json!([{"role": "user", "content": "x"}]);
        format!(
            "{}\n",
            serde_json::json!({"model": answer.name, "messages": messages})
        )
    });
    fs::write(&cases, lines.collect::<String>()).unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mock = MockLlm::start(script());
    record_cases(&mock.url(), &cases, &first);
    drop(mock);
    let server = ServeProcess::start(&first, &["--no-order"]);
    record_cases(&format!("http://{}", server.addr), &cases, &second);
    let (_, counts) = server.stop(0);
    let (first, second) = (exchanges(&first), exchanges(&second));
    assert_eq!(first.len(), all().len());
    assert_eq!(counts["matched"]["body"], first.len());
    assert_eq!(counts["missed"], 0);
    let mut wrong = Vec::new();
    for (body, original) in &first {
        let again = &second[body];
        let name = again.request.model.as_deref().unwrap();
        if original.content() != again.content() {
            wrong.push(format!(
                "{name}:\n  {}\n  {}",
                original.content(),
                again.content()
            ));
        }
        // The server cannot have had the request before it was dispatched.
        let sent = original.offsets(original.request.t_sent_ns.unwrap());
        let due = again.offsets(again.request.t_dispatched_ns.unwrap());
        if sent.len() == due.len() && sent.iter().zip(&due).any(|(sent, due)| due < sent) {
            wrong.push(format!("{name} came early: {sent:?} {due:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const TEXTS: [&str; 3] = ["one", "two", "three"];

/// Three streams of two content chunks that arrived at once 40 ms after their
/// request, the end 20 ms later. The first two requests are equal.
fn three_streams(dir: &Path) -> PathBuf {
    let mut events = EventBatch::default();
    for (id, user) in (0_i64..).zip(["a", "a", "b"]) {
        let sent_ns = id * 100 * MS;
        let body = format!(r#"{{"model":"m","stream":true,"user":"{user}"}}"#);
        let mut row = request(id, sent_ns);
        row.body_hash = Some(body_hash(body.as_bytes()).into());
        row.body_bytes = body.len() as i64;
        row.body = Some(body.into());
        events.requests.push(row);
        let text = TEXTS[id as usize];
        for index in 0..2 {
            let data = replies::chat_delta(&format!(r#"{{"content":"{text}{index}"}}"#), None);
            let mut row = chunk(id, index, ChunkKind::Content, sent_ns + 40 * MS);
            row.read_index = 0;
            row.bytes = data.len() as i64;
            events.chunks.push(row, Some(data.as_bytes()));
        }
        let mut row = response(id, sent_ns + 60 * MS, 2, None);
        row.outcome = Outcome::Truncated;
        row.headers = Some([("content-type".to_owned(), "text/event-stream".to_owned())].into());
        events.responses.push(row);
    }
    write(&dir.join("three"), manifest("three"), 1000, [events])
}

fn text(seen: &Seen) -> String {
    String::from_utf8(seen.body.clone()).unwrap()
}

#[test]
fn answers_are_found_by_body_then_keys_then_order() {
    let dir = tempfile::tempdir().unwrap();
    let recording = three_streams(dir.path());
    let server = ServeProcess::start(&recording, &["--match-on", "/user", "--speed", "10"]);
    let answer = |body: &str| {
        let seen = server.chat(body);
        assert_eq!(
            (seen.status.as_str(), seen.finish),
            ("200 OK", Finish::Whole)
        );
        let own = seen
            .headers
            .iter()
            .find_map(|h| h.strip_prefix("x-tapedeck-answer: "));
        (own.unwrap().to_owned(), text(&seen))
    };
    let same = r#"{"model":"m","stream":true,"user":"a"}"#;
    let stream = |text: &str| {
        let event = |index: u32| {
            let delta = format!(r#"{{"content":"{text}{index}"}}"#);
            format!("data: {}\n\n", replies::chat_delta(&delta, None))
        };
        event(0) + &event(1)
    };
    // In turn, and from the first again.
    assert_eq!(answer(same), ("0.0 body".to_owned(), stream("one")));
    assert_eq!(answer(same), ("1.0 body".to_owned(), stream("two")));
    assert_eq!(answer(same), ("0.0 body".to_owned(), stream("one")));
    let unknown = r#"{"model":"m","stream":true}"#;
    assert_eq!(answer(unknown), ("2.0 order".to_owned(), stream("three")));
    let other = r#"{"stream":true,"user":"b","seed":1}"#;
    assert_eq!(answer(other), ("2.0 keys".to_owned(), stream("three")));
    let miss = server.chat(unknown);
    assert_eq!(miss.status, "404 Not Found");
    let models = server.ask(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(text(&models).contains(r#""id":"m""#), "{}", text(&models));
    let metrics = text(&server.ask(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"));
    for line in [
        "tapedeck_serve_requests_total{match=\"body\"} 3\n",
        "tapedeck_serve_requests_total{match=\"miss\"} 1\n",
        "tapedeck_serve_answers_given_total 3\n",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let (ran, counts) = server.stop(0);
    let matched = serde_json::json!({"body": 3, "keys": 1, "order": 1});
    assert_eq!(counts["matched"], matched);
    assert_eq!(
        (&counts["requests"], &counts["missed"]),
        (&6.into(), &1.into())
    );
    // What arrived in one read is one write.
    assert_eq!(counts["writes"], 5);
    assert!(
        ran.stderr.contains("3 of 3 answers were given"),
        "{}",
        ran.stderr
    );
}

#[test]
fn misses_are_simulated_or_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let recording = three_streams(dir.path());
    let unknown = r#"{"model":"x","max_tokens":2,"messages":[{"role":"user","content":"x"}]}"#;
    let sim = ["--on-miss", "simulate", "--sim", "ttft_ms=0&itl_ms=0"];
    let server = ServeProcess::start(&recording, &[&["--no-order"], &sim[..]].concat());
    let seen = server.chat(unknown);
    assert_eq!(seen.status, "200 OK");
    let reply: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(reply["usage"]["completion_tokens"], 2);
    // Nothing but misses is a finding.
    let (_, counts) = server.stop(1);
    assert_eq!(counts["missed"], 1);

    let stream = replies::Stream::chat(3, 1, 1);
    let mock = MockLlm::start(Script::by_path(vec![
        ("/up/v1/chat/completions".to_owned(), stream.reply()),
        ("/up/v1/models".to_owned(), replies::models()),
    ]));
    let upstream = format!("{}/up/", mock.url());
    let proxy = ["--no-order", "--on-miss", "proxy", "--upstream", &upstream];
    let server = ServeProcess::start(&recording, &proxy);
    let request = post(
        "/v1/chat/completions",
        "Authorization: Bearer k\r\n",
        unknown,
    );
    let seen = server.ask(&request);
    assert_eq!(
        (seen.status.as_str(), seen.finish),
        ("200 OK", Finish::Whole)
    );
    assert!(text(&seen).ends_with("data: [DONE]\n\n"), "{}", text(&seen));
    let models = server.ask(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(text(&models).contains("mock"), "{}", text(&models));
    let ledger = mock.ledger();
    assert_eq!(ledger[0].request.body, unknown.as_bytes());
    assert_eq!(ledger[0].request.header("authorization"), Some("Bearer k"));
    drop(mock);
    assert_eq!(server.chat(unknown).status, "502 Bad Gateway");
}

#[test]
fn what_cannot_be_served_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let recording = three_streams(dir.path());
    let hashed = dir.path().join("hashed");
    let sim = "sim:?ttft_ms=1&itl_ms=1&tokens=2";
    let line = format!(
        "load --url {sim} --prompt x --number 1 --content hashed --json --out {}",
        hashed.display()
    );
    run_line("record", &line).expect(0);
    let refused = |path: &Path, further: &[&str], said: &str| {
        let line = [&["serve", path.to_str().unwrap()], further].concat();
        let ran = run("replay", line).expect(2);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    };
    refused(&hashed, &[], "recorded with --content hashed");
    refused(&dir.path().join("none"), &[], "no recording at");
    refused(&recording, &["--where", "request_id > 9"], "no requests");
    refused(&recording, &["--where", "nonsense = 1"], "nonsense");
    refused(&recording, &["--listen", "0.0.0.0:0"], "--allow-remote");
    refused(&recording, &["--on-miss", "proxy"], "--upstream");
    let upstream = ["--on-miss", "proxy", "--upstream", "http://u:s3cret@h"];
    refused(&recording, &upstream, "--upstream cannot be used");
    refused(&recording, &["--upstream", "http://h"], "--on-miss proxy");
    refused(
        &recording,
        &["--on-miss", "simulate", "--sim", "slots=x"],
        "slots",
    );
}
