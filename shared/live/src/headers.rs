//! Which headers reach a recording.

use http::{HeaderMap, HeaderName, header};
use tapedeck_recording::Pairs;
use url::Url;

/// Headers that are recorded, by exact name. Everything else stays out, so a
/// credential under a name nobody thought of does too.
const ALLOWED: &[&str] = &[
    "accept",
    "accept-encoding",
    "age",
    "alt-svc",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "grpc-encoding",
    "grpc-status",
    "keep-alive",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "server",
    "server-timing",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "x-correlation-id",
    "x-envoy-upstream-service-time",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-session-id",
];

/// Whether headers of this name are recorded.
#[must_use]
pub fn is_recorded(name: &HeaderName) -> bool {
    ALLOWED.contains(&name.as_str())
}

/// The recorded part of `headers`, in their order. Values that are not text are
/// kept as their readable ASCII.
#[must_use]
pub fn recorded_headers(headers: &HeaderMap) -> Pairs {
    headers
        .iter()
        .filter(|(name, _)| is_recorded(name))
        .map(|(name, value)| {
            let text = value.as_bytes().escape_ascii().to_string();
            (name.as_str().to_owned(), text)
        })
        .collect()
}

/// Where an answer with `headers` to a request for `url` redirects to, fit for a
/// message: user, password, query and fragment may be secrets and are left out.
#[must_use]
pub fn redirect_target(url: &Url, headers: &HeaderMap) -> Option<String> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let mut target = url.join(location).ok().filter(Url::has_host)?;
    // Fails only for URLs that cannot have a user, and those have no host.
    target.set_username("").ok();
    target.set_password(None).ok();
    target.set_query(None);
    target.set_fragment(None);
    Some(target.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn credentials_and_unknown_headers_stay_out() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "cookie",
            "x-api-key",
            "api-key",
            "x-my-token",
        ] {
            headers.insert(name, HeaderValue::from_static("s3cret"));
        }
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let kept = recorded_headers(&headers);
        assert_eq!(&*kept, [("content-type".into(), "application/json".into())]);
    }

    #[test]
    fn a_redirects_target_is_absolute_and_without_secrets() {
        let url = Url::parse("http://h:8000/v1/chat/completions").expect("a URL");
        let target = |location: &str| {
            let mut headers = HeaderMap::new();
            let location = HeaderValue::from_str(location).expect("a value");
            headers.insert(header::LOCATION, location);
            redirect_target(&url, &headers)
        };
        for (location, expected) in [
            ("/elsewhere?key=s3cret", Some("http://h:8000/elsewhere")),
            ("https://u:s3cret@other/v1#s3cret", Some("https://other/v1")),
            ("//me@other/v1", Some("http://other/v1")),
            ("completions/", Some("http://h:8000/v1/chat/completions/")),
            ("mailto:u@s3cret", None),
            ("http://", None),
        ] {
            assert_eq!(target(location).as_deref(), expected, "{location}");
        }
        assert_eq!(redirect_target(&url, &HeaderMap::new()), None);
    }
}
