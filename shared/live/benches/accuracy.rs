//! How wrong a recording is: recorded TTFT and ITL against the ledger of a server
//! that stamps its own writes, kernel and process stamps side by side, and next to
//! them a bare socket reader that only stamps.
//!
//! `cargo bench -p tapedeck-live --bench accuracy [-- STREAMS…]`
//!
//! `… -- --serve paced|bulk|single` is that server alone, for a client of somebody
//! else (`tests/trials/others.py`): it says where it listens, and at the end of its
//! stdin prints what it did.
//!
//! The server has one core and the whole client the other, so every figure
//! includes a busy client. Error = |recorded − true|, where the true TTFT is the
//! instant before the server's write of the first content chunk − the read that
//! completed the request. "First wave" are the requests that opened their
//! connections in one burst.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first surprise"
)]
#![allow(unreachable_pub, dead_code, reason = "modules shared by benchmarks")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use tapedeck_clock::RunClock;
use tapedeck_live::run;
use tapedeck_recording::{ChunkKind, Manifest, Recording, SegmentLimits, Table, Writer};

#[path = "../../../tests/support/mock_llm.rs"]
#[allow(unused_imports, reason = "shared with the tests")]
mod mock_llm;
mod support;

use mock_llm::replies::Stream;
use mock_llm::{MockLlm, Script, Served};
use support::{arrival, body, pin, quantile, request, run_spec};

const TOKENS: usize = 100;
const TTFT_MS: i64 = 200;
const ITL_MS: i64 = 20;
/// Requests for each stream: one in the first wave, two after it.
const ROUNDS: usize = 3;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--serve") {
        return serve(words.get(at + 1).map_or("paced", String::as_str));
    }
    let given: Vec<usize> = words.iter().filter_map(|a| a.parse().ok()).collect();
    let streams = if given.is_empty() {
        vec![50, 500]
    } else {
        given
    };
    println!("errors in ms, p50 / p99; kernel = t_ns, process = t_seen_ns");
    println!("| streams | requests | stamps | TTFT | ITL | connections opened | chunks |");
    println!("|--:|---|---|---|---|--:|--:|");
    for streams in streams {
        measure(streams);
    }
}

/// One line for the address; then, for each request, the read that completed it and
/// the instant before each write of a step with content, absolute monotonic ns.
fn serve(shape: &str) {
    let (stream, reply) = match shape {
        "paced" => {
            let stream = Stream::chat(TOKENS, TTFT_MS, ITL_MS);
            (stream, stream.reply())
        }
        "bulk" => {
            let stream = Stream::chat(2 * TOKENS, 0, 0);
            (stream, stream.reply_in_bulk(16 << 10))
        }
        "single" => {
            let stream = Stream::chat(2 * TOKENS, 0, 0);
            (stream, stream.reply())
        }
        other => panic!("--serve {other}: paced, bulk or single"),
    };
    pin(0);
    let mock = MockLlm::start(Script::new(move |request| {
        // Clients look for a model list, or a tokenizer, first.
        match request.method.as_str() {
            "POST" if request.path.ends_with("/completions") => reply.clone(),
            "POST" => mock_llm::replies::json(404, "{}"),
            _ => mock_llm::replies::models(),
        }
    }));
    println!("http://{}", mock.addr());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    let asked = |s: &&Served| s.request.path.ends_with("/completions");
    for served in mock.ledger().iter().filter(asked) {
        let mut instants = vec![served.request.t_read_ns];
        let content = (0..stream.tokens).filter_map(|i| served.write_of(stream.step_of(i)));
        instants.extend(content.map(|write| write.t_before_ns));
        println!("{}", serde_json::json!(instants));
    }
}

/// What a client saw of one request, and when it sent it; absolute or of one clock.
struct Seen {
    number: i64,
    t_sent_ns: i64,
    /// Of its content chunks.
    t_chunks_ns: Vec<i64>,
    opened: bool,
}

fn measure(streams: usize) {
    let stream = Stream::chat(TOKENS, TTFT_MS, ITL_MS);
    let (truth, seen) = with_server(&stream, |mock| bare(mock, streams));
    let bare = print(streams, "bare reader", &truth, &seen);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let (truth, ()) = with_server(&stream, |mock| record(mock, streams, &out));
    let recording = Recording::open(&out).unwrap();
    let [kernel, process] = recorded(&recording);
    let kernel = print(streams, "kernel", &truth, &kernel);
    print(streams, "process", &truth, &process);
    for (wave, kernel, bare) in [
        ("first wave", kernel[0], bare[0]),
        ("after it", kernel[1], bare[1]),
    ] {
        println!(
            "| {streams} | {wave} | kernel - bare, p99 | {:+.3} | | | |",
            kernel - bare
        );
    }
}

/// Instants of the writes of each request's content, by its number, the first being
/// that of the request's last byte.
type Truth = BTreeMap<i64, Vec<i64>>;

