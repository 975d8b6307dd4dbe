//! A worker: one thread, one runtime, its own connections. Nothing is shared
//! between workers but the queue to the writer.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tapedeck_clock::RunClock;
use tapedeck_recording::failpoint::panic_point;
use tapedeck_recording::{EventBatch, Privacy, Sink};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::alarm::Alarm;
use crate::arrival::Arrival;
use crate::connect::{Connector, Pool};
use crate::engine::{Gauges, PanicAlarm, Stop, StopLevel};
use crate::exchange::exchange;
use crate::http2::Http2Pool;
use crate::pace::SlotGuard;
use crate::policy::AttemptPolicy;
use crate::session::{Course, Heard};
use crate::tap::TapContext;
use crate::target::Target;

/// How long each phase of an attempt may last.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until TCP (and TLS) stand.
    pub connect: Duration,
    /// From there until the first byte of the answer.
    pub first_byte: Duration,
    /// Longest silence within the answer.
    pub read: Duration,
    /// The whole attempt.
    pub total: Option<Duration>,
}

/// An arrival on its way to a worker.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) request_id: i64,
    pub(crate) arrival: Arrival,
    pub(crate) t_scheduled_ns: i64,
    /// When the plan wants it sent: before `t_scheduled_ns` where the turn before
    /// it was not done by then.
    pub(crate) t_planned_ns: i64,
    /// When it was due and its slot free.
    pub(crate) t_ready_ns: i64,
    /// Given back when this is dropped.
    pub(crate) slot: Option<SlotGuard>,
    pub(crate) course: Arc<Course>,
    /// What the next turn needs of the answer; `None` for a lone request.
    pub(crate) heard: Option<RefCell<Heard>>,
}

/// What every attempt of one worker shares.
pub(crate) struct Worker {
    pub(crate) clock: RunClock,
    pub(crate) connector: Connector,
    pub(crate) pool: Pool,
    /// For calls over gRPC.
    pub(crate) http2_pool: Http2Pool,
    pub(crate) timeouts: Timeouts,
    pub(crate) policy: AttemptPolicy,
    pub(crate) gauges: Arc<Gauges>,
    stop: Arc<Stop>,
    pub(crate) alarm: Alarm,
    /// Its number, for the `worker` column.
    pub(crate) label: Arc<str>,
    sink: Sink,
    privacy: Privacy,
    batch: RefCell<EventBatch>,
    /// Bytes of the bodies in the batch; payloads count themselves.
    body_bytes: Cell<usize>,
    watches: RefCell<Vec<Weak<Watch>>>,
    /// Sessions that began within others.
    branches: RefCell<JoinSet<()>>,
}

/// Settings of a worker thread.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSpec {
    pub(crate) index: usize,
    pub(crate) workers: usize,
    pub(crate) clock: RunClock,
    pub(crate) target: Target,
    pub(crate) timeouts: Timeouts,
    pub(crate) policy: AttemptPolicy,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) first_conn_id: i64,
    pub(crate) sink: Sink,
    pub(crate) privacy: Privacy,
}

/// What a worker does before its first assignment.
#[derive(Debug)]
pub(crate) struct WarmUp {
    /// Connections to open.
    pub(crate) connections: usize,
    /// Is told how many stand.
    pub(crate) opened: std::sync::mpsc::SyncSender<usize>,
}

/// Connections that one worker opens at once before a run: fewer than any
/// server's backlog.
const WARM_UP_AT_ONCE: usize = 32;

/// Rows and bytes after which a batch goes to the writer without waiting for
/// the next tick.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 256 * 1024;

/// How often deadlines are looked at, and the longest a row waits in its batch.
const TICK: Duration = Duration::from_millis(20);

impl Worker {
    fn new(spec: &WorkerSpec, alarm: Alarm) -> Rc<Self> {
        let target = Rc::new(spec.target.clone());
        let context = TapContext::new(spec.clock);
        Rc::new(Self {
            clock: spec.clock,
            connector: Connector::new(
                target,
                context,
                spec.first_conn_id + spec.index as i64,
                spec.workers as i64,
            ),
            pool: Pool::default(),
            http2_pool: Http2Pool::default(),
            timeouts: spec.timeouts,
            policy: spec.policy,
            gauges: Arc::clone(&spec.gauges),
            stop: Arc::clone(&spec.stop),
            alarm,
            label: spec.index.to_string().into(),
            sink: spec.sink.clone(),
            privacy: spec.privacy.clone(),
            batch: RefCell::new(EventBatch::default()),
            body_bytes: Cell::new(0),
            watches: RefCell::new(Vec::new()),
            branches: RefCell::default(),
        })
    }

