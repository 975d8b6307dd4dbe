use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use proptest::prelude::*;

use super::*;

const SPEC: ResponseSpec<'_> = ResponseSpec {
    api: Api::OpenAiChat,
    stream_requested: true,
    status: 200,
    content_type: Some("text/event-stream; charset=utf-8"),
    content_encoding: None,
};

const JSON: ResponseSpec<'_> = ResponseSpec {
    content_type: Some("application/json"),
    stream_requested: false,
    ..SPEC
};

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    index: i32,
    tag: usize,
    kind: ChunkKind,
    choice_index: Option<i32>,
    event: Option<String>,
    bytes: i64,
    data: Vec<u8>,
}

fn seen(chunk: Chunk<'_, usize>) -> Seen {
    Seen {
        index: chunk.index,
        tag: chunk.tag,
        kind: chunk.kind,
        choice_index: chunk.choice_index,
        event: chunk.event.map(str::to_owned),
        bytes: chunk.bytes,
        data: chunk.data.to_vec(),
    }
}

/// Follows one response, tags being read indexes.
fn follow(spec: ResponseSpec<'_>, reads: &[&[u8]], end: End) -> (Vec<Seen>, ResponseEnd) {
    let mut reader = ResponseReader::new(spec);
    let mut chunks = Vec::new();
    for (tag, read) in reads.iter().enumerate() {
        reader.feed(tag, read, &mut |chunk| chunks.push(seen(chunk)));
    }
    let end = reader.finish(end, &mut |chunk| chunks.push(seen(chunk)));
    (chunks, end)
}

fn whole(spec: ResponseSpec<'_>, body: &str) -> (Vec<Seen>, ResponseEnd) {
    follow(spec, &[body.as_bytes()], End::Clean)
}

fn broken() -> End {
    End::Broken {
        error: "connection reset".to_owned(),
    }
}

fn delta(fields: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{{fields}}},"finish_reason":null}}]}}"#)
}

