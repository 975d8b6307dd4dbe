//! What is to be sent, prepared before the run starts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use tapedeck_recording::{Pairs, Phase};
use tapedeck_wire::dialect::Api;

/// A request ready to be written, shared by all arrivals that send the same.
#[derive(Debug, Clone)]
pub struct PreparedRequest {
    pub api: Api,
    pub method: Method,
    /// Origin form, with the real query.
    pub uri: Uri,
    /// As recorded.
    pub url_path: Arc<str>,
    /// As recorded: secrets masked.
    pub query: Option<Arc<str>>,
    /// As sent, credentials included.
    pub headers: HeaderMap,
    /// As recorded: those of the allow-list.
    pub recorded_headers: Option<Pairs>,
    pub body: Bytes,
    pub body_hash: Option<Arc<str>>,
    pub model: Option<Arc<str>>,
    pub stream: bool,
    pub input_tokens: Option<i32>,
    pub input_tokens_source: Option<Arc<str>>,
    pub max_output_tokens: Option<i32>,
    /// Prefix blocks that the prompt was made of, and tokens of each where they
    /// have one size.
    pub block_size: Option<i32>,
    pub block_runs: Option<Arc<[(i64, i32)]>>,
}

/// A planned request and when it is due.
#[derive(Debug)]
pub struct Arrival {
    pub request: Arc<PreparedRequest>,
    /// Offset from the start of the run, ns. `None` makes the arrival due as
    /// soon as a slot is free: a closed loop.
    pub offset_ns: Option<i64>,
    pub phase: Phase,
    pub session_id: Option<Arc<str>>,
    pub turn: Option<i32>,
    pub parent_request_id: Option<i64>,
    pub replay_of: Option<i64>,
    /// Given up so long after it is written to its connection, whatever the policy
    /// says: the original was.
    pub cancel_after: Option<Duration>,
    /// What follows in its session, each turn when the one before is done.
    pub conversation: Option<Box<dyn Conversation>>,
}

/// Where the arrivals of a run come from: any iterator, or what asks whose turn it
/// is.
pub trait Arrivals {
    /// Where it is clients who send: a slot is a client, it comes first and then what
    /// it sends, due at once. `None` where arrivals have an order of their own, or
    /// there are no slots.
    fn clients(&self) -> Option<ClientTimes> {
        None
    }

    /// From when on the time of clients that have begun is counted, on the run's clock;
    /// `None` while they only warm up.
    fn counts_from_ns(&self) -> Option<i64> {
        Some(i64::MIN)
    }

    /// The next arrival, of `client` (from 0) in a closed loop; there `None` is the
    /// end of that client only.
    fn next_of(&mut self, client: usize) -> Option<Arrival>;
}

impl<I: Iterator<Item = Arrival>> Arrivals for I {
    fn next_of(&mut self, _client: usize) -> Option<Arrival> {
        self.next()
    }
}

/// When the clients of a closed loop begin and end; the default is all at once, and
/// with the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientTimes {
    /// Client i of n begins when i/n of it has passed since the start of the run.
    pub ramp_up: Duration,
    /// A client sends nothing more so long after it began, or after
    /// [`Arrivals::counts_from_ns`] where that is later; what it has begun it ends.
    pub duration: Option<Duration>,
}

/// The later turns of a session. They go out on the worker of the first, and keep
/// its slot, so that `parallel` slots are as many sessions at a time.
pub trait Conversation: std::fmt::Debug + Send {
    /// Whether [`Self::next_turn`] looks at the reply.
    fn wants_reply(&self) -> bool;

    /// Turns that have not been sent.
    fn turns_left(&self) -> usize;

    /// The next turn, where there is one; `reply` is the text of the answer to the
    /// turn before, empty unless it was wanted.
    fn next_turn(&mut self, reply: String) -> Option<NextTurn>;

    /// Whether turns follow one that failed, as where they do not depend on what
    /// was said.
    fn outlives_failure(&self) -> bool {
        false
    }

    /// Sessions that begin when the turn at hand is done, beside its own; asked once
    /// after each turn.
    fn branches(&mut self) -> Vec<Branch> {
        Vec::new()
    }
}

/// Something that may still be in the making, on another thread: a worker goes on with
/// its sockets until it is there. `None` where its maker has given up.
pub type Coming<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// A turn that is to follow.
#[expect(missing_debug_implementations, reason = "a future has none")]
pub struct NextTurn {
    pub request: Coming<Arc<PreparedRequest>>,
    pub due: TurnDue,
    /// Of its session, from 0.
    pub turn: Option<i32>,
    pub replay_of: Option<i64>,
    /// As [`Arrival::cancel_after`].
    pub cancel_after: Option<Duration>,
}

/// The first turn of a session that begins within another.
#[expect(missing_debug_implementations, reason = "a future has none")]
pub struct Branch {
    /// Its offset is not looked at.
    pub arrival: Coming<Arrival>,
    pub due: TurnDue,
    /// It and all that follow it.
    pub turns: usize,
}

/// When a later turn is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnDue {
    /// So long after the end of the turn before.
    After(Duration),
    /// At this offset from the start of the run, ns, or at the end of the turn
    /// before where that is later.
    At(i64),
}
