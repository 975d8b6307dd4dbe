//! What is kept of prompts and answers: a pure function over rows, applied before
//! they reach the queue.
//!
//! Kinds, token counts, lengths and instants stay in every mode. Words that a
//! server or a client chose freely stay only where they look like words of a
//! protocol: a model's name, a finish reason, an event's name.

use std::io::Read;
use std::sync::Arc;

use tapedeck_wire::word_enum;

use crate::event::{ChunkRow, EventBatch, Pairs, RequestRow, ResponseRow};

word_enum! {
    /// What is kept, from most to least: everything; no text but keyed hashes of
    /// it, with kinds, token counts, lengths and instants; the same without hashes
    /// of bodies.
    Content { Full = "full", Hashed = "hashed", Lengths = "lengths" }
}

/// The policy of one recording. Its key is random, lives in memory only and is
/// never written: equal texts have equal hashes within a recording, and nobody can
/// find a text by hashing guesses.
#[derive(Clone)]
pub struct Privacy {
    content: Content,
    key: [u8; 32],
}

impl std::fmt::Debug for Privacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Privacy")
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

/// Headers that name a session: their values are hashed like the column.
const SESSION_HEADERS: &[&str] = &["x-session-id", "x-correlation-id"];

/// The longest word of a protocol.
const MAX_WORD_BYTES: usize = 128;

impl Privacy {
    /// A policy with a fresh key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(content: Content) -> std::io::Result<Self> {
        let mut key = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self { content, key })
    }

    /// The policy that keeps everything and needs no key.
    #[must_use]
    pub fn full() -> Self {
        Self {
            content: Content::Full,
            key: [0; 32],
        }
    }

    #[must_use]
    pub fn content(&self) -> Content {
        self.content
    }

    /// This policy or `content`, whichever keeps less; the key stays.
    #[must_use]
    pub fn at_least(&self, content: Content) -> Self {
        Self {
            content: self.content.max(content),
            key: self.key,
        }
    }

    /// The keyed hash of `bytes`: BLAKE3, first 128 bits, 32 hex digits.
    #[must_use]
    pub fn hash(&self, bytes: &[u8]) -> String {
        crate::hash_digits(&blake3::keyed_hash(&self.key, bytes))
    }

    /// Removes from a request what this policy does not keep.
    pub fn request(&self, row: &mut RequestRow) {
        if self.content == Content::Full {
            return;
        }
        row.session_id = row.session_id.take().map(|id| self.hashed(&id));
        row.model = row.model.take().filter(|model| is_word(model));
        row.headers = row.headers.take().map(|headers| self.headers(&headers));
        // Only the names of parameters: anything may stand in a value.
        row.query = row.query.take().map(|query| names_only(&query));
        let body = row.body.take();
        row.body_hash = match self.content {
            Content::Hashed => body.map(|body| self.hash(&body).into()),
            _ => None,
        };
    }

    /// Removes from a response what this policy does not keep.
    pub fn response(&self, row: &mut ResponseRow) {
        if self.content == Content::Full {
            return;
        }
        row.headers = row.headers.take().map(|headers| self.headers(&headers));
        row.trailers = row.trailers.take().map(|headers| self.headers(&headers));
        row.finish_reason = row.finish_reason.take().filter(|reason| is_word(reason));
        // Servers quote the prompt in their messages.
        row.error = row.error.take().map(|_| row.outcome.as_str().into());
        row.body = None;
    }

    /// Removes from a chunk what this policy does not keep; whether its payload
    /// may be kept.
    #[must_use]
    pub fn chunk(&self, row: &mut ChunkRow) -> bool {
        if self.content == Content::Full {
            return true;
        }
        row.event = row.event.take().filter(|event| is_word(event));
        row.event_id = None;
        row.payload = None;
        false
    }

    /// All of the above.
    pub fn batch(&self, batch: &mut EventBatch) {
        if self.content == Content::Full {
            return;
        }
        for row in &mut batch.requests {
            self.request(row);
        }
        for row in &mut batch.responses {
            self.response(row);
        }
        let mut kept = false;
        for row in &mut batch.chunks.rows {
            kept |= self.chunk(row);
        }
        if !kept {
            batch.chunks.payloads = Vec::new();
        }
    }

    fn headers(&self, headers: &Pairs) -> Pairs {
        let hashed = |(name, value): &(String, String)| {
            let value = if SESSION_HEADERS.contains(&name.as_str()) {
                self.hash(value.as_bytes())
            } else {
                value.clone()
            };
            (name.clone(), value)
        };
        headers.iter().map(hashed).collect()
    }

    fn hashed(&self, text: &Arc<str>) -> Arc<str> {
        self.hash(text.as_bytes()).into()
    }
}

fn is_word(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@+".contains(&b);
    text.len() <= MAX_WORD_BYTES && text.bytes().all(allowed)
}

fn names_only(query: &str) -> Arc<str> {
    let names = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) => format!("{name}=***"),
        // A value without a name.
        None => "***".to_owned(),
    });
    names.collect::<Vec<_>>().join("&").into()
}

#[cfg(test)]
mod tests;
