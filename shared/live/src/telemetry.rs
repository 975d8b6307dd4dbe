//! What the client itself costs, every second, into `samples`, so that a report
//! can tell a slow server from a slow client.

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

const PERIOD: Duration = Duration::from_secs(1);

/// Every so many samples a pair of clock readings goes into the manifest.
const ANCHOR_PERIODS: u64 = 60;

/// Samples that wait for room in the queue; beyond it they are dropped and counted.
const SAMPLES_HELD: usize = 10_000;

/// The telemetry thread of a run.
#[derive(Debug)]
pub struct Telemetry {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Telemetry {
    /// Starts sampling.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(clock: RunClock, gauges: Arc<Gauges>, sink: Sink) -> std::io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let sampler = Sampler {
            clock,
            gauges,
            sink,
            ticks_per_s: ticks_per_s(),
            page_bytes: page_bytes(),
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-samples".into())
            .spawn(move || sampler.run(&stopped))?;
        Ok(Self { stop, thread })
    }

    /// Takes a last sample and ends the thread.
    pub fn finish(self) {
        self.stop.send(()).ok();
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
}

impl Sampler {
    fn run(&self, stopped: &Receiver<()>) {
        let mut periods = 0;
        let mut batch = EventBatch::default();
        loop {
            let last = stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout);
            batch.samples.extend(self.sample());
            if periods % ANCHOR_PERIODS == 0 || last {
                batch.marks.push(self.anchor());
            }
            // Samples give way to events: they wait for room in the queue.
            batch = self.sink.try_push(batch).err().unwrap_or_default();
            if batch.samples.len() > SAMPLES_HELD {
                batch = self.dropped(batch.len());
            }
            periods += 1;
            if last {
                return;
            }
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

    fn sample(&self) -> Vec<SampleRow> {
        let mut rows = vec![
            self.row("queued_batches", None, self.sink.queued_batches() as f64),
            self.row("in_flight", None, self.gauges.in_flight() as f64),
            self.row("chunks_total", None, self.gauges.chunks() as f64),
        ];
        if let Some(pages) = resident_pages() {
            rows.push(self.row("rss_bytes", None, pages * self.page_bytes));
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            rows.push(self.row("open_fds", None, fds.count() as f64));
        }
        for (thread, ticks) in thread_ticks() {
            rows.push(self.row("cpu_s_total", Some(thread), ticks / self.ticks_per_s));
        }
        rows
    }

    fn row(&self, name: &str, thread: Option<String>, value: f64) -> SampleRow {
        SampleRow {
            t_ns: self.clock.now_ns(),
            source: "client".into(),
            name: name.into(),
            labels: thread
                .map(|thread| ("thread".to_owned(), thread))
                .into_iter()
                .collect(),
            value,
        }
    }
}

fn resident_pages() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// Name and CPU ticks (user and system) of every thread of this process.
fn thread_ticks() -> Vec<(String, f64)> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| ticks_of(&task.ok()?.path()))
        .collect()
}

fn ticks_of(task: &Path) -> Option<(String, f64)> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
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
    fn ticks_are_read_behind_a_name_with_parentheses() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0 1";
        assert_eq!(parse_stat(stat), Some(("a (b) c".to_owned(), 730.0)));
    }
}
