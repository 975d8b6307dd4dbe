//! What must hold for every input, as functions of the input: the fuzz targets
//! call them, and so does the workspace's test binary with the seeds.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use tapedeck_wire::decode::Decoder;
use tapedeck_wire::dialect::Api;
use tapedeck_wire::openai::{Interpreter, interpret};
use tapedeck_wire::response::{
    Chunk, End, MAX_BODY_BYTES, ResponseEnd, ResponseReader, ResponseSpec,
};
use tapedeck_wire::sse::{Frame, Framer, MAX_PAYLOAD_BYTES};

/// The first bytes of an input choose how the rest is served.
const HEADER_BYTES: usize = 4;

/// The choices and the body of an input.
fn split_header(input: &[u8]) -> Option<([u8; HEADER_BYTES], &[u8])> {
    let (header, body) = input.split_first_chunk::<HEADER_BYTES>()?;
    Some((*header, body))
}

/// Cuts `bytes` into reads of 0 to 16 bytes, now and then of up to 4 KiB, by a
/// generator seeded with `seed`.
fn cut(bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed).wrapping_mul(0x9E37_79B9) | 1;
    let mut rest = bytes;
    let mut reads = Vec::new();
    while !rest.is_empty() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let most = if state & 0x7000 == 0 { 4096 } else { 17 };
        let (read, after) = rest.split_at(((state >> 16) as usize % most).min(rest.len()));
        reads.push(read);
        rest = after;
    }
    reads
}

/// A frame that owns what it holds, without its tag, and the tag.
type OwnedFrame = (String, Vec<u8>, u64, Option<String>, Option<String>, bool);

fn owned_frame(frame: Frame<'_, usize>) -> (OwnedFrame, usize) {
    assert!(frame.payload.len() <= MAX_PAYLOAD_BYTES);
    assert_eq!(frame.truncated, frame.bytes > frame.payload.len() as u64);
    let owned = (
        format!("{:?}", frame.class),
        frame.payload.to_vec(),
        frame.bytes,
        frame.event.map(str::to_owned),
        frame.id.map(str::to_owned),
        frame.truncated,
    );
    (owned, frame.tag)
}

fn frames(reads: &[&[u8]]) -> Vec<(OwnedFrame, usize)> {
    let mut framer = Framer::new();
    let mut found = Vec::new();
    for (index, read) in reads.iter().enumerate() {
        framer.feed(index, read, &mut |frame| found.push(owned_frame(frame)));
    }
    framer.finish(&mut |frame| found.push(owned_frame(frame)));
    found
}

/// The read that holds the byte at `offset`.
fn read_of(reads: &[&[u8]], offset: usize) -> usize {
    let mut end = 0;
    let holds = |read: &&[u8]| {
        end += read.len();
        offset < end
    };
    reads
        .iter()
        .position(holds)
        .expect("an offset of the stream")
}

/// For every partition of a stream into reads the frames are the same, each
/// tagged with the read of its payload's last byte, and no payload is longer than
/// the stream.
pub(crate) fn sse(input: &[u8]) {
    let Some((header, stream)) = split_header(input) else {
        return;
    };
    let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
    let expected = frames(&bytewise);
    let payload_bytes: usize = expected.iter().map(|(frame, _)| frame.1.len()).sum();
    assert!(payload_bytes <= stream.len());
    for reads in [vec![stream], cut(stream, header[0]), cut(stream, header[1])] {
        let found = frames(&reads);
        assert_eq!(found.len(), expected.len());
        for ((frame, tag), (expected, offset)) in found.iter().zip(&expected) {
            assert_eq!(frame, expected);
            assert_eq!(*tag, read_of(&reads, *offset), "tag of {frame:?}");
        }
    }
}

/// What an interpreter remembers of earlier payloads changes no meaning. Payloads
/// are the lines of the input.
pub(crate) fn interpreter(input: &[u8]) {
    let mut interpreter = Interpreter::new();
    for line in input.split(|b| *b == b'\n') {
        let (name, payload) = match line.strip_prefix(b"error ") {
            Some(payload) => (Some("error"), payload),
            None => (None, line),
        };
        let expected = interpret(name, payload);
        let found = interpreter.interpret(name, payload);
        assert_eq!(found, expected, "{}", payload.escape_ascii());
    }
}

