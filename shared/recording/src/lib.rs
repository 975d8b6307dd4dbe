//! The recording: a folder of sealed Parquet segments and a manifest.
//!
//! This crate knows Arrow, Parquet and the disk, and no sockets. Reading order:
//! [`schema`] (the contract), [`event`] (rows), [`columns`] (rows ↔ Arrow),
//! [`writer`] (queue and cuts), [`segment`] (Parquet), [`manifest`], [`reader`].

pub mod columns;
pub mod event;
mod files;
pub mod footer;
pub mod manifest;
pub mod privacy;
pub mod reader;
pub mod schema;
pub mod segment;
pub mod writer;

pub use event::{
    ChunkKind, ChunkRow, ChunkRows, EventBatch, MarkRow, Outcome, Pairs, Phase, RequestRow,
    ResponseRow, SampleRow, TimestampSource,
};
pub use manifest::Manifest;
pub use privacy::{Content, Privacy};
pub use reader::Recording;
pub use schema::Table;
pub use writer::{SegmentLimits, Sink, Writer};

/// A new recording id (UUIDv7: ids sort by creation).
#[must_use]
pub fn new_recording_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The hash kept beside a body: BLAKE3, first 128 bits, 32 hex digits.
#[must_use]
pub fn body_hash(body: &[u8]) -> String {
    blake3::hash(body).to_hex()[..32].to_owned()
}
