//! All tests that need more than one crate, in one binary.

mod awkward;
mod failures;
mod metrics;
mod oracle;
mod readme;
mod record_load;
mod replay_run;
mod report;
mod support;
mod tidy;
mod tls;
