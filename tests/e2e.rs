//! All tests that need more than one crate, in one binary.
#![allow(
    clippy::unwrap_used,
    reason = "clippy excuses functions marked #[test], not the helpers they share"
)]

mod attempts;
mod awkward;
#[path = "support/calls.rs"]
mod calls;
mod compare;
mod crash;
mod data_sets;
mod derived;
mod dialects;
mod distribution;
mod durability;
mod explain;
#[allow(
    clippy::too_many_lines,
    reason = "a table of bad inputs and their messages is as long as it has rows"
)]
mod failures;
mod find_max;
mod format;
mod fuzz_seeds;
mod grpc;
mod launch;
mod load_shapes;
mod metrics;
mod oracle;
mod other_tools;
mod privacy;
mod proxy;
mod proxy_fault_table;
mod proxy_faults;
mod proxy_rotation;
mod proxy_upstreams;
mod readme;
mod record_load;
mod replay_modes;
mod replay_run;
mod replay_serve;
mod report;
mod secrets;
mod server_side;
mod shell;
mod slo;
mod support;
mod tidy;
mod tls;
mod tokens;
mod traces;
mod workloads;
