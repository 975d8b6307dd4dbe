//! An embedded OpenAI-compatible server whose every latency comes from a model.
//!
//! It exists so that a first recording needs no GPU, and so that tests have a
//! server that does what batching engines do: slow down as more requests run,
//! queue beyond its batch, refuse beyond its queue. It speaks real HTTP/1.1 and
//! SSE over a real socket; nothing of the measured path is bypassed.
//!
//! # The model ([`model`])
//!
//! Continuous batching. `slots` is the largest batch; a request beyond it waits
//! in a first-in-first-out queue of at most `queue` requests, and one beyond that
//! is answered 429. Let `b` be the requests in the batch (this one included) and
//! `p` the others among them that have not had their first token. Then
//!
//! ```text
//! prefill = ttft_ms · (1 + prompt_tokens / prefill_tokens) · (1 + prefill_slope · p / slots) · j
//! step    = itl_ms  · (1 + decode_slope · (b − 1) / slots)                                   · j
//! j       = 1 + jitter · u,   u uniform in [−1, 1)
//! ```
//!
//! `prefill` runs from admission to the first token and is fixed at admission;
//! `step` runs from one token to the next and is fixed when the earlier one comes
//! out. Every instant is the one before plus a duration, never "now" plus a
//! duration, so a late wake-up shifts no later token. A request holds one slot
//! whatever its `n`: its choices advance together. A client that leaves frees its
//! slot at once, and the head of the queue enters.
//!
//! All draws of a request come from one generator seeded with (`seed`, the
//! request's number in order of arrival). The same seed and the same arrivals
//! give the same lengths, words, failures and jitter.
//!
//! # Tokens
//!
//! The output has `tokens · (1 + tokens_jitter · u)` tokens, capped by
//! `max_tokens` or `max_completion_tokens`; with `ignore_eos` it is the cap
//! itself. A prompt's tokens are its bytes of text divided by four, rounded up,
//! plus four for each chat message; a prompt given as token ids is counted.
//!
//! # Time
//!
//! One thread runs the model and all connections. Token instants come from a
//! `timerfd` on absolute `CLOCK_MONOTONIC` deadlines ([`timer`]), because tokio's
//! own timer is a millisecond coarse and a second thread would cost a wake-up
//! per token. Each token is its own SSE event, its own HTTP chunk and its own
//! write to the socket, also where several have become due at once. The thread,
//! its connections and its timer are [`host`]'s, which serves other answers as well.

pub mod config;
mod connection;
mod engine;
pub mod host;
pub mod model;
mod reply;
mod request;
mod server;
mod stream;
mod text;
pub mod timer;

pub use config::{ConfigError, SimConfig};
pub use host::Running;
pub use server::{SimBody, SimError, SimService, Simulator};