fn content(number: usize) -> String {
    delta(&format!(r#""content":" é{number}""#))
}

const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
const FINISH: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":20}}"#;
const ERROR: &str = r#"{"error":{"message":"boom","code":500}}"#;

/// An ordinary answer: role, 20 content chunks, finish, usage, `[DONE]`.
fn payloads() -> Vec<String> {
    let mut all = vec![ROLE.to_owned()];
    all.extend((0..20).map(content));
    all.extend([FINISH, USAGE, "[DONE]"].map(str::to_owned));
    all
}

fn sse(payloads: &[String]) -> String {
    payloads
        .iter()
        .map(|payload| format!("data: {payload}\n\n"))
        .collect()
}

fn count(chunks: &[Seen], kind: ChunkKind) -> usize {
    chunks.iter().filter(|chunk| chunk.kind == kind).count()
}

/// Follows `body` in reads of several sizes and demands that all agree.
fn in_any_reads(spec: ResponseSpec<'_>, body: &[u8]) -> (Vec<Seen>, ResponseEnd) {
    let untagged = |(mut chunks, end): (Vec<Seen>, ResponseEnd)| {
        chunks.iter_mut().for_each(|chunk| chunk.tag = 0);
        (chunks, end)
    };
    let expected = untagged(follow(spec, &[body], End::Clean));
    for read_bytes in [1, 2, 3, 7, 64, 1_000] {
        let reads: Vec<&[u8]> = body.chunks(read_bytes).collect();
        assert_eq!(
            untagged(follow(spec, &reads, End::Clean)),
            expected,
            "{read_bytes}-byte reads"
        );
    }
    expected
}

#[track_caller]
fn assert_ordinary(chunks: &[Seen], end: &ResponseEnd) {
    assert_eq!((end.outcome, end.error.as_deref()), (Outcome::Ok, None));
    assert_eq!(count(chunks, ChunkKind::Content), 20);
    assert_eq!(end.finish_reason.as_deref(), Some("length"));
    assert_eq!(end.usage.and_then(|usage| usage.output_tokens), Some(20));
    assert_eq!((end.malformed_chunks, end.body.as_ref()), (0, None));
    assert_eq!(end.chunk_count as usize, chunks.len());
    assert!(
        chunks
            .iter()
            .enumerate()
            .all(|(at, chunk)| chunk.index as usize == at)
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.bytes as usize == chunk.data.len())
    );
}

#[test]
fn an_ordinary_stream_is_ok() {
    let (chunks, end) = in_any_reads(SPEC, sse(&payloads()).as_bytes());
    assert_ordinary(&chunks, &end);
    let kinds: Vec<&str> = chunks.iter().map(|chunk| chunk.kind.as_str()).collect();
    assert_eq!(
        (kinds[0], &kinds[21..]),
        ("role", &["other", "usage", "done"][..])
    );
    assert_eq!(chunks[3].data, content(2).as_bytes());
    assert_eq!(end.body_bytes as usize, sse(&payloads()).len());
}

/// `crlf cr nospace bom fields comment multiline` of measured.md.
#[test]
fn every_spelling_of_sse_gives_the_same_chunks() {
    let plain = sse(&payloads());
    let multiline: String = payloads()
        .iter()
        .map(|payload| format!("data: {}\n\n", payload.replacen(',', ",\ndata: ", 1)))
        .collect();
    let spellings = [
        plain.replace('\n', "\r\n"),
        plain.replace('\n', "\r"),
        plain.replace("data: ", "data:"),
        format!("\u{FEFF}{plain}"),
        format!("\n\r\n {plain}"),
        plain.replace("data: ", "event: message\nid: 9\nretry: 10\ndata: "),
        plain.replace("data: ", ": keep-alive\n\ndata: "),
        multiline,
        plain.trim_end().to_owned(),
    ];
    for stream in &spellings {
        let (chunks, end) = in_any_reads(SPEC, stream.as_bytes());
        assert_ordinary(&chunks, &end);
        assert_eq!(end.body_bytes as usize, stream.len());
    }
    let (chunks, _) = whole(SPEC, &spellings[5]);
    assert_eq!(chunks[1].event.as_deref(), Some("message"));
    let (chunks, _) = whole(SPEC, &spellings[6]);
    assert_eq!(count(&chunks, ChunkKind::Comment), 24);
}

#[test]
fn compressed_streams_give_the_same_chunks_at_the_read_of_each_flush() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    let (mut gzip_reads, mut zlib_reads) = (Vec::new(), Vec::new());
    for payload in payloads() {
        for (encoder, reads) in [
            (&mut gzip as &mut dyn Write, &mut gzip_reads),
            (&mut zlib, &mut zlib_reads),
        ] {
            write!(encoder, "data: {payload}\n\n").expect("memory takes all");
            encoder.flush().expect("memory takes all");
            reads.push(());
        }
    }
    for (encoding, body) in [
        ("gzip", gzip.finish().expect("memory takes all")),
        ("deflate", zlib.finish().expect("memory takes all")),
    ] {
        let spec = ResponseSpec {
            content_encoding: Some(encoding),
            ..SPEC
        };
        let (chunks, end) = in_any_reads(spec, &body);
        assert_ordinary(&chunks, &end);
        assert_eq!(end.body_bytes as usize, sse(&payloads()).len());
        // Cut in the middle, what was flushed is there and the end is not `ok`.
        let (chunks, end) = in_any_reads(spec, &body[..body.len() / 2]);
        assert!(count(&chunks, ChunkKind::Content) >= 5);
        assert_eq!(end.outcome, Outcome::Truncated);
    }
}

