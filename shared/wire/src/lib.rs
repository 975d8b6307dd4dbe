//! Bytes → meaning: no clock, no async, no I/O, and nothing of ours below it.
//!
//! ```text
//!  raw read ─▶ decode ─▶ sse    ─▶ openai  ─▶ response ─▶ chunks and one end
//!             (gzip…)   lines     places    (outcome)
//!                       list      ppl
//!                       grpc
//!                       (frames)  (kinds)
//! ```
//!
//! A caller hands every read of a response to [`response::ResponseReader`]
//! together with an opaque stamp of that read, and gets each chunk back with the
//! stamp of the read that delivered the last byte of its payload. What a server
//! does wrong is a value here, never an `Err` that ends a run and never a panic.
//! Everything kept is a capped copy; lengths are always the true ones.
//!
//! Which framing and which reader an answer needs is in its [`dialect`].

pub mod decode;
pub mod dialect;
pub mod grpc;
mod lenient;
pub mod lines;
pub mod list;
pub mod openai;
pub mod places;
pub mod ppl;
pub mod prometheus;
pub mod response;
pub mod sse;
mod text;
pub mod words;
