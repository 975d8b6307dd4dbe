//! One HTTP response → chunks and an end.
//!
//! Whether an answer is a stream is decided by what came, not by what was asked:
//! servers answer a streamed request with one JSON document, with HTML, or with
//! SSE under any content type, and each of these must end with the right outcome
//! and its bytes kept.

use bytes::Bytes;
use memchr::memchr2;

use crate::decode::{DecodeError, Decoder};
use crate::dialect::{Api, Framing};
use crate::grpc::MessageFramer;
use crate::lines::LineFramer;
use crate::list::ListFramer;
use crate::openai::{self, Usage};
use crate::sse::{self, Frame};
use crate::words::{ChunkKind, Outcome};

mod body;
mod story;

use body::BodyCopy;
pub use body::MAX_BODY_BYTES;
use story::Story;

/// What is known of a response before its body.
#[derive(Debug, Clone, Copy)]
pub struct ResponseSpec<'a> {
    pub api: Api,
    /// Whether the request asked for a stream.
    pub stream_requested: bool,
    pub status: u16,
    pub content_type: Option<&'a str>,
    pub content_encoding: Option<&'a str>,
}

/// One stream event, valid during the callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a, T> {
    /// From 0 per response.
    pub index: i32,
    /// Stamp of the read with the payload's last byte.
    pub tag: T,
    pub kind: ChunkKind,
    pub choice_index: Option<i32>,
    /// SSE `event:` field.
    pub event: Option<&'a str>,
    /// SSE `id:` field.
    pub event_id: Option<&'a str>,
    pub tokens: Option<i32>,
    /// True length of the payload.
    pub bytes: i64,
    /// The payload, at most [`crate::sse::MAX_PAYLOAD_BYTES`] of it.
    pub data: &'a [u8],
    /// Whether `data` is shorter than `bytes`.
    pub truncated: bool,
}

/// How the exchange ended, as the socket side saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server ended the body in the protocol's way.
    Clean,
    /// The connection or the HTTP framing failed.
    Broken { error: String },
    /// One of our own timeouts ended it.
    Timeout { error: String },
    /// The client, or the end of the run, ended it.
    Cancelled { error: String },
    /// The server's last word is that it failed, whatever came before: a gRPC status.
    Failed { error: String },
}

/// Cuts a stream into frames, as its dialect says.
#[derive(Debug)]
enum Framer<T> {
    Sse(sse::Framer<T>),
    Lines(LineFramer<T>),
    Elements(ListFramer<T>),
    Messages(MessageFramer<T>),
}

impl<T: Copy> Framer<T> {
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::Sse | Framing::None => Self::Sse(sse::Framer::new()),
            Framing::Ndjson => Self::Lines(LineFramer::new()),
            Framing::Json => Self::Elements(ListFramer::new()),
            Framing::Grpc => Self::Messages(MessageFramer::new()),
        }
    }

    fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Frame<'_, T>)) {
        match self {
            Self::Sse(framer) => framer.feed(tag, bytes, out),
            Self::Lines(framer) => framer.feed(tag, bytes, out),
            Self::Elements(framer) => framer.feed(tag, bytes, out),
            Self::Messages(framer) => framer.feed(tag, bytes, out),
        }
    }

    fn finish(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        match self {
            Self::Sse(framer) => framer.finish(out),
            Self::Lines(framer) => framer.finish(out),
            Self::Elements(framer) => framer.finish(out),
            Self::Messages(framer) => framer.finish(out),
        }
    }
}

/// What a response row needs from the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseEnd {
    pub outcome: Outcome,
    /// The last one that arrived.
    pub finish_reason: Option<String>,
    /// The last count of each field that arrived.
    pub usage: Option<Usage>,
    /// Why the outcome is not `ok`; `None` where it is.
    pub error: Option<String>,
    /// A non-streamed or error answer, and what could not be decoded or stood
    /// before a stream's first event. At most [`MAX_BODY_BYTES`].
    pub body: Option<Bytes>,
    /// True length of the decoded answer, streamed or not; bytes that could not be
    /// decoded count as they came.
    pub body_bytes: i64,
    pub chunk_count: i32,
    /// Chunks that should be JSON and are not.
    pub malformed_chunks: i32,
    /// Whether `body` lacks bytes of the answer it is a copy of.
    pub truncated_body: bool,
}

/// Follows one response. Memory: the framer's two payloads, one body copy and, for
/// compressed answers, the decoder.
#[derive(Debug)]
pub struct ResponseReader<T> {
    /// `None` once the body proved undecodable: the rest is kept as it comes.
    decoder: Option<Decoder>,
    decode_error: Option<DecodeError>,
    /// Compressed bytes that have not yet given any output, so that a body which
    /// is no gzip at all is kept whole.
    undecoded: Vec<u8>,
    answer: Answer<T>,
}

