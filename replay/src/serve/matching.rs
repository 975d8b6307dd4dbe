//! Which recorded answer a request gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tapedeck_recording::body_hash;
use tapedeck_wire::dialect::Api;

/// What was asked for when an answer was recorded.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) t_sent_ns: i64,
    /// `None` where there was no body.
    pub(crate) body_hash: Option<String>,
    /// See [`keys_of`].
    pub(crate) keys: Option<String>,
    pub(crate) method: Arc<str>,
    pub(crate) path: Arc<str>,
    pub(crate) stream: bool,
    pub(crate) api: Api,
    pub(crate) on_reused_connection: bool,
}

/// Why an answer was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The bodies are equal.
    Body,
    /// They are equal in the places of `--match-on`.
    Keys,
    /// It is the next one that nobody got.
    Order,
}

impl Rule {
    pub(crate) const ALL: [Self; 3] = [Self::Body, Self::Keys, Self::Order];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Keys => "keys",
            Self::Order => "order",
        }
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: usize,
    pub(crate) rule: Rule,
    /// Whether nobody got it before.
    pub(crate) first_time: bool,
}

/// Answers to one question: given in turn, and then from the first again.
#[derive(Debug, Default)]
struct Turn {
    answers: Vec<usize>,
    next: usize,
}

impl Turn {
    fn take(&mut self) -> usize {
        let at = self.next;
        self.next = (at + 1) % self.answers.len();
        self.answers[at]
    }
}

/// Answers to the same kind of request, in the order of those.
#[derive(Debug)]
struct Queue {
    method: Arc<str>,
    path: Arc<str>,
    stream: bool,
    api: Api,
    answers: Vec<usize>,
    /// All before it have been given.
    next: usize,
}

/// Finds answers, by their index, and knows which have been given.
#[derive(Debug)]
pub(crate) struct Book {
    match_on: Vec<String>,
    by_body: BTreeMap<String, Turn>,
    by_keys: BTreeMap<String, Turn>,
    /// Empty where order is no reason.
    queues: Vec<Queue>,
    given: Vec<bool>,
}

impl Book {
    /// `asked` are the questions of all answers, in the order of their sending.
    pub(crate) fn new<'a>(
        asked: impl Iterator<Item = &'a Asked>,
        match_on: &[String],
        in_order: bool,
    ) -> Self {
        let mut book = Self {
            match_on: match_on.to_vec(),
            by_body: BTreeMap::new(),
            by_keys: BTreeMap::new(),
            queues: Vec::new(),
            given: Vec::new(),
        };
        for (index, asked) in asked.enumerate() {
            book.given.push(false);
            if let Some(hash) = &asked.body_hash {
                let turn = book.by_body.entry(hash.clone()).or_default();
                turn.answers.push(index);
            }
            if let Some(keys) = &asked.keys {
                let turn = book.by_keys.entry(keys.clone()).or_default();
                turn.answers.push(index);
            }
            if in_order {
                book.enqueue(index, asked);
            }
        }
        book
    }

    fn enqueue(&mut self, index: usize, asked: &Asked) {
        let same = |queue: &&mut Queue| {
            queue.method == asked.method && queue.path == asked.path && queue.stream == asked.stream
        };
        if let Some(queue) = self.queues.iter_mut().find(same) {
            queue.answers.push(index);
            return;
        }
        self.queues.push(Queue {
            method: Arc::clone(&asked.method),
            path: Arc::clone(&asked.path),
            stream: asked.stream,
            api: asked.api,
            answers: vec![index],
            next: 0,
        });
    }

    /// The answer to a request, and why.
    pub(crate) fn find(&mut self, method: &str, path: &str, body: &[u8]) -> Option<Found> {
        let (index, rule) = self
            .by_body(body)
            .map(|index| (index, Rule::Body))
            .or_else(|| Some((self.by_keys(body)?, Rule::Keys)))
            .or_else(|| Some((self.by_order(method, path, body)?, Rule::Order)))?;
        let first_time = !std::mem::replace(&mut self.given[index], true);
        Some(Found {
            index,
            rule,
            first_time,
        })
    }

    fn by_body(&mut self, body: &[u8]) -> Option<usize> {
        if body.is_empty() {
            return None;
        }
        self.by_body.get_mut(&body_hash(body)).map(Turn::take)
    }

    fn by_keys(&mut self, body: &[u8]) -> Option<usize> {
        let keys = keys_of(body, &self.match_on)?;
        self.by_keys.get_mut(&keys).map(Turn::take)
    }

    /// Whether a stream is asked for is read as the recorder of that path read it.
    fn by_order(&mut self, method: &str, path: &str, body: &[u8]) -> Option<usize> {
        let fits = |queue: &Queue| {
            let facts = || tapedeck_wire::dialect::request_facts(queue.api, path, body);
            *queue.method == *method && queue.stream == facts().stream
        };
        let mut queues = self.queues.iter_mut();
        let queue = queues.find(|queue| *queue.path == *path && fits(queue));
        let queue = match queue {
            Some(queue) => queue,
            // Recorded behind a longer path, or a shorter one.
            None => self.queues.iter_mut().find(|queue| {
                let ends = |long: &str, short: &str| short != "/" && long.ends_with(short);
                (ends(&queue.path, path) || ends(path, &queue.path)) && fits(queue)
            })?,
        };
        let given = |index: &usize| self.given[*index];
        while queue.answers.get(queue.next).is_some_and(given) {
            queue.next += 1;
        }
        queue.answers.get(queue.next).copied()
    }
}

