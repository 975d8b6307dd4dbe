//! Awkward answers, and what a recording must say of each.
//!
//! The first 26 are those that other load generators were measured with; the rest
//! are further faults and liberties seen in servers. Unless its name says
//! otherwise an answer has [`TOKENS`] content-bearing chunks, the first
//! [`TTFT_MS`] after the request, [`ITL_MS`] apart, then `finish_reason: "stop"`,
//! usage and `[DONE]`.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use tapedeck_wire::words::Outcome;

use super::mock_llm::replies::{
    LAST_CHUNK, SSE_HEAD, chat_choice, chat_delta, completion_text, http_chunk, sse, usage,
    usage_chunk, whole, whole_chat,
};
use super::mock_llm::{Reply, Script, Step};

pub const TOKENS: usize = 20;
pub const TTFT_MS: i64 = 50;
pub const ITL_MS: i64 = 5;
/// A silence inside a stream, longer than any other gap here.
pub const STALL_MS: i64 = 300;

/// One way to answer a streamed chat request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Also the `case` (or `model`) by which a request chooses it.
    pub name: &'static str,
    pub steps: Vec<Step>,
    pub expect: Expect,
    /// It ends only by the client's own timeout: run it with a short one.
    pub needs_timeout: bool,
}

/// What a recording must say of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    pub outcome: Outcome,
    /// `None` where no HTTP status came.
    pub status: Option<i32>,
    /// Chunks of kind `content`, `tool` or `reasoning`.
    pub content_chunks: usize,
    /// From usage; `None` where none came.
    pub output_tokens: Option<i32>,
    /// Index of the step whose write bears the last byte of the payload of the
    /// first content-bearing chunk; `None` where there is no such chunk.
    pub ttft_from: Option<usize>,
    pub finish_reason: Option<&'static str>,
    pub malformed_chunks: i32,
}

/// Every answer under its name.
pub fn script() -> Script {
    let named = |answer: Answer| (answer.name.to_owned(), Reply::from(answer.steps));
    Script::by_case(all().into_iter().map(named).collect())
}

/// Every answer; names are unique.
pub fn all() -> Vec<Answer> {
    let mut answers = measured();
    answers.extend(other_framings());
    answers.extend(other_streams());
    answers.extend(other_ends());
    answers.extend(not_streams());
    answers
}

/// Bytes of one write, and the silence before it.
#[derive(Debug, Clone)]
struct Piece {
    pause_ms: i64,
    bytes: Vec<u8>,
    /// Content-bearing chunks that these bytes complete.
    bears: usize,
}

impl Piece {
    fn token(payload_event: Vec<u8>) -> Self {
        Self {
            pause_ms: ITL_MS,
            bytes: payload_event,
            bears: 1,
        }
    }

    fn silent(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            pause_ms: 0,
            bytes: bytes.into(),
            bears: 0,
        }
    }
}

/// How pieces are put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Each an HTTP chunk.
    Chunked,
    /// As they are: the body ends with the connection, or has a length.
    Raw,
}

const CLOSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const HTTP10_HEAD: &str = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

fn complete() -> Expect {
    Expect {
        outcome: Outcome::Ok,
        status: Some(200),
        content_chunks: 0,
        output_tokens: Some(TOKENS as i32),
        ttft_from: None,
        finish_reason: Some("stop"),
        malformed_chunks: 0,
    }
}

/// A stream broken off before finish and usage.
fn broken(outcome: Outcome) -> Expect {
    Expect {
        outcome,
        output_tokens: None,
        finish_reason: None,
        ..complete()
    }
}

