//! What `record` and `replay` have in common: flags, the server they reach, and
//! the run around the pacer, from an empty folder to the closing report.
//!
//! A program brings arrivals and a description; [`harness::Harness::record`]
//! makes a recording of them. Reading order: [`args`] (what the user typed),
//! [`options`] (what it means), [`server`] and [`requests`] (where requests go),
//! [`harness`], [`phases`] and [`sampling`] (the run), [`output`] (where it is kept
//! and what is printed at the end). Beside them: [`launch`] (a server of our own),
//! [`hub`] (files by name), [`secrets`] (what must reach no recording).

pub mod args;
mod debug;
pub mod dialogue;
mod discover;
mod download;
pub mod ending;
pub mod gpu;
pub mod harness;
pub mod http_client;
pub mod hub;
#[cfg(feature = "report")]
pub mod judge;
pub mod launch;
pub mod listen;
pub mod manifest;
pub mod options;
pub mod output;
pub mod phases;
mod progress;
#[cfg(feature = "report")]
mod report;
pub mod requests;
pub mod sampling;
pub mod secrets;
pub mod server;
pub mod server_metrics;
pub mod shell;
pub mod signals;
