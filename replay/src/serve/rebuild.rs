//! From recorded chunks back to the bytes that carried them.
//!
//! A recording keeps payloads, not what stood around them: whether a space followed
//! `data:`, how lines ended, whether a comment had a blank line of its own, whether
//! the last event was finished. It keeps the length of the whole stream, though, and
//! that tells these apart: the first [`Style`] that comes to the recorded length is
//! taken. Where none does (a byte order mark, unusual blank lines, redacted texts)
//! payloads and their order are still those that were recorded.

use std::ops::Range;
use std::sync::Arc;

use tapedeck_recording::ChunkKind;

/// One recorded chunk.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) chunk_index: i32,
    pub(crate) read_index: i32,
    /// Of its arrival, from the instant the request was sent.
    pub(crate) due_ns: i64,
    pub(crate) kind: ChunkKind,
    pub(crate) event: Option<Arc<str>>,
    pub(crate) event_id: Option<Arc<str>>,
    /// Its payload in [`Pieces::payloads`].
    pub(crate) data: Range<usize>,
}

/// The chunks of one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pieces {
    pub(crate) rows: Vec<Piece>,
    pub(crate) payloads: Vec<u8>,
}

/// What is to be written at once, as it arrived at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    /// From the instant the request was received.
    pub(crate) due_ns: i64,
    /// End of its bytes; they begin where those of the write before end.
    pub(crate) end: usize,
}

/// How a server frames its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Sse,
    Ndjson,
}

/// What a stream's bytes may have in common beside their payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// `data: x` rather than `data:x`.
    space: bool,
    crlf: bool,
    /// Whether a blank line follows a comment or a field that stands alone.
    blank_after_line: bool,
    /// Whether a payload that may have been a line of its own (`retry: 5`) was one.
    bare_lines: bool,
    /// Line ends that the end of the stream lacks.
    cut: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            space: true,
            crlf: false,
            blank_after_line: true,
            bare_lines: true,
            cut: 0,
        }
    }
}

impl Style {
    /// All there are, in the order of `cuts`; `usual` first of all.
    fn all(usual: Self, cuts: [usize; 3]) -> impl Iterator<Item = Self> {
        let usual = Self {
            cut: cuts[0],
            ..usual
        };
        std::iter::once(usual).chain((0..48_usize).map(move |number| Self {
            space: number & 1 == 0,
            crlf: number & 2 != 0,
            blank_after_line: number & 4 == 0,
            bare_lines: number & 8 == 0,
            cut: cuts[number / 16],
        }))
    }

    fn line_end(self) -> &'static [u8] {
        if self.crlf { b"\r\n" } else { b"\n" }
    }
}

/// The bytes of a stream and when to write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    pub(crate) bytes: Vec<u8>,
    pub(crate) writes: Vec<Write>,
    /// Whether they are as many as were recorded.
    pub(crate) exact: bool,
}

/// Rebuilds a stream of `body_bytes`. `usual` is the style of the streams before,
/// which is tried first.
pub(crate) fn rebuild(
    framing: Framing,
    pieces: &Pieces,
    body_bytes: i64,
    usual: &mut Style,
) -> Rebuilt {
    let wanted = usize::try_from(body_bytes).unwrap_or(0);
    let cuts = match pieces.end_within_a_document() {
        true => [2, 0, 1],
        false => [0, 1, 2],
    };
    let mut styles = Style::all(*usual, cuts);
    let found = styles.find(|style| pieces.len(framing, *style) == wanted);
    let style = found.unwrap_or(Style { cut: 0, ..*usual });
    *usual = Style { cut: 0, ..style };
    let mut bytes = Vec::with_capacity(pieces.len(framing, style));
    let mut writes: Vec<Write> = Vec::new();
    let mut last_read = None;
    for piece in &pieces.rows {
        pieces.put(framing, style, piece, &mut |part| {
            bytes.extend_from_slice(part);
        });
        let end = bytes.len();
        match writes.last_mut() {
            Some(write) if last_read == Some(piece.read_index) => write.end = end,
            _ => writes.push(Write {
                // Never before the one before, whatever the stamps say.
                due_ns: writes.last().map_or(0, |w| w.due_ns).max(piece.due_ns),
                end,
            }),
        }
        last_read = Some(piece.read_index);
    }
    bytes.truncate(
        bytes
            .len()
            .saturating_sub(style.cut * style.line_end().len()),
    );
    if let Some(write) = writes.last_mut() {
        write.end = bytes.len();
    }
    Rebuilt {
        bytes,
        writes,
        exact: found.is_some(),
    }
}

