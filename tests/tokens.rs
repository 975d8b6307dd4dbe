//! Tokens that no server counted.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tapedeck_recording::manifest::Manifest;

use crate::support::mock_llm::replies::{
    LAST_CHUNK, SSE_HEAD, chat_delta, http_chunk, json as whole_json, sse,
};
use crate::support::mock_llm::{MockLlm, Reply, Script, Step};
use crate::support::programs::run;

/// A tokenizer in `dir` that makes a token of every word.
pub(crate) fn word_tokenizer(dir: &Path) -> PathBuf {
    let path = dir.join("tokenizer.json");
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    });
    fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

/// Four words in three chunks, two of them across a border, and no usage.
fn streamed() -> Reply {
    let deltas = [
        r#"{"role":"assistant","content":""}"#,
        r#"{"reasoning_content":"to b"}"#,
        r#"{"content":"e or"}"#,
        r#"{"content":" not"}"#,
    ];
    let mut body = Vec::new();
    for delta in deltas {
        body.extend(http_chunk(&sse(&chat_delta(delta, None))));
    }
    body.extend(http_chunk(&sse(&chat_delta("{}", Some("stop")))));
    body.extend(http_chunk(&sse("[DONE]")));
    body.extend(LAST_CHUNK);
    vec![Step::send(SSE_HEAD), Step::pause_ms(5), Step::send(body)].into()
}

fn not_streamed() -> Reply {
    whole_json(
        200,
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"to be or"},"finish_reason":"stop"}]}"#,
    )
}

/// A recording of one streamed and one whole answer to a prompt of two words.
fn record(dir: &Path) -> PathBuf {
    let mock = MockLlm::start(Script::in_order(vec![streamed(), not_streamed()]));
    let out = dir.join("r");
    let (url, path) = (mock.url(), out.to_str().unwrap());
    let arguments = [
        "load",
        "--url",
        &url,
        "--model",
        "m",
        "--prompt",
        "hello world",
    ];
    let more = [
        "--number",
        "2",
        "--no-probe",
        "--json",
        "--no-report",
        "--out",
        path,
    ];
    run("record", arguments.into_iter().chain(more)).expect(0);
    out
}

fn query(recording: &Path, more: &[&str], sql: &str) -> Value {
    let path = recording.to_str().unwrap();
    let arguments = ["query", path, sql, "--format", "json"];
    let ran = run("analyze", arguments.iter().chain(more)).expect(0);
    serde_json::from_str(&ran.stdout).unwrap()
}

const COUNTED: &str = "SELECT input_tokens, input_tokens_source, output_tokens, \
                       output_tokens_source FROM request_latency ORDER BY request_id";

#[test]
fn a_tokenizer_counts_what_the_server_did_not() {
    let dir = tempfile::tempdir().unwrap();
    let out = record(dir.path());
    let tokenizer = word_tokenizer(dir.path());
    let unknown = json!({
        "input_tokens": null, "input_tokens_source": null,
        "output_tokens": null, "output_tokens_source": null
    });
    assert_eq!(query(&out, &[], COUNTED), json!([unknown, unknown]));
    let counted = |output: i64| {
        json!({
            "input_tokens": 2, "input_tokens_source": "tokenizer",
            "output_tokens": output, "output_tokens_source": "tokenizer"
        })
    };
    let flag = ["--tokenizer-path", tokenizer.to_str().unwrap()];
    let expected = json!([counted(4), counted(3)]);
    assert_eq!(query(&out, &flag, COUNTED), expected);

    let report = |more: &[&str]| {
        let arguments = ["report", out.to_str().unwrap()];
        run("analyze", arguments.iter().chain(more))
            .expect(0)
            .stdout
    };
    let plain = report(&[]);
    assert!(plain.contains("uncounted_requests"), "{plain}");
    assert!(!plain.contains("token_sources"), "{plain}");
    let text = report(&flag);
    assert!(!text.contains("uncounted_requests"), "{text}");
    assert!(
        text.contains("0 from the stream, 2 from the tokenizer"),
        "{text}"
    );

    // A recording that names its tokenizer needs no flag, as long as the file is
    // the one it names.
    let mut manifest = Manifest::load(&out).unwrap();
    let hash = tapedeck_tokens::content_hash(&tokenizer).unwrap();
    let named = json!({"path": tokenizer, "content_hash": hash});
    manifest.settings["dataset"] = json!({"tokenizer": named});
    manifest.store(&out).unwrap();
    assert_eq!(query(&out, &[], COUNTED), expected);
    fs::write(&tokenizer, fs::read_to_string(&tokenizer).unwrap() + "\n").unwrap();
    assert_eq!(query(&out, &[], COUNTED), json!([unknown, unknown]));
}

