//! Payloads → meaning, by the places that a dialect names.
//!
//! Every payload is read into a JSON document, some 20 times the cost of the
//! OpenAI reader's shortcut: what OpenAI-shaped streams need not pay.

use serde_json::Value;

use crate::dialect::{Dialect, Places, ResponsePart, TextIs};
use crate::lenient;
use crate::openai::{Meaning, Usage, note_of};
use crate::text;
use crate::words::ChunkKind;

/// Choices whose text is followed; later ones share the last place.
const MAX_CHOICES: usize = 64;

/// Reads the payloads of one stream, in order.
#[derive(Debug)]
pub struct Interpreter {
    response: &'static ResponsePart,
    /// By choice: what has come so far, where payloads say all of it again.
    so_far: Vec<SoFar>,
}

#[derive(Debug, Default, Clone, Copy)]
struct SoFar {
    /// By kind: content, tool, reasoning.
    text_bytes: [usize; 3],
    tokens: i32,
}

impl Interpreter {
    #[must_use]
    pub fn new(dialect: &'static Dialect) -> Self {
        Self {
            response: &dialect.response,
            so_far: Vec::new(),
        }
    }

    /// Reads the next payload. `event_name` is the SSE `event:` field. Never fails.
    #[must_use]
    pub fn interpret(&mut self, event_name: Option<&str>, payload: &[u8]) -> Meaning {
        let payload = payload.trim_ascii();
        let done_data = self.response.done_data.as_deref();
        if done_data.is_some_and(|data| data.as_bytes() == payload) {
            return Meaning {
                end_marker: true,
                ..Meaning::of(ChunkKind::Done)
            };
        }
        let named_error = event_name == Some("error");
        if payload.is_empty() && !named_error {
            return Meaning::default();
        }
        match lenient::document(payload) {
            Some(document) => self.read(&document, named_error, payload),
            None if named_error => Meaning::error(text::snippet(payload)),
            None => Meaning {
                malformed: true,
                ..Meaning::default()
            },
        }
    }

    fn read(&mut self, document: &Value, named_error: bool, payload: &[u8]) -> Meaning {
        let response = self.response;
        let choice_index = first_number(&response.choice, document);
        let kind = self.kind(document, choice_index);
        let usage = usage(response, document);
        let finish_reason = finish_reason(response, document);
        let done = response.done.hold(document);
        let error = error(response, document, named_error, payload);
        let found = [
            (error.is_some(), ChunkKind::Error),
            (usage.is_some(), ChunkKind::Usage),
            (response.role.hold(document), ChunkKind::Role),
            (done, ChunkKind::Done),
        ];
        let found = found.iter().filter(|(found, _)| *found);
        let kind = found.fold(kind, |kind, (_, other)| kind.min(*other));
        Meaning {
            kind,
            choice_index,
            tokens: self.tokens(document, choice_index),
            end_marker: done || finish_reason.is_some(),
            finish_reason,
            usage,
            error,
            malformed: false,
        }
    }

    /// The strongest kind of text that the payload brings.
    fn kind(&mut self, document: &Value, choice_index: Option<i32>) -> ChunkKind {
        let response = self.response;
        let texts = [
            (&response.text, ChunkKind::Content),
            (&response.tool, ChunkKind::Tool),
            (&response.reasoning, ChunkKind::Reasoning),
        ];
        if response.text_is == TextIs::Incremental {
            let mut texts = texts.iter();
            let found = texts.find(|(places, _)| places.bear(document));
            return found.map_or(ChunkKind::Other, |(_, kind)| *kind);
        }
        let so_far = self.so_far(choice_index);
        let mut kind = ChunkKind::Other;
        for ((places, of), so_far) in texts.iter().zip(&mut so_far.text_bytes) {
            let text_bytes = bytes_of(places, document);
            if text_bytes > *so_far {
                kind = kind.min(*of);
                *so_far = text_bytes;
            }
        }
        kind
    }

    /// Output tokens of this payload: as many as it names, or by how many the
    /// count so far has grown.
    fn tokens(&mut self, document: &Value, choice_index: Option<i32>) -> Option<i32> {
        let mut named = None;
        self.response.tokens.visit_first(document, &mut |value| {
            let tokens = match value {
                Value::Array(list) => i32::try_from(list.len()).unwrap_or(i32::MAX),
                _ => 1,
            };
            named = Some(tokens.saturating_add(named.unwrap_or(0)));
        });
        if named.is_some() {
            return named;
        }
        let count = self.response.tokens_so_far.read(document)?;
        let so_far = self.so_far(choice_index);
        let new = count.saturating_sub(so_far.tokens).max(0);
        so_far.tokens = so_far.tokens.max(count);
        Some(new)
    }

    fn so_far(&mut self, choice_index: Option<i32>) -> &mut SoFar {
        let index = choice_index.and_then(|index| usize::try_from(index).ok());
        let index = index.unwrap_or(0).min(MAX_CHOICES - 1);
        if self.so_far.len() <= index {
            self.so_far.resize(index + 1, SoFar::default());
        }
        &mut self.so_far[index]
    }
}

fn first_number(places: &Places, document: &Value) -> Option<i32> {
    let mut number = None;
    places.visit_first(document, &mut |value| {
        number = number.or(value.as_i64().and_then(|n| i32::try_from(n).ok()));
    });
    number
}

fn bytes_of(places: &Places, document: &Value) -> usize {
    let mut bytes = 0;
    places.visit(document, &mut |value| {
        bytes += match value {
            Value::String(text) => text.len(),
            Value::Array(_) | Value::Object(_) => value.to_string().len(),
            _ => 0,
        };
    });
    bytes
}

fn usage(response: &ResponsePart, document: &Value) -> Option<Usage> {
    let usage = Usage {
        input_tokens: response.input_tokens.read(document),
        output_tokens: response.output_tokens.read(document),
        reasoning_tokens: response.reasoning_tokens.read(document),
        cached_tokens: response.cached_tokens.read(document),
    };
    (usage != Usage::default()).then_some(usage)
}

fn finish_reason(response: &ResponsePart, document: &Value) -> Option<String> {
    let mut reason = None;
    response.finish.visit(document, &mut |value| {
        let word = value.as_str().filter(|word| !word.is_empty());
        let word = word.filter(|word| !response.finish_none.iter().any(|none| none == word));
        if let (None, Some(word)) = (&reason, word) {
            reason = Some(text::message(word));
        }
    });
    reason
}

fn error(
    response: &ResponsePart,
    document: &Value,
    named_error: bool,
    payload: &[u8],
) -> Option<String> {
    let mut note = None;
    let mut is_error = named_error;
    response.error.visit(document, &mut |value| {
        if let Some(found) = note_of(value) {
            is_error = true;
            note = note.take().or(found.message);
        }
    });
    if !is_error {
        return None;
    }
    let mut message = None;
    response.error_message.visit_first(document, &mut |value| {
        let text = value.as_str().filter(|text| !text.is_empty());
        message = message.take().or(text.map(text::message));
    });
    Some(message.or(note).unwrap_or_else(|| text::snippet(payload)))
}

#[cfg(test)]
mod tests;
