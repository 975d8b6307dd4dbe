//! Everything that touches time or sockets.
//!
//! Follow one chunk: [`pace`] dispatches an arrival, [`worker`] takes it,
//! [`exchange`] sends it on a [`connect`]ion, [`tap`] stamps what comes back,
//! `tapedeck-wire` makes chunks of it, and the recording's writer gets rows.
//!
//! Workers are threads with a runtime, connections and a batch of rows of their
//! own. A connection is polled by the task that uses it, so the last read and
//! the body frame at hand belong together.

pub mod arrival;
pub mod connect;
pub mod engine;
pub mod exchange;
pub mod headers;
pub mod lag;
mod pace;
pub mod policy;
pub mod secrets;
pub mod tap;
pub mod target;
pub mod telemetry;
mod worker;

pub use arrival::{Arrival, PreparedRequest};
pub use engine::{Failure, Gauges, RunError, RunSpec, Stop, StopLevel, Workers, run};
pub use policy::{AttemptPolicy, CancelAfter, Cancellation};
pub use target::{Target, TargetError, TlsOptions};
pub use telemetry::Telemetry;
pub use worker::Timeouts;
