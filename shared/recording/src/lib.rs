//! The recording: a folder of sealed Parquet segments and a manifest.
//!
//! This crate knows Arrow, Parquet and the disk, and no sockets. Reading order:
//! [`schema`] (the contract), [`event`] (rows), [`columns`] (rows ↔ Arrow),
//! `sink` and `queue` (towards the sockets), [`privacy`], [`writer`] (commits and cuts), `wal` and `frame` (the open segment on disk),
//! `sealer` and [`segment`] (Parquet), [`manifest`], [`reader`], `recover` (what
//! a recorder that died left behind), [`repair`].
//!
//! # Threads
//!
//! Sockets → queue → `tapedeck-writer` (hashes prompts and redacts, numbers rows,
//! converts them to Arrow once, appends them to the log) → `tapedeck-sealer` (Parquet and manifest), with
//! `tapedeck-sync` beside them. A disk that is slow to sync stops none of the
//! others; one that is slow to take Parquet stops the writer when a full segment
//! waits behind the one that is sealed and another is full, then the queue fills,
//! and then the sockets wait or drop.

#[macro_use]
pub mod failpoint;
pub mod columns;
pub mod event;
mod files;
pub mod footer;
mod frame;
mod lag;
mod lock;
pub mod manifest;
mod order;
pub mod privacy;
mod queue;
pub mod reader;
mod recover;
pub mod repair;
mod scan;
pub mod schema;
mod sealer;
pub mod segment;
mod sink;
mod sync;
#[cfg(test)]
mod testing;
mod wal;
pub mod writer;

pub use event::{
    ChunkKind, ChunkRow, ChunkRows, EventBatch, HiddenPrompt, MarkRow, Outcome, Pairs, Phase,
    RequestRow, ResponseRow, SampleRow, TimestampSource,
};
pub use lag::LogLag;
pub use manifest::Manifest;
pub use privacy::{BlockSpec, Content, Privacy, Redaction, Scrubber};
pub use reader::Recording;
pub use recover::Recovered;
pub use schema::Table;
pub use writer::{DiskError, Durability, SegmentLimits, Sink, Writer, WriterOptions};

/// A new recording id (UUIDv7: ids sort by creation).
#[must_use]
pub fn new_recording_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The hash kept beside a body: BLAKE3, first 128 bits, 32 hex digits.
#[must_use]
pub fn body_hash(body: &[u8]) -> String {
    hash_digits(&blake3::hash(body))
}

/// The first 128 bits, 32 hex digits: as every hash of a recording is written.
fn hash_digits(hash: &blake3::Hash) -> String {
    hash.to_hex()[..32].to_owned()
}
