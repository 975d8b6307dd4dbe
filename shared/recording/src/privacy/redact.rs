//! `--redact`: what the user wants gone from texts that are otherwise kept.
//!
//! A pointer removes by place, a regular expression by content. Both fail closed:
//! where a pointer cannot be followed, because the text is no whole JSON document
//! (an HTML error page, a payload that was cut), all of the text goes.

use bytes::Bytes;
use regex::Regex;
use tapedeck_wire::words::Outcome;

use super::Privacy;
use super::json::{Scan, Step, edited};
use crate::event::{EventBatch, Pairs, RequestRow, ResponseRow};

/// What stands for a text that was removed.
pub const REDACTED: &str = "[redacted]";
const REDACTED_JSON: &str = "\"[redacted]\"";

/// Beginning of a rule that is a regular expression.
const REGEX_PREFIX: &str = "re:";

/// A rule that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error(
        "{0} is no redaction rule\nhint: a JSON pointer such as /messages/*/content, or re:PATTERN"
    )]
    Kind(String),
    #[error("{rule} is no JSON pointer: {problem}")]
    Pointer { rule: String, problem: &'static str },
    #[error("{rule} is no regular expression: {problem}")]
    Regex { rule: String, problem: String },
}

/// One rule: a JSON pointer (RFC 6901) in which `*` stands for every element or
/// member, or `re:` and a regular expression.
#[derive(Debug, Clone)]
pub struct Rule {
    text: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Pointer(Vec<Step>),
    Regex(Regex),
}

impl std::str::FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let what = if let Some(pattern) = text.strip_prefix(REGEX_PREFIX) {
            What::Regex(regex(text, pattern)?)
        } else if text.starts_with('/') {
            What::Pointer(pointer(text)?)
        } else {
            return Err(RuleError::Kind(text.to_owned()));
        };
        Ok(Self {
            text: text.to_owned(),
            what,
        })
    }
}

fn regex(rule: &str, pattern: &str) -> Result<Regex, RuleError> {
    let refuse = |problem: String| RuleError::Regex {
        rule: rule.to_owned(),
        problem,
    };
    // The last line of the message names the problem, those before draw it.
    let regex = Regex::new(pattern)
        .map_err(|e| refuse(e.to_string().lines().last().unwrap_or_default().to_owned()))?;
    if regex.is_match("") {
        return Err(refuse("it matches the empty text".to_owned()));
    }
    Ok(regex)
}

fn pointer(rule: &str) -> Result<Vec<Step>, RuleError> {
    rule.split('/')
        .skip(1)
        .map(|step| match step {
            "*" => Some(Step::Every),
            step => unescaped(step).map(Step::Name),
        })
        .collect::<Option<_>>()
        .ok_or_else(|| RuleError::Pointer {
            rule: rule.to_owned(),
            problem: "~ stands only in ~0 (for ~) and ~1 (for /)",
        })
}

/// `~1` is `/`, `~0` is `~`.
fn unescaped(step: &str) -> Option<String> {
    let mut text = String::with_capacity(step.len());
    let mut chars = step.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(text)
}

/// All rules of a recording.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    rules: Vec<Rule>,
}

impl From<Vec<Rule>> for Redaction {
    fn from(rules: Vec<Rule>) -> Self {
        Self { rules }
    }
}

impl Scan for Redaction {
    fn replace(&self, text: &str) -> Option<String> {
        let mut replaced: Option<String> = None;
        for regex in self.regexes() {
            let current = replaced.as_deref().unwrap_or(text);
            if regex.is_match(current) {
                replaced = Some(regex.replace_all(current, REDACTED).into_owned());
            }
        }
        replaced
    }
}

