//! Incremental bytes → server-sent events, for any split of the bytes into reads.
//!
//! Differs from the WHATWG algorithm where that one throws bytes away: comments,
//! unknown fields, events without data and an event the stream's end cut off are
//! frames too, because a recording keeps what came. A line that lies whole inside
//! one read is never copied; only what a read leaves unfinished is.

use std::mem;

use memchr::memchr2;

use crate::text;

/// How much of one payload is kept. Longer ones keep their true length.
pub const MAX_PAYLOAD_BYTES: usize = 8 << 20;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// A carried line keeps a whole payload and the longest thing before one: a byte
/// order mark and `data: `.
const MAX_LINE_BYTES: usize = MAX_PAYLOAD_BYTES + 9;

/// Event names and ids are words; longer ones are cut so they cost nothing.
const MAX_NAME_BYTES: usize = 1024;

/// A buffer that grew beyond this is given back after its event, so that one huge
/// event does not stay resident in each of a thousand streams.
const MAX_IDLE_BYTES: usize = 64 << 10;

/// What a frame is in the syntax of SSE; what it means is for an interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameClass {
    /// `data:` lines joined by LF, ended by a blank line or the end of the stream.
    Event,
    /// A line that starts with a colon; the payload is what follows the colon.
    Comment,
    /// Any other line: `retry: 5`, `error: {…}`, junk. The payload is the line.
    Field,
}

/// One frame of the stream, valid during the callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a, T> {
    pub class: FrameClass,
    /// At most [`MAX_PAYLOAD_BYTES`]; bytes as they came, valid UTF-8 or not.
    pub payload: &'a [u8],
    /// True length of the payload.
    pub bytes: u64,
    /// The event's own `event:` field; `None` where it had none.
    pub event: Option<&'a str>,
    /// The event's own `id:` field; earlier ids are not carried over.
    pub id: Option<&'a str>,
    /// Stamp of the read with the payload's last byte (not its line end's). An
    /// event without data: of the last line it has.
    pub tag: T,
    /// Whether `payload` is shorter than `bytes`.
    pub truncated: bool,
}

/// Splits a stream into frames. Holds at most two payloads of
/// [`MAX_PAYLOAD_BYTES`], and nothing between two events that lie whole in reads.
///
/// A comment or field inside an unfinished event is handed out at once, so before
/// that event, although its tag may be a later read.
#[derive(Debug)]
pub struct Framer<T> {
    line: CarriedLine<T>,
    event: OpenEvent<T>,
    /// The last read ended in CR: an LF at the start of the next is its second half.
    skip_lf: bool,
    first_line: bool,
}

/// A line whose end has not arrived.
#[derive(Debug)]
struct CarriedLine<T> {
    bytes: Vec<u8>,
    true_len: u64,
    /// Of its last byte so far; `None` when no line is open.
    tag: Option<T>,
}

/// An event whose blank line has not arrived.
#[derive(Debug)]
struct OpenEvent<T> {
    /// Joined data; empty while the only data line still lies in the current read.
    joined: Vec<u8>,
    has_data: bool,
    bytes: u64,
    name: Name,
    id: Name,
    /// `None` when no line of an event has been seen.
    tag: Option<T>,
}

#[derive(Debug, Default)]
struct Name {
    text: String,
    present: bool,
}

enum Line<'a> {
    Blank,
    Data(&'a [u8]),
    Event(&'a [u8]),
    Id(&'a [u8]),
    Comment(&'a [u8]),
    Other(&'a [u8]),
}

impl<T: Copy> Default for Framer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> Framer<T> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            line: CarriedLine {
                bytes: Vec::new(),
                true_len: 0,
                tag: None,
            },
            event: OpenEvent {
                joined: Vec::new(),
                has_data: false,
                bytes: 0,
                name: Name::default(),
                id: Name::default(),
                tag: None,
            },
            skip_lf: false,
            first_line: true,
        }
    }

    /// Takes one read; `out` gets every frame it completes.
    pub fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Frame<'_, T>)) {
        let mut rest = bytes;
        if self.skip_lf && !rest.is_empty() {
            self.skip_lf = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        // The open event's data while it is one line of this very read.
        let mut in_read: Option<&[u8]> = None;
        while let Some(at) = line_end(rest) {
            let text = &rest[..at];
            rest = self.after_line_end(rest, at);
            if self.line.tag.is_none() {
                self.take_line(text, text.len() as u64, tag, &mut in_read, out);
            } else {
                self.line.push(text, tag);
                self.take_carried_line(out);
            }
        }
        self.line.push(rest, tag);
        self.event.keep(in_read);
    }

    /// Hands out what the end of the stream cut off. The framer is then new.
    pub fn finish(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        self.take_carried_line(out);
        self.event.hand_out(None, out);
        *self = Self::new();
    }

    fn after_line_end<'a>(&mut self, bytes: &'a [u8], at: usize) -> &'a [u8] {
        let after = &bytes[at + 1..];
        if bytes[at] == b'\n' {
            return after;
        }
        self.skip_lf = after.is_empty();
        after.strip_prefix(b"\n").unwrap_or(after)
    }

    fn take_carried_line(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        let Some(tag) = self.line.tag.take() else {
            return;
        };
        let mut bytes = mem::take(&mut self.line.bytes);
        let mut in_line = None;
        self.take_line(&bytes, self.line.true_len, tag, &mut in_line, out);
        self.event.keep(in_line);
        empty(&mut bytes);
        self.line.bytes = bytes;
        self.line.true_len = 0;
    }

    /// `text` may be a capped copy of a line of `true_len` bytes.
    fn take_line<'a>(
        &mut self,
        mut text: &'a [u8],
        mut true_len: u64,
        tag: T,
        in_read: &mut Option<&'a [u8]>,
        out: &mut impl FnMut(Frame<'_, T>),
    ) {
        if mem::take(&mut self.first_line)
            && let Some(after) = text.strip_prefix(BOM)
        {
            text = after;
            true_len -= BOM.len() as u64;
        }
        let payload_len = |value: &[u8]| true_len - (text.len() - value.len()) as u64;
        match Line::parse(text) {
            Line::Data(value) => self
                .event
                .push_data(value, payload_len(value), tag, in_read),
            Line::Blank => self.event.hand_out(in_read.take(), out),
            Line::Event(value) => {
                self.event.name.set(value);
                self.event.touch(tag);
            }
            Line::Id(value) => {
                self.event.id.set(value);
                self.event.touch(tag);
            }
            Line::Comment(value) => {
                out(line_frame(
                    FrameClass::Comment,
                    value,
                    payload_len(value),
                    tag,
                ));
            }
            Line::Other(value) => out(line_frame(FrameClass::Field, value, true_len, tag)),
        }
    }
}