/// Sends the head at once, the first token-bearing piece after [`TTFT_MS`], and
/// the rest at its pauses; counts what the expectation needs.
fn stream(
    name: &'static str,
    head: &str,
    framing: Framing,
    pieces: &[Piece],
    end: &[Step],
    expect: Expect,
) -> Answer {
    let mut steps = vec![Step::send(head)];
    let mut expect = expect;
    let mut waited = false;
    for piece in pieces {
        if piece.pause_ms > 0 {
            steps.push(Step::pause_ms(if waited {
                piece.pause_ms
            } else {
                TTFT_MS
            }));
            waited = true;
        }
        let bytes = match framing {
            Framing::Chunked => http_chunk(&piece.bytes),
            Framing::Raw => piece.bytes.clone(),
        };
        steps.push(Step::send(bytes));
        if piece.bears > 0 && expect.ttft_from.is_none() {
            expect.ttft_from = Some(steps.len() - 1);
        }
        expect.content_chunks += piece.bears;
    }
    steps.extend_from_slice(end);
    Answer {
        name,
        steps,
        expect,
        needs_timeout: false,
    }
}

/// A chunked stream that ends as HTTP wants it.
fn finished(name: &'static str, pieces: &[Piece], expect: Expect) -> Answer {
    let end = [Step::send(LAST_CHUNK)];
    stream(name, SSE_HEAD, Framing::Chunked, pieces, &end, expect)
}