    /// Adds rows, with bodies of `body_bytes`, to the batch. When the writer's queue is full this waits, and
    /// the wait shows as the distance between arrival and `t_seen_ns`.
    pub(crate) fn record(&self, body_bytes: usize, add: impl FnOnce(&mut EventBatch)) {
        let mut batch = self.batch.borrow_mut();
        add(&mut batch);
        self.body_bytes.set(self.body_bytes.get() + body_bytes);
        let bytes = self.body_bytes.get() + batch.chunks.payloads.len();
        if batch.chunks.rows.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            drop(batch);
            self.flush();
        }
    }

    fn flush(&self) {
        if self.batch.borrow().is_empty() {
            return;
        }
        let mut next = self.sink.spare();
        next.chunks.reserve_for(&self.batch.borrow().chunks);
        let mut batch = self.batch.replace(next);
        self.body_bytes.set(0);
        self.privacy.batch(&mut batch);
        // A writer that has stopped reports its own error; the engine sees
        // `Sink::failed` and ends the run.
        self.sink.push(batch).ok();
    }

    /// Opens connections for the pool; returns how many stand.
    async fn warm_up(self: &Rc<Self>, connections: usize) -> usize {
        let mut opening = JoinSet::new();
        let mut opened = 0;
        for _ in 0..connections {
            if opening.len() >= WARM_UP_AT_ONCE {
                opened += usize::from(matches!(opening.join_next().await, Some(Ok(true))));
            }
            let worker = Rc::clone(self);
            opening.spawn_local(async move { worker.open_idle().await });
        }
        while let Some(ended) = opening.join_next().await {
            opened += usize::from(matches!(ended, Ok(true)));
        }
        opened
    }

    async fn open_idle(&self) -> bool {
        let watch = self.watch();
        let longest_ns = as_ns(self.timeouts.connect);
        watch.enter(
            Stage::Connect,
            self.clock.now_ns().saturating_add(longest_ns),
        );
        let instants = Cell::default();
        match watch.guard(self.connector.open(&instants)).await {
            Ok(Ok(connection)) => {
                self.pool.put(connection, self.clock.now_ns());
                true
            }
            // The request that misses it opens its own, and records why not.
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Nothing more is to be sent: the run was stopped, or cannot be recorded.
    pub(crate) fn is_ending(&self) -> bool {
        self.stop.level() != StopLevel::Run || self.sink.failed()
    }

    /// Waits before another attempt; false when the run is ending: nothing more is
    /// to be sent.
    pub(crate) async fn pause(&self, wait: Duration) -> bool {
        let until_ns = self.clock.now_ns().saturating_add(as_ns(wait));
        self.alarm.sleep_until(until_ns).await;
        !self.is_ending()
    }

    /// A watch that ends what it guards after `Timeouts::total`, or when the run
    /// is stopped.
    pub(crate) fn watch(&self) -> Rc<Watch> {
        let total = self.timeouts.total.map(as_ns);
        let watch = Rc::new(Watch {
            end_ns: total.map_or(i64::MAX, |ns| self.clock.now_ns().saturating_add(ns)),
            stage: Cell::new((Stage::Connect, i64::MAX)),
            cancel_ns: Cell::new(i64::MAX),
            kill: Cell::new(None),
            waker: RefCell::new(None),
        });
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    /// Has `watch` looked at when its attempt is to be given up, which is finer than a
    /// tick. Ends with the handle.
    pub(crate) fn wake_to_give_up(self: &Rc<Self>, watch: &Rc<Watch>) -> EndOnDrop {
        let (worker, watch) = (Rc::clone(self), Rc::downgrade(watch));
        let waiting = tokio::task::spawn_local(async move {
            while let Some(t_ns) = watch.upgrade().map(|watch| watch.cancel_ns.get()) {
                worker.alarm.sleep_until(t_ns).await;
                let now_ns = worker.clock.now_ns();
                // Put off, or the run is ending: the tick sees to that.
                match watch
                    .upgrade()
                    .filter(|watch| watch.cancel_ns.get() <= now_ns)
                {
                    Some(watch) => return watch.check(now_ns, false),
                    None if worker.is_ending() => return,
                    None => {}
                }
            }
        });
        EndOnDrop(waiting.abort_handle())
    }

    fn check_watches(&self, cancel: bool) {
        let now_ns = self.clock.now_ns();
        self.watches.borrow_mut().retain(|watch| {
            watch.upgrade().is_some_and(|watch| {
                watch.check(now_ns, cancel);
                true
            })
        });
    }
}

pub(crate) fn as_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The phase of an attempt that a timeout is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connect,
    FirstByte,
    Read,
    /// After the end marker: waiting only for the end of the body.
    Drain,
}

/// Why an attempt was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    Timeout(Stage),
    TotalTimeout,
    /// The run was stopped.
    Cancelled,
    /// `--cancel-after` says so.
    GivenUp,
}

