//! Other people's traces: imported, planned, and replayed with prompts of their
//! lengths.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tapedeck_recording::manifest::Manifest;
use tapedeck_recording::{Outcome, Phase, Recording, RequestRow, ResponseRow, Table};

use crate::support::programs::{run, run_line};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/traces")).join(name)
}

fn measured(recording: &Recording) -> Vec<RequestRow> {
    let mut rows = recording.rows(Table::Requests).unwrap().requests;
    rows.retain(|r| r.phase == Phase::Measure);
    rows.sort_by_key(|r| r.request_id);
    rows
}

fn responses(recording: &Recording) -> Vec<ResponseRow> {
    let mut rows = recording.rows(Table::Responses).unwrap().responses;
    rows.sort_by_key(|r| r.request_id);
    rows
}

fn import(name: &str, out: &Path) -> (String, Recording) {
    let (trace, out) = (fixture(name), out.to_str().unwrap());
    let ran = run("replay", ["import", trace.to_str().unwrap(), "--out", out]).expect(0);
    run("analyze", ["check", out]).expect(0);
    (ran.stderr, Recording::open(Path::new(out)).unwrap())
}

#[test]
fn every_format_is_told_by_its_looks_and_imported_whole() {
    let dir = tempfile::tempdir().unwrap();
    for (name, format, rows) in [
        ("azure.csv", "azure", 4),
        ("burstgpt.csv", "burstgpt", 3),
        ("mooncake.jsonl", "mooncake", 4),
        ("bailian.jsonl", "bailian", 2),
        ("ragpulse.jsonl", "ragpulse", 2),
        ("weka", "weka", 5),
        ("servegen", "servegen", 18),
    ] {
        let (said, recording) = import(name, &dir.path().join(name));
        assert!(
            said.contains(&format!("is {format}, by its looks")),
            "{said}"
        );
        assert!(said.contains(&format!("{rows} rows over")), "{said}");
        let requests = measured(&recording);
        assert_eq!(requests.len(), rows, "{name}");
        assert_eq!(requests[0].t_scheduled_ns, Some(0), "{name}");
        assert!(requests.is_sorted_by_key(|r| r.t_scheduled_ns), "{name}");
        assert!(
            requests
                .iter()
                .all(|r| r.t_sent_ns.is_none() && r.body.is_none())
        );
        let responses = responses(&recording);
        assert!(responses.iter().all(|r| r.outcome == Outcome::Imported));
        let workload = recording.manifest.workload.unwrap();
        assert_eq!(
            (workload.kind.as_str(), workload.content_hash.unwrap().len()),
            (format, 32)
        );
    }
}

#[test]
fn an_import_keeps_ends_sessions_parents_and_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let (said, recording) = import("weka", &dir.path().join("w"));
    assert!(said.contains("would hit 33.3 % of 9 blocks"), "{said}");
    let requests = measured(&recording);
    let session = |r: &RequestRow| r.session_id.as_deref().map(str::to_owned);
    let turns: Vec<_> = requests
        .iter()
        .map(|r| (session(r).unwrap(), r.turn, r.parent_request_id))
        .collect();
    let expected = [
        ("one", 0, None),
        ("two", 0, None),
        ("one/a1", 0, Some(0)),
        ("one/a1", 1, Some(2)),
        ("one", 1, Some(0)),
    ];
    let expected: Vec<_> = expected
        .map(|(s, turn, parent)| (s.to_owned(), Some(turn), parent))
        .into();
    assert_eq!(turns, expected);
    assert_eq!(requests[0].block_runs.as_deref(), Some(&[(0, 2)][..]));
    assert_eq!(requests[0].block_size, Some(64));
    let responses = responses(&recording);
    assert_eq!(responses[0].t_end_ns, Some(200_000_000));
    assert_eq!(
        (responses[0].output_tokens, responses[2].t_end_ns),
        (Some(0), None)
    );
}

#[test]
fn bad_rows_are_named_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.csv");
    let good = std::fs::read_to_string(fixture("azure.csv")).unwrap();
    std::fs::write(
        &trace,
        format!("{good}\r\n2023-11-16 18:15:47,x,1\r\n,,\r\n"),
    )
    .unwrap();
    let (trace, out) = (trace.to_str().unwrap(), dir.path().join("r"));
    let args = ["import", trace, "--out", out.to_str().unwrap()];
    let refused = run("replay", args).expect(2);
    assert!(
        refused.stderr.contains("t.csv line 6"),
        "{}",
        refused.stderr
    );
    let said = run("replay", args.iter().chain(&["--skip-bad"]))
        .expect(0)
        .stderr;
    assert!(said.contains("2 bad rows are left out"), "{said}");
    let recording = Recording::open(&out).unwrap();
    let mark = &recording.rows(Table::Marks).unwrap().marks[0];
    let detail: Value = serde_json::from_str(&mark.detail).unwrap();
    assert_eq!(
        (&*mark.name, &detail["rows"], &detail["bad_rows"]),
        ("imported", &json!(4), &json!(2))
    );
}

