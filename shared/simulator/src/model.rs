//! Continuous batching as arithmetic on instants: no clock, no socket.
//!
//! The formulas are in the crate's documentation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::{MAX_OUTPUT_TOKENS, SimConfig};

#[cfg(test)]
mod tests;

const NS_PER_MS: f64 = 1e6;
/// The longest single duration: a day. Keeps sums of instants inside i64.
const MAX_DURATION_NS: f64 = 86_400e9;

/// What a request's generator decides before the request runs.
#[derive(Debug)]
pub struct Plan {
    /// Tokens of each choice until it ends or fails.
    pub tokens: u32,
    pub ending: Ending,
    /// Whether the request is answered 500 and never runs.
    pub refused: bool,
    rng: StdRng,
}

/// How an output ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
    /// An error after the last token.
    Failure,
}

/// What a request says about the length of its output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputLimit {
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
}

impl Plan {
    /// Draws the plan of the request that arrived as number `ordinal`.
    #[must_use]
    pub fn draw(config: &SimConfig, ordinal: u64, limit: OutputLimit) -> Self {
        let mut rng = StdRng::seed_from_u64(mix(config.seed, ordinal));
        let spread: f64 = rng.random_range(-1.0..1.0);
        let natural = f64::from(config.tokens) * (1.0 + config.tokens_jitter * spread);
        // The draws are taken whatever the rates, so that turning errors on
        // leaves the lengths and the jitter of all other requests as they were.
        let refused = rng.random::<f64>() < config.error_rate;
        let fails = rng.random::<f64>() < config.stream_error_rate;
        let failing_share: f64 = rng.random();
        let (tokens, ending) = length((natural.round() as u32).max(1), limit);
        let plan = Self {
            tokens,
            ending,
            refused,
            rng,
        };
        if fails {
            plan.failing_after((f64::from(tokens) * failing_share) as u32)
        } else {
            plan
        }
    }

    fn failing_after(self, tokens: u32) -> Self {
        Self {
            // At least one token, so that the failure is in the middle of a stream.
            tokens: tokens.max(1),
            ending: Ending::Failure,
            ..self
        }
    }
}

fn length(natural: u32, limit: OutputLimit) -> (u32, Ending) {
    let natural = natural.min(MAX_OUTPUT_TOKENS);
    match limit.max_tokens.map(|max| max.min(MAX_OUTPUT_TOKENS)) {
        Some(max) if limit.ignore_eos || max <= natural => (max, Ending::Length),
        _ => (natural, Ending::Stop),
    }
}

/// Spreads `seed` and `number` over 64 bits (the finaliser of `SplitMix64`).
#[must_use]
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A request inside the model; numbers grow in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// One token of every choice of a request has come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The instant the model gives it, on the caller's clock.
    pub t_ns: i64,
    /// Tokens so far, this one included.
    pub tokens: u32,
    /// Whether it was the last.
    pub last: bool,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

#[derive(Debug)]
struct Sequence<P> {
    prompt_tokens: u32,
    plan: Plan,
    tokens_out: u32,
    deadline_ns: i64,
    handle: P,
}

/// The batch, the queue, and the instants of the next tokens. `P` is whatever
/// the caller wants back with each step.
#[derive(Debug)]
pub struct Model<P> {
    config: SimConfig,
    next_id: u64,
    /// At most `config.queue`; the key is the order of arrival.
    waiting: BTreeMap<u64, Sequence<P>>,
    /// At most `config.slots`.
    batch: HashMap<u64, Sequence<P>>,
    /// One entry for each request of the batch. A set, not a heap: a client that
    /// leaves takes its entry with it.
    deadlines: BTreeSet<(i64, u64)>,
    in_prefill: u32,
}

