//! Every dialect end to end: what is sent, byte for byte, and what is read in the
//! answer; with the real programs, against servers that speak it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tapedeck_recording::{ChunkKind, Recording};
use tapedeck_wire::dialect::{Api, Framing};

use crate::calls::CallServer;
use crate::support::dialects::{self, Case, Fixture, PROMPT};
use crate::support::mock_llm::replies::{LAST_CHUNK, http_chunk, json};
use crate::support::mock_llm::{MockLlm, Script, Step};
use crate::support::programs::{program, run, run_line};
use crate::support::proxy::ProxyProcess;
use crate::support::recording::events;

/// Requests of each case.
const REQUESTS: usize = 2;

fn load(api: &str, url: &str, flags: &str, out: &Path) {
    let mut command = program("record");
    command.args(["load", "--api", api, "--url", url, "--prompt", PROMPT]);
    command.args(flags.split_whitespace());
    command.args([
        "--number",
        "2",
        "--no-probe",
        "--no-report",
        "--json",
        "--out",
    ]);
    let output = command.arg(out).output().unwrap();
    // 1 is the finding that every request failed: some answers are errors.
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{api}: {}",
        output.stderr.escape_ascii()
    );
}

/// A server that keeps book of what it sends.
trait Sends {
    /// When step `step` of the answer to request `number` began to be written.
    fn sent_ns(&self, number: usize, step: usize) -> i64;
}

impl Sends for MockLlm {
    fn sent_ns(&self, number: usize, step: usize) -> i64 {
        self.ledger()[number].write_of(step).unwrap().t_before_ns
    }
}

impl Sends for CallServer {
    fn sent_ns(&self, number: usize, step: usize) -> i64 {
        // A head, and before each message a pause.
        self.sent_ns(number, (step - 2) / 2)
    }
}

/// Loads a server that answers as `case` says, and checks what was recorded.
fn load_case(api: &str, fixture: &Fixture, case: &Case, flags: &str, out: &Path) {
    let grpc = Api::from_word(api).unwrap().dialect().response.framing == Framing::Grpc;
    if grpc {
        let server = CallServer::start(fixture, case);
        load(api, &format!("http://{}", server.addr), flags, out);
        return check(api, case, &server, &Recording::open(out).unwrap());
    }
    let mock = case.serve(fixture);
    load(api, &mock.url(), flags, out);
    check(api, case, &mock, &Recording::open(out).unwrap());
}

/// What a recording says of one case, checked against the fixture.
fn check(api: &str, case: &Case, server: &impl Sends, recording: &Recording) {
    let label = format!("{api} {}", case.name);
    let events = events(recording);
    assert_eq!(events.responses.len(), REQUESTS, "{label}");
    for (request, response) in events.requests.iter().zip(&events.responses) {
        assert_eq!(&*request.api, api);
        let error = response.error.as_deref();
        assert_eq!(
            response.outcome.as_str(),
            case.outcome,
            "{label}: {error:?}"
        );
        assert_eq!(
            response.status,
            Some(i32::from(case.status)),
            "{label}: {error:?}"
        );
        if case.error.is_some() {
            assert_eq!(error, case.error.as_deref(), "{label}");
        }
        assert_eq!(
            response.finish_reason.as_deref(),
            case.finish.as_deref(),
            "{label}"
        );
        let counts = [
            response.input_tokens,
            response.output_tokens,
            response.reasoning_tokens,
            response.cached_tokens,
        ];
        let expected = [
            case.input_tokens,
            case.output_tokens,
            case.reasoning_tokens,
            case.cached_tokens,
        ];
        assert_eq!(counts, expected, "{label}");
    }
    for (number, request) in events.requests.iter().enumerate() {
        let id = request.request_id;
        let chunks = events.chunks.rows.iter().filter(|c| c.request_id == id);
        let chunks: Vec<_> = chunks.collect();
        let shown = chunks.iter().map(|chunk| match chunk.tokens {
            Some(tokens) => format!("{} {tokens}", chunk.kind.as_str()),
            None => chunk.kind.as_str().to_owned(),
        });
        assert_eq!(shown.collect::<Vec<_>>(), case.chunks, "{label}");
        let first = chunks
            .iter()
            .find(|c| c.kind >= ChunkKind::Content && c.kind <= ChunkKind::Reasoning);
        let step = case.first_content_step();
        assert_eq!(first.is_some(), step.is_some(), "{label}");
        if let (Some(first), Some(step)) = (first, step) {
            let t_ns = first.t_ns + recording.manifest.monotonic_start_ns;
            assert!(
                t_ns >= server.sent_ns(number, step),
                "{label}: earlier than it was sent"
            );
        }
    }
}