#[test]
fn a_trace_is_planned_and_filtered_without_an_import() {
    let plan = |rest: &[&str]| {
        let trace = fixture("mooncake.jsonl");
        run(
            "replay",
            ["plan", trace.to_str().unwrap()].iter().chain(rest),
        )
        .expect(0)
        .stdout
    };
    let all = plan(&[]);
    let third = all.lines().nth(3).unwrap();
    assert!(third.starts_with("2,0.300000000,,0,1100,5,"), "{third}");
    assert_eq!(plan(&["--limit", "2"]).lines().count(), 3);
    let some = plan(&["--where", "input_tokens > 650", "--speed", "2"]);
    let ids: Vec<_> = some
        .lines()
        .skip(1)
        .map(|l| l.split(',').take(2).collect::<Vec<_>>())
        .collect();
    assert_eq!(ids, [["1", "0.000000000"], ["2", "0.150000000"]]);
    let spread = plan(&["--dequantize", "--seed", "3"]);
    assert_ne!(spread, all);
    assert_eq!(spread, plan(&["--dequantize", "--seed", "3"]));
}

/// A tokenizer with one token for each of some words.
fn tokenizer(dir: &Path) -> PathBuf {
    let words: Vec<String> = (b'a'..=b'z')
        .map(|c| format!("w{}", char::from(c)))
        .collect();
    let vocab: serde_json::Map<String, Value> = std::iter::once("[UNK]".to_owned())
        .chain(words)
        .zip(0..)
        .map(|(word, id)| (word, json!(id)))
        .collect();
    let path = dir.join("tokenizer.json");
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

fn prompt_of(row: &RequestRow) -> Vec<String> {
    let body: Value = serde_json::from_slice(row.body.as_ref().unwrap()).unwrap();
    let text = body["messages"][0]["content"].as_str().unwrap();
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_trace_and_its_import_are_replayed_alike_with_exact_prompts_and_pinned_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tokenizer = tokenizer(dir.path());
    import("mooncake.jsonl", &dir.path().join("imported"));
    let trace = fixture("mooncake.jsonl").display().to_string();
    let mut replays = Vec::new();
    for (source, out) in [(trace, path("a")), (path("imported"), path("b"))] {
        let line = format!(
            "run {source} --url sim:?ttft_ms=1&itl_ms=1&tokens=50 --tokenizer-path {} --json --out {out}",
            tokenizer.display()
        );
        let said = run_line("replay", &line).expect(0).stderr;
        assert!(
            said.contains("the first 4 were counted and are exact"),
            "{said}"
        );
        replays.push(Recording::open(Path::new(&out)).unwrap());
    }
    let [first, second] = replays.as_slice() else {
        unreachable!()
    };
    let rows = measured(first);
    let bodies = |rows: &[RequestRow]| rows.iter().map(|r| r.body.clone()).collect::<Vec<_>>();
    assert_eq!(bodies(&rows), bodies(&measured(second)));
    let start = rows[0].t_scheduled_ns.unwrap();
    let offsets: Vec<_> = rows
        .iter()
        .map(|r| (r.t_scheduled_ns.unwrap() - start) / 1_000_000)
        .collect();
    assert_eq!(offsets, [0, 0, 300, 301]);
    let prompts: Vec<_> = rows.iter().map(prompt_of).collect();
    let lengths: Vec<_> = prompts.iter().map(Vec::len).collect();
    assert_eq!(lengths, [600, 700, 1100, 40]);
    // Block 0 is in three, block 2 in the second and, whole, in the third.
    assert_eq!(prompts[0][..512], prompts[1][..512]);
    assert_eq!(prompts[1][..700], prompts[2][..700]);
    assert_ne!(prompts[0][512..600], prompts[1][512..600]);
    let sent: Vec<_> = rows.iter().map(|r| (r.input_tokens, r.replay_of)).collect();
    assert_eq!(
        sent,
        [
            (Some(600), Some(0)),
            (Some(700), Some(1)),
            (Some(1100), Some(2)),
            (Some(40), Some(3))
        ]
    );
    let outputs: Vec<_> = responses(first)
        .iter()
        .skip(1)
        .map(|r| r.output_tokens)
        .collect();
    assert_eq!(outputs, [Some(3), Some(4), Some(5), Some(1)]);
    let manifest = &first.manifest;
    let workload = manifest.workload.as_ref().unwrap();
    assert_eq!(
        (workload.kind.as_str(), workload.path.is_some()),
        ("mooncake", true)
    );
    assert_eq!(manifest.settings["replay_of_recording_id"], Value::Null);
    assert_eq!(manifest.settings["trace"]["rows"], 4);
    assert_eq!(manifest.settings["synthesis"]["exact_prompts"], 4);
}

/// The hash of what was sent is keyed where texts are not kept. The trace's own is not,
/// where it has no texts: by it the import is found.
#[test]
fn a_replay_that_keeps_no_texts_is_still_compared_with_the_import() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    import("mooncake.jsonl", &dir.path().join("imported"));
    let replayed = |name: &str, source: &str, flags: &str| {
        let (source, out) = (fixture(source), path(name));
        let line = format!(
            "run {} --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --content hashed --json --out {out} {flags}",
            source.display()
        );
        run_line("replay", &line).expect(0);
        Recording::open(Path::new(&out)).unwrap().manifest
    };
    let manifest = replayed("hashed", "mooncake.jsonl", "");
    let of_trace = &manifest.settings["trace"]["content_hash"];
    let imported = Recording::open(Path::new(&path("imported"))).unwrap();
    let hash = |manifest: &Manifest| manifest.workload.clone().unwrap().content_hash;
    assert_eq!(of_trace.as_str(), hash(&imported.manifest).as_deref());
    assert_ne!(of_trace.as_str(), hash(&manifest).as_deref());
    let compare = [
        "compare",
        &path("imported"),
        &path("hashed"),
        "--format",
        "json",
    ];
    let compared: Value = serde_json::from_str(&run("analyze", compare).expect(0).stdout).unwrap();
    let compared = &compared["comparisons"][0];
    assert_eq!(compared["pairing"]["pairing"], "replay");
    let schedule = &compared["fidelity"][0]["schedule"];
    assert_eq!(
        (&schedule["replayed"], &schedule["missing"]),
        (&json!(4), &json!(0))
    );

    let manifest = replayed("texts", "aiperf_inputs.json", "--limit 1");
    assert_eq!(manifest.settings["trace"]["content_hash"], Value::Null);
}