fn content(index: usize) -> String {
    chat_delta(&format!(r#"{{"content":" word{index}"}}"#), None)
}

fn finish() -> String {
    chat_delta("{}", Some("stop"))
}

/// The payloads after the last token.
fn tail_payloads() -> Vec<String> {
    vec![finish(), usage_chunk(TOKENS), "[DONE]".to_owned()]
}

fn tail() -> Vec<Piece> {
    tail_payloads()
        .iter()
        .map(|payload| Piece::silent(sse(payload)))
        .collect()
}

fn tokens(count: usize) -> Vec<Piece> {
    (0..count)
        .map(|index| Piece::token(sse(&content(index))))
        .collect()
}

fn ordinary() -> Vec<Piece> {
    [tokens(TOKENS), tail()].concat()
}

/// The ordinary stream with every event written by `event`.
fn written(event: impl Fn(&str) -> Vec<u8>) -> Vec<Piece> {
    let tokens = (0..TOKENS).map(|index| Piece::token(event(&content(index))));
    let tail = tail_payloads();
    let tail = tail.iter().map(|payload| Piece::silent(event(payload)));
    tokens.chain(tail).collect()
}

/// The ordinary stream with other token chunks.
fn with_deltas(delta: impl Fn(usize) -> String) -> Vec<Piece> {
    let tokens = (0..TOKENS).map(|index| Piece::token(sse(&chat_delta(&delta(index), None))));
    tokens.chain(tail()).collect()
}

/// The answers of `reference/measured.md`, in its order.
fn measured() -> Vec<Answer> {
    let mut answers = refusals();
    answers.extend(measured_ends());
    answers.extend(measured_framings());
    answers.extend(measured_contents());
    answers.push(finished("none", &ordinary(), complete()));
    answers
}

fn refusal(
    name: &'static str,
    status: u16,
    content_type: &str,
    headers: &str,
    body: &str,
) -> Answer {
    Answer {
        name,
        steps: vec![Step::send(whole(status, content_type, headers, body))],
        expect: Expect {
            status: Some(i32::from(status)),
            ..broken(Outcome::HttpError)
        },
        needs_timeout: false,
    }
}

fn refusals() -> Vec<Answer> {
    let error = |message: &str, code: u16| {
        format!(
            r#"{{"error":{{"message":"{message}","type":"Error","param":null,"code":{code}}}}}"#
        )
    };
    vec![
        refusal(
            "500",
            500,
            "application/json",
            "",
            &error("engine died", 500),
        ),
        refusal(
            "429",
            429,
            "application/json",
            "retry-after: 1\r\n",
            &error("slow down", 429),
        ),
        refusal("503", 503, "text/plain", "", "no healthy upstream"),
    ]
}

fn measured_ends() -> Vec<Answer> {
    let cut = |name, end| {
        let pieces = tokens(TOKENS / 2);
        let steps = [Step::pause_ms(ITL_MS), end];
        let expect = broken(Outcome::ConnectionError);
        stream(name, SSE_HEAD, Framing::Chunked, &pieces, &steps, expect)
    };
    let mut stall = ordinary();
    stall[TOKENS / 2].pause_ms = STALL_MS;
    let half = TOKENS / 2;
    let error =
        sse(r#"{"error":{"message":"engine died","type":"InternalServerError","code":500}}"#);
    let errchunk = [
        tokens(half),
        vec![Piece::silent(error), Piece::silent(sse("[DONE]"))],
    ]
    .concat();
    let nodone = [tokens(TOKENS), tail()[..2].to_vec()].concat();
    let silent_end = [Step::send(LAST_CHUNK), Step::Close];
    vec![
        cut("reset", Step::Reset),
        cut("fin", Step::Close),
        finished("stall", &stall, complete()),
        finished("nodone", &nodone, complete()),
        finished("errchunk", &errchunk, broken(Outcome::StreamError)),
        stream(
            "close",
            CLOSE_HEAD,
            Framing::Raw,
            &ordinary(),
            &[Step::Close],
            complete(),
        ),
        stream(
            "silentclose",
            SSE_HEAD,
            Framing::Chunked,
            &ordinary(),
            &silent_end,
            complete(),
        ),
    ]
}

fn measured_framings() -> Vec<Answer> {
    let with_fields = |payload: &str| {
        format!("id: 7\nevent: message\nretry: 3000\ndata: {payload}\n\n").into_bytes()
    };
    let comment = Piece::silent(": keep-alive\n\n");
    let mut comments = vec![comment.clone()];
    for piece in ordinary() {
        comments.extend([piece, comment.clone()]);
    }
    let mut bom = ordinary();
    bom.insert(0, Piece::silent("\u{feff}"));
    vec![
        finished(
            "crlf",
            &written(|p| format!("data: {p}\r\n\r\n").into_bytes()),
            complete(),
        ),
        finished(
            "cr",
            &written(|p| format!("data: {p}\r\r").into_bytes()),
            complete(),
        ),
        finished("multiline", &written(multiline), complete()),
        finished("comment", &comments, complete()),
        finished("split", &split(), complete()),
        gzip("gzip", "gzip", &flushed_gzip(&ordinary())),
        finished(
            "nospace",
            &written(|p| format!("data:{p}\n\n").into_bytes()),
            complete(),
        ),
        finished("fields", &written(with_fields), complete()),
        finished("bom", &bom, complete()),
        slow_headers(),
    ]
}

/// The payload on two `data` lines, broken where JSON allows a line end.
fn multiline(payload: &str) -> Vec<u8> {
    match payload.split_once(",\"object\"") {
        Some((before, after)) => {
            format!("data: {before},\ndata: \"object\"{after}\n\n").into_bytes()
        }
        None => sse(payload),
    }
}

/// Wide characters, every event in three writes a millisecond apart, one of
/// them in the middle of a character.
fn split() -> Vec<Piece> {
    let mut pieces = Vec::new();
    for index in 0..TOKENS {
        let delta = format!(r#"{{"content":"日本語{index}"}}"#);
        let event = sse(&chat_delta(&delta, None));
        let character = event.iter().position(|byte| *byte >= 0x80).unwrap_or(0);
        let parts = [&event[..9], &event[9..=character], &event[character + 1..]];
        for (number, part) in parts.into_iter().enumerate() {
            let pause_ms = if number == 0 { ITL_MS } else { 1 };
            let bears = usize::from(number == 2);
            pieces.push(Piece {
                pause_ms,
                bytes: part.to_vec(),
                bears,
            });
        }
    }
    pieces.extend(tail());
    pieces
}

/// The pieces as one gzip member, flushed after each.
fn flushed_gzip(pieces: &[Piece]) -> Vec<Piece> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut compressed: Vec<Piece> = pieces
        .iter()
        .map(|piece| {
            encoder.write_all(&piece.bytes).expect("a vector takes all");
            encoder.flush().expect("a vector flushes");
            Piece {
                bytes: std::mem::take(encoder.get_mut()),
                ..piece.clone()
            }
        })
        .collect();
    let end = encoder.finish().expect("a vector takes all");
    compressed.push(Piece::silent(end));
    compressed
}

fn flushed_zlib(pieces: &[Piece]) -> Vec<Piece> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let mut compressed: Vec<Piece> = pieces
        .iter()
        .map(|piece| {
            encoder.write_all(&piece.bytes).expect("a vector takes all");
            encoder.flush().expect("a vector flushes");
            Piece {
                bytes: std::mem::take(encoder.get_mut()),
                ..piece.clone()
            }
        })
        .collect();
    let end = encoder.finish().expect("a vector takes all");
    compressed.push(Piece::silent(end));
    compressed
}

/// Every piece a gzip member of its own.
fn gzip_members(pieces: &[Piece]) -> Vec<Piece> {
    let member = |piece: &Piece| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&piece.bytes).expect("a vector takes all");
        let bytes = encoder.finish().expect("a vector takes all");
        Piece {
            bytes,
            ..piece.clone()
        }
    };
    pieces.iter().map(member).collect()
}

