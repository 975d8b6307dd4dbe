//! Every awkward answer, served to the real program, against what a recording
//! must say of it.

use std::fmt::Write as _;
use std::fs;

use tapedeck_recording::{ChunkKind, ChunkRow, EventBatch, Outcome, Recording, ResponseRow, Table};

use crate::support::answers::{Answer, all, script};
use crate::support::mock_llm::{MockLlm, Served};
use crate::support::programs::run;

/// How much later than the server's write an arrival may be stamped. The kernel
/// stamps loopback within microseconds; the rest is for a machine that stands
/// still between the two.
const ARRIVAL_TOLERANCE_NS: i64 = 25_000_000;

const CONTENT: [ChunkKind; 3] = [ChunkKind::Content, ChunkKind::Tool, ChunkKind::Reasoning];

struct Recorded {
    recording: Recording,
    events: EventBatch,
}

fn record_all(answers: &[Answer], mock: &MockLlm, dir: &std::path::Path) -> Recorded {
    let prompts = dir.join("cases.jsonl");
    let lines = answers.iter().map(|answer| {
        let body = serde_json::json!({
            "model": answer.name,
            "messages": [{"role": "user", "content": "x"}],
        });
        format!("{body}\n")
    });
    fs::write(&prompts, lines.collect::<String>()).unwrap();
    let out = dir.join("recording");
    let arguments = [
        "load",
        "--url",
        &mock.url(),
        "--no-probe",
        "--parallel",
        "4",
        "--read-timeout",
        "2s",
        "--json",
        "--dataset",
        "line_by_line",
        "--dataset-path",
    ];
    let paths = [prompts.to_str().unwrap(), "--out", out.to_str().unwrap()];
    run("record", arguments.iter().chain(&paths)).expect(0);
    // However odd the answers were, their recording keeps the invariants.
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let recording = Recording::open(&out).unwrap();
    let mut events = recording.rows(Table::Requests).unwrap();
    for table in [Table::Chunks, Table::Responses] {
        events.append(&mut recording.rows(table).unwrap());
    }
    Recorded { recording, events }
}

impl Recorded {
    /// The response to the last attempt of a request.
    fn response(&self, request_id: i64) -> &ResponseRow {
        let mut responses: Vec<_> = self.events.responses.iter().collect();
        responses.retain(|r| r.request_id == request_id);
        responses
            .into_iter()
            .max_by_key(|r| r.attempt)
            .expect("every request has a response")
    }

    fn content(&self, response: &ResponseRow) -> Vec<&ChunkRow> {
        let of_attempt = |c: &&ChunkRow| {
            (c.request_id, c.attempt) == (response.request_id, response.attempt)
                && CONTENT.contains(&c.kind)
        };
        self.events.chunks.rows.iter().filter(of_attempt).collect()
    }

    fn absolute(&self, t_ns: i64) -> i64 {
        t_ns + self.recording.manifest.monotonic_start_ns
    }
}