#[test]
fn without_a_tokenizer_prompts_are_words_and_outputs_may_be_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "run {} --from azure --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --pin-output off --api openai-completions --json --out {}",
        fixture("azure.csv").display(),
        out.display()
    );
    let said = run_line("replay", &line).expect(0).stderr;
    assert!(said.contains("one common word for each token"), "{said}");
    let recording = Recording::open(&out).unwrap();
    let rows = measured(&recording);
    let body: Value = serde_json::from_slice(rows[0].body.as_ref().unwrap()).unwrap();
    assert_eq!(body["prompt"].as_str().unwrap().split(' ').count(), 37);
    assert!(
        body.get("max_tokens").is_none() && body.get("ignore_eos").is_none(),
        "{body}"
    );
    assert_eq!(rows[0].input_tokens_source.as_deref(), Some("trace"));
}

#[test]
fn recorded_bodies_are_pinned_when_asked_and_never_where_decoding_is_constrained() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t.jsonl");
    let row = |t: u32, more: &str| {
        format!(
            "{{\"timestamp\": {t}, \"body\": {{\"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], \"stream\": true{more}}}, \"completion_tokens\": 7}}\n"
        )
    };
    let constrained = r#", "response_format": {"type": "json_object"}, "max_tokens": 3"#;
    std::fs::write(&trace, row(1, "") + &row(1, constrained)).unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "run {} --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --pin-output max --json --out {}",
        trace.display(),
        out.display()
    );
    run_line("replay", &line).expect(0);
    let recording = Recording::open(&out).unwrap();
    let bodies: Vec<Value> = measured(&recording)
        .iter()
        .map(|r| serde_json::from_slice(r.body.as_ref().unwrap()).unwrap())
        .collect();
    assert_eq!(
        (&bodies[0]["max_tokens"], &bodies[1]["max_tokens"]),
        (&json!(7), &json!(3))
    );
    assert!(bodies.iter().all(|b| b.get("min_tokens").is_none()));
}
