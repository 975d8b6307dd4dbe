use proptest::prelude::*;

use super::*;
use ChunkKind::{Content, Done, Other, Reasoning, Role, Tool};

fn read(payload: &str) -> Meaning {
    interpret(None, payload.as_bytes())
}

fn delta(fields: &str) -> Meaning {
    read(&format!(
        r#"{{"id":"c","choices":[{{"index":0,"delta":{{{fields}}},"finish_reason":null}}]}}"#
    ))
}

#[track_caller]
fn kinds(cases: &[(&str, ChunkKind)]) {
    for (fields, kind) in cases {
        let meaning = delta(fields);
        assert_eq!(meaning.kind, *kind, "{fields}");
        assert!(!meaning.malformed, "{fields}");
    }
}

#[test]
fn text_that_is_not_empty_is_content() {
    kinds(&[
        (r#""content":" the""#, Content),
        (r#""role":"assistant","content":"x""#, Content),
        (r#""content":[{"type":"text","text":"x"}]"#, Content),
        (r#""refusal":"no""#, Content),
        (
            r#""content":"x","reasoning":"y","tool_calls":[{"function":{"name":"f"}}]"#,
            Content,
        ),
    ]);
    assert_eq!(
        read(r#"{"choices":[{"index":0,"text":"x"}]}"#).kind,
        Content
    );
    assert_eq!(
        read(r#"{"choices":[{"message":{"role":"assistant","content":"x"}}]}"#).kind,
        Content
    );
}

#[test]
fn empty_text_is_nothing_and_a_role_alone_is_role() {
    kinds(&[
        (r#""content":"""#, Other),
        (
            r#""content":null,"reasoning":null,"tool_calls":null"#,
            Other,
        ),
        (r#""content":[{"type":"text","text":""}]"#, Other),
        (r#""content":[]"#, Other),
        (r#""tool_calls":[]"#, Other),
        (r#""reasoning_content":"""#, Other),
        ("", Other),
        (r#""role":"assistant","content":"""#, Role),
        (r#""role":"assistant","content":null"#, Role),
        (r#""role":"""#, Other),
    ]);
    assert_eq!(read(r#"{"choices":[{"index":0,"text":""}]}"#).kind, Other);
}

#[test]
fn tool_calls_are_tool_unless_they_say_nothing() {
    kinds(&[
        (
            r#""tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]"#,
            Tool,
        ),
        (
            r#""tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]"#,
            Tool,
        ),
        (
            r#""tool_calls":[{"index":0,"type":"function","function":{"arguments":""}}]"#,
            Other,
        ),
        (r#""function_call":{"name":"f"}"#, Tool),
        (r#""function_call":null"#, Other),
        (
            r#""tool_calls":[{"function":{"name":"f"}}],"reasoning":"x""#,
            Tool,
        ),
    ]);
}

#[test]
fn reasoning_has_three_spellings() {
    kinds(&[
        (r#""reasoning":"x""#, Reasoning),
        (r#""reasoning_content":"x","content":"""#, Reasoning),
        (r#""reasoning":"x","reasoning_content":"x""#, Reasoning),
        (
            r#""role":"assistant","content":null,"reasoning_content":"x""#,
            Reasoning,
        ),
        (
            r#""content":[{"type":"thinking","thinking":[{"type":"text","text":"x"}]}]"#,
            Reasoning,
        ),
        (
            r#""content":[{"type":"thinking","thinking":[]},{"type":"text","text":"x"}]"#,
            Content,
        ),
    ]);
}

#[test]
fn done_and_finish_reasons_are_end_markers() {
    for payload in ["[DONE]", " [DONE] ", "[DONE]\n"] {
        let done = read(payload);
        assert_eq!((done.kind, done.end_marker), (Done, true));
    }
    let finish = read(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#);
    assert_eq!((finish.kind, finish.end_marker), (Other, true));
    assert_eq!(finish.finish_reason.as_deref(), Some("stop"));
    for none in ["null", "\"\"", "5", "{}"] {
        let open = read(&format!(
            r#"{{"choices":[{{"delta":{{}},"finish_reason":{none}}}]}}"#
        ));
        assert_eq!((open.end_marker, open.finish_reason), (false, None));
    }
}

#[test]
fn usage_is_read_from_a_chunk_of_any_kind() {
    let usage = r#""usage":{"prompt_tokens":11,"total_tokens":31,"completion_tokens":20,
        "prompt_tokens_details":{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":5}}"#;
    let all = Some(Usage {
        input_tokens: Some(11),
        output_tokens: Some(20),
        reasoning_tokens: Some(5),
        cached_tokens: Some(8),
    });
    let tail = read(&format!(r#"{{"choices":[],{usage}}}"#));
    assert_eq!(
        (tail.kind, tail.usage, tail.choice_index),
        (ChunkKind::Usage, all, None)
    );
    let finish = read(&format!(
        r#"{{"choices":[{{"index":0,"delta":{{"content":""}},"finish_reason":"length"}}],{usage}}}"#
    ));
    assert_eq!(
        (finish.kind, finish.usage, finish.end_marker),
        (ChunkKind::Usage, all, true)
    );
    let content = read(&format!(
        r#"{{{usage},"choices":[{{"index":0,"delta":{{"content":"x"}}}}]}}"#
    ));
    assert_eq!((content.kind, content.usage), (Content, all));
}

#[test]
fn usage_counts_are_missing_rather_than_zero() {
    let usage = |usage: &str| read(&format!(r#"{{"choices":[],"usage":{usage}}}"#)).usage;
    let input_only = Some(Usage {
        input_tokens: Some(3),
        ..Usage::default()
    });
    assert_eq!(
        usage(r#"{"input_tokens":3,"output_tokens":null}"#),
        input_only
    );
    assert_eq!(
        usage(r#"{"prompt_tokens":3.0,"completion_tokens":1e300,"prompt_tokens_details":null}"#),
        input_only
    );
    assert_eq!(
        usage(r#"{"prompt_tokens":3,"completion_tokens":-1}"#),
        input_only
    );
    assert_eq!(
        usage(r#"{"prompt_tokens":3,"completion_tokens":99999999999999999999999}"#),
        input_only
    );
    for none in [
        "null",
        "{}",
        "[]",
        "7",
        "\"x\"",
        r#"{"prompt_tokens":"three"}"#,
    ] {
        assert_eq!(usage(none), None, "{none}");
    }
    assert_eq!(read(r#"{"choices":[],"usage":null}"#).kind, Other);
    let in_choice = read(r#"{"choices":[{"index":0,"delta":{},"usage":{"completion_tokens":2}}]}"#);
    assert_eq!(
        in_choice.usage.and_then(|usage| usage.output_tokens),
        Some(2)
    );
}

#[test]
fn errors_come_in_many_shapes() {
    let cases = [
        (r#"{"error":{"message":"boom","code":500}}"#, "boom"),
        (r#"{"error":"boom"}"#, "boom"),
        (r#"{"error":{"type":"overloaded"}}"#, "overloaded"),
        (r#"{"error":{"code":5}}"#, r#"{"error":{"code":5}}"#),
        (r#"{"error":true,"message":"boom"}"#, "boom"),
        (r#"{"object":"error","message":"boom","code":400}"#, "boom"),
        (
            r#"{"error":{"message":"boom"},"choices":[{"index":0,"delta":{"content":"x"}}]}"#,
            "boom",
        ),
    ];
    for (payload, message) in cases {
        let meaning = read(payload);
        assert_eq!(
            (meaning.kind, meaning.error.as_deref()),
            (ChunkKind::Error, Some(message)),
            "{payload}"
        );
    }
    for fine in ["null", "\"\"", "false", "0", "[]"] {
        let meaning = read(&format!(
            r#"{{"error":{fine},"choices":[{{"delta":{{"content":"x"}}}}]}}"#
        ));
        assert_eq!((meaning.kind, meaning.error), (Content, None), "{fine}");
    }
}

#[test]
fn an_sse_event_named_error_is_an_error_whatever_it_holds() {
    let named = |payload: &str| interpret(Some("error"), payload.as_bytes());
    assert_eq!(
        named(r#"{"message":"boom"}"#).error.as_deref(),
        Some("boom")
    );
    assert_eq!(named("plain boom").error.as_deref(), Some("plain boom"));
    assert_eq!(named("").kind, ChunkKind::Error);
    assert!(!named("plain boom").malformed);
}

#[test]
fn fields_are_errors_server_fields_or_junk() {
    let old_llama = interpret_field(br#"error: {"code":500,"message":"boom"}"#);
    assert_eq!(
        (old_llama.kind, old_llama.error.as_deref()),
        (ChunkKind::Error, Some("boom"))
    );
    assert_eq!(interpret_field(b"error:").error.as_deref(), Some("error:"));
    for (line, malformed) in [
        ("retry: 5", false),
        ("x-trace_id:1", false),
        ("<html>", true),
        ("{\"a\":1}", true),
        ("dat", true),
    ] {
        let meaning = interpret_field(line.as_bytes());
        assert_eq!(
            (meaning.kind, meaning.malformed),
            (Other, malformed),
            "{line}"
        );
    }
}

#[test]
fn error_bodies_give_their_message() {
    let message = |body: &str| error_message(body.as_bytes());
    let cases = [
        (r#"{"error":{"message":"boom"}}"#, "boom"),
        (r#"{"message":"boom"}"#, "boom"),
        (r#"{"detail":"boom"}"#, "boom"),
        (r#"{"detail":[{"loc":["body"],"msg":"boom"}]}"#, "boom"),
        ("data: {\"error\":{\"message\":\"boom\"}}\n\n", "boom"),
        (r#"{"other":1}"#, r#"{"other":1}"#),
        ("  <html>bad gateway</html>\n", "<html>bad gateway</html>"),
    ];
    for (body, expected) in cases {
        assert_eq!(message(body).as_deref(), Some(expected), "{body}");
    }
    assert_eq!(message(" \n"), None);
    assert_eq!(
        message(&"é".repeat(1_000)).map(|m| m.chars().count()),
        Some(300)
    );
    let long = format!(r#"{{"error":"{}"}}"#, "é".repeat(100_000));
    assert_eq!(message(&long).map(|m| m.chars().count()), Some(4_096));
}

#[test]
fn the_choice_is_named_only_when_it_is_one() {
    let index = |choices: &str| read(&format!(r#"{{"choices":[{choices}]}}"#)).choice_index;
    let (a, b) = (
        r#"{"index":0,"delta":{"content":"x"}}"#,
        r#"{"index":3,"delta":{"content":"y"}}"#,
    );
    let empty = r#"{"index":1,"delta":{},"finish_reason":"stop"}"#;
    assert_eq!(index(b), Some(3));
    assert_eq!(index(empty), Some(1));
    assert_eq!(index(&[empty, b].join(",")), Some(3));
    assert_eq!(index(&[b, empty].join(",")), Some(3));
    assert_eq!(index(&[a, b].join(",")), None);
    assert_eq!(index(&[empty, empty].join(",")), None);
    for bearing in [r#""reasoning":"x""#, r#""tool_calls":[{"id":"c"}]"#] {
        let choice = format!(r#"{{"index":4,"delta":{{{bearing}}}}}"#);
        assert_eq!(index(&[empty, &choice].join(",")), Some(4));
    }
    assert_eq!(index(r#"{"delta":{"content":"x"}}"#), None);
    assert_eq!(index("null,5"), None);
    let both = read(&format!(r#"{{"choices":[{empty},{a}]}}"#));
    assert_eq!(
        (both.kind, both.finish_reason.as_deref()),
        (Content, Some("stop"))
    );
}

#[test]
fn tokens_are_ids_or_logprobs_and_never_guessed() {
    let tokens = |fields: &str| read(&format!(r#"{{"choices":[{{"index":0,{fields}}}]}}"#)).tokens;
    assert_eq!(
        tokens(r#""delta":{"content":"a b"},"token_ids":[1,2,3]"#),
        Some(3)
    );
    assert_eq!(
        tokens(
            r#""delta":{"content":"a"},"logprobs":{"content":[{"token":"a","top_logprobs":[]}]}"#
        ),
        Some(1)
    );
    assert_eq!(
        tokens(r#""text":"ab","logprobs":{"tokens":["a","b"],"text_offset":[0,1,2]}"#),
        Some(2)
    );
    assert_eq!(
        tokens(r#""text":"ab","logprobs":{"content":null},"token_ids":null"#),
        None
    );
    assert_eq!(tokens(r#""text":"ab","logprobs":null"#), None);
    let two = read(r#"{"choices":[{"token_ids":[1]},{"token_ids":[1,2]},{}]}"#);
    assert_eq!(two.tokens, Some(3));
}

#[test]
fn text_that_no_string_can_hold_is_still_read() {
    let invalid = [
        &b"{\"choices\":[{\"index\":2,\"delta\":{\"content\":\"\xF0\x9F"[..],
        b"\"}}]}",
    ]
    .concat();
    let meaning = interpret(None, &invalid);
    assert_eq!(
        (meaning.kind, meaning.malformed, meaning.choice_index),
        (Content, false, Some(2))
    );
    let in_skipped = [
        &b"{\"id\":\"\xFF\",\"\xFE\":1,\"choices\":[{\"delta\":{\"content\":\"x"[..],
        b"\"}}]}",
    ]
    .concat();
    assert_eq!(interpret(None, &in_skipped).kind, Content);
    kinds(&[
        (r#""content":"\ud83d""#, Content),
        (r#""content":"\ude00x""#, Content),
        (r#""content":"\ud83d\ude00""#, Content),
        (r#""content":"\\ud83d \ud83d\\""#, Content),
    ]);
}

#[test]
fn whole_pairs_survive_the_repair_of_halves() {
    let meaning = read(r#"{"error":"\ud83d\ude00 \ud83d \\ud83d"}"#);
    assert_eq!(meaning.error.as_deref(), Some("😀 \u{FFFD} \\ud83d"));
}

#[test]
fn unexpected_types_are_skipped() {
    for payload in [
        "null",
        "5",
        "\"x\"",
        "[1,{}]",
        "{}",
        r#"{"choices":null}"#,
        r#"{"choices":{"a":1}}"#,
        r#"{"choices":[null,1,[],{"delta":null},{"delta":[1],"index":"x","logprobs":7}]}"#,
        r#"{"object":null,"usage":[1],"choices":[{"delta":{"content":7,"role":1,"tool_calls":true}}]}"#,
        r#"{"created":1e999,"choices":[]}"#,
    ] {
        let meaning = read(payload);
        assert_eq!(
            (meaning.kind, meaning.malformed, meaning.error),
            (Other, false, None),
            "{payload}"
        );
    }
}

#[test]
fn what_is_no_json_is_malformed() {
    for payload in [
        "{",
        "not json",
        r#"{"choices":[{"delta":{"content":"x"}}"#,
        "{} {}",
        "[DONE",
    ] {
        let meaning = read(payload);
        assert_eq!(
            (meaning.kind, meaning.malformed),
            (Other, true),
            "{payload}"
        );
    }
    assert!(!read("").malformed, "an event without data is no bad one");
}

#[test]
fn deep_nesting_costs_no_stack() {
    let deep = |len: usize| format!("{}{}", "[".repeat(len), "]".repeat(len));
    for field in ["id", "choices", "usage", "error"] {
        drop(read(&format!(r#"{{"{field}":{}}}"#, deep(100_000))));
    }
    assert_eq!(
        delta(&format!(r#""content":{}"#, deep(100_000))).kind,
        Other
    );
}

fn json_piece() -> impl Strategy<Value = String> {
    let words = vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "1",
        "-1e9",
        "\"\"",
        "\"x\"",
        "\"\\ud800\"",
        "\"choices\":",
        "\"delta\":",
        "\"content\":",
        "\"usage\":",
        "\"error\":",
        "\"index\":",
        "\"logprobs\":",
        "\"finish_reason\":",
        "\"tool_calls\":",
        "\"message\":",
        "\"prompt_tokens\":",
    ];
    proptest::sample::select(words).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(interpret(Some("error"), &bytes));
        drop(interpret(None, &bytes));
        drop(interpret_field(&bytes));
        drop(error_message(&bytes));
    }

    #[test]
    fn almost_json_never_panics(pieces in proptest::collection::vec(json_piece(), 0..40)) {
        let payload = pieces.concat();
        let meaning = read(&payload);
        prop_assert_eq!(meaning.error.is_some(), meaning.kind == ChunkKind::Error);
        // What it calls malformed is what a strict parser refuses, and the reverse.
        if !payload.contains("\\ud800") && !payload.is_empty() {
            let strict = serde_json::from_str::<serde::de::IgnoredAny>(&payload).is_err();
            prop_assert_eq!(meaning.malformed, strict);
        }
    }
}
