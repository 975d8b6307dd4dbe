//! The model on real time: requests arrive, tokens come out, clients leave.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tapedeck_clock::RunClock;
use tokio::sync::Notify;

use crate::config::SimConfig;
use crate::model::{Model, Plan, QueueFull, RequestId, Step};
use crate::timer::Timers;

/// Tokens let out before connections get their turn to write them.
const TOKENS_PER_TURN: usize = 1024;

/// How far one request is. Tokens are counted, not queued: a connection renders
/// the ones it has not sent, so a slow reader costs four bytes, not a buffer.
#[derive(Debug, Default)]
struct Progress {
    arrived_ns: i64,
    tokens: Cell<u32>,
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Counters since the start, for `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: Cell<u64>,
    pub(crate) output_tokens: Cell<u64>,
    pub(crate) refused_requests: Cell<u64>,
    /// From arrival to first token, as the model has them: a queue counts, the
    /// way to the client does not.
    pub(crate) ttft: Histogram,
}

/// Upper bounds of [`Histogram`], s: vLLM's, as far as a minute.
pub(crate) const TTFT_BOUNDS_S: [f64; 19] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 60.0,
];

/// Durations as Prometheus counts them.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Durations in each bound and in none of those before it.
    pub(crate) counts: [Cell<u64>; TTFT_BOUNDS_S.len()],
    pub(crate) count: Cell<u64>,
    pub(crate) sum_s: Cell<f64>,
}

impl Histogram {
    fn observe(&self, duration_ns: i64) {
        let duration_s = duration_ns as f64 / 1e9;
        if let Some(at) = TTFT_BOUNDS_S.iter().position(|s| duration_s <= *s) {
            add(&self.counts[at], 1);
        }
        add(&self.count, 1);
        self.sum_s.set(self.sum_s.get() + duration_s);
    }
}

/// The one engine of a server; it lives on the server's thread.
#[derive(Debug)]
pub(crate) struct Engine {
    clock: RunClock,
    model: RefCell<Model<Rc<Progress>>>,
    /// Something other than the passing of time moved the next deadline.
    moved: Notify,
    pub(crate) totals: Totals,
}

impl Engine {
    pub(crate) fn new(config: SimConfig) -> Rc<Self> {
        Rc::new(Self {
            clock: RunClock::start(),
            model: RefCell::new(Model::new(config)),
            moved: Notify::new(),
            totals: Totals::default(),
        })
    }

    /// Lets tokens out at their instants for as long as it is polled.
    pub(crate) async fn run(&self, timers: &Rc<Timers>) {
        loop {
            self.let_out();
            let deadline_ns = self.model.borrow().next_deadline_ns();
            match deadline_ns {
                Some(t_ns) if t_ns <= self.clock.now_ns() => tokio::task::yield_now().await,
                Some(t_ns) => tokio::select! {
                    () = timers.sleep_until(self.clock.origin_ns() + t_ns) => {}
                    () = self.moved.notified() => {}
                },
                None => self.moved.notified().await,
            }
        }
    }

    /// A request arrives now.
    pub(crate) fn arrive(
        self: &Rc<Self>,
        prompt_tokens: u32,
        plan: Plan,
    ) -> Result<Ticket, QueueFull> {
        self.let_out();
        let arrived_ns = self.clock.now_ns();
        let progress = Rc::new(Progress {
            arrived_ns,
            ..Progress::default()
        });
        let handle = Rc::clone(&progress);
        let arrived = self
            .model
            .borrow_mut()
            .arrive(arrived_ns, prompt_tokens, plan, handle);
        if arrived.is_err() {
            add(&self.totals.refused_requests, 1);
        }
        let id = arrived?;
        add(&self.totals.prompt_tokens, u64::from(prompt_tokens));
        self.moved.notify_one();
        Ok(Ticket {
            engine: Rc::clone(self),
            id,
            progress,
        })
    }

    /// Requests in the batch and in the queue.
    pub(crate) fn load(&self) -> (usize, usize) {
        let model = self.model.borrow();
        (model.running(), model.waiting())
    }

    fn let_out(&self) {
        let mut emit = |progress: &Rc<Progress>, step: Step| {
            add(&self.totals.output_tokens, 1);
            if step.tokens == 1 {
                self.totals.ttft.observe(step.t_ns - progress.arrived_ns);
            }
            progress.tokens.set(step.tokens);
            progress.done.set(step.last);
            if let Some(waker) = progress.waker.take() {
                waker.wake();
            }
        };
        let now_ns = self.clock.now_ns();
        self.model
            .borrow_mut()
            .advance(now_ns, TOKENS_PER_TURN, &mut emit);
    }

    fn leave(&self, id: RequestId) {
        self.model.borrow_mut().leave(id, self.clock.now_ns());
        self.moved.notify_one();
    }
}

fn add(total: &Cell<u64>, amount: u64) {
    total.set(total.get().saturating_add(amount));
}

/// A request's place in the engine; dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Ticket {
    engine: Rc<Engine>,
    id: RequestId,
    progress: Rc<Progress>,
}

impl Ticket {
    /// Ready once more than `sent` tokens are out, or all are; the number out.
    pub(crate) fn poll_tokens(&self, cx: &Context<'_>, sent: u32) -> Poll<u32> {
        if self.progress.tokens.get() > sent || self.progress.done.get() {
            return Poll::Ready(self.progress.tokens.get());
        }
        self.progress.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Waits for the last token.
    pub(crate) async fn done(&self) {
        std::future::poll_fn(|cx| match self.progress.done.get() {
            true => Poll::Ready(()),
            false => {
                self.progress.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.progress.done.get() {
            self.engine.leave(self.id);
        }
    }
}
