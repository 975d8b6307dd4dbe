use std::path::Path;

use proptest::prelude::*;

use super::synthesis::{Shape, Synthesis};
use super::*;

fn spec(path: &Path, skip_bad: bool) -> TraceSpec {
    TraceSpec {
        path: path.to_owned(),
        format: None,
        skip_bad,
        block_size: None,
        seed: 0,
    }
}

/// The trace of a file `name` that holds `text`.
fn trace(name: &str, text: &str, skip_bad: bool) -> Result<Trace, TraceError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    read(&spec(&path, skip_bad))
}

fn lengths(trace: &Trace) -> Vec<(i64, Option<u32>, Option<u32>)> {
    let rows = trace.rows.iter();
    rows.map(|r| (r.t_ns - trace.rows[0].t_ns, r.input_tokens, r.output_tokens))
        .collect()
}

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
    2023-11-16 18:15:46.6805900,374,44\r\n\
    2023-11-16 18:15:50.9951690,396,109\r\n\
    2023-11-16 18:15:51.2224670,879,0";

#[test]
fn azure_is_read_to_the_hundred_nanoseconds() {
    let trace = trace("a.csv", AZURE, false).unwrap();
    assert_eq!(trace.format, Format::Azure);
    let expected = [
        (0, Some(374), Some(44)),
        (4_314_579_000, Some(396), Some(109)),
        (4_541_877_000, Some(879), Some(0)),
    ];
    assert_eq!(lengths(&trace), expected);
    let lint = trace.lint();
    assert_eq!((lint.no_input, lint.no_output), (0, 1));
    assert_eq!(lint.resolution_ns, 3_000);
}

#[test]
fn a_bad_row_is_named_or_left_out_and_counted() {
    let bad =
        format!("{AZURE}\r\nnonsense\r\n2023-11-16 18:15:52,-1,2\r\n2023-11-16 18:15:53,7,8\r\n");
    let refused = trace("a.csv", &bad, false).unwrap_err().to_string();
    assert!(refused.contains("a.csv line 5"), "{refused}");
    assert!(refused.contains("--skip-bad"), "{refused}");
    let trace = trace("a.csv", &bad, true).unwrap();
    assert_eq!((trace.rows.len(), trace.bad), (4, 2));
    assert!(trace.first_bad.as_deref().unwrap().contains("line 5"));
    let lint = trace.lint().to_string();
    assert!(lint.contains("2 bad rows are left out"), "{lint}");
}

#[test]
fn a_table_of_something_else_is_refused_whatever_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    std::fs::write(&path, "a,b\n1,2\n").unwrap();
    let named = TraceSpec {
        format: Some(Format::Azure),
        ..spec(&path, true)
    };
    let refused = read(&named).unwrap_err().to_string();
    assert!(refused.contains("no column TIMESTAMP"), "{refused}");
    let refused = read(&spec(&path, true)).unwrap_err().to_string();
    assert!(refused.contains("--from"), "{refused}");
}

#[test]
fn burstgpt_has_sessions_ends_and_failures() {
    let text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
        5,a,1.5,ChatGPT,472,18,490,Conversation log\n\
        45,,,GPT-4,1087,230,1317,API log\n\
        118,a,2,ChatGPT,417,0,417,Conversation log\n";
    let trace = trace("b.csv", text, false).unwrap();
    assert_eq!(trace.format, Format::BurstGpt);
    let [first, second, third] = trace.rows.as_slice() else {
        panic!("three rows");
    };
    assert_eq!(first.t_end_ns, Some(6_500_000_000));
    assert_eq!(
        (second.session.as_deref(), second.turn, second.t_end_ns),
        (None, None, None)
    );
    assert_eq!((third.session.as_deref(), third.turn), (Some("a"), Some(1)));
    assert_eq!(second.model.as_deref(), Some("GPT-4"));
}

/// Bursts of `n` at each multiple of three seconds, a conversation that grows.
fn mooncake(bursts: usize, n: usize) -> String {
    let row = |burst: usize, i: usize| {
        let ids: Vec<String> = (0..=burst).map(|b| (b * 10 + i).to_string()).collect();
        let t_ms = burst * 3_000 + usize::from(i > 0 && burst % 2 == 1);
        let length = burst * 512 + 100;
        format!(
            "{{\"timestamp\": {t_ms}, \"input_length\": {length}, \"output_length\": 5, \"hash_ids\": [{}]}}\n",
            ids.join(", ")
        )
    };
    (0..bursts)
        .flat_map(|burst| (0..n).map(move |i| row(burst, i)))
        .collect()
}

