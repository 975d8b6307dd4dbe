//! How late requests leave: dispatched and sent against scheduled, and gaps
//! against the schedule's, in an uncapped open loop at the embedded simulator.
//!
//! `cargo bench -p tapedeck-live --bench dispatch [-- [--warm] RATE…]`
//!
//! A replay is this with the arrivals of a recording. The simulator has one core, the
//! whole client the other: the worker shares it with pacer, writer and sealer.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops at the first surprise"
)]
#![allow(unreachable_pub, dead_code, reason = "modules shared by benchmarks")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tapedeck_clock::RunClock;
use tapedeck_live::Workers;
use tapedeck_recording::{Manifest, Recording, RequestRow, SegmentLimits, Table, Writer};
use tapedeck_simulator::{SimConfig, Simulator};

mod support;

use support::{arrival, body, pin, request, run_spec};

const SECONDS: usize = 10;
/// Requests before this much of a run has passed are counted apart: they open the
/// connections.
const OPENING_NS: i64 = 1_000_000_000;

fn main() {
    let given: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let rates = if given.is_empty() {
        vec![50, 200, 1000]
    } else {
        given
    };
    println!(
        "ms, p50 / p99 / max; offset = |lag - lag of the run's first request|, gap = |lag - lag of the request before|, lag = sent - scheduled"
    );
    println!(
        "| requests/s | warm connections | part | requests | opening one | dispatched - scheduled | lag | offset | gap |"
    );
    println!("|--:|--:|---|--:|--:|---|---|---|---|");
    let warms: &[usize] = match std::env::args().any(|a| a == "--warm") {
        true => &[64],
        false => &[0, 64],
    };
    for rate in rates {
        for &warm in warms {
            measure(rate, warm);
        }
    }
}

fn measure(rate: usize, warm: usize) {
    let config = SimConfig::from_url("sim:?ttft_ms=20&itl_ms=5&tokens=5&slots=1024").unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    pin(0);
    let simulator = Simulator::start(config, any).unwrap();
    pin(1);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let start_ns = record(simulator.addr(), rate, warm, &out);
    let recording = Recording::open(&out).unwrap();
    let mut requests = recording.rows(Table::Requests).unwrap().requests;
    requests.retain(|r| r.attempt == 0);
    requests.sort_by_key(|r| r.request_id);
    assert_eq!(requests.len(), rate * SECONDS);
    let opening = requests.partition_point(|r| r.t_scheduled_ns.unwrap() - start_ns < OPENING_NS);
    let first_lag_ns = lag_ns(&requests[0]);
    for (part, requests) in [
        ("first second", &requests[..opening]),
        ("after it", &requests[opening..]),
    ] {
        println!(
            "| {rate} | {warm} | {part} | {}",
            row(requests, first_lag_ns)
        );
    }
}

fn lag_ns(request: &RequestRow) -> i64 {
    request.t_sent_ns.unwrap() - request.t_scheduled_ns.unwrap()
}

fn row(requests: &[RequestRow], first_lag_ns: i64) -> String {
    let fresh = requests
        .iter()
        .filter(|r| r.conn_reused == Some(false))
        .count();
    let dispatch: Vec<i64> = requests
        .iter()
        .map(|r| r.t_dispatched_ns.unwrap() - r.t_scheduled_ns.unwrap())
        .collect();
    let lags: Vec<i64> = requests.iter().map(lag_ns).collect();
    let offsets = lags.iter().map(|lag| (lag - first_lag_ns).abs()).collect();
    let gaps: Vec<i64> = lags.windows(2).map(|w| (w[1] - w[0]).abs()).collect();
    format!(
        "{} | {fresh} | {} | {} | {} | {} |",
        requests.len(),
        shown(dispatch),
        shown(lags),
        shown(offsets),
        shown(gaps)
    )
}

fn shown(mut values: Vec<i64>) -> String {
    values.sort_unstable();
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize] as f64 / 1e6;
    format!("{:.3} / {:.3} / {:.3}", at(0.5), at(0.99), at(1.0))
}

/// Gaps of one mean, between a third and five thirds of it, as a fixed sequence.
fn offsets_ns(rate: usize) -> impl Iterator<Item = i64> {
    let mean_ns = 1_000_000_000 / rate as u64;
    let mut state = 1_u64;
    let mut at_ns = 0;
    std::iter::from_fn(move || {
        let offset_ns = at_ns as i64;
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        at_ns += mean_ns / 3 + (state >> 33) % (mean_ns * 4 / 3);
        Some(offset_ns)
    })
}

/// Records into `out`; returns when the schedule began.
fn record(addr: SocketAddr, rate: usize, warm: usize, out: &Path) -> i64 {
    let clock = RunClock::start();
    let manifest = Manifest::new("dispatch", "dispatch benchmark", clock.origin_ns());
    let writer = Writer::create(out, manifest, SegmentLimits::default()).unwrap();
    let spec = run_spec(clock, addr, None, writer.sink());
    let start_ns = spec.start_ns;
    let request = request(addr, body(0));
    let arrivals = offsets_ns(rate)
        .take(rate * SECONDS)
        .map(|offset_ns| arrival(Arc::clone(&request), Some(start_ns + offset_ns)));
    let workers = Workers::start(&spec, warm).unwrap();
    assert_eq!(workers.warm_connections(), warm);
    workers.run(&spec, arrivals).unwrap();
    writer.finish().unwrap();
    start_ns
}
