//! What to send and when: prompts and data sets become request bodies, a seed
//! becomes arrival offsets. Pure but for reading files; knows no sockets.
//!
//! [`dataset::load`] is the way in: a [`dataset::Request`] names a data set and
//! what is wanted of it, [`dataset::Loaded`] holds the prompts and what was left
//! out. Data sets that need Polars or a tokenizer come with the feature
//! `datasets`; without it they are an error that says so. A prompt with turns is
//! the beginning of a conversation, which a [`dialogue::Dialogue`] carries on.
//!
//! A file's way: `files` (gzip, lines), `records` (JSON records), `columns` (their
//! texts), then the data set (`table`, `sharegpt`, …), then `lengths` and
//! [`shaping`], and [`body`]. Other people's arrivals are in [`trace`], our own in
//! [`arrivals`] and [`rates`].

pub mod arrivals;
pub mod body;
#[cfg(feature = "datasets")]
mod columns;
pub mod command;
pub mod dataset;
pub mod dialogue;
mod error;
mod files;
mod fixed;
mod folder;
mod lengths;
mod parallel;
pub mod prompts;
#[cfg(feature = "datasets")]
mod random;
pub mod rates;
#[cfg(feature = "datasets")]
mod records;
mod sessions;
pub mod shaping;
#[cfg(feature = "datasets")]
mod sharegpt;
mod sonnet;
#[cfg(feature = "datasets")]
mod table;
mod tokens;
pub mod trace;

pub use arrivals::ArrivalProcess;
pub use body::BodyOptions;
pub use error::WorkloadError;
pub use lengths::PromptLengths;
pub use prompts::{Item, Prompt, Turn};
pub use rates::RateShape;
pub use shaping::Shaping;
pub use sonnet::SonnetLengths;
pub use tokens::{Encoder, encoder};