impl Pieces {
    fn payload(&self, piece: &Piece) -> &[u8] {
        &self.payloads[piece.data.clone()]
    }

    /// Whether the stream broke off within its last chunk.
    fn end_within_a_document(&self) -> bool {
        let last = self.rows.last().map(|piece| self.payload(piece));
        last.is_some_and(|payload| {
            matches!(payload.first(), Some(b'{' | b'['))
                && payload != b"[DONE]"
                && serde_json::from_slice::<serde_json::Value>(payload).is_err()
        })
    }

    fn len(&self, framing: Framing, style: Style) -> usize {
        let mut len = 0;
        for piece in &self.rows {
            self.put(framing, style, piece, &mut |part| len += part.len());
        }
        len.saturating_sub(style.cut * style.line_end().len())
    }

    fn put(&self, framing: Framing, style: Style, piece: &Piece, out: &mut impl FnMut(&[u8])) {
        let payload = self.payload(piece);
        let line_end = style.line_end();
        if framing == Framing::Ndjson {
            out(payload);
            out(line_end);
            return;
        }
        let is_comment = piece.kind == ChunkKind::Comment;
        if is_comment || (style.bare_lines && may_be_bare(piece, payload)) {
            out(if is_comment { b":" } else { b"" });
            out(payload);
            out(line_end);
            out(if style.blank_after_line {
                line_end
            } else {
                b""
            });
            return;
        }
        let mut field = |name: &[u8], value: &[u8]| {
            out(name);
            out(if style.space { b" " } else { b"" });
            out(value);
            out(line_end);
        };
        if let Some(event) = &piece.event {
            field(b"event:", event.as_bytes());
        }
        if let Some(id) = &piece.event_id {
            field(b"id:", id.as_bytes());
        }
        let named = piece.event.is_some() || piece.event_id.is_some();
        if !payload.is_empty() || !named {
            payload
                .split(|byte| *byte == b'\n')
                .for_each(|line| field(b"data:", line));
        }
        out(line_end);
    }
}

