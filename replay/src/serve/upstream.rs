//! The server that gets what nothing was recorded for. Nothing here is measured.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use tapedeck_live::TlsOptions;
use tapedeck_run::http_client;
use url::Url;

/// Until a connection upstream stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer: as long as anybody waits for a model.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Headers that end with the connection they came on.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    client: reqwest::Client,
    /// Without a slash at the end of its path.
    base: Url,
}

impl Upstream {
    /// # Errors
    /// When the URL or certificates cannot be used.
    pub(crate) fn new(url: &str, tls: &TlsOptions) -> Result<Self> {
        // What else stands in the URL may be a secret.
        let base = Url::parse(url).ok().filter(|url| {
            let plain = url.username().is_empty() && url.password().is_none();
            matches!(url.scheme(), "http" | "https") && url.has_host() && plain
        });
        let Some(mut base) = base else {
            bail!("--upstream cannot be used\nhint: http://host:port or https://host");
        };
        if base.query().is_some() || base.fragment().is_some() {
            bail!("--upstream has a query\nhint: clients send their own");
        }
        let path = base.path().trim_end_matches('/').to_owned();
        base.set_path(&path);
        let client = http_client::build(tls, CONNECT_TIMEOUT, WHOLE_TIMEOUT);
        Ok(Self {
            client: client.context("--upstream cannot be used")?,
            base,
        })
    }

    /// Passes a request on.
    ///
    /// # Errors
    /// When no answer came; in words, without secrets.
    pub(crate) async fn ask(
        &self,
        head: &Parts,
        body: Bytes,
    ) -> Result<http::Response<reqwest::Body>, String> {
        let mut url = self.base.clone();
        let base = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{base}{}", head.uri.path()));
        url.set_query(head.uri.query());
        let request = self
            .client
            .request(head.method.clone(), url)
            .headers(end_to_end(&head.headers))
            .body(body);
        let answer = request.send().await;
        let answer = answer.map_err(|error| format!("upstream: {}", error.without_url()))?;
        let (mut parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let length = parts.headers.get(CONTENT_LENGTH).cloned();
        parts.headers = end_to_end(&parts.headers);
        parts
            .headers
            .extend(length.map(|length| (CONTENT_LENGTH, length)));
        // The next leg is HTTP/1.1, whatever this one was.
        parts.version = http::Version::HTTP_11;
        Ok(http::Response::from_parts(parts, body))
    }
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let kept = headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name));
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in kept {
        out.append(name.clone(), value.clone());
    }
    out
}
