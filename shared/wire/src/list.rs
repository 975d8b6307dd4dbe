//! Incremental bytes → the elements of one JSON list, for any split of the bytes into
//! reads: `[{…},` now, `{…}]` later, as Gemini's servers stream.
//!
//! An element ends with its own bracket, or before the comma of the list where it has
//! none. What stands behind the end of the list is left out.

use crate::sse::{Frame, FrameClass, MAX_PAYLOAD_BYTES};

/// A buffer that grew beyond this is given back after its element.
const MAX_IDLE_BYTES: usize = 64 << 10;

/// Splits a stream into elements. Holds at most one of [`MAX_PAYLOAD_BYTES`].
#[derive(Debug)]
pub struct ListFramer<T> {
    carried: Vec<u8>,
    true_len: u64,
    /// Of the last byte so far that is no white space.
    tag: Option<T>,
    at: At,
    /// Brackets that are open within the element.
    depth: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the list's own bracket.
    Start,
    /// Between elements.
    Between,
    Element,
    Text,
    /// Behind a backslash.
    Escape,
    /// Behind the list.
    End,
}

impl<T: Copy> Default for ListFramer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> ListFramer<T> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            carried: Vec::new(),
            true_len: 0,
            tag: None,
            at: At::Start,
            depth: 0,
        }
    }

    /// Takes one read; `out` gets every element it completes.
    pub fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Frame<'_, T>)) {
        for byte in bytes {
            match (self.at, byte) {
                (At::End, _) | (At::Start | At::Between, b' ' | b'\t' | b'\r' | b'\n') => {}
                (At::Start, b'[') | (At::Between, b',') => self.at = At::Between,
                (At::Between, b']') => self.at = At::End,
                // What does not begin as a list is an element that does not parse.
                (At::Start | At::Between, byte) => {
                    self.at = At::Element;
                    self.take(tag, *byte, out);
                }
                (_, byte) => self.take(tag, *byte, out),
            }
        }
    }

    /// One byte of an element.
    fn take(&mut self, tag: T, byte: u8, out: &mut impl FnMut(Frame<'_, T>)) {
        let mut ends = false;
        self.at = match (self.at, byte) {
            (At::Text, b'\\') => At::Escape,
            (At::Escape, _) => At::Text,
            (At::Text, b'"') => At::Element,
            (At::Text, _) => At::Text,
            (_, b'"') => At::Text,
            (_, b',') if self.depth == 0 => return self.hand_out(At::Between, out),
            (_, b']') if self.depth == 0 => return self.hand_out(At::End, out),
            (_, b'{' | b'[') => {
                self.depth += 1;
                At::Element
            }
            (_, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                ends = self.depth == 0;
                At::Element
            }
            _ => At::Element,
        };
        if self.carried.len() < MAX_PAYLOAD_BYTES {
            self.carried.push(byte);
        }
        self.true_len += 1;
        if !byte.is_ascii_whitespace() {
            self.tag = Some(tag);
        }
        if ends {
            self.hand_out(At::Between, out);
        }
    }

    /// Hands out an element that the end of the stream cut off.
    pub fn finish(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        self.hand_out(At::End, out);
    }

    fn hand_out(&mut self, next: At, out: &mut impl FnMut(Frame<'_, T>)) {
        if let Some(tag) = self.tag.take() {
            out(Frame {
                class: FrameClass::Event,
                payload: &self.carried,
                bytes: self.true_len,
                event: None,
                id: None,
                tag,
                truncated: self.true_len > self.carried.len() as u64,
            });
        }
        if self.carried.capacity() > MAX_IDLE_BYTES {
            self.carried = Vec::new();
        } else {
            self.carried.clear();
        }
        self.true_len = 0;
        self.depth = 0;
        self.at = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn elements(reads: &[&[u8]]) -> Vec<(String, usize)> {
        let mut framer = ListFramer::new();
        let mut seen = Vec::new();
        let mut out = |frame: Frame<'_, usize>| {
            assert_eq!(frame.bytes, frame.payload.len() as u64);
            seen.push((
                String::from_utf8(frame.payload.to_vec()).unwrap(),
                frame.tag,
            ));
        };
        for (tag, read) in reads.iter().enumerate() {
            framer.feed(tag, read, &mut out);
        }
        framer.finish(&mut out);
        seen
    }

    fn documents() -> impl Strategy<Value = Value> {
        let text = proptest::sample::select(vec!["", "a,b", "]}", "\"", "\\", "é[", "{"]);
        let leaf = prop_oneof![
            any::<i8>().prop_map(|n| json!(n)),
            text.prop_map(|t| json!(t))
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::vec(("[a-c\"\\\\]", inner), 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// For every list and every size of reads: its elements, each with the tag of
        /// the read that has its last byte.
        #[test]
        fn elements_do_not_depend_on_reads(
            list in proptest::collection::vec(documents(), 0..5),
            gap in proptest::sample::select(vec!["", "\n", "\r\n "]),
            size in 1_usize..20,
        ) {
            let texts: Vec<String> = list.iter().map(Value::to_string).collect();
            let mut stream = format!("{gap}[");
            let mut expected = Vec::new();
            for (number, text) in texts.iter().enumerate() {
                stream.push_str(if number > 0 { "," } else { "" });
                stream.push_str(gap);
                stream.push_str(text);
                expected.push((text.clone(), (stream.len() - 1) / size));
            }
            stream.push_str("]\n");
            let reads: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            prop_assert_eq!(elements(&reads), expected);
        }

        /// For every bytes: no panic, and no more bytes come out than went in.
        #[test]
        fn junk_is_framed_too(stream in "[\\[\\]{},\" \\\\a]{0,30}") {
            let out: usize = elements(&[stream.as_bytes()]).iter().map(|(e, _)| e.len()).sum();
            prop_assert!(out <= stream.len());
        }
    }

    #[test]
    fn what_the_end_cut_off_is_handed_out() {
        assert_eq!(
            elements(&[b"[{\"a\":1},{\"b\":\"x", b"]"]),
            [("{\"a\":1}".to_owned(), 0), ("{\"b\":\"x]".to_owned(), 1)]
        );
        assert_eq!(elements(&[b"no list"]), [("no list".to_owned(), 0)]);
        assert_eq!(elements(&[b" [] {\"a\":1}"]), []);
    }
}
