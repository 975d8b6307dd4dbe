//! What the benchmarks share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use tapedeck_clock::RunClock;
use tapedeck_live::{
    Arrival, Deadline, Gauges, PreparedRequest, RunSpec, Stop, Target, Timeouts, TlsOptions,
};
use tapedeck_recording::{Phase, Privacy, Sink};
use tapedeck_wire::openai::Api;

pub mod bare;

pub const PATH: &str = "/v1/chat/completions";

/// Keeps this thread, and all it starts, on one core.
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // Refused on a machine of one core: the figures then include the other side.
    sched_setaffinity(Pid::from_raw(0), &set).ok();
}

/// CPU time of this process so far, user and system, µs.
pub fn cpu_us() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let us = |t: TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    us(usage.user_time()) + us(usage.system_time())
}

/// CPU time of each thread of this process, as often as it looks, by name.
#[derive(Debug)]
pub struct ThreadTimes {
    over: Arc<AtomicBool>,
    watcher: JoinHandle<BTreeMap<String, BTreeMap<PathBuf, f64>>>,
}

const LOOK_EVERY: Duration = Duration::from_millis(20);

impl ThreadTimes {
    /// The thread that looks: what it costs is nobody's but the benchmark's.
    pub const WATCHER: &str = "bench-watcher";

    pub fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let watcher = std::thread::Builder::new().name(Self::WATCHER.into());
        let watcher = watcher.spawn(move || {
            let mut times = BTreeMap::<_, BTreeMap<_, _>>::new();
            while !ended.load(Ordering::Relaxed) {
                for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                    let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
                    // A thread that is gone keeps what it had at the last look.
                    if let (Some(name), Some(stat)) = (read("comm"), read("schedstat")) {
                        let ns: f64 = stat.split(' ').next().unwrap().parse().unwrap();
                        let of_name = times.entry(name.trim().to_owned()).or_default();
                        of_name.insert(task.path(), ns / 1e3);
                    }
                }
                std::thread::sleep(LOOK_EVERY);
            }
            times
        });
        Self {
            over,
            watcher: watcher.unwrap(),
        }
    }

    /// CPU of all threads called `name` together, µs, for each name.
    pub fn end(self) -> BTreeMap<String, f64> {
        self.over.store(true, Ordering::Relaxed);
        let times = self.watcher.join().unwrap();
        let sum =
            |(name, of_name): (String, BTreeMap<PathBuf, f64>)| (name, of_name.values().sum());
        times.into_iter().map(sum).collect()
    }
}

/// Body of request `number`.
pub fn body(number: usize) -> String {
    format!(
        r#"{{"model":"m","user":{number},"stream":true,"messages":[{{"role":"user","content":"x"}}]}}"#
    )
}

pub fn request(addr: SocketAddr, body: String) -> Arc<PreparedRequest> {
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_str(&addr.to_string()).unwrap();
    headers.insert(header::HOST, host);
    Arc::new(PreparedRequest {
        api: Api::OpenAiChat,
        method: Method::POST,
        uri: PATH.parse().unwrap(),
        url_path: PATH.into(),
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
        block_size: None,
        block_runs: None,
    })
}

pub fn arrival(request: Arc<PreparedRequest>, offset_ns: Option<i64>) -> Arrival {
    Arrival {
        request,
        offset_ns,
        phase: Phase::Measure,
        session_id: None,
        turn: None,
        parent_request_id: None,
        replay_of: None,
        cancel_after: None,
        conversation: None,
    }
}

/// One worker, no time limits that matter, a start 50 ms from now.
pub fn run_spec(clock: RunClock, addr: SocketAddr, parallel: Option<usize>, sink: Sink) -> RunSpec {
    let url = format!("http://{addr}").parse().unwrap();
    let minute = Duration::from_secs(60);
    RunSpec {
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
        parallel,
        start_ns: clock.now_ns() + 50_000_000,
        until: Deadline::default(),
        first_request_id: 0,
        first_conn_id: 0,
        sink,
        privacy: Privacy::full(),
        stop: Arc::new(Stop::default()),
        gauges: Arc::new(Gauges::default()),
    }
}

/// The value that `share` of them do not exceed; sorts them.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}
