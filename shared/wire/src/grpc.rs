//! gRPC: bytes → messages, for any split of the bytes into reads, and the status in
//! which a call ends.
//!
//! A message has five bytes before it: a flag and its length, big-endian. Nothing is
//! ever asked to be compressed, so the flag is 0; a server that compresses all the
//! same sends messages that do not parse.

use crate::sse::{Frame, FrameClass, MAX_PAYLOAD_BYTES};

/// The flag and the length.
pub const PREFIX_BYTES: usize = 5;

/// A buffer that grew beyond this is given back after its message.
const MAX_IDLE_BYTES: usize = 64 << 10;

/// Splits a stream into messages. Holds at most one of [`MAX_PAYLOAD_BYTES`].
#[derive(Debug)]
pub struct MessageFramer<T> {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    carried: Vec<u8>,
    /// Bytes of the message so far.
    taken: u64,
    /// Of the last byte so far.
    tag: Option<T>,
}

impl<T: Copy> Default for MessageFramer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> MessageFramer<T> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            carried: Vec::new(),
            taken: 0,
            tag: None,
        }
    }

    /// Takes one read; `out` gets every message it completes.
    pub fn feed(&mut self, tag: T, bytes: &[u8], out: &mut impl FnMut(Frame<'_, T>)) {
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            self.tag = Some(tag);
            if self.prefix_bytes < PREFIX_BYTES {
                self.prefix[self.prefix_bytes] = *first;
                self.prefix_bytes += 1;
                rest = after;
            } else {
                let missing = self.message_bytes() - self.taken;
                let here = usize::try_from(missing).map_or(rest.len(), |n| n.min(rest.len()));
                let (message, after) = rest.split_at(here);
                let room = MAX_PAYLOAD_BYTES.saturating_sub(self.carried.len());
                self.carried
                    .extend_from_slice(&message[..message.len().min(room)]);
                self.taken += message.len() as u64;
                rest = after;
            }
            if self.prefix_bytes == PREFIX_BYTES && self.taken == self.message_bytes() {
                self.hand_out(out);
            }
        }
    }

    /// Hands out a message that the end of the stream cut off.
    pub fn finish(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        if self.taken > 0 {
            self.hand_out(out);
        }
    }

    fn message_bytes(&self) -> u64 {
        let [_, length @ ..] = self.prefix;
        u64::from(u32::from_be_bytes(length))
    }

    fn hand_out(&mut self, out: &mut impl FnMut(Frame<'_, T>)) {
        if let Some(tag) = self.tag.take() {
            out(Frame {
                class: FrameClass::Event,
                payload: &self.carried,
                bytes: self.taken,
                event: None,
                id: None,
                tag,
                truncated: self.taken > self.carried.len() as u64,
            });
        }
        if self.carried.capacity() > MAX_IDLE_BYTES {
            self.carried = Vec::new();
        } else {
            self.carried.clear();
        }
        self.taken = 0;
        self.prefix_bytes = 0;
    }
}

/// `message` as it is sent: not compressed. `None` where it is longer than gRPC can
/// say.
#[must_use]
pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Some(framed)
}

/// Names of the statuses, by number.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// What the headers `grpc-status` and `grpc-message` say: nothing where all is well,
/// else the error in words.
///
/// # Errors
/// When the status is not 0.
pub fn status(code: &str, message: Option<&[u8]>) -> Result<(), String> {
    if code == "0" {
        return Ok(());
    }
    let known = code.parse().ok().and_then(|n: usize| STATUSES.get(n));
    let name = known.map_or(String::new(), |name| format!(" {name}"));
    let message = unescaped(message.unwrap_or_default());
    let message = crate::text::message(&crate::text::lossy(&message));
    let colon = if message.is_empty() { "" } else { ": " };
    Err(format!("grpc-status {code}{name}{colon}{message}"))
}

/// `%20` and the like as the bytes they stand for.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = &after[if escaped.is_some() { 2 } else { 0 }..];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages(reads: &[&[u8]]) -> Vec<(Vec<u8>, usize)> {
        let mut framer = MessageFramer::new();
        let mut seen = Vec::new();
        let mut out = |frame: Frame<'_, usize>| seen.push((frame.payload.to_vec(), frame.tag));
        for (tag, read) in reads.iter().enumerate() {
            framer.feed(tag, read, &mut out);
        }
        framer.finish(&mut out);
        seen
    }

    proptest! {
        /// For every messages and every size of reads: the same messages, each with
        /// the tag of the read that has its last byte.
        #[test]
        fn messages_do_not_depend_on_reads(
            sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..6),
            size in 1_usize..20,
        ) {
            let stream = sent.iter().flat_map(|m| framed(m).unwrap()).collect::<Vec<_>>();
            let reads: Vec<&[u8]> = stream.chunks(size).collect();
            let mut end = 0;
            let expected = sent.iter().map(|message| {
                end += PREFIX_BYTES + message.len();
                (message.clone(), (end - 1) / size)
            });
            prop_assert_eq!(messages(&reads), expected.collect::<Vec<_>>());
        }

        /// For every bytes: no panic, and no more bytes come out than went in.
        #[test]
        fn junk_is_framed_too(stream in proptest::collection::vec(any::<u8>(), 0..40)) {
            let out: usize = messages(&[&stream]).iter().map(|(m, _)| m.len()).sum();
            prop_assert!(out <= stream.len());
            prop_assert!(unescaped(&stream).len() <= stream.len());
        }
    }

    #[test]
    fn a_message_that_is_said_to_be_long_is_not_waited_for_in_memory() {
        let mut framer = MessageFramer::new();
        let mut seen = Vec::new();
        let mut out = |frame: Frame<'_, ()>| seen.push((frame.bytes, frame.truncated));
        framer.feed((), b"\0\xff\xff\xff\xffabc", &mut out);
        assert!(framer.carried.capacity() < 64);
        framer.finish(&mut out);
        assert_eq!(seen, [(3, false)]);
    }

    #[test]
    fn a_status_is_told_in_words() {
        assert_eq!(status("0", None), Ok(()));
        for (code, message, error) in [
            (
                "8",
                &b"no%20room%E2%80%A6 at 100%"[..],
                "grpc-status 8 RESOURCE_EXHAUSTED: no room\u{2026} at 100%",
            ),
            ("14", b"", "grpc-status 14 UNAVAILABLE"),
            ("99", b"x", "grpc-status 99: x"),
            ("", b"", "grpc-status "),
        ] {
            assert_eq!(status(code, Some(message)).unwrap_err(), error);
        }
    }
}
