//! Where requests go: a resolved address, and TLS if the scheme asks for it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use url::Url;

/// A server that requests can be sent to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Resolved once, before the run: a lookup inside it would be measured.
    pub addrs: Vec<SocketAddr>,
    /// Value of the `Host` header.
    pub host: String,
    pub tls: Option<Tls>,
}

/// TLS settings of a target.
#[derive(Debug, Clone)]
pub struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
}

/// How a server's certificate is judged.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file of certificates trusted besides the system's.
    pub cacert: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure: bool,
}

/// A target that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    // The URL itself may hold a password and stays out of messages.
    #[error("--url has scheme {0}\nhint: http://…, https://… and sim: are understood")]
    Scheme(String),
    #[error("--url names no host\nhint: http://host:port")]
    NoHost,
    #[error("cannot resolve {host}")]
    Resolve {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} resolves to no address")]
    NoAddress(String),
    #[error("cannot read certificates from --cacert {}", path.display())]
    CaCert {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("--cacert {} holds no certificate", .0.display())]
    CaCertEmpty(PathBuf),
    #[error("--cacert {} holds a certificate that cannot be used", path.display())]
    CaCertUnusable {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "no trusted certificates were found on this system\nhint: name a PEM file with --cacert"
    )]
    NoRoots,
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("{0} is not a name that a certificate can bear")]
    ServerName(String),
}

impl Target {
    /// Resolves the host of `url` and prepares TLS for `https`.
    ///
    /// # Errors
    /// When the scheme is unknown, the host does not resolve, or certificates
    /// cannot be read.
    pub fn resolve(url: &Url, options: &TlsOptions) -> Result<Self, TargetError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(TargetError::Scheme(url.scheme().to_owned()));
        }
        let host = url.host_str().ok_or(TargetError::NoHost)?;
        let tls = match url.scheme() {
            "https" => Some(Tls::new(host, options)?),
            _ => None,
        };
        let port = url.port_or_known_default().unwrap_or(80);
        // The brackets of an IPv6 literal are the URL's, not the resolver's.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let addrs: Vec<SocketAddr> = (name, port)
            .to_socket_addrs()
            .map_err(|source| TargetError::Resolve {
                host: name.to_owned(),
                source,
            })?
            .collect();
        if addrs.is_empty() {
            return Err(TargetError::NoAddress(name.to_owned()));
        }
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self { addrs, host, tls })
    }

    /// The whole URL of a request for `uri`.
    pub(crate) fn url_of(&self, uri: &http::Uri) -> Option<Url> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Url::parse(&format!("{scheme}://{}{uri}", self.host)).ok()
    }
}

impl Tls {
    /// The same, for a server that is to speak HTTP/2.
    pub(crate) fn for_http2(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            config: Arc::new(config),
            server_name: self.server_name.clone(),
        }
    }

    fn new(host: &str, options: &TlsOptions) -> Result<Self, TargetError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TargetError::Tls)?;
        let mut config = if options.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
                .with_no_client_auth()
        } else {
            builder
                .with_root_certificates(roots(options.cacert.as_deref())?)
                .with_no_client_auth()
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_| TargetError::ServerName(name.to_owned()))?;
        Ok(Self {
            config: Arc::new(config),
            server_name,
        })
    }
}

fn roots(cacert: Option<&Path>) -> Result<RootCertStore, TargetError> {
    let mut store = RootCertStore::empty();
    // Certificates of the system that do not parse are the system's affair.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = cacert {
        let read_error = |source| TargetError::CaCert {
            path: path.to_owned(),
            source,
        };
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(read_error)? {
            store
                .add(certificate.map_err(read_error)?)
                .map_err(|source| TargetError::CaCertUnusable {
                    path: path.to_owned(),
                    source,
                })?;
            found += 1;
        }
        if found == 0 {
            return Err(TargetError::CaCertEmpty(path.to_owned()));
        }
    }
    if store.is_empty() {
        return Err(TargetError::NoRoots);
    }
    Ok(store)
}

/// `--insecure`: any certificate, but the handshake must still be signed by it.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
