//! What stands beside the proxy in its benchmark.

pub(crate) mod relay;
pub(crate) mod usage;
