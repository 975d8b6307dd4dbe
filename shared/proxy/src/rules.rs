//! Which requests are recorded, and what session they belong to.

use http::{HeaderMap, HeaderName, Method};
use serde_json::Value;
use tapedeck_recording::Content;
use tapedeck_wire::dialect::Api;

use crate::metrics::Reason;

/// A client's wish about its own request: `off`, `hashed` or `lengths`. Never
/// passed on.
pub(crate) const WISH_HEADER: &str = "x-tapedeck-record";

/// A path to record: a prefix, or, with `*` for any run of characters, the whole
/// path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else {
            return path.starts_with(&self.0);
        };
        let Some(mut path) = path.strip_prefix(head) else {
            return false;
        };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        for piece in middle.split('*') {
            match path.find(piece) {
                Some(at) => path = &path[at + piece.len()..],
                None => return false,
            }
        }
        path.ends_with(tail)
    }
}

/// What decides whether and how a request is recorded.
#[derive(Debug, Clone)]
pub struct Rules {
    pub patterns: Vec<Pattern>,
    /// The API of paths that do not tell it by their end.
    pub default_api: Api,
    pub session_header: HeaderName,
    /// JSON pointer into the body, where the header is missing.
    pub session_field: Option<String>,
    /// Share of sessions that are recorded, from 0 to 1.
    pub sample: f64,
}

/// What is to be done about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Keep at most this of it.
    Record(Api, Content),
    Pass(Reason),
}

impl Rules {
    /// Paths of the OpenAI APIs and of `api`, under any prefix.
    #[must_use]
    pub fn default_patterns(api: Api) -> Vec<Pattern> {
        let mut patterns = vec![
            Pattern::new("*/chat/completions"),
            Pattern::new("*/completions"),
        ];
        if !matches!(api, Api::OpenAiChat | Api::OpenAiCompletions) {
            let own = api.dialect().path_patterns();
            patterns.extend(own.map(|path| Pattern(format!("*{path}"))));
        }
        patterns
    }

    pub(crate) fn plan(&self, method: &Method, path: &str, headers: &HeaderMap) -> Plan {
        let known = self.patterns.iter().any(|pattern| pattern.matches(path));
        if !known || method != Method::POST {
            return Plan::Pass(Reason::Path);
        }
        let wish = headers.get(WISH_HEADER);
        let wish = wish.map(|value| value.as_bytes().trim_ascii().to_ascii_lowercase());
        match wish.as_deref() {
            Some(b"off") => Plan::Pass(Reason::Off),
            Some(b"hashed") => Plan::Record(self.api(path), Content::Hashed),
            Some(b"lengths") => Plan::Record(self.api(path), Content::Lengths),
            // Whoever sets the header wants less recorded: an unknown word must
            // not mean more.
            Some(word) if word != b"full" && word != b"on" => Plan::Pass(Reason::Off),
            _ => Plan::Record(self.api(path), Content::Full),
        }
    }

    fn api(&self, path: &str) -> Api {
        if self.default_api.dialect().serves(path) {
            self.default_api
        } else if path.ends_with("/chat/completions") {
            Api::OpenAiChat
        } else if path.ends_with("/completions") {
            Api::OpenAiCompletions
        } else {
            self.default_api
        }
    }

    pub(crate) fn session(&self, headers: &HeaderMap, body: &[u8]) -> Option<String> {
        let header = headers.get(&self.session_header);
        let named = header.and_then(|value| value.to_str().ok());
        if let Some(id) = named.filter(|id| !id.is_empty()) {
            return Some(id.to_owned());
        }
        let pointer = self.session_field.as_deref()?;
        let body: Value = serde_json::from_slice(body).ok()?;
        match body.pointer(pointer)? {
            Value::String(id) => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        }
    }

