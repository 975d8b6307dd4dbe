//! `analyze explain` and `analyze report --as`: other tools' definitions, from a
//! recording built by hand and from a recorded simulator.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tapedeck_analyze::explain::{self, Explanation, Style, explain};
use tapedeck_analyze::peer::Profile;
use tapedeck_analyze::report::{ReportOptions, report};
use tapedeck_analyze::{Format, Parameters, Session, session};
use tapedeck_recording::{ChunkKind, EventBatch, Outcome, Phase};

use crate::support::programs::{run, run_line};
use crate::support::recording::{self, MS, chunk, request, response};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

const TOKENS: i32 = 40;

/// A role chunk, reasoning, forty content chunks of which every tenth comes with
/// the one before, a finish, usage and an end marker.
fn streamed(events: &mut EventBatch) {
    let mut first = request(0, 12 * MS);
    first.t_scheduled_ns = Some(MS);
    first.t_dispatched_ns = Some(2 * MS);
    first.t_connect_ns = Some(3 * MS);
    first.t_connected_ns = Some(8 * MS);
    first.headers = Some([("authorization".to_owned(), "Bearer s3cret".to_owned())].into());
    events.requests.push(first);
    let mut push = |index: i32, read: i32, kind, t_ns, data: &str| {
        let mut row = chunk(0, index, kind, t_ns);
        row.read_index = read;
        events.chunks.push(row, Some(data.as_bytes()));
    };
    push(
        0,
        0,
        ChunkKind::Role,
        80 * MS,
        r#"{"choices":[{"delta":{"role":"assistant"}}]}"#,
    );
    push(
        1,
        1,
        ChunkKind::Reasoning,
        100 * MS,
        r#"{"choices":[{"delta":{"reasoning_content":"Thinking\u001b[31m about\nit"}}]}"#,
    );
    let (mut read, mut t_ns) = (1, 110 * MS);
    for token in 0..TOKENS {
        if token % 10 != 9 {
            read += 1;
            t_ns += if token == 20 { 60 * MS } else { 10 * MS };
        }
        let data = format!(r#"{{"choices":[{{"delta":{{"content":" w{token}"}}}}]}}"#);
        push(2 + token, read, ChunkKind::Content, t_ns, &data);
    }
    let last = 2 + TOKENS;
    let finish = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
    push(last, read + 1, ChunkKind::Other, t_ns + 5 * MS, finish);
    push(
        last + 1,
        read + 1,
        ChunkKind::Usage,
        t_ns + 5 * MS,
        r#"{"choices":[],"usage":{}}"#,
    );
    push(
        last + 2,
        read + 2,
        ChunkKind::Done,
        t_ns + 30 * MS,
        "[DONE]",
    );
    let mut answered = response(0, t_ns + 31 * MS, last + 3, Some(TOKENS + 1));
    answered.t_headers_ns = Some(79 * MS);
    events.responses.push(answered);
}

/// Request 0 as [`streamed`]. 1 failed. 2 has no response. 3 was not streamed. 4 is
/// a probe with a second attempt.
fn events() -> EventBatch {
    let mut events = EventBatch::default();
    streamed(&mut events);
    let mut refused = response(1, 60 * MS, 0, None);
    refused.outcome = Outcome::HttpError;
    refused.status = Some(503);
    refused.error = Some("overloaded\u{1b}[2J".into());
    refused.finish_reason = None;
    events.requests.push(request(1, 50 * MS));
    events.responses.push(refused);

    events.requests.push(request(2, 50 * MS));

    let mut whole = request(3, 50 * MS);
    whole.stream = false;
    events.requests.push(whole);
    let mut answer = response(3, 90 * MS, 0, Some(7));
    answer.body_bytes = 532;
    events.responses.push(answer);

    for attempt in 0..2 {
        let mut probe = request(4, 500 * MS + i64::from(attempt) * 50 * MS);
        probe.phase = Phase::Probe;
        probe.attempt = attempt;
        events.requests.push(probe);
        let mut ended = response(4, 540 * MS + i64::from(attempt) * 50 * MS, 0, None);
        ended.attempt = attempt;
        ended.outcome = if attempt == 0 {
            Outcome::ConnectionError
        } else {
            Outcome::Ok
        };
        events.responses.push(ended);
    }
    events
}

fn write(dir: &Path) -> PathBuf {
    recording::write(
        &dir.join("r"),
        recording::manifest("golden"),
        1 << 18,
        [events()],
    )
}

fn explained(path: &Path, request_id: i64) -> Explanation {
    block_on(explain(path, request_id, None)).unwrap()
}

fn plain(width: usize) -> Style {
    Style {
        width,
        color: false,
    }
}

#[test]
fn an_explanation_reads_as_the_golden_file() {
    let dir = tempfile::tempdir().unwrap();
    let found = explained(&write(dir.path()), 0);
    let text = found.render(plain(100));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/explain.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        text == expected,
        "UPDATE_GOLDEN=1 rewrites tests/golden/explain.txt\n{text}"
    );
    for width in [0, 72, 100, 140, 1000] {
        let text = found.render(plain(width));
        let widest = text.lines().map(|line| line.chars().count()).max();
        let allowed = width.clamp(*Style::WIDTHS.start(), *Style::WIDTHS.end());
        assert!(widest.unwrap() <= allowed, "{width}: {widest:?}\n{text}");
        assert!(!text.contains(['\u{1b}', '\r']) && !text.contains("s3cret"));
    }
    let colored = found.render(Style {
        width: 100,
        color: true,
    });
    let mut uncolored = String::new();
    for (index, part) in colored.split("\u{1b}[").enumerate() {
        let skipped = if index == 0 {
            0
        } else {
            part.find('m').unwrap() + 1
        };
        uncolored.push_str(&part[skipped..]);
    }
    // Colours end lines; without them the text is the same.
    let trimmed: Vec<&str> = uncolored.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, text.lines().collect::<Vec<_>>());
}