/// Runs `client` against a server of its own on the other core.
fn with_server<T>(stream: &Stream, client: impl FnOnce(&MockLlm) -> T) -> (Truth, T) {
    pin(0);
    let mock = MockLlm::start(Script::always(stream.reply()));
    pin(1);
    let seen = client(&mock);
    let ledger = mock.ledger();
    let truth = ledger.iter().map(|served| {
        let mut instants = vec![served.request.t_read_ns];
        instants
            .extend((0..TOKENS).map(|i| served.write_of(stream.step_of(i)).unwrap().t_before_ns));
        (number_of(served), instants)
    });
    (truth.collect(), seen)
}

fn number_of(served: &Served) -> i64 {
    let body: serde_json::Value = serde_json::from_slice(&served.request.body).unwrap();
    body["user"].as_i64().unwrap()
}

fn bare(mock: &MockLlm, streams: usize) -> Vec<Seen> {
    let run = support::bare::run(mock.addr(), streams, streams * ROUNDS).unwrap();
    let seen = run.answered.into_iter().map(|answered| Seen {
        number: answered.number as i64,
        t_sent_ns: answered.t_sent_ns,
        // Behind the content come the events of its end.
        t_chunks_ns: answered.t_events_ns[..TOKENS].to_vec(),
        opened: answered.number < streams,
    });
    seen.collect()
}

fn record(mock: &MockLlm, streams: usize, out: &Path) {
    let clock = RunClock::start();
    let manifest = Manifest::new("accuracy", "accuracy benchmark", clock.origin_ns());
    let writer = Writer::create(out, manifest, SegmentLimits::default()).unwrap();
    let spec = run_spec(clock, mock.addr(), Some(streams), writer.sink());
    let requests: Vec<_> = (0..streams * ROUNDS)
        .map(|number| arrival(request(mock.addr(), body(number)), None))
        .collect();
    run(&spec, requests.into_iter()).unwrap();
    writer.finish().unwrap();
}

/// By the kernel's stamps and by the process's. The first arrivals of a closed loop
/// are those that the numbers say.
fn recorded(recording: &Recording) -> [Vec<Seen>; 2] {
    let mut chunks: BTreeMap<i64, Vec<[i64; 2]>> = BTreeMap::new();
    for chunk in recording.rows(Table::Chunks).unwrap().chunks.rows {
        if chunk.kind == ChunkKind::Content {
            let instants = [chunk.t_ns, chunk.t_seen_ns];
            chunks.entry(chunk.request_id).or_default().push(instants);
        }
    }
    let requests = recording.rows(Table::Requests).unwrap().requests;
    [0, 1].map(|stamps| {
        let first = requests.iter().filter(|r| r.attempt == 0);
        let seen = first.map(|r| Seen {
            number: r.request_id,
            t_sent_ns: r.t_sent_ns.unwrap(),
            t_chunks_ns: chunks[&r.request_id].iter().map(|t| t[stamps]).collect(),
            opened: r.conn_reused == Some(false),
        });
        seen.collect()
    })
}

/// Prints one row a wave; returns the p99 of their TTFT errors.
fn print(streams: usize, stamps: &str, truth: &Truth, seen: &[Seen]) -> [f64; 2] {
    let first_wave = streams as i64;
    let waves = [
        ("first wave", 0..first_wave),
        ("after it", first_wave..i64::MAX),
    ];
    waves.map(|(name, wave)| {
        let mut errors = Errors::of(truth, seen, &wave);
        println!(
            "| {streams} | {name} | {stamps} | {} | {} | {} | {} |",
            shown(&mut errors.ttft),
            shown(&mut errors.itl),
            errors.opened,
            errors.chunks,
        );
        quantile(&mut errors.ttft, 0.99)
    })
}

#[derive(Default)]
struct Errors {
    ttft: Vec<f64>,
    itl: Vec<f64>,
    opened: usize,
    chunks: usize,
}

impl Errors {
    fn of(truth: &Truth, seen: &[Seen], wave: &Range<i64>) -> Self {
        let mut errors = Self::default();
        for seen in seen.iter().filter(|s| wave.contains(&s.number)) {
            let truth = &truth[&seen.number];
            assert_eq!(seen.t_chunks_ns.len(), TOKENS, "every chunk is recorded");
            errors.opened += usize::from(seen.opened);
            errors.chunks += TOKENS;
            let true_ttft_ns = truth[1] - truth[0];
            errors
                .ttft
                .push(ms(seen.t_chunks_ns[0] - seen.t_sent_ns - true_ttft_ns));
            let gaps = seen.t_chunks_ns.windows(2).zip(truth[1..].windows(2));
            errors
                .itl
                .extend(gaps.map(|(seen, truth)| ms(seen[1] - seen[0] - (truth[1] - truth[0]))));
        }
        errors
    }
}

fn ms(ns: i64) -> f64 {
    (ns as f64 / 1e6).abs()
}

fn shown(errors: &mut [f64]) -> String {
    format!(
        "{:.3} / {:.3}",
        quantile(errors, 0.5),
        quantile(errors, 0.99)
    )
}
