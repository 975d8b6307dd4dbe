//! What each column of `chunks` costs on disk.
//!
//! `cargo bench -p tapedeck-recording --bench size [-- RECORDING]`
//!
//! Without a recording one is made: 64 streams at once of 200 chunks, 20 ms apart
//! with an eighth of jitter, payloads as OpenAI's, one segment.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement that cannot be made has nobody to tell"
)]

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use tapedeck_recording::{ChunkRow, EventBatch, Manifest, Recording, SegmentLimits, Table, Writer};

const REQUESTS: i64 = 5_000;
const CHUNKS: i64 = 200;
const STREAMS: i64 = 64;

fn main() {
    // cargo adds a flag of its own.
    let given = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = given.map_or_else(|| made(dir.path()), PathBuf::from);
    print(&path);
}

fn print(path: &Path) {
    let recording = Recording::open(path).unwrap();
    let (mut rows, mut columns) = (0, Vec::<(String, i64, i64)>::new());
    for file in recording.files(Table::Chunks) {
        let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
        let metadata = reader.metadata();
        rows += metadata.file_metadata().num_rows();
        for column in metadata.row_groups().iter().flat_map(|g| g.columns()) {
            let name = column.column_path().string();
            let (packed, plain) = (column.compressed_size(), column.uncompressed_size());
            match columns.iter_mut().find(|(known, ..)| *known == name) {
                Some(known) => {
                    known.1 += packed;
                    known.2 += plain;
                }
                None => columns.push((name, packed, plain)),
            }
        }
    }
    let per_row = |bytes: i64| bytes as f64 / rows as f64;
    println!("{rows} chunks; bytes a chunk, and before zstd");
    let mut beside = 0;
    for (name, packed, plain) in &columns {
        println!(
            "{name:<16} {:>8.3} {:>8.3}",
            per_row(*packed),
            per_row(*plain)
        );
        beside += if name == "data" { 0 } else { *packed };
    }
    println!("beside payload   {:>8.3}", per_row(beside));
}

/// A repeatable, even spread over `0..limit`.
fn jitter(number: i64, limit: i64) -> i64 {
    let mixed = (number as u64 + 1).wrapping_mul(6_364_136_223_846_793_005);
    ((mixed ^ mixed >> 29) >> 33) as i64 % limit
}

fn made(dir: &Path) -> PathBuf {
    let out = dir.join("r");
    let limits = SegmentLimits {
        rows: usize::MAX,
        bytes: usize::MAX,
        ..SegmentLimits::default()
    };
    let writer = Writer::create(&out, Manifest::new("size", "bench", 0), limits).unwrap();
    for request_id in 0..REQUESTS {
        writer.sink().push(stream(request_id)).unwrap();
    }
    writer.finish().unwrap();
    out
}

fn stream(request_id: i64) -> EventBatch {
    let mut events = EventBatch::default();
    let mut t_ns = request_id / STREAMS * CHUNKS * 20_000_000 + jitter(request_id, 20_000_000);
    for index in 0..CHUNKS {
        let number = request_id * CHUNKS + index;
        t_ns += 20_000_000 - 2_500_000 + jitter(number, 5_000_000);
        let word =
            ["the", " quick", " brown", " fox", " jumps", " over"][jitter(number, 6) as usize];
        let data = format!(
            "{{\"id\":\"chatcmpl-{request_id:016x}\",\"object\":\"chat.completion.chunk\",\
             \"created\":1780000000,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":\
             {{\"content\":\"{word}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}"
        );
        let row = ChunkRow {
            choice_index: Some(0),
            t_seen_ns: t_ns + 20_000 + jitter(number, 40_000),
            bytes: data.len() as i64,
            ..ChunkRow::blank(request_id, index as i32, t_ns)
        };
        events.chunks.push(row, Some(data.as_bytes()));
    }
    events
}
