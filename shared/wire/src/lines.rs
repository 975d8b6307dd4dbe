//! Incremental bytes → lines with one JSON document each (NDJSON), for any split of
//! the bytes into reads.
//!
//! Lines end with LF, and CRs before it belong to the end; blank ones are nothing. A line that lies whole inside
//! one read is never copied.

use crate::sse::{Frame, FrameClass, MAX_PAYLOAD_BYTES};

/// A buffer that grew beyond this is given back after its line.
const MAX_IDLE_BYTES: usize = 64 << 10;

/// Splits a stream into lines. Holds at most one payload of [`MAX_PAYLOAD_BYTES`].
#[derive(Debug)]
pub struct LineFramer<T> {
    carried: Vec<u8>,
    true_len: u64,
    /// CRs at its end so far.
    trailing_crs: u64,
    /// Of the last byte so far that is no CR; `None` when there is none.
    tag: Option<T>,
}

impl<T: Copy> Default for LineFramer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> LineFramer<T> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            carried: Vec::new(),
            true_len: 0,
            trailing_crs: 0,
            tag: None,
        }
    }

    /// Takes one read; `out` gets every line it completes.
    pub fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Frame<'_, T>)) {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let line = &rest[..at];
            rest = &rest[at + 1..];
            if self.true_len == 0 {
                let line = &line[..line.len() - trailing_crs(line)];
                hand_out(line, line.len() as u64, Some(tag), out);
            } else {
                self.carry(line, tag);
                self.hand_out_carried(out);
            }
        }
        self.carry(rest, tag);
    }

    /// Hands out a line that the end of the stream cut off.
    pub fn finish(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        self.hand_out_carried(out);
    }

    fn carry(&mut self, bytes: &[u8], tag: T) {
        let room = MAX_PAYLOAD_BYTES.saturating_sub(self.carried.len());
        self.carried
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.true_len += bytes.len() as u64;
        let crs = trailing_crs(bytes);
        if crs == bytes.len() {
            self.trailing_crs += crs as u64;
        } else {
            self.trailing_crs = crs as u64;
            self.tag = Some(tag);
        }
    }

    fn hand_out_carried(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        let true_len = self.true_len - self.trailing_crs;
        let kept = usize::try_from(true_len).map_or(usize::MAX, |len| len);
        let line = &self.carried[..self.carried.len().min(kept)];
        hand_out(line, true_len, self.tag.take(), out);
        if self.carried.capacity() > MAX_IDLE_BYTES {
            self.carried = Vec::new();
        } else {
            self.carried.clear();
        }
        self.true_len = 0;
        self.trailing_crs = 0;
    }
}

fn trailing_crs(bytes: &[u8]) -> usize {
    bytes.iter().rev().take_while(|b| **b == b'\r').count()
}

fn hand_out<T: Copy>(line: &[u8], bytes: u64, tag: Option<T>, out: &mut impl FnMut(Frame<'_, T>)) {
    let Some(tag) = tag.filter(|_| !line.trim_ascii().is_empty()) else {
        return;
    };
    let payload = &line[..line.len().min(MAX_PAYLOAD_BYTES)];
    out(Frame {
        class: FrameClass::Event,
        payload,
        bytes,
        event: None,
        id: None,
        tag,
        truncated: bytes > payload.len() as u64,
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = (Vec<u8>, u64, usize);

    fn lines(reads: &[&[u8]]) -> Vec<Seen> {
        let mut framer = LineFramer::new();
        let mut seen = Vec::new();
        let mut out = |frame: Frame<'_, usize>| {
            seen.push((frame.payload.to_vec(), frame.bytes, frame.tag));
        };
        for (tag, read) in reads.iter().enumerate() {
            framer.feed(tag, read, &mut out);
        }
        framer.finish(&mut out);
        seen
    }

    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let pieces = ["\n", "\r\n", "\r", "{\"a\":1}", "é", " ", "x"];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..24)
            .prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        /// For every partition of the bytes into reads: the same lines, each with
        /// the tag of the read that has its last byte.
        #[test]
        fn lines_do_not_depend_on_reads(stream in streams(), sizes in proptest::collection::vec(1_usize..6, 1..40)) {
            let whole = lines(&[&stream]);
            let mut reads = Vec::new();
            let mut rest = stream.as_slice();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                let (read, after) = rest.split_at((*size).min(rest.len()));
                reads.push(read);
                rest = after;
            }
            let split = lines(&reads);
            let payloads = |seen: &[Seen]| seen.iter().map(|s| (s.0.clone(), s.1)).collect::<Vec<_>>();
            prop_assert_eq!(payloads(&whole), payloads(&split));
            let mut from = 0;
            for (payload, _, tag) in &split {
                let at = from + memchr::memmem::find(&stream[from..], payload).unwrap();
                let last = at + payload.len() - 1;
                let mut end = 0;
                let read = reads.iter().position(|read| { end += read.len(); last < end });
                prop_assert_eq!(Some(*tag), read);
                from = last + 1;
            }
        }
    }

    #[test]
    fn a_payload_is_what_stands_before_the_line_end() {
        assert_eq!(
            lines(&[b"{}\r", b"\n\r\n [1]", b"\r\r\n{"]),
            [
                (b"{}".to_vec(), 2, 0),
                (b" [1]".to_vec(), 4, 1),
                (b"{".to_vec(), 1, 2)
            ]
        );
    }
}
