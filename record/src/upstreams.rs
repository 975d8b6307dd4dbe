//! What `--upstream` means: servers, and which of them a path belongs to.

use anyhow::{Context, Result, bail};
use http::uri::PathAndQuery;
use serde_json::{Value, json};
use tapedeck_live::{Target, TlsOptions};
use tapedeck_proxy::{Upstream, Upstreams};
use tapedeck_run::secrets::mask_url;
use url::Url;

/// One `--upstream` as it was typed.
struct Given<'a> {
    /// Without a slash at its end; empty for every path.
    prefix: &'a str,
    url: &'a str,
}

impl<'a> Given<'a> {
    fn of(text: &'a str) -> Result<Self> {
        if !text.starts_with('/') {
            return Ok(Self {
                prefix: "",
                url: text,
            });
        }
        let Some((prefix, url)) = text.split_once('=') else {
            bail!("--upstream {text} names no server\nhint: /prefix=http://host:port");
        };
        // A `*` promises patterns; quotes and backslashes would break the metrics.
        let is_path =
            prefix.parse::<PathAndQuery>().is_ok() && !prefix.contains(['?', '*', '"', '\\']);
        if !is_path {
            bail!(
                "--upstream {prefix}=… has a prefix that is no path\nhint: /prefix=http://host:port, without ? and *"
            );
        }
        let prefix = prefix.trim_end_matches('/');
        Ok(Self { prefix, url })
    }

    /// No user or password: those are refused.
    fn shown(&self) -> String {
        match self.prefix {
            "" => mask_url(self.url),
            prefix => format!("{prefix}={}", mask_url(self.url)),
        }
    }

    /// Whether the URL has a path of its own, be it a slash.
    fn has_path(&self) -> bool {
        let authority = self
            .url
            .split_once("://")
            .map_or(self.url, |(_, rest)| rest);
        authority.contains('/')
    }

    /// A URL that requests can be passed on to. What it says besides address and
    /// path would silently be lost.
    fn parse(&self) -> Result<Url> {
        let shown = self.shown();
        let url = Url::parse(self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
        let Some(url) = url else {
            bail!("--upstream {shown} cannot be used\nhint: http://host:port or https://host");
        };
        if url.query().is_some() || url.fragment().is_some() {
            bail!("--upstream {shown} has a query\nhint: clients send their own");
        }
        if url.password().is_some() || !url.username().is_empty() {
            bail!("--upstream {shown} has a user or password\nhint: clients send their own");
        }
        Ok(url)
    }

    fn resolve(&self, url: &Url, options: &TlsOptions) -> Result<Upstream> {
        let keeps_path = !self.prefix.is_empty() && !self.has_path();
        let base_path = url.path().trim_end_matches('/').to_owned();
        let target = Target::resolve(url, options)
            .with_context(|| format!("--upstream {} cannot be used", self.shown()))?;
        Ok(Upstream {
            prefix: self.prefix.to_owned(),
            base_path: (!keeps_path).then_some(base_path),
            target,
            origin: url.origin().ascii_serialization(),
        })
    }
}

/// Resolves what `--upstream` was given.
///
/// # Errors
/// When one cannot be understood, is given twice, or does not resolve.
pub(crate) fn resolve(texts: &[String], options: &TlsOptions) -> Result<Upstreams> {
    let given: Vec<Given<'_>> = texts.iter().map(|t| Given::of(t)).collect::<Result<_>>()?;
    let urls = urls(texts)?;
    for (at, one) in given.iter().enumerate() {
        let mut before = given[..at].iter().zip(&urls);
        let twice = before.any(|(other, url)| {
            other.prefix == one.prefix && (!one.prefix.is_empty() || *url == urls[at])
        });
        if twice && one.prefix.is_empty() {
            bail!("--upstream {} is given twice", one.shown());
        }
        if twice {
            bail!(
                "--upstream {}=… is given twice\nhint: only servers without a prefix take turns",
                one.prefix
            );
        }
    }
    let resolved = given.iter().zip(&urls);
    let resolved = resolved.map(|(given, url)| given.resolve(url, options));
    Ok(Upstreams::new(resolved.collect::<Result<_>>()?))
}

/// The servers' URLs, as they were given.
///
/// # Errors
/// When one cannot be understood.
pub(crate) fn urls(texts: &[String]) -> Result<Vec<Url>> {
    texts.iter().map(|text| Given::of(text)?.parse()).collect()
}

/// All of them in one line, without secrets.
pub(crate) fn shown(texts: &[String]) -> String {
    let one = |text: &String| Given::of(text).map_or_else(|_| mask_url(text), |g| g.shown());
    texts.iter().map(one).collect::<Vec<_>>().join(", ")
}

pub(crate) fn to_json(upstreams: &Upstreams) -> Value {
    let one = |upstream: &Upstream| {
        json!({
            "prefix": upstream.prefix,
            "origin": upstream.origin,
            "base_path": upstream.base_path,
        })
    };
    upstreams.all().iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(texts: &[&str]) -> Result<Vec<(String, Option<String>, String)>> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let upstreams = resolve(&texts, &TlsOptions::default())?;
        let parts = |u: &Upstream| (u.prefix.clone(), u.base_path.clone(), u.origin.clone());
        Ok(upstreams.all().iter().map(parts).collect())
    }

    #[test]
    fn a_url_with_a_path_stands_in_place_of_its_prefix() {
        let found = resolved(&[
            "http://127.0.0.1:1/api/",
            "/keeps=http://127.0.0.1:2",
            "/goes/=http://127.0.0.1:3/",
        ]);
        let expected = [
            ("/keeps", None, "http://127.0.0.1:2"),
            ("/goes", Some(""), "http://127.0.0.1:3"),
            ("", Some("/api"), "http://127.0.0.1:1"),
        ];
        let found = found.unwrap();
        assert_eq!(found.len(), expected.len());
        for ((prefix, base, origin), wanted) in found.iter().zip(expected) {
            assert_eq!((prefix.as_str(), base.as_deref(), origin.as_str()), wanted);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said_without_secrets() {
        for (texts, message) in [
            (&["/a"][..], "names no server"),
            (&["/a*=http://127.0.0.1:1"], "a prefix that is no path"),
            (&["/a?b=http://127.0.0.1:1"], "a prefix that is no path"),
            (&["/a=ftp://127.0.0.1:1"], "/a=ftp://127.0.0.1:1"),
            (
                &["/a=http://u:s3cret@127.0.0.1:1"],
                "has a user or password",
            ),
            (
                &["/a=http://127.0.0.1:1", "/a/=http://127.0.0.1:2"],
                "/a=… is given twice",
            ),
            (
                &["http://127.0.0.1:1", "http://127.0.0.1:1/"],
                "http://127.0.0.1:1/ is given twice",
            ),
        ] {
            let error = format!("{:#}", resolved(texts).unwrap_err());
            assert!(error.contains(message), "{texts:?}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
