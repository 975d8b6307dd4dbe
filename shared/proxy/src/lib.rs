//! The recording proxy: what a client sends and a server answers passes through
//! unchanged, and a copy of it is recorded.
//!
//! ```text
//!  client ─▶ client (server side, tapped) ─▶ handle ─▶ upload ─▶ live::connect ─▶ upstream
//!         ◀─ flush: t_forwarded_ns        ◀─ download ◀─ one read at a time    ◀─
//!                       └─▶ exchange ─▶ journal ─▶ book ─▶ the recording's queue
//! ```
//!
//! A client's connection, the connection upstream that answers it and both taps
//! live on one thread and are polled by one task, so the last read's stamp belongs
//! to the frame at hand. What one read brought is written on and flushed before the
//! next is taken, and only then looked at: interpreting and recording a chunk
//! delays the next one at most, never itself.
//!
//! Recording never fails traffic. The queue to the writer is bounded, and what
//! finds no room in it is counted and dropped.

mod admin;
mod book;
mod client;
mod download;
mod exchange;
mod handle;
mod headers;
mod journal;
mod metrics;
mod recorder;
mod rules;
mod server;
mod tunnel;
mod upload;
mod upstream;
mod worker;

pub use admin::{Admin, Watched};
pub use metrics::Metrics;
pub use recorder::{Current, Recorder};
pub use rules::{Pattern, Rules};
pub use server::{Proxy, ProxyError, Settings};
pub use upstream::{Upstream, Upstreams};