/// `nodone none fin reset stall`.
#[test]
fn the_marker_decides_and_then_the_way_it_ended() {
    let all = payloads();
    let no_done = sse(&all[..23]);
    let no_marker = sse(&all[..11]);
    let cases = [
        (&no_done, End::Clean, Outcome::Ok),
        (&no_done, broken(), Outcome::Ok),
        (
            &no_done,
            End::Timeout {
                error: "t".to_owned(),
            },
            Outcome::Ok,
        ),
        (
            &no_done,
            End::Cancelled {
                error: "c".to_owned(),
            },
            Outcome::Ok,
        ),
        (&no_marker, End::Clean, Outcome::Truncated),
        (&no_marker, broken(), Outcome::ConnectionError),
        (
            &no_marker,
            End::Timeout {
                error: "t".to_owned(),
            },
            Outcome::Timeout,
        ),
        (
            &no_marker,
            End::Cancelled {
                error: "c".to_owned(),
            },
            Outcome::Cancelled,
        ),
    ];
    for (stream, end, outcome) in cases {
        let (_, end) = follow(SPEC, &[stream.as_bytes()], end);
        assert_eq!(end.outcome, outcome);
        assert_eq!(end.error.is_none(), outcome == Outcome::Ok);
    }
    let done_only = "data: [DONE]\n\n";
    assert_eq!(whole(SPEC, done_only).1.outcome, Outcome::Ok);
}

#[test]
fn a_bad_chunk_is_counted_and_fatal_only_without_a_marker() {
    let mut all = payloads();
    for payload in all[1..21].iter_mut().step_by(2) {
        payload.truncate(20);
    }
    let (chunks, end) = in_any_reads(SPEC, sse(&all).as_bytes());
    assert_eq!((end.outcome, end.malformed_chunks), (Outcome::Ok, 10));
    assert_eq!(count(&chunks, ChunkKind::Content), 10);
    assert_eq!(end.chunk_count, 24);
    let (_, end) = in_any_reads(SPEC, sse(&all[..21]).as_bytes());
    assert_eq!(
        (end.outcome, end.malformed_chunks),
        (Outcome::Malformed, 10)
    );
    assert_eq!(
        end.error.as_deref(),
        Some("no finish reason, and 10 of 21 chunks are not json")
    );
    let (_, end) = follow(SPEC, &[sse(&all[..21]).as_bytes()], broken());
    assert_eq!(end.outcome, Outcome::ConnectionError);
}