/// What differs between an answer and its recording; empty when all is right.
fn differences(
    answer: &Answer,
    recorded: &Recorded,
    response: &ResponseRow,
    served: &Served,
) -> String {
    let mut wrong = String::new();
    let expect = &answer.expect;
    let content = recorded.content(response);
    let mut compare = |what: &str, found: String, expected: String| {
        if found != expected {
            write!(wrong, "{what} {found}, expected {expected}; ").unwrap();
        }
    };
    compare(
        "outcome",
        response.outcome.as_str().into(),
        expect.outcome.as_str().into(),
    );
    compare(
        "status",
        format!("{:?}", response.status),
        format!("{:?}", expect.status),
    );
    compare(
        "content chunks",
        content.len().to_string(),
        expect.content_chunks.to_string(),
    );
    compare(
        "output tokens",
        format!("{:?}", response.output_tokens),
        format!("{:?}", expect.output_tokens),
    );
    compare(
        "finish reason",
        format!("{:?}", response.finish_reason.as_deref()),
        format!("{:?}", expect.finish_reason),
    );
    compare(
        "malformed chunks",
        response.malformed_chunks.to_string(),
        expect.malformed_chunks.to_string(),
    );
    // A body that is held open after [DONE] does not lengthen the answer.
    let last = recorded.events.chunks.rows.iter();
    let last = last
        .filter(|c| (c.request_id, c.attempt) == (response.request_id, response.attempt))
        .map(|c| c.t_ns)
        .max();
    if let (Outcome::Ok, Some(last)) = (response.outcome, last) {
        let after_ms = (response.t_end_ns.unwrap() - last) / 1_000_000;
        // Those that are held open are given up after two seconds.
        if !(0..1_500).contains(&after_ms) {
            write!(wrong, "ended {after_ms} ms after its last chunk; ").unwrap();
        }
    }
    let arrival = content.first().map(|c| recorded.absolute(c.t_ns));
    match (arrival, expect.ttft_from) {
        (None, None) => {}
        (Some(t_ns), Some(step)) => {
            let write = served.write_of(step).expect("the step was written");
            // A read that a busy machine made late is stamped by the last write in it.
            let read = |at: usize| content.get(at).map(|c| c.read_index);
            let latest = match read(1).is_none_or(|next| read(0) == Some(next)) {
                true => served.writes.last().expect("the step was written"),
                false => write,
            };
            let latest_ns = latest.t_after_ns + ARRIVAL_TOLERANCE_NS;
            if !(write.t_before_ns..=latest_ns).contains(&t_ns) {
                let late_us = (t_ns - write.t_before_ns) / 1000;
                write!(wrong, "first content {late_us} µs after its write; ").unwrap();
            }
        }
        (found, step) => write!(wrong, "arrival {found:?}, from step {step:?}; ").unwrap(),
    }
    wrong
}

#[test]
fn every_awkward_answer_is_recorded_right() {
    let answers = all();
    let mock = MockLlm::start(script());
    let dir = tempfile::tempdir().unwrap();
    let recorded = record_all(&answers, &mock, dir.path());
    let ledger = mock.ledger();
    let mut table =
        String::from("answer | outcome | TTFT ms (server) | content | tokens | verdict\n");
    let mut bad = Vec::new();
    for (request_id, answer) in (0_i64..).zip(&answers) {
        let response = recorded.response(request_id);
        // A stale connection makes the server see some requests once and the
        // recorder try them twice, never the other way round.
        let served = ledger
            .iter()
            .rfind(|s| s.request.case().as_deref() == Some(answer.name))
            .expect("the server saw every request");
        let wrong = differences(answer, &recorded, response, served);
        let sent = recorded.events.requests.iter();
        let sent = sent
            .filter(|r| r.request_id == request_id)
            .max_by_key(|r| r.attempt)
            .and_then(|r| r.t_sent_ns);
        let first = recorded.content(response).iter().map(|c| c.t_ns).min();
        let ttft_ms = first.zip(sent).map(|(t, s)| (t - s) as f64 / 1e6);
        let truth_ms = answer
            .expect
            .ttft_from
            .and_then(|step| served.write_of(step));
        let truth_ms = truth_ms.map(|w| (w.t_before_ns - served.request.t_read_ns) as f64 / 1e6);
        writeln!(
            table,
            "{} | {} | {} ({}) | {} | {} | {}",
            answer.name,
            response.outcome.as_str(),
            ttft_ms.map_or("-".into(), |v| format!("{v:.2}")),
            truth_ms.map_or("-".into(), |v| format!("{v:.2}")),
            recorded.content(response).len(),
            response.output_tokens.map_or("-".into(), |n| n.to_string()),
            if wrong.is_empty() { "right" } else { &wrong },
        )
        .unwrap();
        if !wrong.is_empty() {
            bad.push(answer.name);
        }
    }
    println!("{table}");
    assert!(bad.is_empty(), "wrong: {bad:?}\n{table}");
}
