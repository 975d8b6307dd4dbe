use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::dialect::Api;
use crate::openai;
use crate::response::{Chunk, End, ResponseReader, ResponseSpec};
use crate::words::ChunkKind::{Content, Error, Reasoning, Tool, Usage as UsageKind};
use crate::words::Outcome;

/// What the reader of OpenAI's APIs knows, spelled out as places.
const OPENAI: &str = r#"
version = 1
[request]
path = "/v1/chat/completions"
body = '{"messages": "%messages"}'
[response]
text = ["/choices/*/delta/content", "/choices/*/delta/refusal", "/choices/*/text", "/choices/*/message/content"]
reasoning = ["/choices/*/delta/reasoning", "/choices/*/delta/reasoning_content"]
tool = ["/choices/*/delta/tool_calls"]
role = "/choices/*/delta/role"
choice = "/choices/0/index"
tokens = ["/choices/0/token_ids", "/choices/0/logprobs/content"]
finish = "/choices/*/finish_reason"
done_data = "[DONE]"
error = "/error"
[response.usage]
input_tokens = "/usage/prompt_tokens"
output_tokens = "/usage/completion_tokens"
reasoning_tokens = "/usage/completion_tokens_details/reasoning_tokens"
cached_tokens = "/usage/prompt_tokens_details/cached_tokens"
"#;

fn api(text: &str) -> Api {
    Api::of(Dialect::parse(text, "own.toml", "own").unwrap())
}

/// The payloads of the streams in the conformance fixture of an OpenAI API.
fn fixture_payloads(toml: &str) -> Vec<String> {
    let fixture: toml::Table = toml.parse().unwrap();
    let cases = fixture["case"].as_array().unwrap();
    let bodies = cases.iter().map(|case| case["body"].as_str().unwrap());
    let lines = bodies.flat_map(str::lines);
    lines
        .map(|line| line.strip_prefix("data: ").unwrap_or(line).to_owned())
        .collect()
}

#[test]
fn the_general_reader_agrees_with_the_one_for_openai() {
    let api = api(OPENAI);
    let mut payloads = fixture_payloads(include_str!(
        "../../../../tests/fixtures/dialects/openai-chat.toml"
    ));
    payloads.extend(fixture_payloads(include_str!(
        "../../../../tests/fixtures/dialects/openai-completions.toml"
    )));
    assert!(payloads.len() > 15, "the fixtures are read");
    let more = [
        r#"{"choices":[{"index":3,"delta":{"content":null,"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{"}}]},"finish_reason":null}]}"#,
        r#"{"choices":[{"index":0,"delta":{"refusal":"no"},"finish_reason":"content_filter"}],"usage":null}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"ab"},"token_ids":[1,2]}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}"#,
        r#"{"error":{"type":"overloaded"}}"#,
        r#"{"error":"boom","choices":[]}"#,
        r#"{"error":null,"choices":[]}"#,
        r#"{"error":false}"#,
        r#"{"choices":"#,
        "junk",
        "",
    ];
    payloads.extend(more.map(str::to_owned));
    let mut general = Interpreter::new(api.dialect());
    let mut fast = openai::Interpreter::new();
    for payload in &payloads {
        for name in [None, Some("error")] {
            let expected = fast.interpret(name, payload.as_bytes());
            let found = general.interpret(name, payload.as_bytes());
            assert_eq!(found, expected, "{name:?} {payload}");
        }
    }
}

#[test]
fn cumulative_text_bears_content_when_it_has_grown() {
    let api = Api::from_word("sglang").unwrap();
    let mut reader = Interpreter::new(api.dialect());
    let mut read = |text: &str, index: i32, tokens: i32| {
        let document =
            json!({"text": text, "index": index, "meta_info": {"completion_tokens": tokens}});
        let meaning = reader.interpret(None, document.to_string().as_bytes());
        (meaning.kind, meaning.tokens)
    };
    assert_eq!(read("", 0, 0), (UsageKind, Some(0)));
    assert_eq!(read("ab", 0, 2), (Content, Some(2)));
    assert_eq!(read("ab", 0, 3), (UsageKind, Some(1)), "half a character");
    assert_eq!(
        read("ab", 1, 1),
        (Content, Some(1)),
        "each choice by itself"
    );
    assert_eq!(read("abé", 0, 4), (Content, Some(1)));
    assert_eq!(read("abc", 0, 4), (UsageKind, Some(0)), "taken back");
}

