//! Ordinary replies, byte for byte.

use super::{Reply, Step};

/// Head of a streamed answer in HTTP chunks.
pub const SSE_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// The generating endpoint whose JSON is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Chat,
    Completions,
}

/// An ordinary stream: `tokens` content chunks, each its own write.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    pub api: Api,
    pub tokens: usize,
    /// From the request's last byte to the first token.
    pub ttft_ns: i64,
    pub itl_ns: i64,
    /// Bytes a chunk's payload is padded to; 0 leaves it at its natural 200.
    pub payload_bytes: usize,
}

impl Stream {
    pub fn chat(tokens: usize, ttft_ms: i64, itl_ms: i64) -> Self {
        Self {
            api: Api::Chat,
            tokens,
            ttft_ns: ttft_ms * 1_000_000,
            itl_ns: itl_ms * 1_000_000,
            payload_bytes: 0,
        }
    }

    /// Each chunk its own write, at its own instant.
    pub fn reply(&self) -> Reply {
        self.reply_paced(|_| self.itl_ns)
    }

    /// As [`Self::reply`], with the gap before token `i` (from 1) chosen by `gap_ns`.
    pub fn reply_paced(&self, mut gap_ns: impl FnMut(usize) -> i64) -> Reply {
        let mut steps = vec![Step::send(SSE_HEAD), Step::Pause(self.ttft_ns)];
        for index in 0..self.tokens {
            if index > 0 {
                steps.push(Step::Pause(gap_ns(index)));
            }
            steps.push(Step::send(http_chunk(&sse(&self.token(index)))));
        }
        steps.push(Step::send(http_chunk(self.tail().as_bytes())));
        steps.push(Step::send(LAST_CHUNK));
        steps.into()
    }

    /// Several chunks a write and no gaps, to lay parsing bare: after the first
    /// token, writes of about `write_bytes`.
    pub fn reply_in_bulk(&self, write_bytes: usize) -> Reply {
        let mut steps = vec![Step::send(SSE_HEAD), Step::Pause(self.ttft_ns)];
        let mut buffer = Vec::with_capacity(write_bytes + 1024);
        for index in 0..self.tokens {
            buffer.extend(http_chunk(&sse(&self.token(index))));
            if index == 0 || buffer.len() >= write_bytes {
                steps.push(Step::send(std::mem::take(&mut buffer)));
            }
        }
        buffer.extend(http_chunk(self.tail().as_bytes()));
        buffer.extend(LAST_CHUNK);
        steps.push(Step::send(buffer));
        steps.into()
    }

    /// Index of the step that sends token `index` of [`Self::reply`].
    pub fn step_of(&self, index: usize) -> usize {
        2 + 2 * index
    }

    fn token(&self, index: usize) -> String {
        let padding = self.payload_bytes.saturating_sub(220);
        let text = format!(" word{index}{}", "x".repeat(padding));
        match self.api {
            Api::Chat => chat_delta(&format!(r#"{{"content":"{text}"}}"#), None),
            Api::Completions => completion_text(&text, None),
        }
    }

    fn tail(&self) -> String {
        let finish = match self.api {
            Api::Chat => chat_delta("{}", Some("stop")),
            Api::Completions => completion_text("", Some("stop")),
        };
        format!(
            "data: {finish}\n\ndata: {}\n\ndata: [DONE]\n\n",
            usage_chunk(self.tokens)
        )
    }
}

/// What ends a body in HTTP chunks.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

const ENVELOPE: &str = r#""id":"chatcmpl-5f2b7c1de9a0443c8f1e6d2a90b7c3e4","object":"chat.completion.chunk","created":1700000000,"model":"mock""#;

/// Input tokens every usage object claims.
pub const INPUT_TOKENS: i32 = 7;

/// A chat chunk around `delta`, which is JSON.
pub fn chat_delta(delta: &str, finish_reason: Option<&str>) -> String {
    chat_choice(0, delta, finish_reason)
}

/// As [`chat_delta`], of choice `choice`.
pub fn chat_choice(choice: usize, delta: &str, finish_reason: Option<&str>) -> String {
    let finish = finish_reason.map_or_else(|| "null".to_owned(), |reason| format!("\"{reason}\""));
    format!(
        r#"{{{ENVELOPE},"choices":[{{"index":{choice},"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}"#
    )
}

/// A completions chunk.
pub fn completion_text(text: &str, finish_reason: Option<&str>) -> String {
    let finish = finish_reason.map_or_else(|| "null".to_owned(), |reason| format!("\"{reason}\""));
    format!(
        r#"{{"id":"cmpl-5f2b7c1de9a0443c8f1e6d2a90b7c3e4","object":"text_completion","created":1700000000,"model":"mock","choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}]}}"#
    )
}

/// The usage object of an answer of `tokens` tokens.
pub fn usage(tokens: usize) -> String {
    let total = tokens as i64 + i64::from(INPUT_TOKENS);
    format!(
        r#"{{"prompt_tokens":{INPUT_TOKENS},"total_tokens":{total},"completion_tokens":{tokens}}}"#
    )
}

/// The chunk without choices at the end of a stream.
pub fn usage_chunk(tokens: usize) -> String {
    format!(r#"{{{ENVELOPE},"choices":[],"usage":{}}}"#, usage(tokens))
}

/// A whole chat answer.
pub fn whole_chat(tokens: usize) -> String {
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"mock","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],"usage":{}}}"#,
        "word ".repeat(tokens),
        usage(tokens)
    )
}

/// An event with one `data` line.
pub fn sse(payload: &str) -> Vec<u8> {
    format!("data: {payload}\n\n").into_bytes()
}

/// `bytes` as one HTTP chunk.
pub fn http_chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// A whole answer of known length.
pub fn whole(status: u16, content_type: &str, extra_headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Reason\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n{extra_headers}\r\n{body}"
    )
    .into_bytes()
}

/// A whole JSON answer in one write.
pub fn json(status: u16, body: &str) -> Reply {
    vec![Step::send(whole(status, "application/json", "", body))].into()
}

/// `/v1/models` as a readiness probe wants it.
pub fn models() -> Reply {
    json(
        200,
        r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#,
    )
}
