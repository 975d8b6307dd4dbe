//! The client for what is not measured: asking for models, scraping metrics.

use std::time::Duration;

use anyhow::{Context, Result};
use tapedeck_live::TlsOptions;

/// A client that trusts what the load trusts and follows nothing.
///
/// # Errors
/// When the certificates of `tls` cannot be used.
pub fn build(tls: &TlsOptions, connect: Duration, whole: Duration) -> Result<reqwest::Client> {
    // Fails when a provider is already installed, which serves as well.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(connect)
        .timeout(whole)
        .no_proxy()
        // As the load itself does; and reqwest would carry an API key in a header
        // of its own name to whatever host the redirect names.
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(tls.insecure);
    if let Some(path) = &tls.cacert {
        let pem = std::fs::read(path)
            .with_context(|| format!("cannot read --cacert {}", path.display()))?;
        for certificate in reqwest::Certificate::from_pem_bundle(&pem)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    Ok(builder.build()?)
}