#[test]
fn every_dialect_sends_and_reads_what_its_fixture_says() {
    let fixtures = dialects::all();
    let names: BTreeSet<&str> = fixtures.iter().map(|(name, _)| name.as_str()).collect();
    let built_in: BTreeSet<&str> = Api::built_in().map(|row| row.name).collect();
    assert_eq!(names, built_in, "each has its fixture");
    let dir = tempfile::tempdir().unwrap();
    let jobs: Vec<(&str, &Fixture, &Case)> = fixtures
        .iter()
        .flat_map(|(api, fixture)| {
            fixture
                .cases
                .iter()
                .map(move |case| (api.as_str(), fixture, case))
        })
        .collect();
    let queue = Mutex::new(jobs.iter());
    // The programs start and wait; a few at a time keep the test short.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((api, fixture, case)) = { queue.lock().unwrap().next() } {
                    let out = dir.path().join(format!("{api}.{}", case.name));
                    let flags = format!(
                        "{} {} --name {api}.{}",
                        fixture.flags, case.flags, case.name
                    );
                    load_case(api, fixture, case, &flags, &out);
                }
            });
        }
    });
    assert_report(dir.path(), &jobs);
}

/// The report's numbers: TTFT where content came in a stream that is whole, and the
/// tokens that the server counted.
fn assert_report(root: &Path, jobs: &[(&str, &Fixture, &Case)]) {
    // An answer may come before its client has looked at the clock again: then 0.
    let sql = "SELECT r.name, l.ttft_ms >= 0 AS ttft, l.e2el_ms >= 0 AS e2el, l.output_tokens AS tokens \
        FROM request_latency AS l JOIN recordings AS r USING (recording_id) WHERE l.request_id = 0";
    let shown = run(
        "analyze",
        ["query", root.to_str().unwrap(), sql, "--format", "csv"],
    )
    .expect(0);
    let rows: BTreeMap<&str, &str> = shown
        .stdout
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(','))
        .collect();
    for (api, _, case) in jobs {
        let name = format!("{api}.{}", case.name);
        if case.outcome != "ok" {
            continue;
        }
        let ttft = case.first_content_step().map_or("", |_| "true");
        let tokens = case
            .reported_tokens()
            .map(|n| n.to_string())
            .unwrap_or_default();
        let expected = format!("{ttft},true,{tokens}");
        assert_eq!(rows.get(name.as_str()), Some(&expected.as_str()), "{name}");
    }
}

#[test]
fn a_replay_sends_the_same_body_to_the_same_path() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures: BTreeMap<String, Fixture> = dialects::all().into_iter().collect();
    // The path names the model, or streams and whole answers have paths of their own.
    for (api, name) in [
        ("triton", "stream"),
        ("tgi", "whole"),
        ("dashscope", "stream"),
    ] {
        let fixture = &fixtures[api];
        let case = fixture.cases.iter().find(|case| case.name == name).unwrap();
        let mock = case.serve(fixture);
        let [first, again] = ["first", "again"].map(|run| dir.path().join(format!("{api}.{run}")));
        load(
            api,
            &mock.url(),
            &format!("{} {}", fixture.flags, case.flags),
            &first,
        );
        let line = format!(
            "run {} --url {} --api-key k --no-probe --json --out {}",
            first.display(),
            mock.url(),
            again.display()
        );
        run_line("replay", &line).expect(0);
        check(api, case, &mock, &Recording::open(&again).unwrap());
    }
}

/// The fenced block of the documentation that begins with `first_line`.
fn documented(first_line: &str) -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../shared/wire/dialects/README.md"
    );
    let text = fs::read_to_string(path).unwrap();
    let mut blocks = text.split("```").skip(1).step_by(2);
    let block = blocks.find_map(|block| {
        let (_, block) = block.split_once('\n')?;
        block.starts_with(first_line).then(|| block.to_owned())
    });
    block.unwrap_or_else(|| panic!("no block begins with {first_line}"))
}

