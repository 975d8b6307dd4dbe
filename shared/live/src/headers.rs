//! Which headers reach a recording.

use http::HeaderMap;
use tapedeck_recording::Pairs;

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

/// The recorded part of `headers`, in their order. Values that are not text are
/// kept as their readable ASCII.
#[must_use]
pub fn recorded_headers(headers: &HeaderMap) -> Pairs {
    headers
        .iter()
        .filter(|(name, _)| ALLOWED.contains(&name.as_str()))
        .map(|(name, value)| {
            let text = value.as_bytes().escape_ascii().to_string();
            (name.as_str().to_owned(), text)
        })
        .collect()
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
}
