//! Where servers of ours may listen.

use std::net::SocketAddr;

use anyhow::{Result, bail};

/// Refuses an address that other machines reach, unless that is `allowed`.
///
/// # Errors
/// When it is not.
pub fn expect_loopback(flag: &str, addr: SocketAddr, allowed: bool) -> Result<()> {
    if !addr.ip().is_loopback() && !allowed {
        bail!(
            "{flag} {addr} can be reached from other machines\nhint: add --allow-remote if that is meant"
        );
    }
    Ok(())
}
