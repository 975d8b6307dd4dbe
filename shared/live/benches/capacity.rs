//! What a recorded chunk costs: CPU of the whole client, writer and sealer included,
//! next to a bare socket reader that only stamps.
//!
//! `cargo bench -p tapedeck-live --bench capacity [-- REQUESTS]`
//!
//! A server process on one core sends streams of 200 tokens to 64 connections, the
//! client has the other core. Both clients take turns in one run. Everything is
//! recorded, to a real folder, sealing included.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first surprise"
)]
#![allow(unreachable_pub, dead_code, reason = "modules shared by benchmarks")]

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::sys::resource::{UsageWho, getrusage};
use tapedeck_clock::{RunClock, monotonic_ns};
use tapedeck_live::run;
use tapedeck_recording::{Manifest, Outcome, Recording, SegmentLimits, Table, Writer};

#[path = "support/blast.rs"]
mod blast;
#[path = "../../../tests/support/mock_llm.rs"]
#[allow(unused_imports, reason = "shared with the tests")]
mod mock_llm;
mod support;

use blast::{Blast, Shape};
use support::{ThreadTimes, arrival, body, cpu_us, pin, quantile, request, run_spec};

const STREAMS: usize = 64;
const TOKENS: usize = 200;
const ROUNDS: usize = 3;

fn main() {
    if blast::serve_if_asked() {
        return;
    }
    let given = std::env::args().find_map(|a| a.parse::<usize>().ok());
    let requests = given.unwrap_or(2_500);
    println!(
        "{STREAMS} connections, {TOKENS} tokens an answer, {requests} answers a round, median of {ROUNDS} rounds (least, most)"
    );
    println!(
        "| server writes | client | chunks/s | CPU us a chunk | reads a chunk | context switches a chunk |"
    );
    println!("|---|---|--:|--:|--:|--:|");
    for shape in Shape::ALL {
        measure(shape, requests);
    }
}

/// What one client did in one round, a chunk.
struct Cost {
    chunks_per_s: f64,
    cpu_us: f64,
    reads: f64,
    switches: f64,
    /// CPU of those of the recorder's threads that [`THREADS`] names, us a chunk.
    threads_us: [f64; THREADS.len()],
}

/// As the kernel knows them, by 15 bytes.
const THREADS: [&str; 4] = [
    "tapedeck-worker",
    "tapedeck-writer",
    "tapedeck-sealer",
    "tapedeck-sync",
];

fn measure(shape: Shape, requests: usize) {
    let server = Blast::start(shape, TOKENS).unwrap();
    pin(1);
    let (mut bare, mut recorded) = (Vec::new(), Vec::new());
    // A first, short round of each fills caches and pools.
    of_bare_reader(&server, STREAMS * 2);
    of_recording(&server, STREAMS * 2);
    for _ in 0..ROUNDS {
        bare.push(of_bare_reader(&server, requests));
        recorded.push(of_recording(&server, requests));
    }
    let bare_us = print(shape, "bare reader", &bare);
    let recorded_us = print(shape, "tapedeck", &recorded);
    for (index, name) in THREADS.iter().enumerate() {
        let mut us: Vec<f64> = recorded.iter().map(|c| c.threads_us[index]).collect();
        let us = quantile(&mut us, 0.5);
        println!("| {} | {name} | | {us:.2} | | |", shape.as_str());
    }
    println!(
        "| {} | ratio | | {:.2} | | |",
        shape.as_str(),
        recorded_us / bare_us
    );
}

fn print(shape: Shape, client: &str, costs: &[Cost]) -> f64 {
    let of = |get: fn(&Cost) -> f64, share| {
        quantile(&mut costs.iter().map(get).collect::<Vec<_>>(), share)
    };
    let cpu_us = of(|c| c.cpu_us, 0.5);
    println!(
        "| {} | {client} | {:.0} | {cpu_us:.2} ({:.2}, {:.2}) | {:.3} | {:.4} |",
        shape.as_str(),
        of(|c| c.chunks_per_s, 0.5),
        of(|c| c.cpu_us, 0.0),
        of(|c| c.cpu_us, 1.0),
        of(|c| c.reads, 0.5),
        of(|c| c.switches, 0.5),
    );
    cpu_us
}

fn switches() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    usage.voluntary_context_switches() + usage.involuntary_context_switches()
}

/// Measures `work`, which returns the number of chunks, and of reads as far as it
/// knows them.
fn cost(work: impl FnOnce() -> (usize, u64)) -> Cost {
    let (cpu_before, start_ns, switches_before) = (cpu_us(), monotonic_ns(), switches());
    let (chunks, reads) = work();
    let chunks = chunks as f64;
    Cost {
        chunks_per_s: chunks / (monotonic_ns() - start_ns) as f64 * 1e9,
        cpu_us: (cpu_us() - cpu_before) / chunks,
        reads: reads as f64 / chunks,
        switches: (switches() - switches_before) as f64 / chunks,
        threads_us: [0.0; THREADS.len()],
    }
}

fn of_bare_reader(server: &Blast, requests: usize) -> Cost {
    cost(|| {
        let run = support::bare::run(server.addr, STREAMS, requests).unwrap();
        (run.events(), run.reads)
    })
}

fn of_recording(server: &Blast, requests: usize) -> Cost {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let out = dir.path().join("r");
    let clock = RunClock::start();
    let request = request(server.addr, body(0));
    let watch = ThreadTimes::watch();
    let mut chunks = 0;
    let mut cost = cost(|| {
        let manifest = Manifest::new("capacity", "capacity benchmark", clock.origin_ns());
        let writer = Writer::create(&out, manifest, SegmentLimits::default()).unwrap();
        let spec = run_spec(clock, server.addr, Some(STREAMS), writer.sink());
        let arrivals = (0..requests).map(|_| arrival(Arc::clone(&request), None));
        run(&spec, arrivals).unwrap();
        let manifest = writer.finish().unwrap();
        let files = manifest
            .segments
            .iter()
            .filter(|s| s.file.starts_with("chunks/"));
        chunks = files.map(|s| s.rows as usize).sum();
        (chunks, 0)
    });
    let times = watch.end();
    let us = |name| times.get(name).copied().unwrap_or_default() / chunks as f64;
    cost.threads_us = THREADS.map(us);
    cost.cpu_us -= us(ThreadTimes::WATCHER);
    cost.reads = checked_reads(&Recording::open(&out).unwrap(), requests);
    cost
}

/// Reads a chunk, of a recording in which nothing is missing.
fn checked_reads(recording: &Recording, requests: usize) -> f64 {
    let responses = recording.rows(Table::Responses).unwrap().responses;
    assert_eq!(responses.len(), requests);
    assert!(responses.iter().all(|r| r.outcome == Outcome::Ok));
    let chunks = recording.rows(Table::Chunks).unwrap().chunks.rows;
    // Events of a stream: its tokens, finish, usage and end marker.
    assert_eq!(chunks.len(), requests * (TOKENS + 3));
    let mut reads = BTreeMap::new();
    for chunk in &chunks {
        reads.insert(chunk.request_id, i64::from(chunk.read_index) + 1);
    }
    reads.values().sum::<i64>() as f64 / chunks.len() as f64
}