/// Headers of compressed bodies are tens of bytes; beyond this the first bytes of
/// an undecodable body are not kept.
const MAX_UNDECODED_BYTES: usize = 64 << 10;

/// The decoded side.
#[derive(Debug)]
struct Answer<T> {
    shape: Shape,
    stream_requested: bool,
    status: u16,
    framer: Framer<T>,
    body: BodyCopy,
    story: Story,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Only white space so far.
    Undecided {
        framing: Framing,
        /// The content type is that of such streams.
        stream_type: bool,
    },
    Stream,
    /// Said to be SSE, but begins like a document: a JSON error under the stream's
    /// content type. A stream after all as soon as an event turns up.
    Doubtful,
    Whole,
}

impl<T: Copy> ResponseReader<T> {
    #[must_use]
    pub fn new(spec: ResponseSpec<'_>) -> Self {
        let (decoder, decode_error) = match Decoder::new(spec.content_encoding) {
            Ok(decoder) => (Some(decoder), None),
            Err(error) => (None, Some(error)),
        };
        let framing = spec.api.dialect().response.framing;
        let shape = if decoder.is_none() || !is_success(spec.status) || framing == Framing::None {
            Shape::Whole
        } else if framing == Framing::Grpc {
            Shape::Stream
        } else {
            Shape::Undecided {
                framing,
                stream_type: is_stream_type(framing, spec.content_type),
            }
        };
        Self {
            decoder,
            decode_error,
            undecoded: Vec::new(),
            answer: Answer {
                shape,
                stream_requested: spec.stream_requested,
                status: spec.status,
                framer: Framer::of(framing),
                body: BodyCopy::default(),
                story: Story::new(spec.api),
            },
        }
    }