impl Redaction {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules as they were given.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.text.as_str())
    }

    fn regexes(&self) -> impl Iterator<Item = &Regex> {
        self.rules.iter().filter_map(|rule| match &rule.what {
            What::Regex(regex) => Some(regex),
            What::Pointer(_) => None,
        })
    }

    fn pointers(&self) -> Vec<&[Step]> {
        let pointers = self.rules.iter().filter_map(|rule| match &rule.what {
            What::Pointer(steps) => Some(steps.as_slice()),
            What::Regex(_) => None,
        });
        pointers.collect()
    }

    /// `payload` (a body, or one chunk's data) without what the rules remove; `None`
    /// where that is nothing.
    #[must_use]
    pub fn payload(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let pointers = self.pointers();
        if let Ok(edited) = edited(payload, &pointers, REDACTED_JSON, self) {
            return edited;
        }
        let text = payload.trim_ascii();
        // The end marker of a stream says nothing about anybody.
        if text.is_empty() || text == b"[DONE]" {
            return None;
        }
        match std::str::from_utf8(payload) {
            Ok(text) if pointers.is_empty() => self.replace(text).map(String::into_bytes),
            _ => Some(REDACTED.into()),
        }
    }

    /// A text outside of any document. `None` where nothing is removed.
    #[must_use]
    pub fn text(&self, text: &str) -> Option<String> {
        self.replace(text)
    }

    pub(super) fn rows(&self, privacy: &Privacy, batch: &mut EventBatch) {
        batch
            .requests
            .iter_mut()
            .for_each(|r| self.request(privacy, r));
        batch
            .responses
            .iter_mut()
            .for_each(|r| self.response(privacy, r));
        self.chunks(batch);
    }

    fn request(&self, privacy: &Privacy, row: &mut RequestRow) {
        row.session_id = row.session_id.take().map(|id| privacy.hashed(&id));
        row.headers = row.headers.take().map(|h| self.headers(privacy, &h));
        self.word(&mut row.query);
        self.word(&mut row.model);
        if self.pointers().contains(&&[Step::Name("model".into())][..]) {
            row.model = row.model.take().map(|_| REDACTED.into());
        }
        let Some(body) = &row.body else { return };
        // Unkeyed, it would confirm a guess at what was removed.
        row.body_hash = row.body_hash.take().map(|_| privacy.hash(body).into());
        if let Some(body) = self.payload(body) {
            row.body = Some(Bytes::from(body));
        }
    }

    fn response(&self, privacy: &Privacy, row: &mut ResponseRow) {
        row.headers = row.headers.take().map(|h| self.headers(privacy, &h));
        row.trailers = row.trailers.take().map(|h| self.headers(privacy, &h));
        self.word(&mut row.finish_reason);
        let quotes_the_server = matches!(
            row.outcome,
            Outcome::HttpError | Outcome::StreamError | Outcome::Malformed
        );
        if quotes_the_server && self.regexes().count() < self.rules.len() {
            // Taken out of a document that a pointer leads through: the document
            // has it, as far as the rules let it.
            let class = |_| format!("{}: {REDACTED}", row.outcome.as_str()).into();
            row.error = row.error.take().map(class);
        }
        self.word(&mut row.error);
        if let Some(body) = row.body.as_ref().and_then(|body| self.payload(body)) {
            row.body = Some(Bytes::from(body));
        }
    }

    /// Writes the payloads anew where one of them changes.
    fn chunks(&self, batch: &mut EventBatch) {
        let chunks = &mut batch.chunks;
        let mut payloads = Vec::with_capacity(chunks.payloads.len());
        for row in &mut chunks.rows {
            self.word(&mut row.event);
            self.word(&mut row.event_id);
            let Some((offset, length)) = row.payload else {
                continue;
            };
            let payload = &chunks.payloads[offset as usize..(offset + length) as usize];
            let start = payloads.len();
            match self.payload(payload) {
                Some(changed) => payloads.extend_from_slice(&changed),
                None => payloads.extend_from_slice(payload),
            }
            row.payload = Some((start as u32, (payloads.len() - start) as u32));
        }
        chunks.payloads = payloads;
    }

    fn word(&self, word: &mut Option<std::sync::Arc<str>>) {
        if let Some(replaced) = word.as_deref().and_then(|text| self.replace(text)) {
            *word = Some(replaced.into());
        }
    }

    fn headers(&self, privacy: &Privacy, headers: &Pairs) -> Pairs {
        let headers = privacy.headers(headers);
        let one = |(name, value): &(String, String)| {
            let value = self.replace(value).unwrap_or_else(|| value.clone());
            (name.clone(), value)
        };
        headers.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction(rules: &[&str]) -> Redaction {
        let parse = |rule: &&str| rule.parse().unwrap();
        rules.iter().map(parse).collect::<Vec<Rule>>().into()
    }

    fn redacted(rules: &[&str], payload: &str) -> String {
        let out = redaction(rules).payload(payload.as_bytes());
        out.map_or_else(|| payload.to_owned(), |out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn rules_that_cannot_be_used_say_why() {
        for (rule, words) in [
            ("messages", "no redaction rule"),
            ("/a~2", "~0"),
            ("/a~", "~1"),
            ("re:(", "unclosed group"),
            ("re:a*", "empty text"),
            ("re:", "empty text"),
        ] {
            let message = rule.parse::<Rule>().unwrap_err().to_string();
            assert!(message.contains(words), "{rule}: {message}");
        }
        for rule in ["/", "/a~1b/~0", "/*/x", "re:\\d{3}"] {
            rule.parse::<Rule>().unwrap();
        }
    }

    #[test]
    fn pointers_remove_by_place_and_patterns_by_content() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"call 555-1234"}]}"#;
        assert_eq!(
            redacted(&["/messages/*/content"], body),
            r#"{"model":"m","messages":[{"role":"user","content":"[redacted]"}]}"#
        );
        assert_eq!(
            redacted(&[r"re:\d{3}-\d{4}"], body),
            body.replace("555-1234", REDACTED)
        );
        assert_eq!(
            redacted(&["/a~1b"], r#"{"a/b":1}"#),
            r#"{"a/b":"[redacted]"}"#
        );
    }

    #[test]
    fn what_no_pointer_can_be_followed_in_goes_whole() {
        let rules = &["/messages/*/content"];
        assert_eq!(redacted(rules, "<html>the prompt</html>"), REDACTED);
        assert_eq!(redacted(rules, r#"{"messages":[{"content":"cut"#), REDACTED);
        assert_eq!(redacted(rules, "[DONE]"), "[DONE]");
        assert_eq!(redacted(rules, ""), "");
        assert_eq!(redacted(&["re:cut"], "a cut text"), "a [redacted] text");
        let not_utf8 = redaction(&["re:cut"]).payload(b"\xff cut");
        assert_eq!(not_utf8.as_deref(), Some(REDACTED.as_bytes()));
    }
}