/// The deadline of one attempt. Setting it costs a store: one tick of the worker
/// looks at all of them, so that a chunk does not pay for a timer.
#[derive(Debug)]
pub(crate) struct Watch {
    end_ns: i64,
    stage: Cell<(Stage, i64)>,
    cancel_ns: Cell<i64>,
    kill: Cell<Option<Kill>>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    pub(crate) fn enter(&self, stage: Stage, deadline_ns: i64) {
        self.stage.set((stage, deadline_ns));
    }

    /// Gives the attempt up at an instant, which may be put off.
    pub(crate) fn give_up_at(&self, t_ns: i64) {
        self.cancel_ns.set(t_ns);
    }

    /// Whether an instant was named.
    pub(crate) fn will_give_up(&self) -> bool {
        self.cancel_ns.get() < i64::MAX
    }

    pub(crate) fn kill(&self) -> Option<Kill> {
        self.kill.get()
    }

    /// Keeps the waker of the task that the kill must reach.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    fn check(&self, now_ns: i64, cancel: bool) {
        let (stage, deadline_ns) = self.stage.get();
        let kill = if cancel {
            Kill::Cancelled
        } else if now_ns >= self.cancel_ns.get() {
            Kill::GivenUp
        } else if now_ns >= deadline_ns {
            Kill::Timeout(stage)
        } else if now_ns >= self.end_ns {
            Kill::TotalTimeout
        } else {
            return;
        };
        if self.kill.get().is_none() {
            self.kill.set(Some(kill));
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Runs `future` until it ends or the watch kills it.
    pub(crate) async fn guard<F: Future>(&self, future: F) -> Result<F::Output, Kill> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            self.register(cx);
            self.kill
                .get()
                .map_or(Poll::Pending, |k| Poll::Ready(Err(k)))
        })
        .await
    }
}

/// A task that is not to outlive whoever holds this.
#[derive(Debug)]
pub(crate) struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a worker until its queue is closed and its requests have ended.
pub(crate) fn run_worker(
    spec: &WorkerSpec,
    warm_up: WarmUp,
    mut assignments: mpsc::Receiver<Assignment>,
) -> std::io::Result<()> {
    // Without tokio's timer: it would read the clock, take a lock and arm a timer of
    // the kernel each time the worker goes to sleep. See [`Alarm`].
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build_local(LocalOptions::default())?;
    let alarm = {
        let _entered = runtime.enter();
        Alarm::new(spec.clock)?
    };
    let worker = Worker::new(spec, alarm);
    runtime.block_on(async {
        let ticker = tokio::task::spawn_local(tick(Rc::clone(&worker), Arc::clone(&spec.stop)));
        let ringing = Rc::clone(&worker);
        let ringer = tokio::task::spawn_local(async move { ringing.alarm.ring().await });
        let opened = worker.warm_up(warm_up.connections).await;
        warm_up.opened.send(opened).ok();
        // The engine waits until nobody can say a number any more.
        drop(warm_up);
        let mut tasks = JoinSet::new();
        while let Some(assignment) = assignments.recv().await {
            tasks.spawn_local(converse(Rc::clone(&worker), assignment));
            while let Some(ended) = tasks.try_join_next() {
                pass_panic_on(ended);
            }
        }
        while !tasks.is_empty() {
            while let Some(ended) = tasks.join_next().await {
                pass_panic_on(ended);
            }
            // Those that have ended may have left others behind.
            tasks = worker.branches.take();
        }
        ticker.abort();
        ringer.abort();
    });
    worker.flush();
    Ok(())
}

/// One request, or all turns of a session one after the other.
async fn converse(worker: Rc<Worker>, assignment: Assignment) {
    let _alarm = PanicAlarm(&worker.gauges);
    panic_point("worker::request");
    let mut turn = Some(assignment);
    while let Some(assignment) = turn {
        turn = exchange(&worker, assignment).await;
    }
}

/// Lets a session that begins within another take its course: `first` is awaited,
/// and what it yields conversed about.
pub(crate) fn branch(
    worker: &Rc<Worker>,
    first: impl Future<Output = Option<Assignment>> + 'static,
) {
    let of = Rc::clone(worker);
    // Boxed, because a conversation may branch again.
    let course: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        let gauges = Arc::clone(&of.gauges);
        let _alarm = PanicAlarm(&gauges);
        if let Some(assignment) = first.await {
            converse(of, assignment).await;
        }
    });
    let mut branches = worker.branches.borrow_mut();
    branches.spawn_local(course);
    while let Some(ended) = branches.try_join_next() {
        pass_panic_on(ended);
    }
}

/// A defect of ours must not pass for a request that never ended: it ends the
/// worker, and the engine says so.
fn pass_panic_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn tick(worker: Rc<Worker>, stop: Arc<Stop>) {
    loop {
        let next_ns = worker.clock.now_ns() + as_ns(TICK);
        worker.alarm.sleep_through_until(next_ns).await;
        worker.check_watches(stop.level() == StopLevel::Now);
        worker.flush();
        if worker.is_ending() {
            worker.alarm.end_sleep();
        }
    }
}
