//! Everything that touches time or sockets.
//!
//! Follow one chunk: [`pace`] dispatches an arrival, [`worker`] takes it,
//! [`exchange`] sends it on a [`connect`]ion, [`tap`] stamps what comes back,
//! `tapedeck-wire` makes chunks of it, and the recording's writer gets rows.
//!
//! Workers are threads with a runtime, connections and a batch of rows of their
//! own. A connection is polled by the task that uses it, so the last read and
//! the body frame at hand belong together.
//!
//! # Why it is built like this
//!
//! `cargo bench -p tapedeck-live --bench capacity` holds what a recorded chunk costs
//! against a bare socket reader. Arrows are instructions a chunk that callgrind counted
//! under it, before → after; where there is no arrow it is a reason, not a measurement.
//!
//! - **One thread, one runtime, one task an exchange.** Nothing crosses threads
//!   between a read and its row, so there is no lock and no wake-up on the way, and
//!   the stamp of the last read needs no ticket. Work stealing would buy balance,
//!   which slots that return to the worker of their idle connection give too.
//! - **An arrival is with its worker 5 ms early** ([`alarm`]): the worker's own timer
//!   wakes it a little before the deadline, so one thread must get its core in time
//!   and not two. What had kept it waiting, `perf sched` says, was the turn of the
//!   writer, up to 3 ms: the writer now gives way between pieces of work. `dispatch`
//!   bench, client on one core, 1,000 requests a second, sent − scheduled at p99, in
//!   turns: 0.15, 0.63, 0.70 → 0.09, 0.08, 0.11 ms.
//! - **hyper for heads, our own eyes for bodies in HTTP chunks** ([`chunked`]). hyper
//!   writes requests, reads heads, ends bodies and judges what is odd; data goes from
//!   the read buffer to the framer where it lies. Worker: 4,444 → 1,956.
//! - **One read buffer of 64 KiB a worker**, as large as one receive returns in a
//!   burst; a short read ends the reading without a second system call, so a chunk
//!   that comes alone costs one `recvmsg` and its share of an `epoll_wait`.
//! - **Interpretation runs in the worker, after the stamp.** An envelope seen before
//!   is compared, not parsed, which costs less than handing the bytes to somebody.
//! - **No timer of tokio's in a worker**: each time the worker went to sleep its driver
//!   would read the clock, take a lock and have the kernel arm a timer of its own.
//! - **Rows travel in batches of 256**, a mutex and a wake-up each, and the emptied
//!   batches come back: they would be grown from nothing and their pages faulted in
//!   again each time. Writer: 1,891 → 1,255. Rows become columns where they lie and are
//!   not gathered first: 1,057 → 858.
//! - **The sealer orders runs, not rows**: a commit is sorted already. Sealer: 3,832 →
//!   3,416, of which prefix sharing is 1,100 and zstd 75.
//!
//! With one write a chunk the kernel has the larger part of it, and the bare reader
//! the same (`perf record`, µs a chunk, worker / bare reader): receive 1.55 / 1.40, the
//! acknowledgement that the receive sends 2.07 / 2.01, `epoll_wait` 0.64 / 0.68. Half of
//! those acknowledgements could be saved (`TCP_QUICKACK` off); a server that waits for
//! them before it writes on (Nagle) would then seem slow, so they are not. What the
//! worker adds is user space, 1.2 µs for 2,800 instructions: cold caches.

mod alarm;
pub mod arrival;
mod chunked;
pub mod connect;
pub mod engine;
pub mod exchange;
pub mod headers;
mod http2;
pub mod lag;
mod lead;
mod pace;
pub mod policy;
pub mod secrets;
mod session;
pub mod tap;
pub mod target;
pub mod telemetry;
mod worker;

pub use arrival::{
    Arrival, Arrivals, Branch, ClientTimes, Coming, Conversation, NextTurn, PreparedRequest,
    TurnDue,
};
pub use engine::{Deadline, Failure, Gauges, RunError, RunSpec, Stop, StopLevel, Workers, run};
pub use policy::{AttemptPolicy, CancelAfter, Cancellation};
pub use target::{Target, TargetError, TlsOptions};
pub use telemetry::Telemetry;
pub use worker::Timeouts;