#[test]
fn an_error_in_the_stream_wins_over_a_finish() {
    let mut all = payloads();
    all.truncate(11);
    all.extend([ERROR, FINISH, "[DONE]"].map(str::to_owned));
    let (chunks, end) = in_any_reads(SPEC, sse(&all).as_bytes());
    assert_eq!(
        (end.outcome, end.error.as_deref()),
        (Outcome::StreamError, Some("boom"))
    );
    assert_eq!(
        (
            count(&chunks, ChunkKind::Content),
            count(&chunks, ChunkKind::Error)
        ),
        (10, 1)
    );
    for stream in [
        "error: {\"message\":\"boom\"}\n\n".to_owned(),
        "event: error\ndata: {\"message\":\"boom\"}\n\n".to_owned(),
        sse(&[r#"{"object":"error","message":"boom"}"#.to_owned()]),
    ] {
        let (chunks, end) = in_any_reads(SPEC, stream.as_bytes());
        assert_eq!(
            (end.outcome, end.error.as_deref()),
            (Outcome::StreamError, Some("boom"))
        );
        assert_eq!(count(&chunks, ChunkKind::Error), 1);
    }
}

/// `rolefirst emptychunks reasoning toolcalls`.
#[test]
fn only_text_bears_content() {
    let mut all = vec![ROLE.to_owned(), delta(r#""content":"""#)];
    all.extend((0..10).map(|_| delta(r#""reasoning_content":"hm""#)));
    all.extend((0..10).map(content));
    all.push(delta(
        r#""tool_calls":[{"index":0,"function":{"arguments":"{"}}]"#,
    ));
    all.push(FINISH.to_owned());
    let (chunks, end) = in_any_reads(SPEC, sse(&all).as_bytes());
    let kinds = [
        ChunkKind::Role,
        ChunkKind::Other,
        ChunkKind::Reasoning,
        ChunkKind::Content,
        ChunkKind::Tool,
    ];
    assert_eq!(kinds.map(|kind| count(&chunks, kind)), [1, 2, 10, 10, 1]);
    assert_eq!(end.outcome, Outcome::Ok);
}

#[test]
fn completions_are_read_by_the_same_rules() {
    let spec = ResponseSpec {
        api: Api::OpenAiCompletions,
        ..SPEC
    };
    let stream = sse(&[
        r#"{"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":null}]}"#.to_owned(),
        r#"{"choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"]},"finish_reason":null}]}"#.to_owned(),
        r#"{"choices":[{"index":0,"text":"b","finish_reason":"stop"}],"usage":{"completion_tokens":2}}"#.to_owned(),
    ]);
    let (chunks, end) = in_any_reads(spec, stream.as_bytes());
    assert_eq!(count(&chunks, ChunkKind::Content), 2);
    assert_eq!(
        (end.outcome, end.finish_reason.as_deref()),
        (Outcome::Ok, Some("stop"))
    );
}

#[test]
fn a_stream_of_several_choices_ends_when_all_have_finished() {
    let choice = |index: u8, rest: &str| format!(r#"{{"choices":[{{"index":{index},{rest}}}]}}"#);
    let stream = [
        choice(0, r#""delta":{"content":"a"}"#),
        choice(1, r#""delta":{"content":"b"}"#),
        choice(0, r#""delta":{},"finish_reason":"stop""#),
        choice(1, r#""delta":{},"finish_reason":"length""#),
    ];
    let (chunks, end) = follow(SPEC, &[sse(&stream[..3]).as_bytes()], broken());
    assert_eq!(
        chunks.iter().map(|c| c.choice_index).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(0)]
    );
    assert_eq!(end.outcome, Outcome::ConnectionError);
    let (_, end) = follow(SPEC, &[sse(&stream).as_bytes()], broken());
    assert_eq!(end.outcome, Outcome::Ok);
}

#[test]
fn the_caller_can_see_the_end_coming() {
    let mut reader = ResponseReader::new(SPEC);
    let mut markers = Vec::new();
    for payload in [content(0), FINISH.to_owned(), "[DONE]".to_owned()] {
        reader.feed((), format!("data: {payload}\n\n").as_bytes(), &mut |_| ());
        markers.push((reader.end_marker_seen(), reader.done_seen()));
    }
    assert_eq!(markers, [(false, false), (true, false), (true, true)]);
}

#[test]
fn http_errors_keep_the_body_and_give_its_message() {
    let cases = [
        (500, r#"{"error":{"message":"boom"}}"#, "boom"),
        (429, "slow down", "slow down"),
        (503, "", "status 503 without a body"),
        (422, r#"{"detail":[{"msg":"boom"}]}"#, "boom"),
        (400, "data: {\"error\":{\"message\":\"boom\"}}\n\n", "boom"),
        (302, "<a href>", "<a href>"),
    ];
    for (status, body, message) in cases {
        for content_type in ["application/json", "text/event-stream"] {
            let spec = ResponseSpec {
                status,
                content_type: Some(content_type),
                ..SPEC
            };
            for end in [End::Clean, broken()] {
                let (chunks, end) = follow(spec, &[body.as_bytes()], end);
                assert_eq!(
                    (end.outcome, end.error.as_deref()),
                    (Outcome::HttpError, Some(message))
                );
                assert_eq!(
                    (end.body.unwrap_or_default(), end.body_bytes),
                    (body.into(), body.len() as i64)
                );
                assert!(chunks.is_empty());
            }
        }
    }
}

#[test]
fn a_whole_answer_is_judged_by_what_it_is() {
    let chat = r#"{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":9}}"#;
    for spec in [
        JSON,
        ResponseSpec {
            stream_requested: true,
            ..JSON
        },
        ResponseSpec {
            content_type: None,
            ..JSON
        },
    ] {
        let (chunks, end) = in_any_reads(spec, chat.as_bytes());
        assert_eq!(
            (end.outcome, end.finish_reason.as_deref(), chunks.len()),
            (Outcome::Ok, Some("stop"), 0)
        );
        assert_eq!(end.usage.and_then(|usage| usage.input_tokens), Some(3));
        assert_eq!(
            (end.body.as_deref(), end.body_bytes),
            (Some(chat.as_bytes()), chat.len() as i64)
        );
    }
    let embeddings =
        r#"{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":3}}"#;
    let outcome = |body: &str, end| follow(JSON, &[body.as_bytes()], end).1.outcome;
    assert_eq!(outcome(embeddings, End::Clean), Outcome::Ok);
    assert_eq!(outcome(embeddings, broken()), Outcome::ConnectionError);
    assert_eq!(outcome(chat, broken()), Outcome::Ok);
    assert_eq!(outcome(ERROR, End::Clean), Outcome::StreamError);
    assert_eq!(
        outcome("<html>sign in</html>", End::Clean),
        Outcome::Malformed
    );
    assert_eq!(outcome(&chat[..40], End::Clean), Outcome::Malformed);
    assert_eq!(outcome("", End::Clean), Outcome::Truncated);
    assert_eq!(outcome("\u{FEFF}{}", End::Clean), Outcome::Ok);
    assert_eq!(
        outcome(
            "",
            End::Timeout {
                error: "t".to_owned()
            }
        ),
        Outcome::Timeout
    );
}

#[test]
fn a_stream_is_known_by_its_bytes_under_any_content_type() {
    let stream = sse(&payloads());
    for content_type in [None, Some("application/json"), Some("text/plain")] {
        let spec = ResponseSpec {
            content_type,
            ..SPEC
        };
        let (chunks, end) = in_any_reads(spec, format!("\u{FEFF}\r\n{stream}").as_bytes());
        assert_ordinary(&chunks, &end);
    }
    let unasked = ResponseSpec {
        stream_requested: false,
        ..SPEC
    };
    assert_ordinary(&whole(unasked, &stream).0, &whole(unasked, &stream).1);
}

#[test]
fn a_document_under_the_stream_type_is_a_body() {
    for body in [
        ERROR,
        "\n{\n  \"error\": {\n    \"message\": \"boom\"\n  }\n}\n",
    ] {
        let (chunks, end) = in_any_reads(SPEC, body.as_bytes());
        assert_eq!(
            (end.outcome, end.error.as_deref()),
            (Outcome::StreamError, Some("boom"))
        );
        assert_eq!(
            (end.body.as_deref(), chunks.len()),
            (Some(body.as_bytes()), 0)
        );
        assert_eq!(end.body_bytes as usize, body.len());
    }
    let (chunks, end) = in_any_reads(SPEC, b"<html>\n<body>busy</body>\n</html>\n");
    assert_eq!((end.outcome, chunks.len()), (Outcome::Malformed, 0));
}

#[test]
fn a_stream_behind_a_document_is_still_a_stream() {
    let preamble = "{\"warning\":\"slow\"}\n";
    let stream = format!("{preamble}{}", sse(&payloads()));
    for read_bytes in [1, 30, 10_000] {
        let reads: Vec<&[u8]> = stream.as_bytes().chunks(read_bytes).collect();
        let (chunks, end) = follow(SPEC, &reads, End::Clean);
        assert_eq!(
            (end.outcome, count(&chunks, ChunkKind::Content)),
            (Outcome::Ok, 20)
        );
        assert!(
            end.body
                .is_some_and(|body| body.starts_with(preamble.as_bytes()))
        );
        assert_eq!(end.body_bytes as usize, stream.len());
    }
    let (chunks, end) = in_any_reads(SPEC, format!("{preamble}data: {FINISH}").as_bytes());
    assert_eq!((end.outcome, chunks.len()), (Outcome::Ok, 1));
}

#[test]
fn what_cannot_be_decoded_is_kept_as_it_came() {
    let stream = sse(&payloads());
    for encoding in ["br", "gzip", "deflate"] {
        let spec = ResponseSpec {
            content_encoding: Some(encoding),
            ..SPEC
        };
        let (chunks, end) = in_any_reads(spec, stream.as_bytes());
        assert_eq!(
            (end.outcome, chunks.len()),
            (Outcome::Malformed, 0),
            "{encoding}"
        );
        assert_eq!(end.body.as_deref(), Some(stream.as_bytes()), "{encoding}");
        assert_eq!(end.body_bytes as usize, stream.len());
        assert!(end.error.is_some_and(|error| error.contains(encoding)));
        let (_, end) = follow(spec, &[stream.as_bytes()], broken());
        assert_eq!(end.outcome, Outcome::ConnectionError);
    }
    let spec = ResponseSpec {
        content_encoding: Some("br"),
        status: 500,
        ..SPEC
    };
    assert_eq!(whole(spec, "\u{1}").1.outcome, Outcome::HttpError);
}

#[test]
fn a_gzip_body_damaged_after_its_finish_is_ok() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(sse(&payloads()).as_bytes())
        .expect("memory takes all");
    let mut body = gzip.finish().expect("memory takes all");
    let crc_at = body.len() - 8;
    body[crc_at] ^= 1;
    let spec = ResponseSpec {
        content_encoding: Some("gzip"),
        ..SPEC
    };
    let (chunks, end) = follow(spec, &[&body], End::Clean);
    assert_eq!(
        (end.outcome, count(&chunks, ChunkKind::Content)),
        (Outcome::Ok, 20)
    );
}

#[test]
fn a_huge_body_is_cut_and_counted() {
    let block = vec![b'x'; 1 << 20];
    let mut reader = ResponseReader::new(JSON);
    reader.feed((), b"{\"data\":\"", &mut |_| ());
    for _ in 0..20 {
        reader.feed((), &block, &mut |_| ());
    }
    let end = reader.finish(End::Clean, &mut |_| ());
    assert_eq!((end.outcome, end.truncated_body), (Outcome::Ok, true));
    assert_eq!(end.body.map(|body| body.len()), Some(MAX_BODY_BYTES));
    assert_eq!(end.body_bytes, (20 << 20) + 9);
}

#[test]
fn a_chunk_that_was_cut_here_is_not_the_servers_fault() {
    let mut reader = ResponseReader::new(SPEC);
    let mut cut = Vec::new();
    let line = format!(
        "data: {}\n\ndata: {FINISH}\n\n",
        content(0).replace("é", &"x".repeat(9 << 20))
    );
    reader.feed((), line.as_bytes(), &mut |chunk| {
        cut.push((chunk.truncated, chunk.data.len()));
    });
    let end = reader.finish(End::Clean, &mut |_| ());
    assert_eq!(cut[0], (true, crate::sse::MAX_PAYLOAD_BYTES));
    assert_eq!((end.outcome, end.malformed_chunks), (Outcome::Ok, 0));
}

fn piece() -> impl Strategy<Value = String> {
    let mut words = payloads();
    words.truncate(3);
    words.extend([FINISH, USAGE, ERROR, "[DONE]", "{\"bad", "é😀"].map(str::to_owned));
    let event = proptest::sample::select(words).prop_map(|payload| format!("data: {payload}\n\n"));
    let others = vec![
        "\r",
        "\n",
        "\u{FEFF}",
        ": c\r\n",
        "data:",
        "{",
        " ",
        "<",
        "error: x\n",
        "event: error\n",
    ];
    prop_oneof![3 => event, 1 => proptest::sample::select(others).prop_map(str::to_owned)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// For every partition of the bytes into reads, plain or compressed, the same
    /// chunks and the same end come out. (Tags: the framer's property.)
    #[test]
    fn any_partition_gives_the_same_chunks_and_end(
        pieces in proptest::collection::vec(piece(), 0..12),
        sizes in proptest::collection::vec(1..120_usize, 1..40),
        (sse_type, stream_requested, gzip) in any::<(bool, bool, bool)>(),
    ) {
        let mut body = pieces.concat().into_bytes();
        if gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).expect("memory takes all");
            body = encoder.finish().expect("memory takes all");
        }
        let spec = ResponseSpec {
            stream_requested,
            content_type: sse_type.then_some("text/event-stream"),
            content_encoding: gzip.then_some("gzip"),
            ..SPEC
        };
        let mut rest = &body[..];
        let mut reads = Vec::new();
        for size in sizes.iter().cycle() {
            let (read, after) = rest.split_at((*size).min(rest.len()));
            reads.push(read);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let (mut chunks, mut end) = follow(spec, &reads, End::Clean);
        let (expected_chunks, mut expected_end) = follow(spec, &[&body], End::Clean);
        chunks.iter_mut().for_each(|chunk| chunk.tag = 0);
        prop_assert_eq!(chunks, expected_chunks);
        // What stands before the first event of a doubtful stream is kept in whole
        // reads, so its end depends on them.
        if end.chunk_count > 0 {
            (end.body, expected_end.body) = (None, None);
        }
        prop_assert_eq!(end, expected_end);
    }
}

/// An API whose answer to a request for a stream is a list that grows.
fn list_spec() -> ResponseSpec<'static> {
    let dialect = r#"
        version = 1
        [request]
        path = "/models/%m:streamGenerateContent"
        body = '{"contents": [{"parts": [{"text": "%p"}]}]}'
        [response]
        framing = "json"
        text = "/candidates/*/content/parts/*/text"
        finish = "/candidates/*/finishReason"
        error = "/error"
        [response.usage]
        output_tokens = "/usageMetadata/candidatesTokenCount"
    "#;
    ResponseSpec {
        api: Api::of(crate::dialect::Dialect::parse(dialect, "test", "list").unwrap()),
        content_type: Some("application/json; charset=UTF-8"),
        ..SPEC
    }
}

#[test]
fn the_elements_of_a_list_are_the_chunks_of_a_stream() {
    let text = r#"{"candidates":[{"content":{"parts":[{"text":"a, \"b]"}]}}]}"#;
    let last =
        r#"{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"candidatesTokenCount":3}}"#;
    let list = format!("[{text}\n,\r\n{last}\n]\n");
    let (head, tail) = list.split_at(text.len() - 4);
    let (chunks, end) = follow(list_spec(), &[head.as_bytes(), tail.as_bytes()], End::Clean);
    let shown: Vec<_> = chunks
        .iter()
        .map(|c| (c.kind.as_str(), c.tag, c.bytes))
        .collect();
    assert_eq!(
        shown,
        [
            ("content", 1, text.len() as i64),
            ("usage", 1, last.len() as i64)
        ]
    );
    assert_eq!(
        (end.outcome, end.finish_reason.as_deref()),
        (Outcome::Ok, Some("STOP"))
    );
    assert_eq!(end.usage.and_then(|usage| usage.output_tokens), Some(3));
    for (body, outcome, chunks) in [
        (format!("[{text}"), Outcome::Truncated, 1),
        (format!("[{text},{{\"cand"), Outcome::Truncated, 2),
        (
            "[{\"error\":{\"message\":\"no\"}}]".to_owned(),
            Outcome::StreamError,
            1,
        ),
        (
            "{\"error\":{\"message\":\"no\"}}".to_owned(),
            Outcome::StreamError,
            0,
        ),
        ("[]".to_owned(), Outcome::Truncated, 0),
    ] {
        let (seen, end) = whole(list_spec(), &body);
        assert_eq!((end.outcome, seen.len()), (outcome, chunks), "{body}");
    }
}

#[test]
fn the_status_of_a_call_has_the_last_word() {
    let spec = ResponseSpec {
        api: Api::from_word("ppl").unwrap(),
        content_type: Some("application/grpc"),
        ..SPEC
    };
    // One Response, its status FINISHED and its text `w`.
    let finished = crate::grpc::framed(b"\x0a\x05\x08\x01\x1a\x01w").unwrap();
    let exhausted = || End::Failed {
        error: "grpc-status 8".to_owned(),
    };
    let broken = || End::Broken {
        error: "reset".to_owned(),
    };
    for (reads, end, outcome, chunks) in [
        (&finished[..], End::Clean, Outcome::Ok, 1),
        (&finished, broken(), Outcome::Ok, 1),
        (&finished, exhausted(), Outcome::StreamError, 1),
        (&finished[..8], broken(), Outcome::ConnectionError, 1),
        (b"", End::Clean, Outcome::Truncated, 0),
        (b"<html>", broken(), Outcome::ConnectionError, 1),
    ] {
        let (seen, end) = follow(spec, &[reads], end);
        assert_eq!((end.outcome, seen.len()), (outcome, chunks), "{reads:?}");
    }
    let (_, end) = follow(
        ResponseSpec {
            status: 503,
            ..spec
        },
        &[b"down"],
        exhausted(),
    );
    assert_eq!(
        (end.outcome, end.error.as_deref()),
        (Outcome::HttpError, Some("down"))
    );
}