/// How a body is served; chosen by the input's first bytes.
#[derive(Debug)]
struct Served {
    spec: ResponseSpec<'static>,
    /// As it travels.
    raw: Vec<u8>,
    end: End,
    seeds: [u8; 2],
}

impl Served {
    fn new(input: &[u8]) -> Option<Self> {
        let ([choice, damage, one, two], body) = split_header(input)?;
        let pick = |shift: u8, mask: u8| usize::from(choice >> shift & mask);
        let api = [Api::OpenAiChat, Api::OpenAiCompletions][pick(0, 1)];
        let content_type = [
            Some("text/event-stream"),
            Some("application/json"),
            None,
            Some(""),
        ];
        let status = if choice & 0x80 == 0 { 200 } else { 500 };
        let (content_encoding, mut raw) = match choice >> 4 & 7 {
            0 | 1 => (None, body.to_vec()),
            2 => (
                Some("gzip"),
                compressed(body, GzEncoder::new(Vec::new(), Compression::fast())),
            ),
            3 => (
                Some("deflate"),
                compressed(body, ZlibEncoder::new(Vec::new(), Compression::fast())),
            ),
            4 => (
                Some("deflate"),
                compressed(body, DeflateEncoder::new(Vec::new(), Compression::fast())),
            ),
            5 => (Some("gzip"), body.to_vec()),
            6 => (Some("deflate"), body.to_vec()),
            _ => (Some("br"), body.to_vec()),
        };
        // Zero is no damage; else one byte is another, or the end is missing.
        if damage > 0 && !raw.is_empty() {
            let at = usize::from(damage) * 7 % raw.len();
            match damage & 1 {
                0 => raw[at] ^= damage,
                _ => raw.truncate(at),
            }
        }
        let error = || "cut".to_owned();
        let end = match two >> 6 {
            0 | 1 => End::Clean,
            2 => End::Broken { error: error() },
            _ => End::Timeout { error: error() },
        };
        Some(Self {
            spec: ResponseSpec {
                api,
                stream_requested: choice & 2 == 0,
                status,
                content_type: content_type[pick(2, 3)],
                content_encoding,
            },
            raw,
            end,
            seeds: [one, two],
        })
    }

    /// Whether decoding fails anywhere in the body.
    fn is_damaged(&self) -> bool {
        let decoder = Decoder::new(self.spec.content_encoding);
        decoder.is_ok_and(|mut decoder| decoder.feed(&self.raw, &mut |_| ()).is_err())
    }

    fn follow(&self, reads: &[&[u8]]) -> (Vec<OwnedChunk>, ResponseEnd) {
        let mut reader = ResponseReader::new(self.spec);
        let mut chunks = Vec::new();
        for (index, read) in reads.iter().enumerate() {
            reader.feed(index, read, &mut |chunk| {
                assert!(chunk.tag <= index);
                chunks.push(owned_chunk(&chunk));
            });
        }
        let mut end = reader.finish(self.end.clone(), &mut |chunk| {
            chunks.push(owned_chunk(&chunk));
        });
        check_end(&chunks, &end);
        if self.is_damaged() {
            // The read in which the damage showed is kept whole: that is its split.
            (end.body, end.body_bytes, end.truncated_body) = (None, 0, false);
        }
        (chunks, end)
    }
}

/// Compressed with a flush after every event, as servers do.
fn compressed<W: Encoder>(body: &[u8], mut encoder: W) -> Vec<u8> {
    for event in body.split_inclusive(|b| *b == b'\n') {
        encoder.write_all(event).expect("a vector takes all");
        encoder.flush().expect("a vector flushes");
    }
    encoder.bytes()
}

trait Encoder: Write {
    fn bytes(self) -> Vec<u8>;
}

impl Encoder for GzEncoder<Vec<u8>> {
    fn bytes(self) -> Vec<u8> {
        self.finish().expect("a vector takes all")
    }
}

impl Encoder for ZlibEncoder<Vec<u8>> {
    fn bytes(self) -> Vec<u8> {
        self.finish().expect("a vector takes all")
    }
}

