//! What the writer costs, per chunk, with each durability, in one run.
//!
//! `cargo bench -p tapedeck-recording --bench durability [-- CHUNKS]`
//!
//! CPU is that of the whole process, less that of making the rows, which a run of
//! its own measures. Batches are those of the live layer: 256 rows.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made has nobody to tell"
)]

use std::path::Path;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tapedeck_clock::monotonic_ns;
use tapedeck_recording::{
    ChunkRow, Durability, EventBatch, Manifest, Recording, SegmentLimits, Table, Writer,
    WriterOptions,
};

const BATCH: i64 = 256;
const CHUNKS_PER_REQUEST: i64 = 200;

fn batch(first: i64) -> EventBatch {
    let mut events = EventBatch::default();
    for n in first..first + BATCH {
        // 64 streams at once, as a recorder meets them.
        let (request_id, chunk_index) = (n % 64 + n / 64 / CHUNKS_PER_REQUEST * 64, n / 64);
        let word = ["the", " quick", " brown", " fox", " jumps", " over"][(n * 7 % 6) as usize];
        let data = format!(
            "{{\"id\":\"chatcmpl-{request_id:016x}\",\"object\":\"chat.completion.chunk\",\
             \"created\":1780000000,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":\
             {{\"content\":\"{word}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}"
        );
        let t_ns = n * 31_250 + n * n % 977;
        let chunk_index = (chunk_index % CHUNKS_PER_REQUEST) as i32;
        let row = ChunkRow {
            choice_index: Some(0),
            t_seen_ns: t_ns + 20_000 + n % 313,
            bytes: data.len() as i64,
            ..ChunkRow::blank(request_id, chunk_index, t_ns)
        };
        events.chunks.push(row, Some(data.as_bytes()));
    }
    events
}

fn cpu_us() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let us = |t: TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    us(usage.user_time()) + us(usage.system_time())
}

fn options(durability: Durability) -> WriterOptions {
    WriterOptions {
        durability,
        ..SegmentLimits::default().into()
    }
}

fn size_of(dir: &Path) -> u64 {
    let files = Recording::open(dir).unwrap();
    let files = files.files(Table::Chunks);
    files.iter().map(|f| f.metadata().unwrap().len()).sum()
}

fn main() {
    let numbers = std::env::args().find_map(|a| a.parse::<i64>().ok());
    let chunks = numbers.unwrap_or(1_000_000) / BATCH * BATCH;
    let (start_us, mut payload) = (cpu_us(), 0);
    for first in (0..chunks).step_by(BATCH as usize) {
        payload += std::hint::black_box(batch(first)).chunks.payloads.len();
    }
    let rows_us = cpu_us() - start_us;
    println!("{chunks} chunks of {} B payload", payload as i64 / chunks);
    println!("durability  chunks/s  cpu us/chunk  file B/chunk");
    for round in 0..2 {
        for durability in Durability::ALL {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let out = dir.path().join("r");
            let (start_us, start_ns) = (cpu_us(), monotonic_ns());
            let manifest = Manifest::new("bench", "bench", 0);
            let writer = Writer::create(&out, manifest, options(*durability)).unwrap();
            for first in (0..chunks).step_by(BATCH as usize) {
                writer.sink().push(batch(first)).unwrap();
            }
            writer.finish().unwrap();
            let seconds = (monotonic_ns() - start_ns) as f64 / 1e9;
            let cpu = (cpu_us() - start_us - rows_us) / chunks as f64;
            let bytes = size_of(&out) as f64 / chunks as f64;
            if round > 0 {
                let rate = chunks as f64 / seconds;
                println!(
                    "{:<10} {rate:>9.0} {cpu:>13.2} {bytes:>13.2}",
                    durability.as_str()
                );
            }
        }
    }
    recovery(chunks.min(200 * BATCH * 4));
}

/// How fast a log is read by whoever opens the recording.
fn recovery(chunks: i64) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = dir.path().join("r");
    let manifest = Manifest::new("bench", "bench", 0);
    let writer = Writer::create(&out, manifest, options(Durability::Interval)).unwrap();
    for first in (0..chunks).step_by(BATCH as usize) {
        writer.sink().push(batch(first)).unwrap();
    }
    let rows = || Recording::open(&out).unwrap().recovered().counts.rows;
    while rows() < chunks as u64 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let logs = std::fs::read_dir(out.join("wal")).unwrap();
    let bytes: u64 = logs.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    let start_ns = monotonic_ns();
    let found = rows();
    let seconds = (monotonic_ns() - start_ns) as f64 / 1e9;
    println!(
        "log of {found} rows, {:.1} B a row, opened in {:.0} ms: {:.1} M rows/s",
        bytes as f64 / found as f64,
        seconds * 1e3,
        found as f64 / seconds / 1e6
    );
    drop(writer.finish());
}
