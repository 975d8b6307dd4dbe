//! What the proxy adds: latency at about half load of its core, and throughput,
//! against going direct, all in one run.
//!
//! `cargo bench -p tapedeck-proxy --bench overhead [-- SECONDS [CHUNKS_PER_S…]]`
//!
//! Server and client are threads that do nothing but `write`, `read` and stamp, on
//! one core; the proxy's worker has the other, and its writer goes where the kernel
//! puts it. Every chunk carries the
//! instant before its write, so a latency is one clock's: from there to the
//! client's return from `read`. One connection in [`DIRECT_ONE_IN`] goes direct,
//! in the same seconds as those that go through the proxy. Relays that read and
//! write and know nothing tell what any hop costs here: one of threads, and one that
//! waits in `epoll` as the proxy does.
//!
//! A chunk that waits for the worker to get its core waits for whoever has it. How
//! long it did, and what other programs took of the machine, stands in each row;
//! where others are at work, `chrt -f 1` before the built benchmark keeps them out.
//! The second table is the proxy's own account: what a chunk waited in the socket,
//! and what the proxy took from there to the client's socket.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first surprise"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tapedeck_clock::{RunClock, monotonic_ns, wake_on_time};
use tapedeck_live::{Gauges, Stop, StopLevel, Target, TlsOptions};
use tapedeck_proxy::{Current, Proxy, Recorder, Rules, Settings, Upstream, Upstreams};
use tapedeck_recording::{Manifest, Privacy, Recording, SegmentLimits, Table, Writer};
use tapedeck_wire::dialect::Api;

mod support;

use support::relay;
use support::usage::Usage;

const TOKENS: usize = 100;
const TTFT_NS: i64 = 20_000_000;
const ITL_NS: i64 = 10_000_000;
const DIRECT_ONE_IN: usize = 4;
/// Streams at once where nothing is paced.
const STREAMS: usize = 16;

fn main() {
    let given: Vec<f64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let seconds = given.first().copied().unwrap_or(10.0);
    let rates = match given.get(1..) {
        Some(rates) if !rates.is_empty() => rates.to_vec(),
        _ => vec![2_000.0, 8_000.0],
    };
    pin(&[0]);
    let server = serve();
    println!(
        "us, p50 / p99; load = CPU of the worker over the time; CPU of all the proxy's threads; others = CPU of other programs; waited = for a core, each time the worker got one, mean"
    );
    println!(
        "| chunks/s | between | load | CPU us/chunk | others | waited | TTFT direct | TTFT proxied | chunk direct | chunk proxied | added TTFT | added chunk | ratio p50 |"
    );
    println!("|--:|---|--:|--:|--:|--:|---|---|---|---|---|---|--:|");
    let mut own_account = Vec::new();
    for rate in rates {
        for way in [Way::Relay, Way::Tokio, Way::Unrecorded, Way::Recorded] {
            let stages = latency(server, seconds, rate, way);
            own_account.extend(stages.map(|stages| (rate, stages)));
        }
    }
    println!();
    println!("| chunks/s | from the arrival to the proxy's read | to the client's socket |");
    println!("|--:|---|---|");
    for (rate, Stages { waited, passed }) in own_account {
        println!("| {rate:.0} | {} | {} |", shown(&waited), shown(&passed));
    }
    println!();
    println!("as fast as it goes, {STREAMS} streams of {TOKENS} chunks, one write each");
    println!("| | chunks/s | requests/s | proxy's CPU us/chunk | chunks dropped |");
    println!("|---|--:|--:|--:|--:|");
    for way in [Way::Direct, Way::Relay, Way::Unrecorded, Way::Recorded] {
        throughput(server, seconds, way);
    }
}

/// What stands between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Relay,
    Tokio,
    /// The proxy, every session sampled out.
    Unrecorded,
    /// The proxy with `--content full`.
    Recorded,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "bare relay",
            Self::Tokio => "relay on tokio",
            Self::Unrecorded => "proxy, recording off",
            Self::Recorded => "proxy, recording all",
        }
    }
}

fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core).unwrap());
    // One core only: the figures then include both sides' share of it.
    sched_setaffinity(Pid::from_raw(0), &set).ok();
}

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.stack_size(256 * 1024).spawn(work).unwrap()
}

/// Digits of a stamp: enough for 30 years of ns.
const DIGITS: usize = 18;
const STAMP: &[u8] = b"\"created\":";

/// A content chunk with the instant of its write in it, in HTTP's chunk framing.
fn chunk(index: usize) -> Vec<u8> {
    let event = format!(
        "data: {{\"id\":\"chatcmpl-5f2b7c1de9a0443c8f1e6d2a90b7c3e4\",\"object\":\"chat.completion.chunk\",\"created\":{:0DIGITS$},\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{index:03}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n",
        0
    );
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

fn stamp(chunk: &mut [u8]) {
    let at = find(chunk, STAMP).unwrap() + STAMP.len();
    let digits = format!("{:0DIGITS$}", monotonic_ns());
    chunk[at..at + DIGITS].copy_from_slice(digits.as_bytes());
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|w| w == wanted)
}

fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread("server", move || {
        while let Ok((stream, _)) = listener.accept() {
            thread("answers", move || answer(stream));
        }
    });
    addr
}

/// Answers requests until the client leaves; those that ask for `/fast` unpaced.
fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    wake_on_time();
    let clock = RunClock::at(0);
    let head =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut chunks: Vec<Vec<u8>> = (0..TOKENS).map(chunk).collect();
    let end = "data: [DONE]\n\n";
    let end = format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len());
    let mut buffer = [0; 4096];
    loop {
        let mut got = 0;
        while !buffer[..got].ends_with(b"}") {
            match stream.read(&mut buffer[got..]) {
                Ok(0) | Err(_) => return,
                Ok(n) => got += n,
            }
        }
        let paced = find(&buffer[..got], b"fast").is_none();
        let mut due_ns = monotonic_ns() + TTFT_NS;
        let mut written = stream.write_all(head);
        for chunk in &mut chunks {
            if paced {
                clock.sleep_until(due_ns);
                due_ns += ITL_NS;
            }
            stamp(chunk);
            written = written.and_then(|()| stream.write_all(chunk));
        }
        if written
            .and_then(|()| stream.write_all(end.as_bytes()))
            .is_err()
        {
            return;
        }
    }
}

/// What one client saw, ns.
#[derive(Default)]
struct Seen {
    /// From the last byte of the request to the first chunk.
    ttft: Vec<i64>,
    /// From the server's write of a chunk to its arrival.
    chunk: Vec<i64>,
    requests: usize,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.ttft.extend(other.ttft);
        self.chunk.extend(other.chunk);
        self.requests += other.requests;
    }
}

/// Asks again and again until told to stop.
fn ask(addr: SocketAddr, path: &str, stop: &AtomicBool) -> Seen {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let length = body.len();
    let request = format!(
        "POST {path}/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut seen = Seen::default();
    let mut buffer = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes()).unwrap();
        let sent_ns = monotonic_ns();
        let (mut from, mut to, mut is_first) = (0, 0, true);
        loop {
            let n = stream.read(&mut buffer[to..]).unwrap();
            let now_ns = monotonic_ns();
            assert!(n > 0, "an answer breaks off");
            to += n;
            while let Some(at) = find(&buffer[from..to], STAMP) {
                let digits = from + at + STAMP.len();
                if digits + DIGITS > to {
                    break;
                }
                from = digits + DIGITS;
                let text = std::str::from_utf8(&buffer[digits..from]).unwrap();
                seen.chunk.push(now_ns - text.parse::<i64>().unwrap());
                if std::mem::take(&mut is_first) {
                    seen.ttft.push(now_ns - sent_ns);
                }
            }
            if buffer[..to].ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        seen.requests += 1;
    }
    seen
}

/// Clients of one address.
struct Clients(Vec<JoinHandle<Seen>>);

