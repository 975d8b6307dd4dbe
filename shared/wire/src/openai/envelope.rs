//! The same document around another text means the same.
//!
//! Nearly all chunks of a stream differ in one string only. Once a chunk has been
//! read, a later one with the same bytes before and after that string, and a plain
//! string that is not empty between them, needs no parsing: a text counts only as
//! empty or not. That is a twentieth of the time and most of what a chunk costs.
//! Anything else is read in full, so the answer is the same by construction, and a
//! property test holds it to that.

use memchr::memmem;

use super::{Meaning, interpret};
use crate::words::ChunkKind;

/// Envelopes are some 200 bytes; longer ones are not worth remembering per stream.
const MAX_ENVELOPE_BYTES: usize = 2048;

/// A stream whose envelope changed this often in a row (a random field, token ids,
/// alternating choices) has none: remembering it would only cost.
const MAX_MISSES: u8 = 8;

/// [`interpret`] for the payloads of one stream, in order.
#[derive(Debug, Default)]
pub struct Interpreter {
    envelope: Envelope,
    misses: u8,
}

/// What stands around the text of the last content-bearing payload.
#[derive(Debug, Default)]
struct Envelope {
    /// Up to and with the text's opening quote; empty when nothing is remembered.
    before: Vec<u8>,
    /// From the text's closing quote.
    after: Vec<u8>,
    kind: ChunkKind,
    choice_index: Option<i32>,
    tokens: Option<i32>,
}

impl Interpreter {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next payload; the same as [`interpret`].
    #[must_use]
    pub fn interpret(&mut self, event_name: Option<&str>, payload: &[u8]) -> Meaning {
        let named_error = event_name == Some("error");
        if !named_error && self.envelope.holds(payload) {
            self.misses = 0;
            return self.envelope.meaning();
        }
        let meaning = interpret(event_name, payload);
        if self.misses < MAX_MISSES && is_only_text(&meaning) {
            self.misses += 1;
            self.envelope.remember(payload, &meaning);
        }
        meaning
    }
}

fn is_only_text(meaning: &Meaning) -> bool {
    meaning.kind > ChunkKind::Error
        && meaning.kind <= ChunkKind::Reasoning
        && meaning.finish_reason.is_none()
        && meaning.usage.is_none()
}

impl Envelope {
    fn holds(&self, payload: &[u8]) -> bool {
        let text = payload.strip_prefix(self.before.as_slice());
        let text = text.and_then(|rest| rest.strip_suffix(self.after.as_slice()));
        !self.before.is_empty() && text.is_some_and(is_plain_text)
    }

    fn meaning(&self) -> Meaning {
        Meaning {
            choice_index: self.choice_index,
            tokens: self.tokens,
            ..Meaning::of(self.kind)
        }
    }

    fn remember(&mut self, payload: &[u8], meaning: &Meaning) {
        self.before.clear();
        self.after.clear();
        let Some((start, end)) = text_of(payload) else {
            return;
        };
        if payload.len() - (end - start) > MAX_ENVELOPE_BYTES {
            return;
        }
        self.before.extend_from_slice(&payload[..start]);
        self.after.extend_from_slice(&payload[end..]);
        self.kind = meaning.kind;
        self.choice_index = meaning.choice_index;
        self.tokens = meaning.tokens;
    }
}

/// Where the first text lies that is not empty, without its quotes. `payload` is
/// valid JSON, where `"content":` is always the end of a key: were its first quote
/// the end of a string, a bare word would follow it. Should that quote be an escaped
/// one, the key is a longer one that no meaning depends on, and as good as any.
fn text_of(payload: &[u8]) -> Option<(usize, usize)> {
    const KEYS: [&[u8]; 4] = [
        b"\"content\":",
        b"\"text\":",
        b"\"reasoning_content\":",
        b"\"reasoning\":",
    ];
    KEYS.iter().find_map(|key| {
        let value = memmem::find(payload, key)? + key.len();
        let quote = value + payload[value..].iter().position(|b| *b != b' ')?;
        let start = quote + 1;
        let len = plain_len(payload.get(start..)?)?;
        (payload[quote] == b'"' && len > 0).then_some((start, start + len))
    })
}