/// As llama.cpp's server answers `/completion`.
fn llama_cpp(tokens: usize) -> Vec<Step> {
    let mut steps = vec![Step::send(
        "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )];
    for n in 1..=tokens {
        let event = format!(
            "data: {{\"index\":0,\"content\":\" w{n}\",\"tokens\":[{n}],\"stop\":false,\"id_slot\":-1,\"tokens_predicted\":{n},\"tokens_evaluated\":4}}\n\n"
        );
        steps.push(Step::pause_ms(2));
        steps.push(Step::send(http_chunk(event.as_bytes())));
    }
    let last = format!(
        "data: {{\"index\":0,\"content\":\"\",\"tokens\":[],\"id_slot\":3,\"stop\":true,\"model\":\"m\",\"tokens_predicted\":{tokens},\"tokens_evaluated\":4,\"stop_type\":\"limit\",\"stopping_word\":\"\",\"timings\":{{\"cache_n\":1,\"prompt_n\":3}}}}\n\n"
    );
    steps.push(Step::send(http_chunk(last.as_bytes())));
    steps.push(Step::send(LAST_CHUNK));
    steps
}

#[test]
fn the_documented_dialect_of_llama_cpp_works_and_its_recording_replays_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("llama-completion.toml");
    fs::write(&file, documented("# llama-completion.toml")).unwrap();
    let mock = MockLlm::start(Script::always(llama_cpp(3)));
    let out = dir.path().join("r");
    load(
        file.to_str().unwrap(),
        &mock.url(),
        "--max-tokens 3 --temperature 0",
        &out,
    );
    fs::remove_file(&file).unwrap();
    let again = dir.path().join("again");
    let line = format!(
        "run {} --url {} --no-probe --json --out {}",
        out.display(),
        mock.url(),
        again.display()
    );
    run_line("replay", &line).expect(0);
    for served in mock.ledger() {
        assert_eq!(served.request.path, "/completion");
        assert_eq!(
            served.request.json().unwrap(),
            serde_json::json!({"prompt": PROMPT, "n_predict": 3, "temperature": 0.0, "stream": true})
        );
    }
    for path in [out, again] {
        let events = events(&Recording::open(&path).unwrap());
        assert_eq!(events.responses.len(), REQUESTS);
        for response in &events.responses {
            assert_eq!(response.outcome.as_str(), "ok");
            assert_eq!(response.finish_reason.as_deref(), Some("limit"));
            assert_eq!(
                (
                    response.input_tokens,
                    response.output_tokens,
                    response.cached_tokens
                ),
                (Some(4), Some(3), Some(1))
            );
        }
        let chunks = events
            .chunks
            .rows
            .iter()
            .map(|chunk| (chunk.kind.as_str(), chunk.tokens));
        let one = [
            ("content", Some(1)),
            ("content", Some(1)),
            ("content", Some(1)),
            ("usage", Some(0)),
        ];
        assert_eq!(chunks.collect::<Vec<_>>(), one.repeat(REQUESTS));
        assert!(
            events
                .requests
                .iter()
                .all(|r| &*r.api == "llama-completion")
        );
    }
}

/// Answers as one JSON list, or one document, with two choices in it.
const LISTS: &str = r#"
version = 1
[request]
path = "/list"
whole_path = "/whole"
body = '{"said": "%messages", "stream": "%stream"}'
[response]
framing = "json"
text = "/candidates/*/text"
choices = "/candidates"
finish = "/candidates/0/finish"
[response.usage]
output_tokens = "/tokens"
"#;

#[test]
fn a_list_of_json_is_a_stream_and_a_document_an_answer_of_which_one_choice_is_carried_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lists.toml");
    fs::write(&file, LISTS).unwrap();
    let mut list = vec![Step::send(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    )];
    // Cut where no element ends, as servers that stream lists do.
    for piece in [
        "[{\"candidates\":[{\"text\":\"Hi\"}]}\n",
        ",\n{\"candidates\":[{\"text\":\" you\"",
        "}]}",
        ",{\"candidates\":[{\"text\":\"\",\"finish\":\"STOP\"}],\"tokens\":2}]",
    ] {
        list.push(Step::pause_ms(3));
        list.push(Step::send(http_chunk(piece.as_bytes())));
    }
    list.push(Step::send(LAST_CHUNK));
    let whole = r#"{"candidates":[{"index":1,"text":"No."},{"index":0,"text":"Yes.","finish":"STOP"}],"tokens":2}"#;
    let mock = MockLlm::start(Script::by_path(vec![
        ("/list".to_owned(), list.into()),
        ("/whole".to_owned(), json(200, whole)),
    ]));
    let api = file.to_str().unwrap();
    let of = |name: &str, flags: &str| {
        let out = dir.path().join(name);
        load(api, &mock.url(), flags, &out);
        let recording = Recording::open(&out).unwrap();
        (events(&recording), recording.manifest.monotonic_start_ns)
    };
    let (streamed, start_ns) = of("list", "");
    let kinds: Vec<_> = streamed.chunks.rows.iter().map(|c| c.kind).collect();
    let one = [ChunkKind::Content, ChunkKind::Content, ChunkKind::Usage];
    assert_eq!(kinds, one.repeat(REQUESTS));
    for (number, response) in streamed.responses.iter().enumerate() {
        assert_eq!(response.outcome.as_str(), "ok", "{:?}", response.error);
        assert_eq!(response.finish_reason.as_deref(), Some("STOP"));
        assert_eq!(response.output_tokens, Some(2));
        let arrived = &streamed.chunks.rows[number * one.len()..][..one.len()];
        // With the read that closed each of them.
        for (chunk, step) in arrived.iter().zip([2, 6, 8]) {
            assert!(chunk.t_ns + start_ns >= mock.sent_ns(number, step));
        }
    }

    let (whole, _) = of("whole", "--no-stream --num-turns 2");
    assert_eq!(whole.responses.len(), 2 * REQUESTS, "sessions of two turns");
    for response in &whole.responses {
        assert_eq!(response.outcome.as_str(), "ok", "{:?}", response.error);
        assert_eq!((response.chunk_count, response.output_tokens), (0, Some(2)));
    }
    let carried = mock.ledger().into_iter().filter_map(|served| {
        let said = served.request.json()?["said"].as_array()?.clone();
        (said.len() == 3).then(|| said[1]["content"].clone())
    });
    assert_eq!(carried.collect::<Vec<_>>(), ["Yes."; REQUESTS]);
}