impl Encoder for DeflateEncoder<Vec<u8>> {
    fn bytes(self) -> Vec<u8> {
        self.finish().expect("a vector takes all")
    }
}

#[derive(Debug, PartialEq)]
struct OwnedChunk {
    index: i32,
    kind: String,
    choice_index: Option<i32>,
    event: Option<String>,
    event_id: Option<String>,
    tokens: Option<i32>,
    bytes: i64,
    data: Vec<u8>,
}

fn owned_chunk(chunk: &Chunk<'_, usize>) -> OwnedChunk {
    assert!(chunk.bytes >= chunk.data.len() as i64);
    assert_eq!(chunk.truncated, chunk.bytes > chunk.data.len() as i64);
    OwnedChunk {
        index: chunk.index,
        kind: format!("{:?}", chunk.kind),
        choice_index: chunk.choice_index,
        event: chunk.event.map(str::to_owned),
        event_id: chunk.event_id.map(str::to_owned),
        tokens: chunk.tokens,
        bytes: chunk.bytes,
        data: chunk.data.to_vec(),
    }
}

/// What an end says fits the chunks that were handed out.
fn check_end(chunks: &[OwnedChunk], end: &ResponseEnd) {
    assert_eq!(end.chunk_count as usize, chunks.len());
    assert!(
        chunks
            .iter()
            .zip(0..)
            .all(|(chunk, index)| chunk.index == index)
    );
    assert!((0..=end.chunk_count).contains(&end.malformed_chunks));
    assert_eq!(
        end.error.is_none(),
        end.outcome == tapedeck_wire::words::Outcome::Ok
    );
    let body_bytes = end.body.as_ref().map_or(0, |body| body.len());
    assert!(body_bytes <= MAX_BODY_BYTES);
    assert!(body_bytes as i64 <= end.body_bytes);
}

/// For every partition of an answer into reads the chunks and the end are the
/// same, whatever it says it is and however it is damaged.
pub(crate) fn response(input: &[u8]) {
    let Some(served) = Served::new(input) else {
        return;
    };
    let raw = &served.raw[..];
    let expected = served.follow(&[raw]);
    for reads in [
        raw.chunks(1).collect(),
        cut(raw, served.seeds[0]),
        cut(raw, served.seeds[1]),
    ] {
        let (chunks, end) = served.follow(&reads);
        for (chunk, expected) in chunks.iter().zip(&expected.0) {
            assert_eq!(chunk, expected);
        }
        assert_eq!(end, expected.1);
    }
}

/// How much of an endless answer is fed: more than everything that is kept.
const FED_BYTES: usize = 40 << 20;
/// As it travels, where it is compressed: a thousandfold of it comes out.
const FED_COMPRESSED_BYTES: usize = 256 << 10;

/// What a reader may hold at once: a carried line and a joined event of 8 MiB, a
/// body copy of 16 MiB, each in a vector that may have doubled and is copied while
/// it grows, and the inflate window.
pub(crate) const MAX_HELD_BYTES: usize = 3 * (2 * MAX_PAYLOAD_BYTES + MAX_BODY_BYTES) + (1 << 20);

/// Follows an endless answer, the input's body over and over, served as its header
/// says; the caller watches the memory.
pub(crate) fn memory(input: &[u8]) {
    let Some((_, body)) = split_header(input) else {
        return;
    };
    let Some(served) = Served::new(input) else {
        return;
    };
    if body.is_empty() || served.raw.is_empty() {
        return;
    }
    // In blocks, so that a short body costs few calls; a compressed one begins
    // anew with every block, which is what gzip members do.
    let block = served.raw.repeat((64 << 10) / served.raw.len() + 1);
    let mut reader = ResponseReader::new(served.spec);
    let most = match served.spec.content_encoding {
        Some(_) => FED_COMPRESSED_BYTES,
        None => FED_BYTES,
    };
    let mut fed = 0;
    while fed < most {
        reader.feed((), &block, &mut |chunk| {
            assert!(chunk.data.len() <= MAX_PAYLOAD_BYTES);
        });
        fed += block.len();
    }
    let end = reader.finish(served.end, &mut |_| ());
    assert!(end.body.is_none_or(|body| body.len() <= MAX_BODY_BYTES));
}
