//! How wrong a recording is: recorded TTFT and ITL against the ledger of a server
//! that stamps its own writes, kernel and process stamps side by side.
//!
//! `cargo bench -p tapedeck-live --bench accuracy [-- STREAMS…]`
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

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tapedeck_clock::RunClock;
use tapedeck_live::{
    Arrival, Gauges, PreparedRequest, RunSpec, Stop, Target, Timeouts, TlsOptions, run,
};
use tapedeck_recording::{
    ChunkKind, ChunkRow, EventBatch, Manifest, Phase, Recording, SegmentLimits, Table, Writer,
};
use tapedeck_wire::openai::Api;

#[path = "../../../tests/support/mock_llm.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "shared with the tests"
)]
mod mock_llm;

use mock_llm::replies::Stream;
use mock_llm::{MockLlm, Script, Served};

const TOKENS: usize = 100;
const TTFT_MS: i64 = 200;
const ITL_MS: i64 = 20;
/// Requests for each stream: one in the first wave, two after it.
const ROUNDS: usize = 3;

fn main() {
    let given: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let streams = if given.is_empty() {
        vec![50, 500]
    } else {
        given
    };
    println!("errors in ms, p50 / p99; kernel = t_ns, process = t_seen_ns");
    println!(
        "| streams | requests | TTFT kernel | TTFT process | ITL kernel | ITL process | connections opened | chunks |"
    );
    println!("|--:|---|---|---|---|---|--:|--:|");
    for streams in streams {
        measure(streams);
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // One core only: the figures then include the server's share of it.
    sched_setaffinity(Pid::from_raw(0), &set).ok();
}

fn measure(streams: usize) {
    pin(0);
    let stream = Stream::chat(TOKENS, TTFT_MS, ITL_MS);
    let mock = MockLlm::start(Script::always(stream.reply()));
    pin(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    record(&mock, streams, &out);
    let recording = Recording::open(&out).unwrap();
    let served: BTreeMap<i64, Served> = mock
        .ledger()
        .into_iter()
        .map(|s| (number_of(&s.request.body), s))
        .collect();
    let mut events = recording.rows(Table::Requests).unwrap();
    events.append(&mut recording.rows(Table::Chunks).unwrap());
    let first_wave = streams as i64;
    let waves = [
        ("first wave", 0, first_wave),
        ("after it", first_wave, i64::MAX),
        ("all", 0, i64::MAX),
    ];
    for (name, from, to) in waves {
        let errors = Errors::of(&events, &served, &stream, from..to);
        println!(
            "| {streams} | {name} | {} | {} | {} | {} | {} | {} |",
            shown(&errors.ttft_kernel),
            shown(&errors.ttft_process),
            shown(&errors.itl_kernel),
            shown(&errors.itl_process),
            errors.opened,
            errors.chunks,
        );
    }
}

fn number_of(body: &[u8]) -> i64 {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["user"].as_i64().unwrap()
}

fn request(mock: &MockLlm, number: usize) -> Arc<PreparedRequest> {
    let body = format!(
        r#"{{"model":"m","user":{number},"stream":true,"messages":[{{"role":"user","content":"x"}}]}}"#
    );
    let mut headers = HeaderMap::new();
    let host = mock.addr().to_string();
    headers.insert(header::HOST, HeaderValue::from_str(&host).unwrap());
    Arc::new(PreparedRequest {
        api: Api::OpenAiChat,
        method: Method::POST,
        uri: "/v1/chat/completions".parse().unwrap(),
        url_path: "/v1/chat/completions".into(),
        query: None,
        headers,
        recorded_headers: None,
        body: Bytes::from(body),
        body_hash: None,
        model: Some("m".into()),
        stream: true,
        input_tokens: None,
        input_tokens_source: None,
        max_output_tokens: None,
    })
}

fn record(mock: &MockLlm, streams: usize, out: &Path) {
    let clock = RunClock::start();
    let manifest = Manifest::new("accuracy", "accuracy benchmark", clock.origin_ns());
    let writer = Writer::create(out, manifest, SegmentLimits::default()).unwrap();
    let url = mock.url().parse().unwrap();
    let minute = Duration::from_secs(60);
    let spec = RunSpec {
        clock,
        target: Target::resolve(&url, &TlsOptions::default()).unwrap(),
        timeouts: Timeouts {
            connect: minute,
            first_byte: minute,
            read: minute,
            total: None,
        },
        policy: tapedeck_live::AttemptPolicy::default(),
        workers: 1,
        parallel: Some(streams),
        start_ns: clock.now_ns() + 50_000_000,
        until_ns: None,
        first_request_id: 0,
        first_conn_id: 0,
        sink: writer.sink(),
        privacy: tapedeck_recording::Privacy::full(),
        stop: Arc::new(Stop::default()),
        gauges: Arc::new(Gauges::default()),
    };
    let requests: Vec<_> = (0..streams * ROUNDS).map(|n| request(mock, n)).collect();
    let arrivals = requests.into_iter().map(|request| Arrival {
        request,
        offset_ns: None,
        phase: Phase::Measure,
        session_id: None,
        turn: None,
        parent_request_id: None,
        replay_of: None,
    });
    run(&spec, arrivals).unwrap();
    writer.finish().unwrap();
}

#[derive(Default)]
struct Errors {
    ttft_kernel: Vec<f64>,
    ttft_process: Vec<f64>,
    itl_kernel: Vec<f64>,
    itl_process: Vec<f64>,
    opened: usize,
    chunks: usize,
}

impl Errors {
    fn of(
        events: &EventBatch,
        served: &BTreeMap<i64, Served>,
        stream: &Stream,
        wave: std::ops::Range<i64>,
    ) -> Self {
        let mut content: BTreeMap<i64, Vec<&ChunkRow>> = BTreeMap::new();
        let chunks = events.chunks.rows.iter();
        for chunk in chunks.filter(|c| c.kind == ChunkKind::Content) {
            content.entry(chunk.request_id).or_default().push(chunk);
        }
        let mut errors = Self::default();
        let requests = events.requests.iter().filter(|r| r.attempt == 0);
        for request in requests.filter(|r| wave.contains(&r.request_id)) {
            let served = &served[&number_of(request.body.as_ref().unwrap())];
            let truth: Vec<i64> = (0..TOKENS)
                .map(|i| served.write_of(stream.step_of(i)).unwrap().t_before_ns)
                .collect();
            let chunks = &content[&request.request_id];
            assert_eq!(chunks.len(), TOKENS, "every chunk is recorded");
            errors.opened += usize::from(request.conn_reused == Some(false));
            errors.chunks += chunks.len();
            let sent_ns = request.t_sent_ns.unwrap();
            let true_ttft_ns = truth[0] - served.request.t_read_ns;
            errors
                .ttft_kernel
                .push(ms(chunks[0].t_ns - sent_ns - true_ttft_ns));
            errors
                .ttft_process
                .push(ms(chunks[0].t_seen_ns - sent_ns - true_ttft_ns));
            for i in 1..TOKENS {
                let true_gap_ns = truth[i] - truth[i - 1];
                let (before, after) = (chunks[i - 1], chunks[i]);
                errors
                    .itl_kernel
                    .push(ms(after.t_ns - before.t_ns - true_gap_ns));
                errors
                    .itl_process
                    .push(ms(after.t_seen_ns - before.t_seen_ns - true_gap_ns));
            }
        }
        errors
    }
}

fn ms(ns: i64) -> f64 {
    (ns as f64 / 1e6).abs()
}

fn shown(errors: &[f64]) -> String {
    let mut sorted = errors.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |p: f64| sorted[((sorted.len() - 1) as f64 * p).round() as usize];
    format!("{:.3} / {:.3}", at(0.5), at(0.99))
}
