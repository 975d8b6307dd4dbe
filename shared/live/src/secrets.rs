//! Secrets that a server quotes back: error messages like to repeat the key that
//! was wrong.

use bytes::Bytes;
use http::{HeaderMap, header};
use tapedeck_wire::response::ResponseEnd;

use crate::headers::is_recorded;

const MASK: &[u8] = b"***";

/// Shorter values are words like `on`: nothing would be left of a message.
const MIN_BYTES: usize = 6;

/// Headers outside the allow-list whose values are no secrets.
const HARMLESS: &[&str] = &[
    "host", "expect", "origin", "pragma", "referer", "te", "upgrade",
];
const HARMLESS_BEGINNINGS: &[&str] = &["accept-", "sec-", "x-forwarded-", "x-stainless-"];

/// What one request told its server and no recording, log or message may show.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Those in the `headers` that are not recorded, and the values in which the
    /// query that was sent differs from the one that is shown.
    #[must_use]
    pub fn of(headers: &HeaderMap, sent: Option<&str>, shown: Option<&str>) -> Self {
        let mut secrets = Self::default();
        for (name, value) in headers {
            if is_recorded(name) || is_harmless(name.as_str()) {
                continue;
            }
            let value = value.as_bytes();
            secrets.add(value);
            // The scheme of `Bearer …` is no part of what would be quoted.
            if let Some(at) = value.iter().position(|b| *b == b' ') {
                secrets.add(&value[at + 1..]);
            }
            if name == header::COOKIE {
                for pair in value.split(|b| *b == b';') {
                    let at = pair.iter().position(|b| *b == b'=');
                    secrets.add(&pair[at.map_or(0, |at| at + 1)..]);
                }
            }
        }
        let pairs = |query: Option<&str>| query.unwrap_or_default().to_owned();
        let (sent, shown) = (pairs(sent), pairs(shown));
        for (sent, shown) in sent.split('&').zip(shown.split('&')) {
            if sent != shown
                && let Some((_, value)) = sent.split_once('=')
            {
                secrets.add(value.as_bytes());
            }
        }
        // A secret that holds another goes first.
        secrets
            .0
            .sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }

    fn add(&mut self, value: &[u8]) {
        let value = value.trim_ascii();
        if value.len() >= MIN_BYTES {
            self.0.push(value.to_vec());
        }
    }

    /// `text` without them; `None` where it holds none.
    #[must_use]
    pub fn masked(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut masked: Option<Vec<u8>> = None;
        for secret in &self.0 {
            let current = masked.as_deref().unwrap_or(text);
            if let Some(replaced) = without(current, secret) {
                masked = Some(replaced);
            }
        }
        masked
    }

    /// Masks the message and the body of an answer that failed.
    pub fn mask_end(&self, end: &mut ResponseEnd) {
        let message = end.error.as_ref().and_then(|e| self.masked(e.as_bytes()));
        if let Some(message) = message {
            // Only a secret that is no UTF-8 leaves none behind.
            end.error = Some(String::from_utf8(message).unwrap_or_default());
        }
        if let Some(body) = end.body.as_ref().and_then(|body| self.masked(body)) {
            end.body = Some(Bytes::from(body));
        }
    }
}

fn is_harmless(name: &str) -> bool {
    let begins = |beginning: &&str| name.starts_with(beginning);
    HARMLESS.contains(&name) || HARMLESS_BEGINNINGS.iter().any(begins)
}

fn without(text: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(secret.len()).position(|w| w == secret) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(MASK);
        rest = &rest[at + secret.len()..];
    }
    if rest.len() == text.len() {
        return None;
    }
    out.extend_from_slice(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn whatever_a_server_quotes_is_masked() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer sk-one-1"),
            ("cookie", "a=cookie-2; theme=dark"),
            ("x-api-key", "three-3"),
            ("content-type", "application/json"),
            ("host", "example.org"),
            ("x-flag", "on"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let secrets = Secrets::of(&headers, Some("v=1&key=four-44&"), Some("v=1&key=***&"));
        let quoted = "sk-one-1 cookie-2 three-3 four-44 application/json example.org on dark";
        let masked = secrets.masked(quoted.as_bytes()).unwrap();
        let masked = String::from_utf8(masked).unwrap();
        assert_eq!(
            masked,
            "*** *** *** *** application/json example.org on dark"
        );
        assert_eq!(secrets.masked(b"nothing of it"), None);
    }
}
