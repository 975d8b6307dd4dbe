//! What stands beside the proxy in its benchmark.

pub mod relay;
pub mod usage;
