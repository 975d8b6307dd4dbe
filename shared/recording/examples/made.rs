//! Makes a recording of N chunks through the real writer, for measurements of
//! whoever reads it.
//!
//! `cargo run --release -p tapedeck-recording --example made -- OUT CHUNKS [slim]`
//!
//! 64 streams at once, 200 chunks a request: a role, content, a usage with the
//! token counts. Payloads are those of an `OpenAI` stream; with `slim` they are as
//! short as they can be, for recordings of 100 million chunks. TTFT and gaps are
//! drawn from a fixed seed, most gaps around 20 ms and a few far longer.

#![allow(
    clippy::unwrap_used,
    reason = "a recording that cannot be made has nobody to tell"
)]

use std::path::Path;

use tapedeck_recording::{
    ChunkKind, ChunkRow, Durability, EventBatch, Manifest, Outcome, RequestRow, ResponseRow,
    SegmentLimits, TimestampSource, Writer, WriterOptions,
};

const STREAMS: usize = 64;
const CHUNKS_PER_REQUEST: i32 = 200;
const MS: i64 = 1_000_000;
/// Rows given to the writer at once.
const BATCH: usize = 256;

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as i64
    }

    /// Around 20 ms: the sum of four is nearly normal. One in a hundred is longer,
    /// one in fifty came with the one before.
    fn gap_ns(&mut self) -> i64 {
        match self.below(100) {
            0 => 20 * MS + self.below(400 * MS),
            1 | 2 => 0,
            _ => 12 * MS + (0..4).map(|_| self.below(4 * MS)).sum::<i64>(),
        }
    }
}

/// A stream and its next chunk.
struct Stream {
    request_id: i64,
    t_sent_ns: i64,
    t_ns: i64,
    index: i32,
    read: i32,
}

struct Maker {
    random: Random,
    streams: Vec<Stream>,
    next_id: i64,
    slim: bool,
}

impl Maker {
    fn start(&mut self, t_ns: i64, events: &mut EventBatch) -> Stream {
        let request_id = self.next_id;
        self.next_id += 1;
        let t_sent_ns = t_ns + self.random.below(MS);
        events.requests.push(request(request_id, t_ns, t_sent_ns));
        Stream {
            request_id,
            t_sent_ns,
            t_ns: t_sent_ns + 50 * MS + self.random.below(150 * MS),
            index: 0,
            read: 0,
        }
    }

    /// The chunk of the stream whose turn it is.
    fn step(&mut self, events: &mut EventBatch) {
        let turn = (0..self.streams.len()).min_by_key(|i| self.streams[*i].t_ns);
        let turn = turn.unwrap();
        let is_last = self.streams[turn].index + 1 == CHUNKS_PER_REQUEST;
        let gap_ns = self.random.gap_ns();
        let lag_ns = 15_000 + self.random.below(30_000) + self.random.below(30_000);
        let stream = &mut self.streams[turn];
        let data = payload(stream, is_last, self.slim);
        events
            .chunks
            .push(chunk(stream, is_last, lag_ns, &data), Some(data.as_bytes()));
        stream.index += 1;
        stream.read += i32::from(gap_ns > 0);
        if is_last {
            events.responses.push(response(stream));
            let t_ns = stream.t_ns;
            self.streams[turn] = self.start(t_ns, events);
        } else {
            stream.t_ns += gap_ns;
        }
    }
}

fn payload(stream: &Stream, is_last: bool, slim: bool) -> String {
    if slim {
        return "{}".to_owned();
    }
    let id = stream.request_id;
    let word = ["the", " quick", " brown", " fox", " jumps", " over"][stream.index as usize % 6];
    let (choices, usage) = if is_last {
        (
            String::new(),
            ",\"usage\":{\"prompt_tokens\":64,\"completion_tokens\":198}",
        )
    } else {
        let delta = format!("{{\"content\":\"{word}\"}}");
        (
            format!("{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":null}}"),
            "",
        )
    };
    format!(
        "{{\"id\":\"chatcmpl-{id:016x}\",\"object\":\"chat.completion.chunk\",\
         \"created\":1780000000,\"model\":\"m\",\"choices\":[{choices}]{usage}}}"
    )
}

fn chunk(stream: &Stream, is_last: bool, lag_ns: i64, data: &str) -> ChunkRow {
    ChunkRow {
        read_index: stream.read,
        choice_index: (!is_last).then_some(0),
        t_seen_ns: stream.t_ns + lag_ns,
        kind: match stream.index {
            0 => ChunkKind::Role,
            _ if is_last => ChunkKind::Usage,
            _ => ChunkKind::Content,
        },
        bytes: data.len() as i64,
        ..ChunkRow::blank(stream.request_id, stream.index, stream.t_ns)
    }
}

fn request(request_id: i64, t_scheduled_ns: i64, t_sent_ns: i64) -> RequestRow {
    RequestRow {
        model: Some("m".into()),
        t_scheduled_ns: Some(t_scheduled_ns),
        t_dispatched_ns: Some(t_scheduled_ns),
        t_sent_ns: Some(t_sent_ns),
        conn_id: Some(request_id % STREAMS as i64),
        conn_reused: Some(request_id >= STREAMS as i64),
        body: Some(bytes::Bytes::from_static(b"{}")),
        body_bytes: 2,
        ..RequestRow::blank(request_id)
    }
}

fn response(stream: &Stream) -> ResponseRow {
    // Most ended well.
    let outcome = match stream.request_id % 97 {
        0 => Outcome::Truncated,
        _ => Outcome::Ok,
    };
    ResponseRow {
        status: Some(200),
        t_headers_ns: Some(stream.t_sent_ns + MS),
        t_end_ns: Some(stream.t_ns + MS / 10),
        timestamp_source: TimestampSource::Kernel,
        finish_reason: Some("stop".into()),
        input_tokens: Some(64),
        output_tokens: Some(CHUNKS_PER_REQUEST - 2),
        usage_source: Some("usage".into()),
        chunk_count: CHUNKS_PER_REQUEST,
        ..ResponseRow::blank(stream.request_id, outcome)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(out), Some(chunks)) = (arguments.first(), arguments.get(1)) else {
        println!("made OUT CHUNKS [slim]");
        return;
    };
    let chunks: u64 = chunks.parse().unwrap();
    let options = WriterOptions {
        durability: Durability::None,
        ..SegmentLimits::default().into()
    };
    let mut manifest = Manifest::new("made", "made", 0);
    manifest.settings = serde_json::json!({"parallel": STREAMS});
    let writer = Writer::create(Path::new(out), manifest, options).unwrap();
    let mut maker = Maker {
        random: Random(1),
        streams: Vec::new(),
        next_id: 0,
        slim: arguments.iter().any(|a| a == "slim"),
    };
    let mut events = EventBatch::default();
    for stream in 0..STREAMS as i64 {
        let stream = maker.start(stream * MS, &mut events);
        maker.streams.push(stream);
    }
    for _ in 0..chunks {
        maker.step(&mut events);
        if events.chunks.rows.len() >= BATCH {
            writer.sink().push(std::mem::take(&mut events)).unwrap();
        }
    }
    writer.sink().push(events).unwrap();
    writer.finish().unwrap();
}
