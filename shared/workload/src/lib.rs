//! What to send and when: prompts and data sets become request bodies, a seed
//! becomes arrival offsets. Pure but for reading files; knows no sockets.
//!
//! [`dataset::load`] is the way in: a [`dataset::Request`] names a data set and
//! what is wanted of it, [`dataset::Loaded`] holds the prompts and what was left
//! out. Data sets that need Polars or a tokenizer come with the feature
//! `datasets`; without it they are an error that says so.

pub mod arrivals;
pub mod body;
pub mod dataset;
mod error;
mod files;
mod lengths;
mod parallel;
pub mod prompts;
#[cfg(feature = "datasets")]
mod random;
#[cfg(feature = "datasets")]
mod records;
#[cfg(feature = "datasets")]
mod sharegpt;
#[cfg(feature = "datasets")]
mod table;
mod tokens;
pub mod trace;

pub use arrivals::ArrivalProcess;
pub use body::BodyOptions;
pub use error::WorkloadError;
pub use lengths::PromptLengths;
pub use prompts::{Item, Prompt};
pub use tokens::{Encoder, encoder};