/// A hash of what `body` has in the places of `pointers`, for whole prompts are too
/// long to keep; `None` where it is no JSON, or has nothing in any of them.
pub(crate) fn keys_of(body: &[u8], pointers: &[String]) -> Option<String> {
    if pointers.is_empty() {
        return None;
    }
    let body: Value = serde_json::from_slice(body).ok()?;
    let mut keys = String::new();
    let mut found = false;
    for pointer in pointers {
        // Nothing is not null: no JSON text is empty.
        if let Some(value) = body.pointer(pointer) {
            found = true;
            write_sorted(value, &mut keys);
        }
        keys.push('\n');
    }
    found.then(|| body_hash(keys.as_bytes()))
}

/// JSON with its fields in order of their names: clients order them as they like.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            out.push('{');
            for name in names {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_sorted(&fields[name.as_str()], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn asked(path: &str, body: &str, pointers: &[String]) -> Asked {
        Asked {
            t_sent_ns: 0,
            body_hash: Some(body_hash(body.as_bytes())),
            keys: keys_of(body.as_bytes(), pointers),
            method: "POST".into(),
            path: path.into(),
            stream: body.contains("\"stream\":true"),
            api: Api::OpenAiChat,
            on_reused_connection: false,
        }
    }

    fn book(bodies: &[&str], pointers: &[&str], in_order: bool) -> Book {
        let pointers: Vec<String> = pointers.iter().map(|p| (*p).to_owned()).collect();
        let asked: Vec<Asked> = bodies.iter().map(|b| asked(CHAT, b, &pointers)).collect();
        Book::new(asked.iter(), &pointers, in_order)
    }

    fn find(book: &mut Book, path: &str, body: &str) -> Option<(usize, Rule)> {
        let found = book.find("POST", path, body.as_bytes())?;
        Some((found.index, found.rule))
    }

    #[test]
    fn equal_bodies_are_answered_in_turn_and_from_the_first_again() {
        let mut book = book(&["{\"a\":1}", "{\"a\":2}", "{\"a\":1}"], &[], true);
        let mut ask = |body: &str| find(&mut book, CHAT, body).unwrap();
        let by_body: Vec<_> = (0..3).map(|_| ask("{\"a\":1}")).collect();
        assert_eq!(by_body, [(0, Rule::Body), (2, Rule::Body), (0, Rule::Body)]);
        // What order gives is what nobody got.
        assert_eq!(ask("{\"a\":9}"), (1, Rule::Order));
        assert_eq!(find(&mut book, CHAT, "{\"a\":9}"), None);
    }

    #[test]
    fn keys_come_before_order_and_know_no_order_of_fields() {
        let recorded = [
            r#"{"model":"m","seed":1,"messages":[{"role":"user","content":"a"}]}"#,
            r#"{"model":"m","seed":1,"messages":[{"role":"user","content":"b"}]}"#,
        ];
        let mut book = book(&recorded, &["/messages", "/absent"], false);
        let again = r#"{"messages":[{"content":"b","role":"user"}],"seed":2}"#;
        assert_eq!(find(&mut book, CHAT, again), Some((1, Rule::Keys)));
        for unknown in [r#"{"messages":[]}"#, "{}", "not json", ""] {
            assert_eq!(find(&mut book, CHAT, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn order_keeps_paths_and_streams_apart() {
        let stream = r#"{"n":1,"stream":true}"#;
        let mut book = book(&["{\"n\":1}", stream, "{\"n\":2}"], &[], true);
        let mut ask = |path: &str, body: &str| find(&mut book, path, body).map(|found| found.0);
        assert_eq!(ask("/v1/embeddings", "{}"), None);
        assert_eq!(ask("/", "{}"), None);
        assert_eq!(ask(CHAT, r#"{"stream":true}"#), Some(1));
        assert_eq!(ask("/base/v1/chat/completions", "{}"), Some(0));
        assert_eq!(ask("/chat/completions", "{}"), Some(2));
        assert_eq!(ask(CHAT, "{}"), None);
        assert_eq!(book.find("PUT", CHAT, b"{}"), None);
    }

    #[test]
    fn nothing_is_not_null() {
        let pointers = ["/a".to_owned(), "/b".to_owned()];
        let keys = |body: &str| keys_of(body.as_bytes(), &pointers);
        assert_eq!(keys("{\"c\":1}"), None);
        assert_ne!(keys("{\"a\":null,\"b\":1}"), keys("{\"b\":1}"));
        assert_ne!(keys("{\"a\":1}"), keys("{\"b\":1}"));
        assert_eq!(keys_of(b"{\"a\":1}", &[]), None);
    }
}
