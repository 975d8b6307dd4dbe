//! What lesser modes keep: block ids that a cache-faithful replay needs, and
//! redacted recordings that still give their numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tapedeck_recording::{EventBatch, Manifest};

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::programs::run;
use crate::support::proxy::{ProxyProcess, converse, post, rows};

/// A token of its own for each letter, in `dir`.
fn letters(dir: &Path) -> PathBuf {
    let path = dir.join("tokenizer.json");
    let words = ('a'..='z').map(|c| c.to_string());
    let words = std::iter::once("[UNK]".to_owned()).chain(words);
    let vocab: serde_json::Map<_, _> = words.zip((0..).map(|id: i32| id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

const PROMPTS: [&str; 4] = ["a b c d e f g", "a b c d x y", "x y e f", "a b c d e f g"];

/// Ids of blocks of two letters: equal beginnings are equal, `e f` behind other
/// words is not.
const RUNS: [&[(i64, i32)]; 4] = [&[(0, 4)], &[(0, 2), (4, 1)], &[(5, 2)], &[(0, 4)]];

#[track_caller]
fn assert_blocks(rows: &EventBatch) {
    assert_eq!(rows.requests.len(), PROMPTS.len());
    for (request, (prompt, runs)) in rows.requests.iter().zip(PROMPTS.iter().zip(RUNS)) {
        assert_eq!(request.block_runs.as_deref(), Some(runs), "{prompt}");
        assert_eq!(request.block_size, Some(2));
        let tokens = prompt.split(' ').count();
        assert_eq!(request.input_tokens, Some(tokens as i32));
        assert_eq!(request.input_tokens_source.as_deref(), Some("tokenizer"));
        assert!(request.body.is_none() && request.body_hash.is_some());
    }
}

fn hashed_load(mock: &MockLlm, dir: &Path, name: &str) -> PathBuf {
    let (tokenizer, prompts) = (letters(dir), dir.join("prompts.txt"));
    fs::write(&prompts, PROMPTS.join("\n")).unwrap();
    let out = dir.join(name);
    let line = format!(
        "load --url {} --model m --dataset line_by_line --dataset-path {} --tokenizer-path {} \
         --content hashed --block-size 2 --no-probe --json --out {}",
        mock.url(),
        prompts.display(),
        tokenizer.display(),
        out.display()
    );
    run("record", line.split_whitespace()).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    out
}

#[test]
fn hashed_prompts_of_a_load_keep_their_common_beginnings() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let one = hashed_load(&mock, dir.path(), "one");
    let other = hashed_load(&mock, dir.path(), "other");
    let (first, second) = (rows(&one), rows(&other));
    assert_blocks(&first);
    assert_blocks(&second);
    let hash = |rows: &EventBatch, at: usize| rows.requests[at].body_hash.clone();
    assert_eq!(hash(&first, 0), hash(&first, 3), "equal within a recording");
    assert_ne!(
        hash(&first, 0),
        hash(&second, 0),
        "another recording, another key"
    );
    let blocks = &Manifest::load(&one).unwrap().settings["blocks"];
    assert_eq!(
        (&blocks["size"], &blocks["unit"]),
        (&2.into(), &"tokens".into())
    );
    assert!(blocks["tokenizer"]["content_hash"].is_string());
}

fn body(prompt: &str) -> String {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": prompt}]})
        .to_string()
}

#[test]
fn hashed_prompts_of_a_proxy_are_those_of_a_load() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = letters(dir.path());
    let root = dir.path().join("recordings");
    // Blocks are numbered in the order in which prompts reach the writer: several
    // workers hand theirs over in any order.
    let flags = [
        "--workers",
        "1",
        "--content",
        "hashed",
        "--block-size",
        "2",
        "--tokenizer-path",
    ];
    let flags = [&flags[..], &[tokenizer.to_str().unwrap()]].concat();
    let proxy = ProxyProcess::start(&mock.url(), &root, &flags);
    for prompt in PROMPTS {
        let request = post("/v1/chat/completions", "", &body(prompt));
        converse(proxy.addr, &request, Duration::from_secs(5));
    }
    assert_blocks(&proxy.finish());
}

#[test]
fn a_client_may_have_its_own_prompt_hashed() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--redact", "/model"]);
    for wish in ["full", "hashed", "lengths"] {
        let header = format!("x-tapedeck-record: {wish}\r\n");
        let request = post("/v1/chat/completions", &header, &body(&"a b".repeat(30)));
        converse(proxy.addr, &request, Duration::from_secs(5));
    }
    let rows = proxy.finish();
    let kept = |at: usize| {
        let row = &rows.requests[at];
        (
            row.body.is_some(),
            row.body_hash.is_some(),
            row.block_runs.as_deref(),
        )
    };
    assert_eq!(kept(0), (true, true, None));
    assert_eq!(
        kept(1),
        (false, true, Some(&[(0, 2)][..])),
        "64 bytes a block"
    );
    assert_eq!(kept(2), (false, false, None));
    let full = rows.requests[0].body.as_deref().unwrap();
    let full: serde_json::Value = serde_json::from_slice(full).unwrap();
    assert_eq!(
        (full["model"].as_str(), full["stream"].as_bool()),
        (Some("[redacted]"), Some(true))
    );
}