    /// Takes one read as it came off the socket; `out` gets every chunk it completes.
    pub fn feed(&mut self, tag: T, raw: &[u8], out: &mut impl FnMut(Chunk<'_, T>)) {
        let Some(decoder) = &mut self.decoder else {
            self.answer.body.push(raw);
            return;
        };
        if decoder.is_identity() {
            self.answer.feed(tag, raw, out);
            return;
        }
        let decoded_before = self.answer.body.true_len();
        if decoded_before == 0 {
            let room = MAX_UNDECODED_BYTES.saturating_sub(self.undecoded.len());
            self.undecoded
                .extend_from_slice(&raw[..raw.len().min(room)]);
        }
        let result = decoder.feed(raw, &mut |piece: &[u8]| self.answer.feed(tag, piece, out));
        if let Err(error) = result {
            let raw = if decoded_before == 0 {
                &self.undecoded
            } else {
                raw
            };
            self.answer.body.push(raw);
            self.decoder = None;
            self.decode_error = Some(error);
        } else if self.answer.body.true_len() > 0 {
            self.undecoded = Vec::new();
        }
    }

    /// Whether the API's finish or end marker came: every choice seen so far has a
    /// finish reason, or `[DONE]`. An answer that is not streamed has none before
    /// its end.
    #[must_use]
    pub fn end_marker_seen(&self) -> bool {
        self.answer.story.end_marker_seen()
    }

    /// Whether `[DONE]` came: nothing of interest follows.
    #[must_use]
    pub fn done_seen(&self) -> bool {
        self.answer.story.done
    }

    /// Ends the response; `out` gets an event that the end cut off.
    #[must_use]
    pub fn finish(mut self, end: End, out: &mut impl FnMut(Chunk<'_, T>)) -> ResponseEnd {
        if let Some(Err(error)) = self.decoder.as_ref().map(Decoder::finish) {
            self.decode_error = Some(error);
        }
        self.answer.finish(self.decode_error.as_ref(), end, out)
    }
}

impl<T: Copy> Answer<T> {
    fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Chunk<'_, T>)) {
        let mut bytes = match self.shape {
            Shape::Undecided {
                framing,
                stream_type,
            } => self.decide(framing, stream_type, bytes),
            _ => bytes,
        };
        // Line by line, so that the copy ends with the first event however the
        // bytes came.
        while self.shape == Shape::Doubtful && !bytes.is_empty() {
            let line_end = memchr2(b'\n', b'\r', bytes).map_or(bytes.len(), |at| at + 1);
            let (line, after) = bytes.split_at(line_end);
            self.body.push(line);
            self.framer
                .feed(tag, line, &mut |frame| self.story.doubt(&frame, out));
            self.trust_events();
            bytes = after;
        }
        match self.shape {
            Shape::Undecided { .. } | Shape::Whole => self.body.push(bytes),
            Shape::Stream => {
                self.body.count(bytes);
                self.framer
                    .feed(tag, bytes, &mut |frame| self.story.hand_out(&frame, out));
            }
            Shape::Doubtful => {}
        }
    }

    fn trust_events(&mut self) {
        if self.story.chunk_count > 0 {
            self.shape = Shape::Stream;
        }
    }

    /// Chooses the shape by the first byte that is neither white space nor part of
    /// a byte order mark. Returns what of `bytes` is still to be taken: a stream
    /// has no use for what stands before its first line.
    fn decide<'a>(&mut self, framing: Framing, stream_type: bool, bytes: &'a [u8]) -> &'a [u8] {
        let blank = |b: &u8| b.is_ascii_whitespace() || matches!(b, 0xEF | 0xBB | 0xBF);
        let Some(start) = bytes.iter().position(|b| !blank(b)) else {
            return bytes;
        };
        // Lines of JSON begin as one document does, but no HTML page.
        let documents = match framing {
            Framing::Ndjson => &b"<"[..],
            // A document that is no list.
            Framing::Json => b"{<",
            Framing::Sse | Framing::Grpc | Framing::None => b"{[<",
        };
        let document = documents.contains(&bytes[start]);
        self.shape = match (stream_type, document) {
            (true, true) => Shape::Doubtful,
            (true, false) => Shape::Stream,
            (false, true) => Shape::Whole,
            (false, false) if self.stream_requested => Shape::Stream,
            (false, false) => Shape::Whole,
        };
        if self.shape != Shape::Stream {
            return bytes;
        }
        self.body.drop_copy();
        self.body.count(&bytes[..start]);
        &bytes[start..]
    }

    fn finish(
        mut self,
        decode_error: Option<&DecodeError>,
        end: End,
        out: &mut impl FnMut(Chunk<'_, T>),
    ) -> ResponseEnd {
        if self.shape == Shape::Doubtful {
            self.framer
                .finish(&mut |frame| self.story.doubt(&frame, out));
            self.trust_events();
        }
        let verdict = if !is_success(self.status) {
            self.http_error(decode_error)
        } else if self.shape == Shape::Stream {
            self.framer
                .finish(&mut |frame| self.story.hand_out_cut_off(&frame, out));
            self.stream_verdict(decode_error, end)
        } else {
            self.whole_verdict(decode_error, end)
        };
        let (outcome, error) = verdict;
        ResponseEnd {
            outcome,
            finish_reason: self.story.finish_reason,
            usage: self.story.usage,
            error,
            body_bytes: self.body.true_len(),
            truncated_body: self.body.truncated(),
            body: self.body.into_copy(),
            chunk_count: self.story.chunk_count,
            malformed_chunks: self.story.malformed_chunks,
        }
    }

    fn http_error(&self, decode_error: Option<&DecodeError>) -> (Outcome, Option<String>) {
        let message = match decode_error {
            Some(error) if !error.is_incomplete() => Some(error.to_string()),
            _ => openai::error_message(self.body.copy()),
        };
        let message = message.unwrap_or_else(|| format!("status {} without a body", self.status));
        (Outcome::HttpError, Some(message))
    }

    fn stream_verdict(
        &mut self,
        decode_error: Option<&DecodeError>,
        end: End,
    ) -> (Outcome, Option<String>) {
        if let Some(early) = self.story.verdict(end) {
            return early;
        }
        let (bad, all) = (self.story.malformed_chunks, self.story.chunk_count);
        match decode_error {
            Some(error) if error.is_incomplete() && bad == 0 => {
                (Outcome::Truncated, Some(error.to_string()))
            }
            Some(error) => (Outcome::Malformed, Some(error.to_string())),
            None if bad > 0 => {
                let error = format!("no finish reason, and {bad} of {all} chunks are not json");
                (Outcome::Malformed, Some(error))
            }
            None => {
                let error = "stream ended without a finish reason or [DONE]".to_owned();
                (Outcome::Truncated, Some(error))
            }
        }
    }

    fn whole_verdict(
        &mut self,
        decode_error: Option<&DecodeError>,
        end: End,
    ) -> (Outcome, Option<String>) {
        let readable = decode_error.is_none_or(DecodeError::is_incomplete);
        let parsed = readable && self.story.take_document(self.body.copy());
        if let Some(early) = self.story.verdict(end) {
            return early;
        }
        match decode_error {
            _ if parsed => (Outcome::Ok, None),
            Some(error) if error.is_incomplete() => (Outcome::Truncated, Some(error.to_string())),
            Some(error) => (Outcome::Malformed, Some(error.to_string())),
            // Whole, but more of it than is kept: nothing speaks against it.
            None if self.body.truncated() => (Outcome::Ok, None),
            None if self.body.is_blank() => {
                (Outcome::Truncated, Some("answer without a body".to_owned()))
            }
            None => (Outcome::Malformed, Some("answer is not json".to_owned())),
        }
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

fn is_stream_type(framing: Framing, content_type: Option<&str>) -> bool {
    let names: &[&str] = match framing {
        Framing::Sse => &["text/event-stream"],
        Framing::Ndjson => &[
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/stream+json",
        ],
        Framing::Json | Framing::Grpc | Framing::None => &[],
    };
    let media_type = content_type.and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim();
    names
        .iter()
        .any(|name| media_type.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