/// Length of the string contents that `bytes` begin with, up to the closing quote.
fn plain_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', &bytes[at..])?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        // `\u` may be half a pair; those are left to the parser.
        if !matches!(
            bytes.get(at + 1)?,
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'
        ) {
            return None;
        }
        at += 2;
    }
}

/// Whether `text` is the whole contents of a string, and not empty.
fn is_plain_text(text: &[u8]) -> bool {
    // JSON has no control characters inside strings.
    if text.is_empty() || text.iter().any(|b| *b < 0x20) {
        return false;
    }
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        let escaped = matches!(
            rest[at..],
            [
                b'\\',
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't',
                ..
            ]
        );
        if !escaped {
            return false;
        }
        rest = &rest[at + 2..];
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(text: &str) -> String {
        format!(
            r#"{{"id":"c","choices":[{{"index":2,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
        )
    }

    fn texts() -> impl Strategy<Value = String> {
        let words = [
            "",
            " the",
            "\\n",
            "\\\"",
            "\\u0041",
            "\\ud83d",
            "\"",
            "\\",
            "é",
            "\n",
            "\"},\"x\":{\"a\":\"",
            "[DONE]",
            "\"}}],\"usage\":{\"prompt_tokens\":3},\"y\":[{\"z\":{\"a\":\"b",
        ];
        proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..3)
            .prop_map(|words| words.concat())
    }

    fn payloads() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => texts().prop_map(|text| chunk(&text)),
            1 => texts().prop_map(|text| format!(r#"{{"choices":[{{"text": "{text}","token_ids":[1]}}]}}"#)),
            1 => texts().prop_map(|text| format!(r#"{{"choices":[{{"delta":{{"content":null,"reasoning":"{text}"}}}}]}}"#)),
            1 => texts().prop_map(|text| format!(r#"{{"x\"content":"{text}","choices":[{{"text":"a"}}]}}"#)),
            1 => texts().prop_map(|text| format!(r#"{{"error":{{"content":"{text}"}}}}"#)),
            1 => texts().prop_map(|text| format!(r#"{{"choices":[{{"text":"{text}","finish_reason":"stop"}}]}}"#)),
            1 => texts().prop_map(|text| format!(r#"{{"choices":[{{"text":"{text}"}}],"usage":{{"prompt_tokens":3}}}}"#)),
            1 => Just(r#"{"choices":[],"usage":{"prompt_tokens":3}}"#.to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// For every sequence of payloads, what is remembered changes no meaning.
        #[test]
        fn remembering_changes_no_meaning(payloads in proptest::collection::vec(payloads(), 0..12)) {
            let mut interpreter = Interpreter::new();
            for payload in payloads {
                let expected = interpret(None, payload.as_bytes());
                prop_assert_eq!(interpreter.interpret(None, payload.as_bytes()), expected, "{}", payload);
            }
        }
    }

    #[test]
    fn a_second_chunk_of_the_same_shape_is_recognised() {
        let mut interpreter = Interpreter::new();
        let first = interpreter.interpret(None, chunk("a").as_bytes());
        for text in [" b", "\\n\\n", "say \\\"x\\\"", "é😀"] {
            assert!(interpreter.envelope.holds(chunk(text).as_bytes()), "{text}");
            assert_eq!(interpreter.interpret(None, chunk(text).as_bytes()), first);
        }
        for text in ["", "\"", "\\", "a\nb", "\\u0041"] {
            assert!(
                !interpreter.envelope.holds(chunk(text).as_bytes()),
                "{text}"
            );
        }
        let named = interpreter.interpret(Some("error"), chunk("a").as_bytes());
        assert_eq!(named.kind, ChunkKind::Error);
    }

    #[test]
    fn a_stream_that_never_repeats_itself_is_given_up() {
        let mut interpreter = Interpreter::new();
        for number in 0..20 {
            let payload = format!(r#"{{"choices":[{{"text":"a","x":{number}}}]}}"#);
            assert_eq!(
                interpreter.interpret(None, payload.as_bytes()).kind,
                ChunkKind::Content
            );
        }
        assert_eq!(interpreter.misses, MAX_MISSES);
    }
}