#[test]
fn a_proxy_records_lines_of_json() {
    let fixture = dialects::all()
        .into_iter()
        .find(|(name, _)| name == "ollama")
        .unwrap()
        .1;
    let case = fixture
        .cases
        .iter()
        .find(|case| case.name == "stream")
        .unwrap();
    let mock = case.serve(&fixture);
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--api", "ollama"]);
    let url = format!("http://{}", proxy.addr);
    load("ollama", &url, &fixture.flags, &dir.path().join("client"));
    proxy.stop().expect(0);
    let mut recordings = Recording::open_all(dir.path()).unwrap();
    recordings.retain(|recording| recording.manifest.name == "proxy");
    assert_eq!(recordings.len(), 1);
    check("ollama", case, &mock, &recordings[0]);
    let events = events(&recordings[0]);
    assert!(
        events
            .requests
            .iter()
            .all(|r| r.stream && r.max_output_tokens == Some(3))
    );
}

#[test]
fn a_query_template_replaces_the_body() {
    let dir = tempfile::tempdir().unwrap();
    let mock = MockLlm::start(Script::always(llama_cpp(1)));
    let template = r#"{"model": "%m", "question": "<%p>", "stream": true}"#;
    let file: PathBuf = dir.path().join("q.json");
    fs::write(&file, template).unwrap();
    for (n, argument) in [template.to_owned(), format!("@{}", file.display())]
        .iter()
        .enumerate()
    {
        let mut command = program("record");
        command.args([
            "load",
            "--url",
            &mock.url(),
            "--endpoint",
            "/own",
            "--model",
            "m",
        ]);
        command.args([
            "--prompt",
            PROMPT,
            "--query-template",
            argument,
            "--no-usage",
        ]);
        command.args([
            "--number",
            "1",
            "--no-probe",
            "--no-report",
            "--json",
            "--out",
        ]);
        command
            .arg(dir.path().join(n.to_string()))
            .output()
            .unwrap();
        let sent = &mock.ledger()[n].request;
        assert_eq!(sent.path, "/own");
        assert_eq!(
            sent.body.escape_ascii().to_string(),
            r#"{"model":"m","question":"<Say hi.>","stream":true}"#.replace('"', "\\\"")
        );
    }
}

#[test]
fn what_cannot_be_asked_of_an_api_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    fs::write(&bad, "version = 1\n[request]\npaht = \"/x\"\n").unwrap();
    let missing = dir.path().join("missing.toml");
    let base = "load --url http://127.0.0.1:9 --prompt x --api";
    for (line, parts) in [
        (
            format!("{base} ollama --best-of 2 --stop-token-ids 1"),
            &["no place for", "best_of", "stop_token_ids", "--extra-body"][..],
        ),
        (format!("{base} tgy"), &["tgi", "record apis"]),
        (
            format!("{base} openai"),
            &["openai-chat or openai-completions"],
        ),
        (
            format!("{base} {}", bad.display()),
            &["bad.toml", "line 3", "paht"],
        ),
        (format!("{base} {}", missing.display()), &["cannot be read"]),
        (
            format!("{base} openai-chat --query-template {{"),
            &["no JSON object"],
        ),
    ] {
        let ran = run_line("record", &line).expect(2);
        for part in parts {
            assert!(
                ran.stderr.contains(part),
                "{part:?} is not in {}",
                ran.stderr
            );
        }
    }
    let listed = run_line("record", "apis").expect(0).stdout;
    for row in Api::built_in() {
        assert!(listed.contains(&format!("{} ", row.name)), "{listed}");
    }
    assert!(
        run_line("record", "apis sglang")
            .expect(0)
            .stdout
            .contains("text_is = \"cumulative\"")
    );
    assert!(
        run_line("record", "apis tgy")
            .expect(2)
            .stderr
            .contains("hint")
    );
}