#[test]
fn token_count_is_a_function_of_sql() {
    let dir = tempfile::tempdir().unwrap();
    let out = record(dir.path());
    let tokenizer = word_tokenizer(dir.path());
    let path = tokenizer.to_str().unwrap();
    let sql = format!(
        "SELECT sum(token_count(output_text(data), '{path}')) AS chunks, \
         max(token_count('to be', '{path}')) AS text, \
         max(token_count(NULL, '{path}')) AS no_text, \
         max(token_count('to be', NULL)) AS no_tokenizer \
         FROM chunks"
    );
    let expected = json!([{"chunks": 5, "text": 2, "no_text": null, "no_tokenizer": null}]);
    assert_eq!(query(&out, &[], &sql), expected);
    let folder = dir.path().to_str().unwrap();
    let sql = "SELECT token_count(input_text(body)) AS n FROM requests";
    let flag = ["--tokenizer-path", folder];
    assert_eq!(query(&out, &flag, sql), json!([{"n": 2}, {"n": 2}]));

    let fails = |arguments: &[&str], message: &str| {
        let all = ["query", out.to_str().unwrap()];
        let ran = run("analyze", all.iter().chain(arguments)).expect(2);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
        assert!(ran.stderr.contains("\nhint: "), "{}", ran.stderr);
    };
    fails(&[sql], "token_count(text) has no tokenizer");
    fails(
        &["SELECT token_count(data, 'x') FROM chunks"],
        "counts text",
    );
    fails(
        &["SELECT token_count('x', 'nowhere.json')"],
        "cannot read the tokenizer nowhere.json",
    );
    fails(
        &["SELECT 1", "--tokenizer-path", "nowhere"],
        "cannot read the tokenizer nowhere",
    );
}

/// An API of nobody else's, whose events have all of the text so far.
const OWN_DIALECT: &str = r#"
version = 1
[request]
path = "/own"
body = '{"dialogue": "%messages", "stream": "%stream"}'
[response]
text_is = "cumulative"
text = "/said/so_far"
done_data = "[DONE]"
"#;

fn own_answer() -> Reply {
    let events = [
        r#"{"said":{"so_far":"to"}}"#,
        r#"{"said":{"so_far":"to be or"}}"#,
        "[DONE]",
    ];
    let mut steps = vec![Step::send(SSE_HEAD)];
    for event in events {
        steps.push(Step::pause_ms(1));
        steps.push(Step::send(http_chunk(&sse(event))));
    }
    steps.push(Step::send(LAST_CHUNK));
    steps.into()
}

#[test]
fn a_dialect_of_ones_own_has_its_text_heard_counted_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mock = MockLlm::start(Script::always(own_answer()));
    let [dialect, prompts, out] = ["own.toml", "q.txt", "r"].map(|name| dir.path().join(name));
    fs::write(&dialect, OWN_DIALECT).unwrap();
    fs::write(&prompts, "hello world\nand then\n").unwrap();
    let line = format!(
        "load --url {} --api {} --dataset-path {} --num-turns 2 --parallel 1 --no-probe \
         --no-report --json --out {}",
        mock.url(),
        dialect.display(),
        prompts.display(),
        out.display()
    );
    run("record", line.split_whitespace()).expect(0);
    let said: Vec<Value> = mock
        .ledger()
        .iter()
        .map(|served| served.request.json().unwrap()["dialogue"].clone())
        .collect();
    let user = |text: &str| json!({"role": "user", "content": text});
    let reply = json!({"role": "assistant", "content": "to be or"});
    assert_eq!(
        said,
        [
            json!([user("hello world")]),
            json!([user("hello world"), reply, user("and then")])
        ]
    );

    // The recording brings its dialect.
    fs::remove_file(&dialect).unwrap();
    let tokenizer = word_tokenizer(dir.path());
    let flag = ["--tokenizer-path", tokenizer.to_str().unwrap()];
    let sql = "SELECT input_tokens, output_tokens FROM request_latency ORDER BY request_id";
    assert_eq!(
        query(&out, &flag, sql),
        json!([
            {"input_tokens": 2, "output_tokens": 3},
            {"input_tokens": 7, "output_tokens": 3}
        ])
    );
    let sql = "SELECT max(output_text(data, api)) AS said, max(output_text(data)) AS guessed, \
               max(text_is(api)) AS kind, max(output_text(data, 'no such')) AS unknown \
               FROM chunks JOIN requests USING (recording_id, request_id, attempt)";
    assert_eq!(
        query(&out, &[], sql),
        json!([{
            "said": "to be or", "guessed": "to be or", "kind": "cumulative", "unknown": null
        }])
    );
    let shown = run("analyze", ["explain", out.to_str().unwrap(), "0"]).expect(0);
    // What each event has anew, not twice what both have.
    let answer = "\nAnswer\n  to be or\n";
    assert!(shown.stdout.contains(answer), "{}", shown.stdout);
}
