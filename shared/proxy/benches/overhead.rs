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
//! in the same seconds as those that go through the proxy. A bare relay, threads
//! that read and write and know nothing, tells what any hop costs here.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first surprise"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
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
use tapedeck_recording::{Manifest, Privacy, SegmentLimits, Writer};
use tapedeck_wire::dialect::Api;

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
        "us, p50 / p99; load = CPU of the worker over the time; CPU of all the proxy's threads"
    );
    println!(
        "| chunks/s | between | load | CPU us/chunk | TTFT direct | TTFT proxied | chunk direct | chunk proxied | added TTFT | added chunk | ratio p50 |"
    );
    println!("|--:|---|--:|--:|---|---|---|---|---|---|--:|");
    for rate in rates {
        for way in [Way::Relay, Way::Unrecorded, Way::Recorded] {
            latency(server, seconds, rate, way);
        }
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

/// Passes bytes on until one side ends.
fn relay(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // Called as the proxy's worker, that its CPU be found.
    thread("tapedeck-proxy-relay", move || {
        while let Ok((client, _)) = listener.accept() {
            let upstream = TcpStream::connect(server).unwrap();
            for (from, to) in [(&client, &upstream), (&upstream, &client)] {
                to.set_nodelay(true).unwrap();
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread("tapedeck-proxy-relay", move || {
                    let mut buffer = vec![0; 8192];
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    to.shutdown(Shutdown::Both).ok();
                });
            }
        }
    });
    addr
}

/// A proxy on a core of its own, with a recording.
struct UnderTest {
    proxy: Proxy,
    stop: Arc<Stop>,
    writer: Writer,
    _dir: tempfile::TempDir,
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
            _dir: dir,
        }
    }

    /// Rows that were dropped.
    fn finish(self) -> u64 {
        let metrics = self.proxy.metrics();
        self.stop.raise(StopLevel::Drain);
        self.proxy.wait().unwrap();
        self.writer.finish().unwrap();
        metrics.dropped_events()
    }
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

/// CPU that threads of the proxy have spent, ns.
#[derive(Clone, Copy, Default)]
struct Cpu {
    worker: f64,
    all: f64,
}

fn cpu() -> Cpu {
    let mut cpu = Cpu::default();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        let name = read("comm");
        if name.starts_with("tapedeck") {
            let spent = read("schedstat");
            let spent = spent.split(' ').next().and_then(|ns| ns.parse().ok());
            let spent: f64 = spent.unwrap_or(0.0);
            cpu.all += spent;
            cpu.worker += if name.contains("proxy") { spent } else { 0.0 };
        }
    }
    cpu
}

/// CPU spent in `seconds` from now.
fn spent(seconds: f64) -> Cpu {
    let before = cpu();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let after = cpu();
    Cpu {
        worker: after.worker - before.worker,
        all: after.all - before.all,
    }
}

/// The address to ask, and the proxy where there is one.
fn stand_between(way: Way, server: SocketAddr) -> (SocketAddr, Option<UnderTest>) {
    match way {
        Way::Direct => (server, None),
        Way::Relay => {
            pin(&[1]);
            let addr = relay(server);
            pin(&[0]);
            (addr, None)
        }
        Way::Unrecorded | Way::Recorded => {
            let under_test = UnderTest::start(server, way == Way::Recorded);
            (under_test.proxy.addr(), Some(under_test))
        }
    }
}

fn latency(server: SocketAddr, seconds: f64, rate: f64, way: Way) {
    let (through, under_test) = stand_between(way, server);
    let request_s = (TTFT_NS + TOKENS as i64 * ITL_NS) as f64 / 1e9;
    let streams = (rate * request_s / TOKENS as f64).ceil().max(1.0) as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let apart = Duration::from_secs_f64(request_s / streams as f64);
    let others = (streams / DIRECT_ONE_IN).max(1);
    let proxied = Clients::start(streams, through, "", &stop, apart);
    let direct = Clients::start(others, server, "", &stop, apart);
    let start_ns = monotonic_ns();
    let cpu = spent(seconds);
    let took_ns = (monotonic_ns() - start_ns) as f64;
    stop.store(true, Ordering::Relaxed);
    let (mut proxied, mut direct) = (proxied.finish(), direct.finish());
    let dropped = under_test.map(UnderTest::finish).unwrap_or_default();
    assert_eq!(dropped, 0, "the queue never fills at half load");
    let (ttft, chunk) = (
        added(&mut direct.ttft, &mut proxied.ttft),
        added(&mut direct.chunk, &mut proxied.chunk),
    );
    let ratio = at(&proxied.chunk, 0.5) / at(&direct.chunk, 0.5);
    let done = rate * took_ns / 1e9;
    println!(
        "| {:.0} | {} | {:.0} % | {:.1} | {} | {} | {} | {} | {ttft} | {chunk} | {ratio:.2} |",
        rate,
        way.name(),
        cpu.worker / took_ns * 100.0,
        cpu.all / 1e3 / done,
        shown(&direct.ttft),
        shown(&proxied.ttft),
        shown(&direct.chunk),
        shown(&proxied.chunk),
    );
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
    let cpu = spent(seconds);
    stop.store(true, Ordering::Relaxed);
    let seen = clients.finish();
    let took_s = (monotonic_ns() - start_ns) as f64 / 1e9;
    let dropped = under_test.map(UnderTest::finish);
    let chunks = seen.chunk.len() as f64;
    println!(
        "| {} | {:.0} | {:.0} | {:.2} | {} |",
        way.name(),
        chunks / took_s,
        seen.requests as f64 / took_s,
        cpu.all / 1e3 / (chunks * seconds / took_s),
        dropped.map_or("-".to_owned(), |n| n.to_string()),
    );
}