/// A line that is neither data nor a comment is a chunk too: `retry: 5`,
/// `error: {…}`, junk. Nothing but its look tells it from data.
fn may_be_bare(piece: &Piece, payload: &[u8]) -> bool {
    matches!(piece.kind, ChunkKind::Other | ChunkKind::Error)
        && piece.event.is_none()
        && piece.event_id.is_none()
        && !payload.contains(&b'\n')
        && !matches!(payload.first(), None | Some(b'{' | b'['))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tapedeck_wire::dialect::Api;
    use tapedeck_wire::response::{Chunk, End, ResponseReader, ResponseSpec};

    use super::*;

    /// Reads as a recorder does: the chunks of `reads`, and their true length.
    fn recorded(api: Api, reads: &[&[u8]]) -> (Pieces, i64) {
        let mut reader = ResponseReader::new(ResponseSpec {
            api,
            stream_requested: true,
            status: 200,
            content_type: None,
            content_encoding: None,
        });
        let mut pieces = Pieces::default();
        let mut take = |chunk: Chunk<'_, i32>| {
            let start = pieces.payloads.len();
            pieces.payloads.extend_from_slice(chunk.data);
            pieces.rows.push(Piece {
                chunk_index: chunk.index,
                read_index: chunk.tag,
                due_ns: i64::from(chunk.tag) * 1000,
                kind: chunk.kind,
                event: chunk.event.map(Into::into),
                event_id: chunk.event_id.map(Into::into),
                data: start..pieces.payloads.len(),
            });
        };
        for (tag, read) in (0_i32..).zip(reads) {
            reader.feed(tag, read, &mut take);
        }
        let end = reader.finish(End::Clean, &mut take);
        (pieces, end.body_bytes)
    }

    fn sse(stream: &[u8]) -> Rebuilt {
        let (pieces, body_bytes) = recorded(Api::OpenAiChat, &[stream]);
        rebuild(Framing::Sse, &pieces, body_bytes, &mut Style::default())
    }

    const EVENT: &str = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;

    #[test]
    fn the_recorded_length_tells_how_a_stream_was_framed() {
        for stream in [
            format!("data: {EVENT}\n\ndata: [DONE]\n\n"),
            format!("data:{EVENT}\n\ndata:[DONE]\n\n"),
            format!("data: {EVENT}\r\n\r\ndata: [DONE]\r\n\r\n"),
            format!("data:{EVENT}\r\n\r\ndata:[DONE]\r\n\r\n"),
            format!(": ping\n\ndata: {EVENT}\n\ndata: [DONE]\n\n"),
            format!(":ping\ndata: {EVENT}\n\ndata: [DONE]\n\n"),
            format!("event: a\nid: 1\ndata: {EVENT}\n\nevent: ping\n\ndata: [DONE]\n\n"),
            format!("retry: 5\n\ndata: {EVENT}\n\ndata: hello\n\n"),
            format!("data: hello\n\ndata: {EVENT}\n\n"),
            "data: {\"a\":\ndata: 1}\n\n".to_owned(),
            // Cut off: without its blank line, within a line.
            format!("data: {EVENT}\n\ndata: [DONE]\n"),
            format!("data: {EVENT}\n\ndata: {{\"choi"),
        ] {
            let rebuilt = sse(stream.as_bytes());
            assert!(rebuilt.exact, "{stream}");
            if !stream.contains("hello") {
                assert_eq!(String::from_utf8(rebuilt.bytes).unwrap(), stream);
            }
        }
    }

    #[test]
    fn a_stream_of_no_known_style_keeps_its_payloads() {
        let stream = format!("data: {EVENT}\n\n\n\n\ndata: [DONE]\n\n");
        let rebuilt = sse(stream.as_bytes());
        assert!(!rebuilt.exact);
        let plain = format!("data: {EVENT}\n\ndata: [DONE]\n\n");
        assert_eq!(String::from_utf8(rebuilt.bytes).unwrap(), plain);
    }

    #[test]
    fn lines_of_json_are_rebuilt_too() {
        let stream = b"{\"response\":\"a\"}\r\n{\"done\":true}\r\n";
        let ollama = Api::from_word("ollama").unwrap();
        let (pieces, body_bytes) = recorded(ollama, &[stream]);
        assert_eq!(pieces.rows.len(), 2);
        let rebuilt = rebuild(Framing::Ndjson, &pieces, body_bytes, &mut Style::default());
        assert_eq!(
            (rebuilt.bytes.as_slice(), rebuilt.exact),
            (&stream[..], true)
        );
    }

    fn styles() -> impl Strategy<Value = Style> {
        (any::<bool>(), any::<bool>()).prop_map(|(space, crlf)| Style {
            space,
            crlf,
            ..Style::default()
        })
    }

    proptest! {
        /// For every stream of events and comments in a known style, and every way it
        /// was read: the rebuilt bytes are the stream's, and each write brings the
        /// chunks that one read completed.
        #[test]
        fn what_was_read_is_what_is_written(
            style in styles(),
            events in proptest::collection::vec((0_usize..4, "[a-z{}\":, é]{0,12}"), 1..12),
            size in 1_usize..80,
        ) {
            let mut made = Pieces::default();
            for (index, (what, text)) in (0_i32..).zip(&events) {
                let data = format!("{{\"t\":{text:?}}}");
                let start = made.payloads.len();
                made.payloads.extend_from_slice(data.as_bytes());
                made.rows.push(Piece {
                    chunk_index: index,
                    read_index: index,
                    due_ns: 0,
                    kind: if *what == 0 { ChunkKind::Comment } else { ChunkKind::Other },
                    event: (*what == 2).then(|| "delta".into()),
                    event_id: (*what == 3).then(|| "7".into()),
                    data: start..made.payloads.len(),
                });
            }
            let len = made.len(Framing::Sse, style);
            let stream = rebuild(Framing::Sse, &made, len as i64, &mut style.clone()).bytes;
            let reads: Vec<&[u8]> = stream.chunks(size).collect();
            let (pieces, body_bytes) = recorded(Api::OpenAiChat, &reads);
            let rebuilt = rebuild(Framing::Sse, &pieces, body_bytes, &mut style.clone());
            prop_assert!(rebuilt.exact);
            prop_assert_eq!(&rebuilt.bytes, &stream);
            let mut read_indices: Vec<i32> = pieces.rows.iter().map(|p| p.read_index).collect();
            read_indices.dedup();
            prop_assert_eq!(rebuilt.writes.len(), read_indices.len());
            prop_assert_eq!(rebuilt.writes.last().unwrap().end, stream.len());
        }
    }
}