impl Clients {
    /// Begins a little apart, so that their chunks do not come in step.
    fn start(
        count: usize,
        addr: SocketAddr,
        path: &'static str,
        stop: &Arc<AtomicBool>,
        apart: Duration,
    ) -> Self {
        let client = |_| {
            let stop = Arc::clone(stop);
            std::thread::sleep(apart);
            thread("client", move || ask(addr, path, &stop))
        };
        Self((0..count).map(client).collect())
    }

    fn finish(self) -> Seen {
        let mut all = Seen::default();
        for client in self.0 {
            all.add(client.join().unwrap());
        }
        all
    }
}

/// A proxy on a core of its own, with a recording.
struct UnderTest {
    proxy: Proxy,
    stop: Arc<Stop>,
    writer: Writer,
    dir: tempfile::TempDir,
}

/// Where the time of a recorded chunk went, ns, sorted.
#[derive(Default)]
struct Stages {
    /// From its arrival by the kernel's stamp to the proxy's read.
    waited: Vec<i64>,
    /// From there to the client's socket.
    passed: Vec<i64>,
}

impl UnderTest {
    fn start(server: SocketAddr, recording: bool) -> Self {
        pin(&[0, 1]);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let clock = RunClock::start();
        let writer = writer(clock, &dir.path().join("r"));
        let current = Current::new(Recorder::new(writer.sink(), Privacy::full(), 0));
        let url = format!("http://{server}").parse().unwrap();
        let upstream = Upstream {
            prefix: String::new(),
            base_path: Some(String::new()),
            target: Target::resolve(&url, &TlsOptions::default()).unwrap(),
            origin: format!("http://{server}"),
        };
        let settings = Settings {
            clock,
            upstreams: Upstreams::new(vec![upstream]),
            tls: None,
            workers: 1,
            rules: Rules {
                patterns: Rules::default_patterns(Api::OpenAiChat),
                default_api: Api::OpenAiChat,
                session_header: http::HeaderName::from_static("x-session-id"),
                session_field: None,
                sample: if recording { 1.0 } else { 0.0 },
            },
            mask_query: str::to_owned,
            strict: false,
            connect_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stop = Arc::new(Stop::default());
        pin(&[1]);
        let gauges = Arc::new(Gauges::default());
        let proxy = Proxy::start(&listener, settings, &current, &stop, &gauges).unwrap();
        pin(&[0]);
        Self {
            proxy,
            stop,
            writer,
            dir,
        }
    }

    /// Rows that were dropped, and where the time of the others went.
    fn finish(self) -> (u64, Stages) {
        let metrics = self.proxy.metrics();
        self.stop.raise(StopLevel::Drain);
        self.proxy.wait().unwrap();
        self.writer.finish().unwrap();
        (metrics.dropped_events(), stages(&self.dir.path().join("r")))
    }
}

fn stages(recording: &Path) -> Stages {
    let recording = Recording::open(recording).unwrap();
    let rows = recording.rows(Table::Chunks).unwrap().chunks.rows;
    let mut stages = Stages::default();
    for row in rows {
        if let Some(t_forwarded_ns) = row.t_forwarded_ns {
            stages.waited.push(row.t_seen_ns - row.t_ns);
            stages.passed.push(t_forwarded_ns - row.t_seen_ns);
        }
    }
    stages.waited.sort_unstable();
    stages.passed.sort_unstable();
    stages
}

fn writer(clock: RunClock, out: &Path) -> Writer {
    let manifest = Manifest::new("overhead", "overhead benchmark", clock.origin_ns());
    // As `record proxy` has it.
    let limits = SegmentLimits {
        rows: 1 << 17,
        ..SegmentLimits::default()
    };
    Writer::create(out, manifest, limits).unwrap()
}

/// The address to ask, and the proxy where there is one.
fn stand_between(way: Way, server: SocketAddr) -> (SocketAddr, Option<UnderTest>) {
    match way {
        Way::Direct => (server, None),
        Way::Relay | Way::Tokio => {
            pin(&[1]);
            let addr = match way {
                Way::Relay => relay::on_threads(server),
                _ => relay::on_tokio(server),
            };
            pin(&[0]);
            (addr, None)
        }
        Way::Unrecorded | Way::Recorded => {
            let under_test = UnderTest::start(server, way == Way::Recorded);
            (under_test.proxy.addr(), Some(under_test))
        }
    }
}

/// Prints a row; what the proxy itself knows of it, where it recorded.
fn latency(server: SocketAddr, seconds: f64, rate: f64, way: Way) -> Option<Stages> {
    let (through, under_test) = stand_between(way, server);
    let request_s = (TTFT_NS + TOKENS as i64 * ITL_NS) as f64 / 1e9;
    let streams = (rate * request_s / TOKENS as f64).ceil().max(1.0) as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let apart = Duration::from_secs_f64(request_s / streams as f64);
    let others = (streams / DIRECT_ONE_IN).max(1);
    let proxied = Clients::start(streams, through, "", &stop, apart);
    let direct = Clients::start(others, server, "", &stop, apart);
    let start_ns = monotonic_ns();
    let used = Usage::of(seconds);
    let took_ns = (monotonic_ns() - start_ns) as f64;
    stop.store(true, Ordering::Relaxed);
    let (mut proxied, mut direct) = (proxied.finish(), direct.finish());
    let (dropped, stages) = under_test.map(UnderTest::finish).unwrap_or_default();
    assert_eq!(dropped, 0, "the queue never fills at half load");
    let (ttft, chunk) = (
        added(&mut direct.ttft, &mut proxied.ttft),
        added(&mut direct.chunk, &mut proxied.chunk),
    );
    let ratio = at(&proxied.chunk, 0.5) / at(&direct.chunk, 0.5);
    let done = rate * took_ns / 1e9;
    println!(
        "| {:.0} | {} | {:.0} % | {:.1} | {:.0} % | {:.0} | {} | {} | {} | {} | {ttft} | {chunk} | {ratio:.2} |",
        rate,
        way.name(),
        used.worker / took_ns * 100.0,
        used.all / 1e3 / done,
        used.others / took_ns * 100.0,
        used.waited / used.turns / 1e3,
        shown(&direct.ttft),
        shown(&proxied.ttft),
        shown(&direct.chunk),
        shown(&proxied.chunk),
    );
    (way == Way::Recorded).then_some(stages)
}

/// Difference of the quantiles; sorts both.
fn added(direct: &mut [i64], proxied: &mut [i64]) -> String {
    direct.sort_unstable();
    proxied.sort_unstable();
    let of = |p| at(proxied, p) - at(direct, p);
    format!("{:.0} / {:.0}", of(0.5), of(0.99))
}

/// A quantile in µs.
fn at(sorted: &[i64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p).round() as usize] as f64 / 1e3
}

fn shown(sorted: &[i64]) -> String {
    format!("{:.0} / {:.0}", at(sorted, 0.5), at(sorted, 0.99))
}

fn throughput(server: SocketAddr, seconds: f64, way: Way) {
    let (addr, under_test) = stand_between(way, server);
    let stop = Arc::new(AtomicBool::new(false));
    let start_ns = monotonic_ns();
    let clients = Clients::start(STREAMS, addr, "/fast", &stop, Duration::ZERO);
    let used = Usage::of(seconds);
    stop.store(true, Ordering::Relaxed);
    let seen = clients.finish();
    let took_s = (monotonic_ns() - start_ns) as f64 / 1e9;
    let dropped = under_test.map(|proxy| proxy.finish().0);
    let chunks = seen.chunk.len() as f64;
    println!(
        "| {} | {:.0} | {:.0} | {:.2} | {} |",
        way.name(),
        chunks / took_s,
        seen.requests as f64 / took_s,
        used.all / 1e3 / (chunks * seconds / took_s),
        dropped.map_or("-".to_owned(), |n| n.to_string()),
    );
}