#[test]
fn what_was_redacted_gives_the_same_numbers_and_no_made_up_ones() {
    let mock = MockLlm::start(Script::always(Stream::chat(5, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let prompt = "call 555-1234 or 555-9876";
    let mut line = vec![
        "load",
        "--model",
        "m",
        "--number",
        "3",
        "--no-probe",
        "--json",
    ];
    let url = mock.url();
    line.extend([
        "--url",
        &url,
        "--prompt",
        prompt,
        "--redact",
        r"re:\d{3}-\d{4}",
    ]);
    line.extend([
        "--redact",
        "/choices/*/delta/content",
        "--out",
        out.to_str().unwrap(),
    ]);
    run("record", line).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let rows = rows(&out);
    for request in &rows.requests {
        let body = request.body.as_deref().unwrap();
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(
            body["messages"][0]["content"],
            "call [redacted] or [redacted]"
        );
        let sent = &mock.ledger()[0].request.body;
        assert_eq!(request.body_bytes, sent.len() as i64);
        // Of what was sent, and of no use to who guesses it.
        let hash = request.body_hash.as_deref();
        assert!(hash.is_some() && hash != Some(&tapedeck_recording::body_hash(sent)));
    }
    let chunks = rows.chunks.rows.iter().filter(|c| c.request_id == 0);
    let lengths: Vec<_> = chunks.map(|c| (c.kind.as_str(), c.bytes)).collect();
    assert_eq!(lengths.len(), 8);
    assert!(
        lengths[..5]
            .iter()
            .all(|(kind, bytes)| *kind == "content" && *bytes > 150)
    );
    let tokenizer = letters(dir.path());
    let query = |sql| {
        let path = [out.to_str().unwrap(), sql];
        let flag = [
            "--tokenizer-path",
            tokenizer.to_str().unwrap(),
            "--format",
            "csv",
        ];
        run("analyze", ["query"].iter().chain(&path).chain(&flag))
            .expect(0)
            .stdout
    };
    let found =
        query("SELECT min(output_tokens) AS n, min(ttft_ms) >= 0 AS t FROM request_latency");
    assert_eq!(found, "n,t\n5,true\n");
    assert_eq!(query("SELECT count(*) AS n FROM tokenized"), "n\n0\n");
    let settings = Manifest::load(&out).unwrap().settings;
    assert_eq!(
        settings["redact"],
        json!([r"re:\d{3}-\d{4}", "/choices/*/delta/content"])
    );
}

#[test]
fn a_text_that_a_command_prints_is_not_in_the_manifest_either() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let url = mock.url();
    for (name, hiding) in [
        ("hashed", ["--content", "hashed"]),
        ("lengths", ["--content", "lengths"]),
        ("redacted", ["--redact", "/messages/*/content"]),
    ] {
        let out = dir.path().join(name);
        let mut words = vec![
            "load",
            "--url",
            &url,
            "--model",
            "m",
            "--no-probe",
            "--json",
        ];
        words.extend(hiding);
        words.extend(["--dataset-command", "printf 'open sesame\\n'", "--out"]);
        words.push(out.to_str().unwrap());
        run("record", words).expect(0);
        let manifest = fs::read_to_string(out.join("recording.json")).unwrap();
        assert!(!manifest.contains("sesame"), "{manifest}");
        // Nor what the text would be found by, with a list of likely ones.
        let plain = tapedeck_recording::body_hash(b"open sesame\n");
        assert!(!manifest.contains(&plain), "{manifest}");
    }
    let sent = mock.ledger()[0].request.json().unwrap();
    assert_eq!(sent["messages"][0]["content"], "open sesame");
}