#[test]
fn mooncakes_clock_and_its_ideal_hits_are_found() {
    let trace = trace("m.jsonl", &mooncake(20, 3), false).unwrap();
    assert_eq!(
        (trace.format, trace.block_size),
        (Format::Mooncake, Some(512))
    );
    let lint = trace.lint();
    assert_eq!(lint.resolution_ns, 1_000_000);
    assert_eq!(lint.quantum.map(|(step, _)| step), Some(3_000_000_000));
    assert_eq!(lint.same_instant, 30);
    // Of 3 x (1 + ... + 20) blocks each burst adds three new ones.
    let blocks = lint.blocks.unwrap();
    assert_eq!(
        (blocks.blocks, blocks.hits, blocks.wrong_count),
        (630, 570, 0)
    );
    let text = lint.to_string();
    assert!(text.contains("multiples of 3 s"), "{text}");
    assert!(text.contains("90.5 % of 630 blocks"), "{text}");
}

#[test]
fn dequantizing_spreads_within_a_step_and_keeps_the_order() {
    let text = mooncake(20, 3);
    let original = trace("m.jsonl", &text, false).unwrap();
    let mut spread = trace("m.jsonl", &text, false).unwrap();
    assert_eq!(spread.dequantize(1), Some(3_000_000_000));
    assert!(spread.rows.is_sorted_by_key(|r| r.t_ns));
    for (before, after) in original.rows.iter().zip(&spread.rows) {
        assert_eq!(before.number, after.number);
        assert_eq!(before.t_ns / 3_000_000_000, after.t_ns / 3_000_000_000);
    }
    assert_eq!(spread.lint().same_instant, 0);
    let mut again = trace("m.jsonl", &text, false).unwrap();
    again.dequantize(1);
    assert!(again.rows == spread.rows);
    let mut reseeded = trace("m.jsonl", &text, false).unwrap();
    reseeded.dequantize(2);
    assert!(reseeded.rows != spread.rows);
}

