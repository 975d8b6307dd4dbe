//! Attempts: how each can end, which are sent again and which are given up.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use tapedeck_recording::{ChunkKind, EventBatch, Outcome, Phase, ResponseRow};

use crate::support::mock_llm::replies::{
    LAST_CHUNK, SSE_HEAD, Stream, chat_delta, http_chunk, json, sse, whole,
};
use crate::support::mock_llm::{Ended, MockLlm, Reply, Script, Step};
use crate::support::nobody::Nobody;
use crate::support::programs::{Ran, run, run_line};
use crate::support::proxy::rows;

const TEXT: &str = "word";

fn token() -> Step {
    let delta = format!(r#"{{"content":"{TEXT}"}}"#);
    Step::send(http_chunk(&sse(&chat_delta(&delta, None))))
}

/// Two tokens, then `steps`.
fn begun(steps: &[Step]) -> Reply {
    let mut all = vec![Step::send(SSE_HEAD), token(), token()];
    all.extend_from_slice(steps);
    all.into()
}

fn load(url: &str, flags: &str, out: &Path) -> Ran {
    let line = format!("load --url {url} --no-probe --json --no-progress {flags} --out");
    let out = [out.to_str().unwrap()];
    run("record", line.split_whitespace().chain(out))
}

/// One request for each of `names`, which are their models.
fn load_cases(mock: &MockLlm, names: &[&str], flags: &str, dir: &Path) -> EventBatch {
    let bodies = dir.join("cases.jsonl");
    let line = |name: &&str| {
        let message = r#"[{"role":"user","content":"x"}]"#;
        format!("{{\"model\":\"{name}\",\"messages\":{message}}}\n")
    };
    std::fs::write(&bodies, names.iter().map(line).collect::<String>()).unwrap();
    let flags = format!(
        "--dataset line_by_line --dataset-path {} {flags}",
        bodies.display()
    );
    let out = dir.join("out");
    load(&mock.url(), &flags, &out).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    rows(&out)
}

fn by_model(rows: &EventBatch) -> BTreeMap<String, &ResponseRow> {
    let model = |id: i64| {
        let row = rows.requests.iter().find(|r| r.request_id == id).unwrap();
        row.model.as_deref().unwrap().to_owned()
    };
    rows.responses
        .iter()
        .map(|r| (model(r.request_id), r))
        .collect()
}

/// Every way in which an attempt can end, but for those that need no answer.
fn endings() -> Vec<(&'static str, Reply, Outcome, i32, &'static str)> {
    let drip: Vec<Step> = (0..40)
        .flat_map(|_| [Step::pause_ms(100), token()])
        .collect();
    let in_band = r#"{"error":{"message":"out of memory"}}"#;
    let error = [
        Step::send(http_chunk(&sse(in_band))),
        Step::send(LAST_CHUNK),
    ];
    let garbage = [
        Step::send(http_chunk(&sse("{\"cho"))),
        Step::send(LAST_CHUNK),
    ];
    vec![
        ("ok", Stream::chat(2, 1, 1).reply(), Outcome::Ok, 5, ""),
        (
            "truncated",
            begun(&[Step::send(LAST_CHUNK)]),
            Outcome::Truncated,
            2,
            "",
        ),
        ("malformed", begun(&garbage), Outcome::Malformed, 3, ""),
        (
            "refused",
            json(418, r#"{"error":{"message":"a teapot"}}"#),
            Outcome::HttpError,
            0,
            "a teapot",
        ),
        (
            "in-band",
            begun(&error),
            Outcome::StreamError,
            3,
            "out of memory",
        ),
        (
            "mute",
            vec![Step::Stall].into(),
            Outcome::Timeout,
            0,
            "no byte of an answer",
        ),
        (
            "stalled",
            begun(&[Step::Stall]),
            Outcome::Timeout,
            2,
            "silent for",
        ),
        (
            "slow",
            begun(&drip),
            Outcome::Timeout,
            6,
            "not finished within",
        ),
        (
            "reset",
            begun(&[Step::pause_ms(30), Step::Reset]),
            Outcome::ConnectionError,
            2,
            "",
        ),
    ]
}

#[test]
fn every_outcome_keeps_what_had_come() {
    let endings = endings();
    let replies = endings
        .iter()
        .map(|(name, reply, ..)| ((*name).to_owned(), reply.clone()));
    let mock = MockLlm::start(Script::by_case(replies.collect()));
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<&str> = endings.iter().map(|(name, ..)| *name).collect();
    let timeouts = "--parallel 9 --first-byte-timeout 1s --read-timeout 1200ms --total-timeout 3s";
    let rows = load_cases(&mock, &names, timeouts, dir.path());
    let found = by_model(&rows);
    for (name, _, outcome, chunks, words) in endings {
        let response = found[name];
        assert_eq!(response.outcome, outcome, "{name}: {response:?}");
        let error = response.error.as_deref().unwrap_or_default();
        assert!(error.contains(words), "{name}: {error}");
        assert_eq!(error.is_empty(), outcome == Outcome::Ok, "{name}");
        assert!(response.chunk_count >= chunks, "{name}: {response:?}");
        let own: Vec<_> = rows
            .chunks
            .rows
            .iter()
            .filter(|c| c.request_id == response.request_id)
            .collect();
        assert_eq!(own.len(), response.chunk_count as usize, "{name}");
        let request = &rows.requests[response.request_id as usize];
        let mut instants = vec![
            request.t_scheduled_ns,
            request.t_dispatched_ns,
            request.t_sent_ns,
        ];
        instants.extend(own.iter().map(|c| Some(c.t_ns)));
        instants.push(response.t_end_ns);
        let instants: Vec<i64> = instants.into_iter().map(Option::unwrap).collect();
        assert!(instants.is_sorted(), "{name}: {instants:?}");
        if name != "mute" {
            assert!(
                response.t_headers_ns.is_some() && response.body_bytes > 0,
                "{name}"
            );
        }
        let text = own.iter().filter(|c| c.kind == ChunkKind::Content);
        let kept = text.filter(|c| rows.chunks.payload(c).is_some_and(|p| !p.is_empty()));
        assert_eq!(kept.count() >= 2, chunks >= 2, "{name}");
    }
    assert!(
        found["refused"]
            .body
            .as_deref()
            .is_some_and(|b| b.ends_with(b"}}"))
    );
}

/// An address whose connections never stand: its queue is full.
fn unreachable() -> (Nobody, Vec<TcpStream>) {
    let nobody = Nobody::take();
    nobody.queue_up();
    let mut taken = Vec::new();
    // A busy machine may be late with an answer: it is full when three have none.
    let mut refused = 0;
    while refused < 3 {
        match TcpStream::connect_timeout(&nobody.addr, Duration::from_millis(200)) {
            Ok(stream) => {
                refused = 0;
                taken.push(stream);
            }
            Err(_) => refused += 1,
        }
        assert!(taken.len() < 64, "the queue fills");
    }
    (nobody, taken)
}

#[test]
fn a_connection_that_never_stands_is_a_timeout_and_is_tried_again() {
    let (nobody, _taken) = unreachable();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let flags = "--model m --prompt x --number 1 --connect-timeout 200ms --retries 1";
    load(&nobody.url(), flags, &out).expect(1);
    let rows = rows(&out);
    assert_eq!(rows.responses.len(), 2);
    for (attempt, response) in (0..).zip(&rows.responses) {
        assert_eq!(
            (response.attempt, response.outcome),
            (attempt, Outcome::Timeout)
        );
        let error = response.error.as_deref().unwrap();
        assert!(error.contains("no connection within"), "{error}");
        assert_eq!(response.status, None);
    }
    assert!(
        rows.requests
            .iter()
            .all(|r| r.t_connect_ns.is_some() && r.t_sent_ns.is_none())
    );
}

/// `Retry-After: 1` on the first, a date two seconds on for the second.
fn busy(number: u64) -> Reply {
    let header = match number {
        0 => "retry-after: 1\r\n".to_owned(),
        _ => {
            "date: Sun, 06 Nov 1994 08:49:35 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                .to_owned()
        }
    };
    let status = if number == 0 { 429 } else { 503 };
    let text = whole(status, "application/json", &header, r#"{"error":"busy"}"#);
    vec![Step::send(text)].into()
}

#[test]
fn a_request_is_sent_again_as_the_server_asks_and_counts_once() {
    let mock = MockLlm::start(Script::new(|request| match request.number {
        n @ 0..2 => busy(n),
        _ => Stream::chat(3, 1, 1).reply(),
    }));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let flags = "--model m --prompt x --number 1 --rate 10 --retries 2 --obey-retry-after";
    let ran = load(&mock.url(), flags, &out).expect(0);
    assert!(ran.stdout.contains(r#""requests":1"#) && ran.stdout.contains(r#""failed":0"#));
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let rows = rows(&out);
    let ends: Vec<_> = rows
        .responses
        .iter()
        .map(|r| (r.attempt, r.status))
        .collect();
    assert_eq!(ends, [(0, Some(429)), (1, Some(503)), (2, Some(200))]);
    let told = rows.responses[0].headers.as_ref().unwrap();
    assert!(told.iter().any(|(n, v)| n == "retry-after" && v == "1"));
    // The same body, the original schedule; the waits are the server's.
    let first = &rows.requests[0];
    for request in &rows.requests {
        assert_eq!(request.body, first.body);
        assert_eq!(request.t_scheduled_ns, first.t_scheduled_ns);
    }
    let waits = [(0, 1), (1, 2)].map(|(at, seconds)| {
        let waited =
            rows.requests[at + 1].t_sent_ns.unwrap() - rows.responses[at].t_end_ns.unwrap();
        (waited >= seconds * 1_000_000_000, seconds)
    });
    assert_eq!(waits, [(true, 1), (true, 2)]);
    let report = run_line(
        "analyze",
        &format!("report {} --format json", out.display()),
    )
    .expect(0);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let counts = &report["recordings"][0]["counts"];
    assert_eq!(
        (&counts["requests"], &counts["succeeded"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn what_cannot_end_better_is_not_sent_again() {
    let half = begun(&[Step::Stall]);
    let mock = MockLlm::start(Script::by_case(vec![
        ("bad".to_owned(), json(400, r#"{"error":"no"}"#)),
        ("half".to_owned(), half),
        ("down".to_owned(), json(500, r#"{"error":"down"}"#)),
        ("ok".to_owned(), Stream::chat(1, 1, 1).reply()),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let names = ["bad", "half", "down", "ok"];
    let flags = "--parallel 4 --retries 1 --read-timeout 300ms";
    let rows = load_cases(&mock, &names, flags, dir.path());
    let mut attempts: BTreeMap<&str, i32> = BTreeMap::new();
    for request in &rows.requests {
        *attempts
            .entry(request.model.as_deref().unwrap())
            .or_default() += 1;
    }
    assert_eq!(
        attempts,
        [("bad", 1), ("half", 1), ("down", 2), ("ok", 1)].into()
    );
}

/// Ids of the cancelled, by what `flags` say.
fn cancelled(flags: &str) -> (EventBatch, Vec<i64>, usize) {
    // Who gives up after the third token, or after 100 ms, does so in the silence.
    let mut steps = vec![Step::send(SSE_HEAD), token(), token(), token()];
    steps.push(Step::pause_ms(600));
    steps.extend(vec![token(); 5]);
    let end = [chat_delta("{}", Some("stop")), "[DONE]".to_owned()];
    steps.extend(end.map(|text| Step::send(http_chunk(&sse(&text)))));
    steps.push(Step::send(LAST_CHUNK));
    let mock = MockLlm::start(Script::always(steps));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let flags = format!("--model m --prompt x --number 24 --parallel 24 {flags}");
    load(&mock.url(), &flags, &out).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let rows = rows(&out);
    let given_up = rows
        .responses
        .iter()
        .filter(|r| r.outcome == Outcome::Cancelled);
    let ids: Vec<i64> = given_up.map(|r| r.request_id).collect();
    let left = || {
        mock.ledger()
            .iter()
            .filter(|s| s.ended == Ended::ClientLeft)
            .count()
    };
    for _ in 0..100 {
        if left() == ids.len() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (rows, ids, left())
}

#[test]
fn clients_that_give_up_are_chosen_by_the_seed_and_seen_by_the_server() {
    let (rows, ids, left) = cancelled("--cancel-rate 0.3 --cancel-after 3chunks --retries 2");
    assert!((2..=16).contains(&ids.len()), "{ids:?}");
    assert_eq!(left, ids.len(), "the server sees who leaves");
    for response in &rows.responses {
        assert_eq!(response.attempt, 0, "nothing is sent again");
        if response.outcome != Outcome::Cancelled {
            assert_eq!((response.outcome, response.chunk_count), (Outcome::Ok, 10));
            continue;
        }
        let error = response.error.as_deref().unwrap();
        assert!(
            error.contains("3 content-bearing chunks, as --cancel-rate"),
            "{error}"
        );
        assert!((3..8).contains(&response.chunk_count), "{response:?}");
        let chunks = rows.chunks.rows.iter();
        let own = chunks.filter(|c| c.request_id == response.request_id);
        assert_eq!(own.count(), response.chunk_count as usize);
    }
    let (_, again, _) = cancelled("--cancel-rate 0.3 --cancel-after 100ms");
    assert_eq!(again, ids, "the same ones, whenever they give up");
    let (rows, other, _) = cancelled("--cancel-rate 0.3 --cancel-after 100ms --seed 1");
    assert_ne!(other, ids);
    let of = |id: i64| {
        rows.responses
            .iter()
            .find(move |r| r.request_id == id)
            .unwrap()
    };
    for id in other {
        let request = rows.requests.iter().find(|r| r.request_id == id).unwrap();
        let lasted = of(id).t_end_ns.unwrap() - request.t_dispatched_ns.unwrap();
        assert!(lasted >= 100_000_000, "{lasted}");
        assert!(of(id).error.as_deref().unwrap().contains("100ms"));
    }
}

#[test]
fn a_probe_is_not_given_up_and_flags_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let line = format!(
        "load --url sim:?ttft_ms=1&itl_ms=500&tokens=2 --prompt x --number 2 --json --cancel-rate 1 --out {}",
        out.display()
    );
    run_line("record", &line).expect(1);
    for response in rows(&out).responses {
        let is_probe = response.request_id == 0;
        assert_eq!(response.outcome == Outcome::Ok, is_probe, "{response:?}");
    }
    assert_eq!(rows(&out).requests[0].phase, Phase::Probe);
    for (flags, word) in [
        ("--cancel-after 5chunks", "--cancel-rate"),
        ("--cancel-rate 2", "0 to 1"),
        ("--cancel-rate 0.1 --cancel-after soon", "duration"),
        ("--cancel-rate 0.1 --cancel-after 0chunks", "20chunks"),
        ("--obey-retry-after", "--retries"),
        ("--redact messages", "JSON pointer"),
        ("--redact re:(", "unclosed group"),
        ("--redact /a~x", "~0"),
    ] {
        let ran = run_line("record", &format!("load --url sim: --prompt x {flags}")).expect(2);
        assert!(ran.stderr.contains(word), "{flags}: {}", ran.stderr);
    }
}