fn gzip(name: &'static str, encoding: &str, pieces: &[Piece]) -> Answer {
    let head = SSE_HEAD.replace(
        "\r\n\r\n",
        &format!("\r\ncontent-encoding: {encoding}\r\n\r\n"),
    );
    let end = [Step::send(LAST_CHUNK)];
    stream(name, &head, Framing::Chunked, pieces, &end, complete())
}

/// The head in four writes 10 ms apart, the first token when it would have come.
fn slow_headers() -> Answer {
    let (first, rest) = SSE_HEAD.split_at(4);
    let (second, rest) = rest.split_at(20);
    let (third, fourth) = rest.split_at(30);
    let mut answer = finished("slowheaders", &ordinary(), complete());
    let mut steps = vec![Step::send(first)];
    for part in [second, third, fourth] {
        steps.extend([Step::pause_ms(10), Step::send(part)]);
    }
    let added = steps.len() - 1;
    steps.extend(answer.steps.drain(1..));
    steps[added + 1] = Step::pause_ms(TTFT_MS - 30);
    answer.steps = steps;
    answer.expect.ttft_from = answer.expect.ttft_from.map(|step| step + added);
    answer
}

fn measured_contents() -> Vec<Answer> {
    let role = Piece::silent(sse(&chat_delta(
        r#"{"role":"assistant","content":""}"#,
        None,
    )));
    let rolefirst = [vec![role], ordinary()].concat();
    let reasoning = with_deltas(|index| match index < TOKENS / 2 {
        true => format!(r#"{{"reasoning_content":" thought{index}"}}"#),
        false => format!(r#"{{"content":" word{index}"}}"#),
    });
    let toolcalls = with_deltas(|index| {
        match index {
        0 => r#"{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"look","arguments":""}}]}"#.to_owned(),
        _ => format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":"{index} "}}}}]}}"#),
    }
    });
    let mut emptychunks = Vec::new();
    let mut badjson = Vec::new();
    for (index, piece) in ordinary().into_iter().enumerate() {
        if index < TOKENS && index % 5 == 0 {
            let empty = sse(&chat_delta(r#"{"content":""}"#, None));
            emptychunks.push(Piece::silent(empty));
        }
        emptychunks.push(piece.clone());
        badjson.push(piece);
        if index < TOKENS && index % 2 == 0 {
            badjson.push(Piece::silent(sse(
                r#"{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"cont"#,
            )));
        }
    }
    let half_bad = Expect {
        malformed_chunks: TOKENS as i32 / 2,
        ..complete()
    };
    vec![
        finished("badjson", &badjson, half_bad),
        finished("rolefirst", &rolefirst, complete()),
        finished("reasoning", &reasoning, complete()),
        finished("toolcalls", &toolcalls, complete()),
        finished("emptychunks", &emptychunks, complete()),
    ]
}

/// Liberties of HTTP and SSE framing.
fn other_framings() -> Vec<Answer> {
    let hints = format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n{SSE_HEAD}"
    );
    let chunked = Framing::Chunked;
    let end = [Step::send(LAST_CHUNK)];
    let trailers = [Step::send(
        "0\r\nserver-timing: total;dur=150\r\nx-usage: 20\r\n\r\n",
    )];
    let mut answers = vec![
        stream("earlyhints", &hints, chunked, &ordinary(), &end, complete()),
        stream(
            "trailers",
            SSE_HEAD,
            chunked,
            &ordinary(),
            &trailers,
            complete(),
        ),
        stream(
            "http10",
            HTTP10_HEAD,
            Framing::Raw,
            &ordinary(),
            &[Step::Close],
            complete(),
        ),
        gzip("gzipmembers", "gzip", &gzip_members(&ordinary())),
        gzip("deflate", "deflate", &flushed_zlib(&ordinary())),
        one_read(),
        chunk_split(),
        counted("counted", 0),
    ];
    let event_only = Piece::silent("event: ping\nid: 3\n\n");
    let pinged = [vec![event_only], ordinary()].concat();
    answers.push(finished("eventonly", &pinged, complete()));
    answers.push(wide_event());
    answers
}

/// The whole answer, head and end included, in one write.
fn one_read() -> Answer {
    let mut bytes = SSE_HEAD.as_bytes().to_vec();
    for piece in ordinary() {
        bytes.extend(http_chunk(&piece.bytes));
    }
    bytes.extend(LAST_CHUNK);
    Answer {
        name: "oneread",
        steps: vec![Step::pause_ms(TTFT_MS), Step::send(bytes)],
        expect: Expect {
            content_chunks: TOKENS,
            ttft_from: Some(1),
            ..complete()
        },
        needs_timeout: false,
    }
}

/// HTTP chunks of seven bytes, so that none ends where an event does.
fn chunk_split() -> Answer {
    let shatter = |piece: Piece| {
        let bytes = piece.bytes.chunks(7).flat_map(http_chunk).collect();
        Piece { bytes, ..piece }
    };
    let pieces: Vec<Piece> = ordinary().into_iter().map(shatter).collect();
    let end = [Step::send(LAST_CHUNK)];
    stream(
        "chunksplit",
        SSE_HEAD,
        Framing::Raw,
        &pieces,
        &end,
        complete(),
    )
}

/// A stream with a content length, `missing` bytes longer than what comes.
fn counted(name: &'static str, missing: usize) -> Answer {
    let pieces = if missing == 0 {
        ordinary()
    } else {
        tokens(TOKENS / 2)
    };
    let length: usize = pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() + missing;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n"
    );
    let (end, expect): (&[Step], _) = match missing {
        0 => (&[], complete()),
        _ => (&[Step::Close], broken(Outcome::ConnectionError)),
    };
    stream(name, &head, Framing::Raw, &pieces, end, expect)
}

/// One event of a mebibyte among ordinary ones.
fn wide_event() -> Answer {
    let mut pieces = ordinary();
    let text = "x".repeat(1 << 20);
    let delta = format!(r#"{{"content":"{text}"}}"#);
    pieces[TOKENS / 2].bytes = sse(&chat_delta(&delta, None));
    finished("wideevent", &pieces, complete())
}

/// Liberties of the JSON inside a stream.
fn other_streams() -> Vec<Answer> {
    let done = || Piece::silent(sse("[DONE]"));
    let usage_in_finish = {
        let mut finish = finish();
        finish.pop();
        finish.push_str(&format!(r#","usage":{}}}"#, usage(TOKENS)));
        [tokens(TOKENS), vec![Piece::silent(sse(&finish)), done()]].concat()
    };
    let two_choices = {
        let token = |index: usize| {
            let delta = format!(r#"{{"content":" word{index}"}}"#);
            Piece::token(sse(&chat_choice(index % 2, &delta, None)))
        };
        let finishes =
            (0..2).map(|choice| Piece::silent(sse(&chat_choice(choice, "{}", Some("stop")))));
        let usage = Piece::silent(sse(&usage_chunk(TOKENS)));
        (0..TOKENS)
            .map(token)
            .chain(finishes)
            .chain([usage, done()])
            .collect::<Vec<_>>()
    };
    let completions = {
        let token =
            |index: usize| Piece::token(sse(&completion_text(&format!(" word{index}"), None)));
        let finish = Piece::silent(sse(&completion_text("", Some("stop"))));
        let usage = Piece::silent(sse(&usage_chunk(TOKENS)));
        (0..TOKENS)
            .map(token)
            .chain([finish, usage, done()])
            .collect::<Vec<_>>()
    };
    let parts = with_deltas(|i| format!(r#"{{"content":[{{"type":"text","text":" word{i}"}}]}}"#));
    let functions = with_deltas(|i| format!(r#"{{"function_call":{{"arguments":"{i} "}}}}"#));
    let nulls = {
        let role = chat_delta(
            r#"{"role":"assistant","content":null,"tool_calls":null}"#,
            None,
        );
        let bare = r#"{"id":null,"choices":null,"usage":null,"error":null}"#;
        [
            vec![Piece::silent(sse(&role)), Piece::silent(sse(bare))],
            ordinary(),
        ]
        .concat()
    };
    let no_usage = [tokens(TOKENS), vec![Piece::silent(sse(&finish())), done()]].concat();
    let without_usage = Expect {
        output_tokens: None,
        ..complete()
    };
    let by_length = {
        let finish = Piece::silent(sse(&chat_delta("{}", Some("length"))));
        [tokens(TOKENS), vec![finish], tail()[1..].to_vec()].concat()
    };
    let cut_by_length = Expect {
        finish_reason: Some("length"),
        ..complete()
    };
    vec![
        finished("usageinfinish", &usage_in_finish, complete()),
        finished("twochoices", &two_choices, complete()),
        finished("completions", &completions, complete()),
        finished("contentparts", &parts, complete()),
        finished("functioncall", &functions, complete()),
        finished("nulls", &nulls, complete()),
        finished("nousage", &no_usage, without_usage),
        finished("bylength", &by_length, cut_by_length),
        finished("invalidutf8", &invalid_utf8(), complete()),
    ]
}

/// Tokens that hold a byte no UTF-8 has: a tokenizer's half character.
fn invalid_utf8() -> Vec<Piece> {
    let mut pieces = ordinary();
    for piece in &mut pieces[..TOKENS] {
        let word = piece.bytes.windows(4).position(|window| window == b"word");
        if let Some(at) = word {
            piece.bytes[at] = 0xff;
        }
    }
    pieces
}

/// Ends that are not what the protocol wants.
fn other_ends() -> Vec<Answer> {
    let half = || tokens(TOKENS / 2);
    let close = [Step::Close];
    let closing = |name, pieces: &[Piece], expect| {
        stream(name, CLOSE_HEAD, Framing::Raw, pieces, &close, expect)
    };
    let failing = |name, event: &str| {
        let pieces = [half(), vec![Piece::silent(event)]].concat();
        finished(name, &pieces, broken(Outcome::StreamError))
    };
    let unfinished_line = {
        let mut pieces = ordinary();
        pieces.pop();
        pieces.push(Piece::silent("data: [DONE]"));
        pieces
    };
    let after_done = [ordinary(), vec![Piece::silent(": bye\n\n")]].concat();
    let twice_done = [ordinary(), vec![Piece::silent(sse("[DONE]"))]].concat();
    let chunked = Framing::Chunked;
    let hang = stream(
        "hang",
        SSE_HEAD,
        chunked,
        &half(),
        &[Step::Stall],
        broken(Outcome::Timeout),
    );
    let reset_after_done = [Step::pause_ms(ITL_MS), Step::Reset];
    vec![
        closing("truncated", &half(), broken(Outcome::Truncated)),
        finished("endedearly", &half(), broken(Outcome::Truncated)),
        closing("nofinalblank", &unfinished_line, complete()),
        failing(
            "errorevent",
            "event: error\ndata: {\"message\":\"engine died\"}\n\n",
        ),
        failing(
            "errorfield",
            "error: {\"message\":\"engine died\",\"code\":500}\n\n",
        ),
        finished("afterdone", &after_done, complete()),
        finished("twicedone", &twice_done, complete()),
        stream(
            "heldopen",
            SSE_HEAD,
            chunked,
            &ordinary(),
            &[Step::Stall],
            complete(),
        ),
        stream(
            "resetafterdone",
            SSE_HEAD,
            chunked,
            &ordinary(),
            &reset_after_done,
            complete(),
        ),
        Answer {
            needs_timeout: true,
            ..hang
        },
        counted("shortcount", 1000),
    ]
}

/// Answers that are no stream, to a request that asked for one.
fn not_streams() -> Vec<Answer> {
    let answer = |name, status: u16, content_type: &str, body: &str, expect| Answer {
        name,
        steps: vec![
            Step::pause_ms(TTFT_MS),
            Step::send(whole(status, content_type, "", body)),
        ],
        expect,
        needs_timeout: false,
    };
    let silent = |name, steps| Answer {
        name,
        steps,
        expect: Expect {
            status: None,
            ..broken(Outcome::ConnectionError)
        },
        needs_timeout: false,
    };
    let error = r#"{"error":{"message":"engine died","code":500}}"#;
    let html = "<html><body>Please log in</body></html>";
    vec![
        answer(
            "json",
            200,
            "application/json",
            &whole_chat(TOKENS),
            complete(),
        ),
        answer(
            "jsonerror",
            200,
            "application/json",
            error,
            broken(Outcome::StreamError),
        ),
        answer(
            "ssejsonerror",
            200,
            "text/event-stream",
            error,
            broken(Outcome::StreamError),
        ),
        answer("html", 200, "text/html", html, broken(Outcome::Malformed)),
        answer(
            "empty",
            200,
            "text/event-stream",
            "",
            broken(Outcome::Truncated),
        ),
        Answer {
            expect: Expect {
                status: Some(307),
                ..broken(Outcome::HttpError)
            },
            ..refusal(
                "redirect",
                307,
                "text/plain",
                "location: /elsewhere\r\n",
                "elsewhere",
            )
        },
        silent("nothing", vec![Step::Close]),
        silent(
            "nothttp",
            vec![Step::send("SSH-2.0-OpenSSH_9.6\r\n"), Step::Close],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers other load generators were measured with.
    const MEASURED: &str = "500 429 503 reset fin stall badjson nodone crlf cr multiline comment \
        split gzip rolefirst reasoning toolcalls errchunk nospace fields bom close emptychunks \
        slowheaders silentclose none";

    #[test]
    fn every_measured_answer_is_here_and_no_name_twice() {
        let mut names: Vec<_> = all().iter().map(|answer| answer.name).collect();
        assert!(
            MEASURED
                .split_whitespace()
                .all(|name| names.contains(&name))
        );
        assert_eq!(measured().len(), MEASURED.split_whitespace().count());
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_answer_with_content_says_which_write_bears_its_first() {
        for answer in all() {
            let step = answer.expect.ttft_from.map(|step| &answer.steps[step]);
            assert_eq!(
                step.is_some(),
                answer.expect.content_chunks > 0,
                "{}",
                answer.name
            );
            assert!(
                matches!(step, None | Some(Step::Send(_))),
                "{}",
                answer.name
            );
        }
    }

    #[test]
    fn the_first_token_is_due_when_the_constant_says() {
        for answer in all() {
            let Some(first) = answer.expect.ttft_from else {
                continue;
            };
            let pause_ns = |step: &Step| match step {
                Step::Pause(ns) => *ns,
                _ => 0,
            };
            let due_ns: i64 = answer.steps[..first].iter().map(pause_ns).sum();
            // The first event of `split` is two writes and two milliseconds long.
            let expected_ms = if answer.name == "split" {
                TTFT_MS + 2
            } else {
                TTFT_MS
            };
            assert_eq!(due_ns, expected_ms * 1_000_000, "{}", answer.name);
        }
    }
}
