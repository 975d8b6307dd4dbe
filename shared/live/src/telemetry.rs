//! What the client itself costs, every second, into `samples` with source
//! `client`, so that a report can tell a slow server from a slow client.
//!
//! | name | labels | value |
//! |---|---|---|
//! | `in_flight`, `chunks_total`, `open_fds`, `rss_bytes` | | as named |
//! | `queued_batches` | | batches that wait for the writer |
//! | `queue_wait_s_total` | | waited for room among them, over all threads |
//! | `allowed_cores` | | cores this process may use: affinity and quota |
//! | `process_cpu_s_total` | | CPU of all threads, ended ones too |
//! | `cpu_s_total` | `thread`, `tid` | CPU of one thread |
//! | `run_delay_s_total` | `thread`, `tid` | ready, and waiting for a core |
//! | `pacer_lag_ms` | `over` (`sample`, `run`), `stat` (`p50`, `p99`, `max`) | from when an arrival could go until the pacer had handed it over |
//! | `dispatch_lag_ms` | the same | from the same instant until a worker had taken it |
//!
//! An arrival can go when it is due and has a slot: waiting for one is load, not
//! lateness. Lags are counted in buckets, at most 1/32 too high; the exact ones
//! are in `requests`, where nothing waits for slots. How late chunks were seen is
//! not here: `chunks` has it exactly.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use tapedeck_clock::{Anchor, RunClock};
use tapedeck_recording::manifest::ClockAnchor;
use tapedeck_recording::{EventBatch, MarkRow, SampleRow, Sink};

use crate::engine::Gauges;
use crate::lag::{LagRecorder, Lags};

const PERIOD: Duration = Duration::from_secs(1);

/// Every so many samples a pair of clock readings goes into the manifest.
const ANCHOR_PERIODS: u64 = 60;

/// Samples that wait for room in the queue; beyond it they are dropped and counted.
const SAMPLES_HELD: usize = 10_000;

/// Orders that the thread has not taken yet.
const ORDERS_HELD: usize = 2;

/// What the telemetry thread is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Sample,
    Finish,
}

/// The telemetry thread of a run.
#[derive(Debug)]
pub struct Telemetry {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

impl Telemetry {
    /// Starts sampling, with the first sample at once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(clock: RunClock, gauges: Arc<Gauges>, sink: Sink) -> std::io::Result<Self> {
        let (orders, received) = sync_channel(ORDERS_HELD);
        let sampler = Sampler {
            clock,
            gauges,
            sink,
            ticks_per_s: ticks_per_s(),
            page_bytes: page_bytes(),
            pacer_lags: Lags::default(),
            dispatch_lags: Lags::default(),
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-samples".into())
            .spawn(move || sampler.run(&received))?;
        Ok(Self { orders, thread })
    }

    /// Has a sample taken now, so that a span of interest begins with one.
    pub fn sample_now(&self) {
        // Where the thread has not taken the last order yet, it is about to.
        self.orders.try_send(Order::Sample).ok();
    }

    /// Takes a last sample and ends the thread.
    pub fn finish(self) {
        self.orders.send(Order::Finish).ok();
        self.thread.join().ok();
    }
}

fn ticks_per_s() -> f64 {
    match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) => ticks as f64,
        _ => 100.0,
    }
}

fn page_bytes() -> f64 {
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => bytes as f64,
        _ => 4096.0,
    }
}

struct Sampler {
    clock: RunClock,
    gauges: Arc<Gauges>,
    sink: Sink,
    ticks_per_s: f64,
    page_bytes: f64,
    /// Of the whole run so far.
    pacer_lags: Lags,
    dispatch_lags: Lags,
}

impl Sampler {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut periods = 0;
        let mut batch = EventBatch::default();
        let mut last = false;
        loop {
            batch.samples.extend(self.sample());
            if periods % ANCHOR_PERIODS == 0 || last {
                batch.marks.push(self.anchor());
            }
            // Samples give way to events: they wait for room in the queue.
            batch = self.sink.try_push(batch).err().unwrap_or_default();
            if batch.samples.len() > SAMPLES_HELD {
                batch = self.dropped(batch.len());
            }
            if last {
                return;
            }
            periods += 1;
            last = match orders.recv_timeout(PERIOD) {
                Ok(Order::Sample) | Err(RecvTimeoutError::Timeout) => false,
                Ok(Order::Finish) | Err(RecvTimeoutError::Disconnected) => true,
            };
        }
    }

    fn dropped(&self, events: usize) -> EventBatch {
        let mark = MarkRow {
            t_ns: self.clock.now_ns(),
            name: "dropped".into(),
            detail: format!(r#"{{"events":{events},"what":"samples"}}"#).into(),
        };
        EventBatch {
            marks: vec![mark],
            ..EventBatch::default()
        }
    }

    fn anchor(&self) -> MarkRow {
        let anchor = Anchor::read();
        self.sink.anchor(ClockAnchor {
            monotonic_ns: anchor.monotonic_ns,
            realtime_ns: anchor.realtime_ns,
        });
        let detail = format!(
            r#"{{"monotonic_ns":{},"realtime_ns":{},"uncertainty_ns":{}}}"#,
            anchor.monotonic_ns, anchor.realtime_ns, anchor.uncertainty_ns
        );
        MarkRow {
            t_ns: anchor.monotonic_ns - self.clock.origin_ns(),
            name: "anchor".into(),
            detail: detail.into(),
        }
    }

    /// All rows of one sample have one instant, so that differences of counters
    /// are over the same span.
    fn sample(&mut self) -> Vec<SampleRow> {
        let mut rows = Rows {
            t_ns: self.clock.now_ns(),
            rows: Vec::new(),
        };
        rows.value("queued_batches", self.sink.queued_batches() as f64);
        rows.value("queue_wait_s_total", self.sink.waited_ns() as f64 / 1e9);
        rows.value("in_flight", self.gauges.in_flight() as f64);
        rows.value("chunks_total", self.gauges.chunks() as f64);
        if let Some(pages) = resident_pages() {
            rows.value("rss_bytes", pages * self.page_bytes);
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            rows.value("open_fds", fds.count() as f64);
        }
        if let Ok(cores) = std::thread::available_parallelism() {
            rows.value("allowed_cores", cores.get() as f64);
        }
        if let Some((_, ticks)) = ticks_of(Path::new("/proc/self")) {
            // Threads that have ended are still in it.
            rows.value("process_cpu_s_total", ticks / self.ticks_per_s);
        }
        for thread in threads(self.ticks_per_s) {
            rows.thread("cpu_s_total", &thread, Some(thread.cpu_s));
            rows.thread("run_delay_s_total", &thread, thread.run_delay_s);
        }
        let gauges = &self.gauges;
        rows.lag("pacer_lag_ms", &gauges.pacer_lag, &mut self.pacer_lags);
        let of_run = &mut self.dispatch_lags;
        rows.lag("dispatch_lag_ms", &gauges.dispatch_lag, of_run);
        rows.rows
    }
}

