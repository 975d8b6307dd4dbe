//! What is kept of prompts and answers.
//!
//! Text that a mode does not keep leaves the rows before they reach the queue, by a
//! pure function. What costs more than that, block hashes and `--redact`, is the
//! [`Scrubber`]'s, on the writer's thread: behind the instants, before the log.
//!
//! Kinds, token counts, lengths and instants stay in every mode. Words that a
//! server or a client chose freely stay only where they look like words of a
//! protocol: a model's name, a finish reason, an event's name.

mod blocks;
mod json;
mod prompt;
mod redact;
mod scrub;

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use tapedeck_wire::word_enum;

use crate::event::{ChunkRow, EventBatch, HiddenPrompt, Pairs, RequestRow, ResponseRow};

pub use blocks::{BLOCK_BYTES, BLOCK_TOKENS, BlockSpec, Encode, KNOWN_BLOCKS, TokenizerName};
pub use redact::{REDACTED, Redaction, Rule, RuleError};
pub use scrub::Scrubber;

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
    redaction: Arc<Redaction>,
    blocks: Arc<BlockSpec>,
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
        Self {
            content,
            ..Self::full()
        }
        .with_new_key()
    }

    /// The same policy for another recording.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn with_new_key(&self) -> std::io::Result<Self> {
        let mut key = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self {
            key,
            ..self.clone()
        })
    }

    /// Removes what `redaction` says, too.
    #[must_use]
    pub fn redacting(self, redaction: Redaction) -> Self {
        Self {
            redaction: Arc::new(redaction),
            ..self
        }
    }

    /// Cuts prompts as `blocks` says, where it hashes them.
    #[must_use]
    pub fn with_blocks(self, blocks: BlockSpec) -> Self {
        Self {
            blocks: Arc::new(blocks),
            ..self
        }
    }

    #[must_use]
    pub fn redaction(&self) -> &Redaction {
        &self.redaction
    }

    #[must_use]
    pub fn blocks(&self) -> &BlockSpec {
        &self.blocks
    }

    /// Whether a hash of a text that is kept whole, or not at all, must be keyed.
    #[must_use]
    pub fn hides_text(&self) -> bool {
        self.content != Content::Full || !self.redaction.is_empty()
    }

    /// The policy that keeps everything and needs no key.
    #[must_use]
    pub fn full() -> Self {
        Self {
            content: Content::Full,
            key: [0; 32],
            redaction: Arc::default(),
            blocks: Arc::default(),
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
            ..self.clone()
        }
    }

    /// The keyed hash of `bytes`: BLAKE3, first 128 bits, 32 hex digits.
    #[must_use]
    pub fn hash(&self, bytes: &[u8]) -> String {
        crate::hash_digits(&blake3::keyed_hash(&self.key, bytes))
    }

    /// Removes from a request what this policy does not keep. In `hashed` that gives
    /// the body, for [`EventBatch::push_request`].
    pub fn request(&self, row: &mut RequestRow) -> Option<Bytes> {
        if self.content == Content::Full {
            return None;
        }
        row.session_id = row.session_id.take().map(|id| self.hashed(&id));
        row.model = row.model.take().filter(|model| is_word(model));
        row.headers = row.headers.take().map(|headers| self.headers(&headers));
        // Only the names of parameters: anything may stand in a value.
        row.query = row.query.take().map(|query| names_only(&query));
        row.body_hash = None;
        row.body.take().filter(|_| self.content == Content::Hashed)
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
        for (request, row) in batch.requests.iter_mut().enumerate() {
            let hidden = self.request(row);
            let prompts = &mut batch.prompts;
            prompts.extend(hidden.map(|body| HiddenPrompt { request, body }));
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

    /// Headers with the names of sessions hashed.
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