    /// Whether a session is among those recorded. Requests without one are drawn
    /// one by one, by `fallback`. Equal sessions have equal answers, in every
    /// proxy and after every start.
    pub(crate) fn samples(&self, session: Option<&str>, fallback: u64) -> bool {
        if self.sample >= 1.0 {
            return true;
        }
        let hash = match session {
            Some(id) => blake3::hash(id.as_bytes()),
            None => blake3::hash(&fallback.to_le_bytes()),
        };
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        (u64::from_le_bytes(first) as f64) < self.sample * u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            patterns: Rules::default_patterns(Api::OpenAiChat),
            default_api: Api::OpenAiChat,
            session_header: HeaderName::from_static("x-session-id"),
            session_field: Some("/metadata/session".into()),
            sample: 1.0,
        }
    }

    #[test]
    fn patterns_are_prefixes_or_globs() {
        for (pattern, path, expected) in [
            ("/v1/", "/v1/chat/completions", true),
            ("/v1/", "/v2/chat/completions", false),
            ("*/completions", "/v1/chat/completions", true),
            ("*/completions", "/v1/completions/x", false),
            ("/a/*/c/*", "/a/b/c/d", true),
            ("/a/*/c/*", "/a/c/d", false),
            ("/a*b*a", "/aba", true),
            ("/a*a", "/a", false),
            ("*", "", true),
        ] {
            let found = Pattern::new(pattern).matches(path);
            assert_eq!(found, expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_wish_can_only_lessen_what_is_recorded() {
        let plan = |path: &str, wish: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(wish) = wish {
                headers.insert(WISH_HEADER, wish.parse().unwrap());
            }
            rules().plan(&Method::POST, path, &headers)
        };
        let chat = "/v1/chat/completions";
        let full = Plan::Record(Api::OpenAiChat, Content::Full);
        assert_eq!(plan(chat, None), full);
        assert_eq!(plan(chat, Some("Off")), Plan::Pass(Reason::Off));
        assert_eq!(plan(chat, Some("no, please")), Plan::Pass(Reason::Off));
        let hashed = Plan::Record(Api::OpenAiCompletions, Content::Hashed);
        assert_eq!(plan("/v1/completions", Some(" hashed ")), hashed);
        assert_eq!(plan("/v1/models", None), Plan::Pass(Reason::Path));
        let get = rules().plan(&Method::GET, chat, &HeaderMap::new());
        assert_eq!(get, Plan::Pass(Reason::Path));
    }

    #[test]
    fn the_paths_of_the_api_are_recorded_too() {
        let api = |name| Api::from_word(name).unwrap();
        for (name, path) in [
            ("ollama", "/api/chat"),
            ("tgi", "/generate"),
            ("triton", "/gate/v2/models/some-model/generate_stream"),
        ] {
            let rules = Rules {
                patterns: Rules::default_patterns(api(name)),
                default_api: api(name),
                ..rules()
            };
            let plan = |path| rules.plan(&Method::POST, path, &HeaderMap::new());
            assert_eq!(plan(path), Plan::Record(api(name), Content::Full));
            let chat = Plan::Record(Api::OpenAiChat, Content::Full);
            assert_eq!(plan("/v1/chat/completions"), chat);
            assert_eq!(plan("/other"), Plan::Pass(Reason::Path));
        }
    }

    #[test]
    fn a_session_comes_from_its_header_else_from_the_body() {
        let mut headers = HeaderMap::new();
        let body = br#"{"metadata":{"session":"b"}}"#;
        assert_eq!(rules().session(&headers, body).as_deref(), Some("b"));
        assert_eq!(rules().session(&headers, b"x"), None);
        headers.insert("x-session-id", "h".parse().unwrap());
        assert_eq!(rules().session(&headers, body).as_deref(), Some("h"));
    }

    #[test]
    fn a_tenth_of_the_sessions_is_a_tenth_and_always_the_same() {
        let mut rules = rules();
        rules.sample = 0.1;
        let chosen = |rules: &Rules| {
            let sessions = (0..10_000).map(|i| format!("session {i}"));
            sessions
                .filter(|id| rules.samples(Some(id), 0))
                .collect::<Vec<_>>()
        };
        let found = chosen(&rules);
        assert!((900..1100).contains(&found.len()), "{}", found.len());
        assert_eq!(found, chosen(&rules));
        rules.sample = 0.0;
        assert!(!rules.samples(None, 7));
    }
}
