//! A run: arrivals in, recorded exchanges out.
//!
//! One pacer thread walks the arrivals in order and hands each to a worker. Open
//! and closed loop differ in two values: whether an arrival has an offset, and
//! whether there are slots to wait for.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tapedeck_clock::RunClock;
use tapedeck_recording::{Outcome, Phase, Privacy, Sink};
use tokio::sync::mpsc;

use crate::arrival::{Arrival, Arrivals, ClientTimes};
use crate::lag::LagRecorder;
use crate::pace::{Pacer, Slots};
use crate::policy::AttemptPolicy;
use crate::tap::KernelStamping;
use crate::target::Target;
use crate::worker::{Assignment, Timeouts, WarmUp, WorkerSpec, run_worker};

/// How a run ends before its arrivals do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    Run,
    /// Send nothing more, let requests in flight end.
    Drain,
    /// End requests in flight too.
    Now,
}

/// Shared between a signal handler and the run.
#[derive(Debug, Default)]
pub struct Stop {
    level: AtomicU8,
    over: AtomicBool,
}

impl Stop {
    #[must_use]
    pub fn level(&self) -> StopLevel {
        match self.level.load(Ordering::Relaxed) {
            0 => StopLevel::Run,
            1 => StopLevel::Drain,
            _ => StopLevel::Now,
        }
    }

    /// Raises the level; it never falls.
    pub fn raise(&self, level: StopLevel) {
        self.level.fetch_max(level as u8, Ordering::Relaxed);
    }

    /// Says that there is nothing left to stop.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// True once [`Self::finish`] was called: a signal then ends the process.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// The instant of the run's clock from which on nothing more is sent. It may be set
/// while the run is under way.
#[derive(Debug, Clone)]
pub struct Deadline(Arc<AtomicI64>);

impl Default for Deadline {
    /// Never.
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }
}

impl Deadline {
    pub fn set(&self, t_ns: i64) {
        self.0.store(t_ns, Ordering::Relaxed);
    }

    /// [`i64::MAX`] where none is set.
    #[must_use]
    pub fn t_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request that did not end well, for messages during and after the run.
#[derive(Debug, Clone)]
pub struct Failure {
    pub request_id: i64,
    pub outcome: Outcome,
    pub status: Option<i32>,
    pub error: Option<String>,
}

/// Failures kept for messages; all of them are in the recording.
const FAILURES_KEPT: usize = 8;

/// Live counters, for progress bars and samples. Approximate: a report reads the
/// recording.
#[derive(Debug, Default)]
pub struct Gauges {
    started: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    /// Of those that ended, in phase `warmup`.
    warmup_ended: AtomicU64,
    warmup_failed: AtomicU64,
    chunks: AtomicU64,
    dropped: AtomicU64,
    /// A worker, or a request of one, came to its end in a way that is our fault.
    broken: AtomicBool,
    failures: Mutex<Vec<Failure>>,
    /// Of the pacer: from the instant at which an arrival could go (it was due,
    /// and its slot free) until it was handed over.
    pub pacer_lag: LagRecorder,
    /// From the same instant until a worker had taken it.
    pub dispatch_lag: LagRecorder,
}

impl Gauges {
    #[must_use]
    pub fn started_requests(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn ended_requests(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn failed_requests(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Requests of the measured phase that ended, and how many of them failed.
    #[must_use]
    pub fn measured_requests(&self) -> (u64, u64) {
        let warmup = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        (
            self.ended_requests() - warmup(&self.warmup_ended),
            self.failed_requests() - warmup(&self.warmup_failed),
        )
    }

    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    /// Requests that were too late to be sent.
    #[must_use]
    pub fn dropped_requests(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// True once a worker panicked: nothing more is to be waited for, and joining the
    /// workers tells which one it was.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.started_requests()
            .saturating_sub(self.ended_requests())
    }

    /// The first failures after the warm-up, at most [`FAILURES_KEPT`].
    #[must_use]
    pub fn first_failures(&self) -> Vec<Failure> {
        self.failures.lock().map(|f| f.clone()).unwrap_or_default()
    }

    pub fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn chunk(&self) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`Self::ended`], in a phase.
    pub fn ended_in(&self, phase: Phase, failure: Option<Failure>) {
        if phase != Phase::Warmup {
            return self.ended(failure);
        }
        if failure.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.warmup_failed.fetch_add(1, Ordering::Relaxed);
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.warmup_ended.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.failed.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut failures) = self.failures.lock()
                && failures.len() < FAILURES_KEPT
            {
                failures.push(failure);
            }
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells of a panic that unwinds through the scope it is held in. What panics in a
/// task is caught there, and whoever waits for that task's end would wait for ever.
pub(crate) struct PanicAlarm<'a>(pub(crate) &'a Gauges);

impl Drop for PanicAlarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// Everything a run needs besides its arrivals.
#[derive(Debug, Clone)]
pub struct RunSpec {
    pub clock: RunClock,
    pub target: Target,
    pub timeouts: Timeouts,
    pub policy: AttemptPolicy,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Requests in flight at most; `None` is an uncapped open loop.
    pub parallel: Option<usize>,
    /// Nothing is sent before this instant of the clock; slots are free from it.
    pub start_ns: i64,
    /// No arrival is sent at or after it.
    pub until: Deadline,
    /// `request_id` of the first arrival.
    pub first_request_id: i64,
    /// `conn_id` of the first connection.
    pub first_conn_id: i64,
    pub sink: Sink,
    /// What of the rows reaches `sink`.
    pub privacy: Privacy,
    pub stop: Arc<Stop>,
    pub gauges: Arc<Gauges>,
}

/// A run that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start thread {name}")]
    Thread {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("thread {name} failed")]
    Worker {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("thread {0} ended early")]
    Panicked(String),
}

/// Arrivals waiting for one worker. The pacer waits when it is full, which shows
/// as the distance between `t_scheduled_ns` and `t_dispatched_ns`.
const ASSIGNMENT_QUEUE: usize = 4096;

type WorkerThread = (String, JoinHandle<std::io::Result<()>>);

/// Sends `arrivals` and returns the number sent when all of them have ended.
/// Blocks its thread, which becomes the pacer.
///
/// # Errors
/// When threads cannot be started or a worker fails.
pub fn run(spec: &RunSpec, arrivals: impl Iterator<Item = Arrival>) -> Result<i64, RunError> {
    Workers::start(spec, 0)?.run(spec, arrivals)
}

/// The worker threads of a run, ready to send.
#[derive(Debug)]
pub struct Workers {
    _stamping: KernelStamping,
    queues: Vec<mpsc::Sender<Assignment>>,
    threads: Vec<WorkerThread>,
    warm_connections: usize,
}

impl Workers {
    /// Starts the threads and opens `warm_connections`, shared out among them, so
    /// that no early request waits for its connection. Returns when they stand or
    /// have failed; a request that finds none opens its own. `spec.start_ns` is not
    /// looked at yet.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn start(spec: &RunSpec, warm_connections: usize) -> Result<Self, RunError> {
        let count = spec.workers.max(1);
        // Room for the one number that each worker says.
        let (warmed, opened) = sync_channel(count);
        let mut workers = Self {
            _stamping: KernelStamping::switch_on(),
            queues: Vec::new(),
            threads: Vec::new(),
            warm_connections: 0,
        };
        for index in 0..count {
            let share = (warm_connections + count - 1 - index) / count;
            let warm_up = WarmUp {
                connections: share,
                opened: warmed.clone(),
            };
            let (queue, thread) = spawn_worker(spec, index, warm_up)?;
            workers.queues.push(queue);
            workers.threads.push(thread);
        }
        drop(warmed);
        // Ends when every worker has said its number, or died.
        workers.warm_connections = opened.iter().sum();
        Ok(workers)
    }

