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
        let progress = Rc::new(Progress::default());
        let handle = Rc::clone(&progress);
        let arrived =
            self.model
                .borrow_mut()
                .arrive(self.clock.now_ns(), prompt_tokens, plan, handle);
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