#[test]
fn bailian_chats_follow_one_another() {
    let text = r#"{"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3, "type": "text", "turn": 1, "hash_ids": [90, 91]}
{"chat_id": 9, "parent_chat_id": 7, "timestamp": 2.25, "input_length": 40, "output_length": 3, "type": "text", "turn": 2, "hash_ids": [90, 91, 92]}
{"chat_id": 11, "parent_chat_id": 1, "timestamp": 1, "input_length": 8, "output_length": 1, "type": "text", "turn": 4, "hash_ids": [4]}
"#;
    let trace = trace("q.jsonl", text, false).unwrap();
    assert_eq!(
        (trace.format, trace.block_size),
        (Format::Bailian, Some(16))
    );
    assert_eq!(trace.out_of_order, 1);
    let rows: Vec<_> = trace
        .rows
        .iter()
        .map(|r| (r.session.as_deref(), r.turn, r.parent))
        .collect();
    assert_eq!(
        rows,
        [
            (Some("7"), Some(0), None),
            (Some("11"), Some(0), None),
            (Some("7"), Some(1), Some(0))
        ]
    );
    assert_eq!(trace.rows[2].block_ids().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn ragpulse_is_sorted_and_its_components_are_one_prefix() {
    let row = |t: u32, user: u32| {
        format!(
            "{{\"timestamp\": \"{t}\", \"input_length\": 400, \"output_length\": 9, \"hash_ids\": {{\"sys_prompt\": [5], \"passages_ids\": [8, 9], \"history\": [], \"web_search\": [], \"user_input\": [{user}]}}, \"session_id\": \"s\"}}\n"
        )
    };
    let text = format!("{}{}\n", row(93, 1), row(82, 2));
    let trace = trace("r.jsonl", &text, false).unwrap();
    assert_eq!((trace.format, trace.block_size), (Format::RagPulse, None));
    assert_eq!((trace.out_of_order, trace.rows[0].number), (1, 2));
    let turns: Vec<_> = trace.rows.iter().map(|r| r.turn).collect();
    assert_eq!(turns, [Some(0), Some(1)]);
    assert_eq!(trace.lint().blocks.unwrap().hits, 3);
}

const SESSION: &str = r#"{"id": "one", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": [
  {"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 0, "hash_ids": [1, 2], "api_time": 2.5, "think_time": 0.0},
  {"t": 3.0, "type": "subagent", "agent_id": "a1", "duration_ms": 4000, "requests": [
    {"t": 0.0, "type": "s", "model": "m", "in": 70, "out": 5, "hash_ids": [3]},
    {"t": 1.5, "type": "s", "model": "m", "in": 135, "out": 5, "hash_ids": [3, 4], "api_time": 1}]},
  {"t": 9.0, "type": "s", "model": "m", "in": 200, "out": 7, "hash_ids": [1, 2, 5], "api_time": 1}
]}"#;

#[test]
fn weka_sub_agents_are_sessions_of_their_own() {
    let trace = trace("w.json", SESSION, false).unwrap();
    assert_eq!((trace.format, trace.block_size), (Format::Weka, Some(64)));
    let rows: Vec<_> = trace
        .rows
        .iter()
        .map(|r| {
            (
                r.t_ns / 1_000_000,
                r.session.as_deref().unwrap(),
                r.turn.unwrap(),
                r.parent,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            (0, "one", 0, None),
            (3_000, "one/a1", 0, Some(0)),
            (4_500, "one/a1", 1, Some(1)),
            (9_000, "one", 1, Some(0)),
        ]
    );
    assert_eq!(trace.rows[0].t_end_ns, Some(2_500_000_000));
    let streamed: Vec<_> = trace.rows.iter().map(|r| r.stream).collect();
    assert_eq!(streamed, [false, true, true, true]);
    assert_eq!(trace.lint().no_output, 1);
}

#[test]
fn block_ids_of_two_local_sessions_are_not_the_same_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| std::fs::write(dir.path().join(name), SESSION).unwrap();
    local("a.json");
    local("b.json");
    let trace = read(&spec(dir.path(), false)).unwrap();
    assert_eq!(trace.rows.len(), 8);
    // Within a session: two of its own, one of the sub-agent's.
    assert_eq!(trace.lint().blocks.unwrap().hits, 2 * 3);
    for name in ["a.json", "b.json"] {
        let global = SESSION.replace("local", "global");
        std::fs::write(dir.path().join(name), global).unwrap();
    }
    let trace = read(&spec(dir.path(), false)).unwrap();
    assert_eq!(trace.lint().blocks.unwrap().hits, 2 * 3 + 5);
}

#[test]
fn bodies_are_taken_and_headers_are_not() {
    let body = r#"{"model":"m","messages":[],"max_tokens":4,"stream":true}"#;
    let evalscope = format!(
        "{{\"timestamp\": \"2024-01-01T00:00:01Z\", \"headers\": {{\"authorization\": \"k\"}}, \"body\": {body}, \"completion_tokens\": 3}}\n"
    );
    let har = serde_json::json!({"log": {"entries": [
        {"startedDateTime": "2024-01-01T00:00:01.5Z", "time": 250.5,
         "request": {"method": "POST", "url": "http://h/v1/chat/completions?key=secret",
                     "headers": [{"name": "authorization", "value": "k"}], "postData": {"text": body}},
         "response": {"content": {"text": "{\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}"}}},
        {"startedDateTime": "2024-01-01T00:00:01Z", "time": 1, "request": {"method": "GET", "url": "http://h/"}}
    ]}});
    let goreplay = format!(
        "1 ab 1000 0\nPOST /v1/chat/completions?key=secret HTTP/1.1\r\nAuthorization: k\r\nContent-Length: {}\r\n\r\n{body}\n🐵🙈🙉\n\
         1 cd 1500 0\nGET / HTTP/1.1\r\n\r\n\n🐵🙈🙉\n\
         2 ab 3000 2500\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2d\r\n{{\"usage\":{{\"completion_tokens\":3,\"x\":\"{}\"}}}}\r\n0\r\n\r\n\n🐵🙈🙉\n",
        body.len(),
        "y".repeat(5),
    );
    for (name, text, format, other) in [
        ("e.jsonl", evalscope, Format::EvalScope, 0),
        ("h.har", har.to_string(), Format::Har, 1),
        ("g.gor", goreplay, Format::GoReplay, 1),
    ] {
        let trace = trace(name, &text, false).unwrap();
        assert_eq!((trace.format, trace.other), (format, other), "{name}");
        let row = &trace.rows[0];
        let content = row.content.as_ref().unwrap();
        assert_eq!(&*content.url_path, "/v1/chat/completions", "{name}");
        assert_eq!(content.body, body, "{name}");
        assert_eq!((row.stream, row.output_tokens), (true, Some(3)), "{name}");
        assert_eq!(content.max_output_tokens, Some(4));
        let end_ns = row.t_end_ns.map(|end| end - row.t_ns);
        let expected = match format {
            Format::Har => Some(250_500_000),
            Format::GoReplay => Some(2_500),
            _ => None,
        };
        assert_eq!(end_ns, expected, "{name}");
    }
}

#[test]
fn spans_of_models_are_requests_and_those_of_tools_are_not() {
    let text =
        |key: &str, value: &str| serde_json::json!({"key": key, "value": {"stringValue": value}});
    let span = |operation: &str, start: &str, tokens: serde_json::Value| {
        serde_json::json!({"startTimeUnixNano": start, "endTimeUnixNano": "1700000002000000007",
            "attributes": [
                text("gen_ai.operation.name", operation), text("gen_ai.request.model", "m"),
                text("gen_ai.conversation.id", "c"),
                {"key": "gen_ai.usage.input_tokens", "value": {"intValue": tokens}}]})
    };
    let spans = [
        span("chat", "1700000001000000009", "12".into()),
        span("execute_tool", "1700000000000000000", 1.into()),
        span("chat", "1700000001000000007", 34.into()),
    ];
    let document = serde_json::json!({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]});
    let trace = trace("o.jsonl", &format!("{document}\n"), false).unwrap();
    assert_eq!(
        (trace.format, trace.other, trace.out_of_order),
        (Format::OTel, 1, 1)
    );
    assert_eq!(lengths(&trace), [(0, Some(34), None), (2, Some(12), None)]);
    let first = &trace.rows[0];
    assert_eq!(first.t_end_ns, Some(1_700_000_002_000_000_007));
    assert_eq!(
        (first.session.as_deref(), first.model.as_deref()),
        (Some("c"), Some("m"))
    );
}