impl<T: Copy> CarriedLine<T> {
    fn push(&mut self, bytes: &[u8], tag: T) {
        if bytes.is_empty() {
            return;
        }
        push_capped(&mut self.bytes, bytes, MAX_LINE_BYTES);
        self.true_len += bytes.len() as u64;
        self.tag = Some(tag);
    }
}

impl<T: Copy> OpenEvent<T> {
    fn push_data<'a>(
        &mut self,
        value: &'a [u8],
        true_len: u64,
        tag: T,
        in_read: &mut Option<&'a [u8]>,
    ) {
        self.tag = Some(tag);
        self.bytes += true_len;
        if !self.has_data {
            self.has_data = true;
            *in_read = Some(capped(value));
            return;
        }
        self.keep(in_read.take());
        self.bytes += 1;
        push_capped(&mut self.joined, b"\n", MAX_PAYLOAD_BYTES);
        push_capped(&mut self.joined, value, MAX_PAYLOAD_BYTES);
    }

    /// The payload's last byte decides the tag; a line after it does not.
    fn touch(&mut self, tag: T) {
        if !self.has_data {
            self.tag = Some(tag);
        }
    }

    fn keep(&mut self, data: Option<&[u8]>) {
        if let Some(data) = data {
            push_capped(&mut self.joined, data, MAX_PAYLOAD_BYTES);
        }
    }

    fn hand_out(&mut self, in_read: Option<&[u8]>, out: &mut impl FnMut(Frame<'_, T>)) {
        let Some(tag) = self.tag.take() else { return };
        out(Frame {
            class: FrameClass::Event,
            payload: in_read.unwrap_or(&self.joined),
            bytes: self.bytes,
            event: self.name.get(),
            id: self.id.get(),
            tag,
            truncated: self.bytes > MAX_PAYLOAD_BYTES as u64,
        });
        empty(&mut self.joined);
        self.has_data = false;
        self.bytes = 0;
        self.name.present = false;
        self.id.present = false;
    }
}

impl Name {
    fn set(&mut self, value: &[u8]) {
        let value = &value[..value.len().min(MAX_NAME_BYTES)];
        self.present = true;
        self.text.clear();
        match std::str::from_utf8(value) {
            Ok(valid) => self.text.push_str(valid),
            Err(_) => self.text = text::lossy(value),
        }
    }

    fn get(&self) -> Option<&str> {
        self.present.then_some(self.text.as_str())
    }
}

impl<'a> Line<'a> {
    fn parse(text: &'a [u8]) -> Self {
        if let Some(value) = field(text, b"data") {
            Self::Data(value)
        } else if text.is_empty() {
            Self::Blank
        } else if let Some(comment) = text.strip_prefix(b":") {
            Self::Comment(comment)
        } else if let Some(value) = field(text, b"event") {
            Self::Event(value)
        } else if let Some(value) = field(text, b"id") {
            Self::Id(value)
        } else {
            Self::Other(text)
        }
    }
}

/// Where the first line ends. Every other line of a stream is blank, so its end is
/// looked at before it is searched for.
fn line_end(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'\n' | b'\r' => Some(0),
        _ => memchr2(b'\n', b'\r', bytes),
    }
}

/// The value of a line `name`, `name:value` or `name: value`.
fn field<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let after = text.strip_prefix(name)?;
    if after.is_empty() {
        return Some(after);
    }
    let value = after.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

fn line_frame<T>(class: FrameClass, payload: &[u8], bytes: u64, tag: T) -> Frame<'_, T> {
    Frame {
        class,
        payload: capped(payload),
        bytes,
        event: None,
        id: None,
        tag,
        truncated: bytes > MAX_PAYLOAD_BYTES as u64,
    }
}

fn capped(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(MAX_PAYLOAD_BYTES)]
}

fn push_capped(buffer: &mut Vec<u8>, bytes: &[u8], max_bytes: usize) {
    let room = max_bytes.saturating_sub(buffer.len());
    buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn empty(buffer: &mut Vec<u8>) {
    if buffer.capacity() > MAX_IDLE_BYTES {
        *buffer = Vec::new();
    } else {
        buffer.clear();
    }
}

#[cfg(test)]
mod tests;