    /// Connections that were opened beforehand and stand.
    #[must_use]
    pub fn warm_connections(&self) -> usize {
        self.warm_connections
    }

    /// As [`run`], with the `spec` they were started with.
    ///
    /// # Errors
    /// When a worker fails.
    pub fn run(self, spec: &RunSpec, arrivals: impl Arrivals) -> Result<i64, RunError> {
        let times = arrivals.clients().unwrap_or_default();
        let sent = self.pacer(spec, times).run(arrivals, &self.queues);
        drop(self.queues);
        for (name, thread) in self.threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(RunError::Worker { name, source }),
                Err(_) => return Err(RunError::Panicked(name)),
            }
        }
        Ok(sent)
    }

    fn pacer(&self, spec: &RunSpec, times: ClientTimes) -> Pacer {
        let workers = spec.workers.max(1);
        Pacer {
            clock: spec.clock,
            stop: Arc::clone(&spec.stop),
            sink: spec.sink.clone(),
            slots: spec
                .parallel
                .map(|count| Slots::new(count, workers, spec.start_ns, times)),
            gauges: Arc::clone(&spec.gauges),
            start_ns: spec.start_ns,
            until: spec.until.clone(),
            first_request_id: spec.first_request_id,
        }
    }
}

fn spawn_worker(
    spec: &RunSpec,
    index: usize,
    warm_up: WarmUp,
) -> Result<(mpsc::Sender<Assignment>, WorkerThread), RunError> {
    let (queue, assignments) = mpsc::channel(ASSIGNMENT_QUEUE);
    let name = format!("tapedeck-worker-{index}");
    let worker = WorkerSpec {
        index,
        workers: spec.workers.max(1),
        clock: spec.clock,
        target: spec.target.clone(),
        timeouts: spec.timeouts,
        policy: spec.policy,
        gauges: Arc::clone(&spec.gauges),
        stop: Arc::clone(&spec.stop),
        first_conn_id: spec.first_conn_id,
        sink: spec.sink.clone(),
        privacy: spec.privacy.clone(),
    };
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let _alarm = PanicAlarm(&worker.gauges);
            run_worker(&worker, warm_up, assignments)
        })
        .map_err(|source| RunError::Thread {
            name: name.clone(),
            source,
        })?;
    Ok((queue, (name, thread)))
}
