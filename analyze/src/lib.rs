//! Recordings as a SQL database, and the report on them.
//!
//! Every number is defined in a file under `sql/`; nothing here computes one.
//! Reading order: [`models`] (the definitions, their headers), [`parameters`]
//! (what a user chooses), `functions` (what SQL lacks), [`session`] (recordings →
//! tables and views; `rows`: structs ↔ tables), `derived` (what is computed once), `sealed` (whether files are
//! what was sealed), [`distribution`] (percentiles in little memory), `engine`
//! (how much it may hold), `plans` (what of its plans is changed), [`shell`] (one
//! question after the other), [`mod@report`] (rows → report), [`render`] (report → text),
//! [`output`] (rows → files),
//! [`check`] (invariants), [`peer`] (other tools' definitions), [`explain`] (one
//! request), [`compare`] (one side against another), `listing` (what lies below a folder), [`cli`].

pub mod check;
pub mod cli;
pub mod compare;
mod derived;
pub mod distribution;
mod engine;
pub mod explain;
mod functions;
mod listing;
pub mod models;
pub mod output;
pub mod parameters;
pub mod peer;
mod plans;
pub mod render;
pub mod report;
mod rows;
mod sealed;
pub mod session;
pub mod shell;

pub use parameters::{Parameters, Slo, UnknownMetric};
pub use render::Format;
pub use report::{Report, ReportOptions, report};
pub use session::{Error, Session, matching_requests};