#[test]
fn conditions_choose_between_places() {
    let text = OPENAI
        .replace(
            "text = [",
            r#"text = [{ at = "/d", when = "/type", is = ["a", 7] }, { at = "/e", unless = "/special" }, "#,
        )
        .replace("error = \"/error\"", "error = \"/code\"\nerror_message = \"/message\"")
        .replace("input_tokens = \"", "input_tokens = \"/in + /cache + /other\"\nignored = \"")
        .replace("ignored = \"/usage/prompt_tokens\"\n", "");
    let api = api(&text);
    let read = |payload: &str| Interpreter::new(api.dialect()).interpret(None, payload.as_bytes());
    assert_eq!(read(r#"{"type":"a","d":"x"}"#).kind, Content);
    assert_eq!(read(r#"{"type":7,"d":"x"}"#).kind, Content);
    assert_eq!(read(r#"{"type":"b","d":"x"}"#).kind, ChunkKind::Other);
    assert_eq!(read(r#"{"e":"x","special":false}"#).kind, Content);
    assert_eq!(read(r#"{"e":"x","special":true}"#).kind, ChunkKind::Other);
    assert_eq!(
        read(r#"{"choices":[{"delta":{"reasoning":"x"}}]}"#).kind,
        Reasoning
    );
    assert_eq!(
        read(r#"{"choices":[{"delta":{"tool_calls":[{}]}}]}"#).kind,
        Tool
    );
    let failed = read(r#"{"code":"Bad","message":"too long"}"#);
    assert_eq!(
        (failed.kind, failed.error.as_deref()),
        (Error, Some("too long"))
    );
    assert_eq!(
        read(r#"{"code":"","message":"fine"}"#).kind,
        ChunkKind::Other
    );
    let input = |payload: &str| read(payload).usage.and_then(|usage| usage.input_tokens);
    assert_eq!(input(r#"{"in":3,"cache":4}"#), Some(7));
    assert_eq!(input(r#"{"cache":4}"#), None);
    assert_eq!(input(r#"{"in":-3}"#), None);
}

fn follow(api: Api, stream: &[u8], sizes: &[usize]) -> (Vec<(ChunkKind, Vec<u8>)>, Outcome, i64) {
    let mut reader = ResponseReader::new(ResponseSpec {
        api,
        stream_requested: true,
        status: 200,
        content_type: None,
        content_encoding: None,
    });
    let mut chunks = Vec::new();
    let mut out = |chunk: Chunk<'_, usize>| chunks.push((chunk.kind, chunk.data.to_vec()));
    let mut rest = stream;
    for (tag, size) in sizes.iter().cycle().enumerate() {
        if rest.is_empty() {
            break;
        }
        let (read, after) = rest.split_at((*size).min(rest.len()));
        reader.feed(tag, read, &mut out);
        rest = after;
    }
    let end = reader.finish(End::Clean, &mut out);
    (chunks, end.outcome, end.body_bytes)
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "data:",
        "data: ",
        "\n",
        "\n\n",
        "\r\n",
        "event: error\n",
        "{",
        "}",
        "[DONE]",
        "é",
        "<",
        r#"{"text":"a"}"#,
        r#"{"text":"ab","meta_info":{"completion_tokens":2,"finish_reason":{"type":"stop"}}}"#,
        r#"{"message":{"content":"x"},"done":false}"#,
        r#"{"message":{"content":""},"done":true,"done_reason":"stop","eval_count":3}"#,
        r#"{"token":{"id":1,"text":"x","special":false},"details":null}"#,
        r#"{"error":{"message":"no"}}"#,
        r#"{"type":"content_block_delta","delta":{"text":"x"}}"#,
        r#"[[[[{"a":[1,2,{}]}]]]]"#,
        "\"\\ud83d\"",
    ];
    let piece = prop_oneof![
        9 => proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// For every built-in dialect, every bytes and every partition of them into
    /// reads: no panic, and the same chunks, outcome and length.
    #[test]
    fn no_dialect_depends_on_reads(
        stream in streams(),
        sizes in proptest::collection::vec(1_usize..12, 1..8),
        which in any::<proptest::sample::Index>(),
    ) {
        let names: Vec<&str> = Api::built_in().map(|row| row.name).collect();
        let api = Api::from_word(names[which.index(names.len())]).unwrap();
        let whole = follow(api, &stream, &[usize::MAX]);
        prop_assert_eq!(whole, follow(api, &stream, &sizes), "{:?}", api);
    }
}