impl<P> Model<P> {
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self {
            config,
            next_id: 0,
            waiting: BTreeMap::new(),
            batch: HashMap::new(),
            deadlines: BTreeSet::new(),
            in_prefill: 0,
        }
    }

    /// Requests in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.batch.len()
    }

    /// Requests waiting for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The instant of the next token.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<i64> {
        self.deadlines.first().map(|(t_ns, _)| *t_ns)
    }

    /// A request arrives at `t_ns`.
    ///
    /// # Errors
    /// [`QueueFull`] when neither a slot nor a place in the queue is free.
    pub fn arrive(
        &mut self,
        t_ns: i64,
        prompt_tokens: u32,
        plan: Plan,
        handle: P,
    ) -> Result<RequestId, QueueFull> {
        let slot_free = self.batch.len() < self.config.slots as usize;
        if !slot_free && self.waiting.len() >= self.config.queue as usize {
            return Err(QueueFull);
        }
        let id = self.next_id;
        self.next_id += 1;
        let sequence = Sequence {
            prompt_tokens,
            plan,
            tokens_out: 0,
            deadline_ns: 0,
            handle,
        };
        self.waiting.insert(id, sequence);
        self.admit(t_ns);
        Ok(RequestId(id))
    }

    /// A client left at `t_ns`; nothing happens when its request is done.
    pub fn leave(&mut self, id: RequestId, t_ns: i64) {
        self.waiting.remove(&id.0);
        if let Some(sequence) = self.batch.remove(&id.0) {
            self.deadlines.remove(&(sequence.deadline_ns, id.0));
            if sequence.tokens_out == 0 {
                self.in_prefill -= 1;
            }
            self.admit(t_ns);
        }
    }

    /// Lets out the tokens due by `now_ns`, in order of their instants, but at
    /// most `limit` of them, so that a server without pauses still answers.
    pub fn advance(&mut self, now_ns: i64, limit: usize, emit: &mut impl FnMut(&P, Step)) {
        for _ in 0..limit {
            match self.deadlines.first() {
                Some(&(t_ns, id)) if t_ns <= now_ns => {
                    self.deadlines.pop_first();
                    self.step(t_ns, id, emit);
                }
                _ => return,
            }
        }
    }

    fn step(&mut self, t_ns: i64, id: u64, emit: &mut impl FnMut(&P, Step)) {
        let mean_ns = self.mean_step_ns();
        let jitter = self.config.jitter;
        let Some(sequence) = self.batch.get_mut(&id) else {
            return;
        };
        if sequence.tokens_out == 0 {
            self.in_prefill -= 1;
        }
        sequence.tokens_out += 1;
        let last = sequence.tokens_out >= sequence.plan.tokens;
        let step = Step {
            t_ns,
            tokens: sequence.tokens_out,
            last,
        };
        emit(&sequence.handle, step);
        if last {
            self.batch.remove(&id);
            self.admit(t_ns);
        } else {
            sequence.deadline_ns = t_ns + jittered_ns(mean_ns, jitter, &mut sequence.plan.rng);
            self.deadlines.insert((sequence.deadline_ns, id));
        }
    }

    fn admit(&mut self, t_ns: i64) {
        while self.batch.len() < self.config.slots as usize {
            let Some((id, mut sequence)) = self.waiting.pop_first() else {
                return;
            };
            let mean_ns = self.mean_prefill_ns(sequence.prompt_tokens);
            let rng = &mut sequence.plan.rng;
            sequence.deadline_ns = t_ns + jittered_ns(mean_ns, self.config.jitter, rng);
            self.deadlines.insert((sequence.deadline_ns, id));
            self.batch.insert(id, sequence);
            self.in_prefill += 1;
        }
    }

    fn mean_prefill_ns(&self, prompt_tokens: u32) -> f64 {
        let c = &self.config;
        let prompt = f64::from(prompt_tokens) / f64::from(c.prefill_tokens);
        let others = f64::from(self.in_prefill) / f64::from(c.slots);
        c.ttft_ms * NS_PER_MS * (1.0 + prompt) * (1.0 + c.prefill_slope * others)
    }

    fn mean_step_ns(&self) -> f64 {
        let c = &self.config;
        let others = (self.batch.len() as f64 - 1.0) / f64::from(c.slots);
        c.itl_ms * NS_PER_MS * (1.0 + c.decode_slope * others)
    }
}

fn jittered_ns(mean_ns: f64, jitter: f64, rng: &mut StdRng) -> i64 {
    let u: f64 = rng.random_range(-1.0..1.0);
    (mean_ns * (1.0 + jitter * u)).clamp(0.0, MAX_DURATION_NS) as i64
}