fn shape(input_tokens: u32, block_runs: &[(i64, i32)]) -> Shape<'_> {
    Shape {
        input_tokens,
        block_size: Some(16),
        block_runs,
        request_id: 1,
        session_id: None,
        salt: "",
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn a_block_is_the_same_words_wherever_it_stands() {
    let synthesis = Synthesis::new(None, 0).unwrap();
    let text = synthesis.prompt(&shape(40, &[(3, 2)]));
    let other = synthesis.prompt(&shape(50, &[(9, 1), (3, 1)]));
    let (text, other) = (words(&text), words(&other));
    assert_eq!((text.len(), other.len()), (40, 50));
    assert_eq!(text[..16], other[16..32]);
    assert_ne!(text[16..32], other[..16]);
    let reseeded = Synthesis::new(None, 1)
        .unwrap()
        .prompt(&shape(40, &[(3, 2)]));
    assert_ne!(text, words(&reseeded));
    // What no block covers is each request's own.
    let of = |request_id| {
        synthesis.prompt(&Shape {
            request_id,
            ..shape(40, &[(3, 2)])
        })
    };
    assert_eq!(words(&of(1))[..32], words(&of(2))[..32]);
    assert_ne!(words(&of(1))[32..], words(&of(2))[32..]);
    let salted = synthesis.prompt(&Shape {
        salt: "other",
        ..shape(40, &[(3, 2)])
    });
    assert_eq!(words(&salted).len(), 40);
    assert_ne!(words(&salted)[..4], words(&of(1))[..4]);
}

#[test]
fn blocks_without_a_size_are_as_long_as_every_prompt_can_bear() {
    let mut synthesis = Synthesis::new(None, 0).unwrap();
    let sized = |input_tokens, block_runs| Shape {
        block_size: None,
        ..shape(input_tokens, block_runs)
    };
    let (long, short) = (sized(100, &[(0, 2)][..]), sized(30, &[(0, 1), (5, 2)][..]));
    synthesis.learn_sizes([long, short].into_iter());
    let (long, short) = (synthesis.prompt(&long), synthesis.prompt(&short));
    let (long, short) = (words(&long), words(&short));
    assert_eq!((long.len(), short.len()), (100, 30));
    assert_eq!(long[..10], short[..10]);
}

proptest! {
    /// For every number of tokens there is a prompt of as many words, and a longer
    /// one of the same session begins with it.
    #[test]
    fn conversations_grow_at_their_end_only(shorter in 1_u32..300, more in 0_u32..300) {
        let synthesis = Synthesis::new(None, 0).unwrap();
        let of = |input_tokens| synthesis.prompt(&Shape {
            session_id: Some("s"),
            ..shape(input_tokens, &[])
        });
        let (short, long) = (of(shorter), of(shorter + more));
        prop_assert_eq!(words(&short).len(), shorter as usize);
        prop_assert!(long.starts_with(&short));
    }

    #[test]
    fn no_file_panics(text in "[ -~\n]{0,200}", rows in "[0-9,.{}\":a-z\\[\\]\n]{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        for text in [text, rows] {
            std::fs::write(&path, &text).unwrap();
            for format in Format::ALL {
                for skip_bad in [false, true] {
                    read(&TraceSpec { format: Some(*format), ..spec(&path, skip_bad) }).ok();
                }
            }
        }
    }
}