/// The rows of one sample.
struct Rows {
    t_ns: i64,
    rows: Vec<SampleRow>,
}

impl Rows {
    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        self.rows.push(SampleRow {
            t_ns: self.t_ns,
            source: "client".into(),
            name: name.into(),
            labels: labels.iter().map(owned).collect(),
            value,
        });
    }

    fn value(&mut self, name: &str, value: f64) {
        self.labelled(name, &[], value);
    }

    fn thread(&mut self, name: &str, thread: &Thread, value: Option<f64>) {
        // The kernel cuts names to 15 bytes: two workers may share theirs.
        let labels = [("thread", thread.name.as_str()), ("tid", &thread.tid)];
        if let Some(value) = value {
            self.labelled(name, &labels, value);
        }
    }

    /// Quantiles of the time since the last sample and of the run so far; nothing
    /// where there was nothing to be late.
    fn lag(&mut self, name: &str, recorder: &LagRecorder, run: &mut Lags) {
        let since = recorder.drain();
        run.add(&since);
        for (over, lags) in [("sample", &since), ("run", &*run)] {
            let stats = [
                ("p50", lags.quantile_ns(0.5)),
                ("p99", lags.quantile_ns(0.99)),
                ("max", lags.max_ns()),
            ];
            for (stat, ns) in stats {
                if let Some(ns) = ns {
                    let labels = [("over", over), ("stat", stat)];
                    self.labelled(name, &labels, ns as f64 / 1e6);
                }
            }
        }
    }
}

/// What the kernel says of one thread of this process.
struct Thread {
    name: String,
    tid: String,
    cpu_s: f64,
    /// Ready to run and waiting for a core; `None` where the kernel does not count.
    run_delay_s: Option<f64>,
}

fn resident_pages() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

fn threads(ticks_per_s: f64) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| thread(&task.ok()?.path(), ticks_per_s))
        .collect()
}

fn thread(task: &Path, ticks_per_s: f64) -> Option<Thread> {
    let (name, ticks) = ticks_of(task)?;
    let schedstat = fs::read_to_string(task.join("schedstat")).ok();
    let exact = schedstat.as_deref().and_then(parse_schedstat);
    Some(Thread {
        name,
        tid: task.file_name()?.to_str()?.to_owned(),
        // Ticks are 10 ms each: too coarse for a run of a second.
        cpu_s: exact.map_or(ticks / ticks_per_s, |(cpu_s, _)| cpu_s),
        run_delay_s: exact.map(|(_, delay_s)| delay_s),
    })
}

/// `cpu_ns run_delay_ns timeslices`, in s.
fn parse_schedstat(text: &str) -> Option<(f64, f64)> {
    let mut fields = text.split_whitespace();
    let cpu_ns: f64 = fields.next()?.parse().ok()?;
    let delay_ns: f64 = fields.next()?.parse().ok()?;
    Some((cpu_ns / 1e9, delay_ns / 1e9))
}

/// Name and CPU ticks (user and system) of a task, or of a process with all of
/// its threads.
fn ticks_of(dir: &Path) -> Option<(String, f64)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    parse_stat(&stat)
}

/// `pid (name) state …`: the name may hold spaces and parentheses, so fields are
/// counted from the last closing one.
fn parse_stat(stat: &str) -> Option<(String, f64)> {
    let (head, fields) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((name.to_owned(), user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_cpu_and_then_delay() {
        assert_eq!(
            parse_schedstat("1500000000 250000000 7\n"),
            Some((1.5, 0.25))
        );
        assert_eq!(parse_schedstat("1500000000"), None);
    }

    #[test]
    fn ticks_are_read_behind_a_name_with_parentheses() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0 1";
        assert_eq!(parse_stat(stat), Some(("a (b) c".to_owned(), 730.0)));
    }
}