#[test]
fn the_json_of_an_explanation_has_every_read_and_every_profile() {
    let dir = tempfile::tempdir().unwrap();
    let json = explained(&write(dir.path()), 0).to_json();
    assert_eq!(json["explain_version"], explain::EXPLAIN_VERSION);
    let reads = json["reads"].as_array().unwrap();
    let chunks = reads.iter().map(|r| r["chunks"].as_array().unwrap().len());
    assert_eq!(chunks.sum::<usize>() as i32, TOKENS + 5);
    let metrics = json["metrics"].as_array().unwrap();
    let number = |metric: &str, profile: &str| -> Value {
        let metric = metrics.iter().find(|m| m["metric"] == metric).unwrap();
        let numbers = metric["profiles"].as_array().unwrap();
        let number = numbers.iter().find(|n| n["profile"] == profile);
        number.unwrap().clone()
    };
    for metric in metrics {
        let profiles = metric["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), Profile::all().count());
    }
    // From dispatched, not from sent; the reasoning that its field hides is none.
    assert_eq!(metrics[0]["tapedeck"], 88.0);
    assert_eq!(number("ttft_ms", "aiperf")["value"], 98.0);
    assert_eq!(number("ttft_ms", "vllm")["value"], 118.0);
    assert_eq!(number("ttft_ms", "evalscope-0.8")["value"], 78.0);
    let absent = number("output_tokens", "llmperf");
    assert!(absent["value"].is_null());
    assert_eq!(absent["reason"], "counts with a Llama tokenizer");
}

#[test]
fn requests_that_failed_or_never_ended_are_explained_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path());
    let text = |id| explained(&path, id).render(plain(100));
    let refused = text(1);
    assert!(refused.contains("http_error · HTTP 503"), "{refused}");
    assert!(refused.contains("error: overloaded·[2J"), "{refused}");
    let reason = "no number: does not count an answer with outcome http_error";
    assert!(refused.contains(reason), "{refused}");
    let unfinished = text(2);
    assert!(
        unfinished.contains("in flight when the recorder stopped"),
        "{unfinished}"
    );
    let whole = text(3);
    assert!(whole.contains("not streamed, 532 bytes"), "{whole}");
    assert!(whole.contains("no number: does not count an answer that was not streamed"));
    assert!(whole.contains("E2EL ms            40.00"), "{whole}");
    let probe = text(4);
    assert!(probe.contains("attempt 1 of 2 sent"), "{probe}");
    assert!(probe.contains("phase probe"), "{probe}");
}

#[test]
fn what_cannot_be_explained_is_said_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path());
    let path = path.to_str().unwrap();
    let refuse = |arguments: &[&str], part: &str| {
        let ran = run("analyze", [&["explain"], arguments].concat()).expect(2);
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
        assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    };
    refuse(
        &[path, "99"],
        "has no request 99\nhint: its requests are 0 to 4",
    );
    refuse(&[path, "4", "--attempt", "7"], "request 4 has no attempt 7");
    recording::write(&dir.path().join("s"), recording::manifest("s"), 1 << 18, []);
    refuse(&[dir.path().to_str().unwrap(), "0"], "holds 2 recordings");
    refuse(
        &[dir.path().join("s").to_str().unwrap(), "0"],
        "has no request",
    );
}

#[test]
fn a_report_in_another_tools_definitions_says_whose_they_are_after_the_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path());
    let options = ReportOptions {
        profile: Some("sglang".parse().unwrap()),
        ..ReportOptions::default()
    };
    let report = block_on(report(&[path], &options)).unwrap();
    let text = report.render(Format::Table);
    let position = |part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("no {part}\n{text}"))
    };
    assert!(position("Verdict: ") < position("follow the definitions of SGLang"));
    assert!(position("follow the definitions of SGLang") < position("Mean TTFT"));
    assert!(position("Mean TTFT") < position("has no such number"));
    let json = report.to_json();
    assert_eq!(json["as"]["profile"], "sglang");
    assert_eq!(json["recordings"][0]["counts"]["requests"], 4);
    let markdown = report.render(Format::Markdown);
    assert!(markdown.contains("### Definitions"), "{markdown}");
    let csv = report.render(Format::Csv);
    let ttft = csv.lines().find(|l| l.contains(",ttft_ms,mean,")).unwrap();
    // Chunks 98 ms after dispatch, and the answer that came whole: its 40 ms.
    assert!(
        ttft.ends_with(",golden,ttft_ms,mean,69,ms,2,sglang"),
        "{ttft}"
    );
}

