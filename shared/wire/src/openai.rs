//! One payload of an OpenAI-style stream → what it means. Never fails.
//!
//! A whole non-streamed answer is read by the same function: it has `message` or
//! `text` where a chunk has `delta`. Servers disagree with the OpenAI reference
//! everywhere, so every field may be missing, null or of another type.

use crate::lenient;
use crate::text;
use crate::words::ChunkKind;

mod delta;
mod document;
mod envelope;
mod request;
mod said;
mod values;

/// Here as well, where it once lived.
pub use crate::dialect::Api;
use document::Facts;
pub use envelope::Interpreter;
pub use request::{RequestFacts, request_facts};
pub(crate) use said::holds_text;
pub use said::{input_text, output_text, reply_text};
pub(crate) use values::note_of;

/// Token counts as the server reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: Option<i32>,
    pub output_tokens: Option<i32>,
    /// Part of the output.
    pub reasoning_tokens: Option<i32>,
    /// Part of the input that a prefix cache held.
    pub cached_tokens: Option<i32>,
}

impl Usage {
    /// These counts, and the earlier ones where these are missing.
    #[must_use]
    pub fn or(self, earlier: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.or(earlier.input_tokens),
            output_tokens: self.output_tokens.or(earlier.output_tokens),
            reasoning_tokens: self.reasoning_tokens.or(earlier.reasoning_tokens),
            cached_tokens: self.cached_tokens.or(earlier.cached_tokens),
        }
    }
}

/// What one payload says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    pub kind: ChunkKind,
    /// The only choice, or the only content-bearing one; `None` when several bear
    /// content or there is none.
    pub choice_index: Option<i32>,
    /// Output tokens in this payload: token ids, else entries of logprobs.
    pub tokens: Option<i32>,
    pub finish_reason: Option<String>,
    /// Read from a payload of any kind.
    pub usage: Option<Usage>,
    /// The server's own message; always there for kind `error`, never otherwise.
    pub error: Option<String>,
    /// The payload should be JSON and is not.
    pub malformed: bool,
    /// `[DONE]`, or a finish reason for a choice.
    pub end_marker: bool,
}

impl Meaning {
    #[must_use]
    pub(crate) fn of(kind: ChunkKind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    pub(crate) fn error(message: String) -> Self {
        Self {
            error: Some(message),
            ..Self::of(ChunkKind::Error)
        }
    }
}

/// Reads one payload of chat or completions: no field of one means something else
/// in the other. `event_name` is the SSE `event:` field.
#[must_use]
pub fn interpret(event_name: Option<&str>, payload: &[u8]) -> Meaning {
    let payload = payload.trim_ascii();
    if payload == b"[DONE]" {
        return Meaning {
            end_marker: true,
            ..Meaning::of(ChunkKind::Done)
        };
    }
    let named_error = event_name == Some("error");
    if payload.is_empty() && !named_error {
        return Meaning::default();
    }
    match lenient::read::<Facts>(payload) {
        Some(facts) => facts.meaning(named_error, payload),
        None if named_error => Meaning::error(text::snippet(payload)),
        None => Meaning {
            malformed: true,
            ..Meaning::default()
        },
    }
}

/// Reads an SSE line that is no `data`, `event`, `id` or comment: `error: {…}`, as
/// llama.cpp sent errors; `retry: 5`; or junk, which counts as malformed.
#[must_use]
pub fn interpret_field(line: &[u8]) -> Meaning {
    if let Some(value) = line.strip_prefix(b"error:") {
        let message = error_message(value).unwrap_or_else(|| text::snippet(line));
        return Meaning::error(message);
    }
    Meaning {
        malformed: !has_field_name(line),
        ..Meaning::default()
    }
}

/// The message in an error body: `error.message`, `message`, `detail`, else the
/// first 300 characters. `None` when the body is blank.
#[must_use]
pub fn error_message(body: &[u8]) -> Option<String> {
    let body = body.trim_ascii();
    // Some servers keep to SSE in an error answer.
    let event = body
        .strip_prefix(b"data:")
        .and_then(|data| data.split(|b| *b == b'\n').next());
    let payload = event.unwrap_or(body).trim_ascii();
    let found = lenient::read::<Facts>(payload).and_then(|facts| {
        let note = facts.error.and_then(|note| note.message);
        note.or(facts.message)
            .or(facts.detail.and_then(|note| note.message))
    });
    found.or_else(|| (!payload.is_empty()).then(|| text::snippet(payload)))
}

/// `name:` as a server that adds fields of its own would write it.
fn has_field_name(line: &[u8]) -> bool {
    const MAX_FIELD_NAME_BYTES: usize = 32;
    let head = &line[..line.len().min(MAX_FIELD_NAME_BYTES + 1)];
    let Some(colon) = memchr::memchr(b':', head) else {
        return false;
    };
    head[..colon]
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests;