/// Where a tool differs in nothing, its summary is ours: percentiles of more than a
/// thousand values take another way through the SQL than those of few.
#[test]
fn a_profile_that_agrees_has_our_summary() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventBatch::default();
    for id in 0..1_500_i64 {
        let sent = id * MS;
        events.requests.push(request(id, sent));
        let t_ns = sent + 10 * MS + (id * 7_919 % 1_500) * 1_000;
        for index in 0..2 {
            let t_ns = t_ns + i64::from(index) * (MS + (id * 104_729 % 1_500) * 500);
            events
                .chunks
                .push(chunk(id, index, ChunkKind::Content, t_ns), Some(b"{}"));
        }
        events
            .responses
            .push(response(id, t_ns + 20 * MS, 2, Some(2)));
    }
    let path = recording::write(
        &dir.path().join("r"),
        recording::manifest("r"),
        1 << 18,
        [events],
    );
    let rows: Vec<Value> = block_on(async {
        let recordings = session::open_all(&[path]).unwrap();
        let session = Session::open(recordings, &Parameters::default())
            .await
            .unwrap();
        let sql = "
            SELECT l.metric, l.stat, l.value AS ours, l.n, s.value AS theirs, s.n AS their_n
            FROM latency_percentiles AS l
            JOIN peer_summary AS s ON s.metric = l.metric AND s.stat = l.stat
            WHERE s.profile = 'vllm' AND l.metric IN ('ttft_ms', 'itl_ms')";
        session.rows(sql).await.unwrap()
    });
    assert!(rows.len() > 30, "{}", rows.len());
    for row in rows {
        let (ours, theirs) = (
            row["ours"].as_f64().unwrap(),
            row["theirs"].as_f64().unwrap(),
        );
        assert!((ours - theirs).abs() <= 1e-9 * ours.abs(), "{row}");
        assert_eq!(row["n"], row["their_n"], "{row}");
    }
}

/// The whole way: a simulator is recorded, and every profile's numbers stand to
/// ours as its definitions say.
#[test]
fn a_recorded_run_is_explained_and_reported_as_every_tool_would() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let out = out.to_str().unwrap();
    run_line(
        "record",
        &format!(
            "load --url sim:?ttft_ms=5&itl_ms=1&tokens=8 --model m --prompt hi --number 3 \
             --parallel 1 --no-report --out {out}"
        ),
    )
    .expect(0);
    let ran = run("analyze", ["explain", out, "1", "--format", "json"]).expect(0);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["request"]["outcome"], "ok");
    let value = |metric: &str, profile: &str| -> Option<f64> {
        let metrics = json["metrics"].as_array().unwrap();
        let metric = metrics.iter().find(|m| m["metric"] == metric).unwrap();
        let numbers = metric["profiles"].as_array().unwrap();
        let number = numbers.iter().find(|n| n["profile"] == profile).unwrap();
        number["value"].as_f64()
    };
    let ours = json["metrics"][0]["tapedeck"].as_f64().unwrap();
    for profile in Profile::all()
        .map(Profile::name)
        .filter(|p| *p != "byzer-perf")
    {
        // Dispatch comes before sent, and only 0.8 takes the role chunk.
        let ttft = value("ttft_ms", profile).unwrap();
        assert!(
            profile == "evalscope-0.8" || ttft >= ours,
            "{profile}: {ttft} {ours}"
        );
    }
    let last_token = value("e2el_ms", "vllm").unwrap();
    assert!(value("e2el_ms", "sglang").unwrap() >= last_token);
    // It starts later than vLLM, so what came after the first token is compared.
    let answer = |profile| value("e2el_ms", profile).unwrap() - value("ttft_ms", profile).unwrap();
    assert!(answer("guidellm") >= answer("vllm") - 1e-6);
    assert!(value("tpot_ms", "guidellm") > value("itl_ms", "guidellm"));
    assert_eq!(value("output_tokens", "llm.perf"), Some(8.0));
    assert_eq!(value("output_tokens", "mlperf"), None);
    let ran = run(
        "analyze",
        ["report", out, "--as", "aiperf", "--format", "json"],
    )
    .expect(0);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["as"]["profile"], "aiperf");
    let metrics = json["recordings"][0]["metrics"].as_array().unwrap();
    let mean = |metric: &str| {
        let mut metrics = metrics.iter();
        let found = metrics.find(|m| m["metric"] == metric && m["stat"] == "mean");
        found.unwrap()["value"].as_f64().unwrap()
    };
    assert!((mean("itl_ms") - mean("tpot_ms")).abs() < 1e-9);
    let ran = run("analyze", ["sql", "peer_llm_perf"]).expect(0);
    assert!(
        ran.stdout.starts_with("-- peer_llm_perf: "),
        "{}",
        ran.stdout
    );
}
