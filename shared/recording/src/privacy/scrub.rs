//! The writer's part of a policy: what is too dear for the threads that read
//! sockets.

use crate::event::{EventBatch, MarkRow};

use super::Privacy;
use super::blocks::{Blocks, KNOWN_BLOCKS};

/// `input_tokens_source` of a prompt that a tokenizer of ours counted.
const COUNTED_BY_TOKENIZER: &str = "tokenizer";

/// Hashes hidden prompts and redacts what is kept, batch by batch, before anything
/// of it reaches the log. Memory: the dictionary of block ids, [`KNOWN_BLOCKS`] of
/// them at most.
#[derive(Debug)]
pub struct Scrubber {
    privacy: Privacy,
    pub(super) blocks: Blocks,
    watch: Option<Watch>,
}

/// Is shown rows as they will be written.
type OnRows = dyn FnMut(&EventBatch) + Send;

struct Watch(Box<OnRows>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Scrubber {
    /// The scrubber of one recording.
    #[must_use]
    pub fn new(privacy: &Privacy) -> Self {
        Self {
            blocks: Blocks::new((*privacy.blocks).clone(), privacy.key, KNOWN_BLOCKS),
            privacy: privacy.clone(),
            watch: None,
        }
    }

    /// Shows every batch to `watch`, on the writer's thread, after all that policy
    /// and redaction leave out of it. While it works nothing is written: whoever
    /// waits for the writer waits for it, too.
    #[must_use]
    pub fn watched(self, watch: impl FnMut(&EventBatch) + Send + 'static) -> Self {
        Self {
            watch: Some(Watch(Box::new(watch))),
            ..self
        }
    }

    pub(crate) fn scrub(&mut self, batch: &mut EventBatch, now_ns: i64) {
        for prompt in std::mem::take(&mut batch.prompts) {
            let Some(row) = batch.requests.get_mut(prompt.request) else {
                continue;
            };
            row.body_hash = Some(self.privacy.hash(&prompt.body).into());
            let found = self.blocks.prompt(&prompt.body, row.model.as_deref());
            if !found.runs.is_empty() {
                row.block_size = Some(self.blocks.size());
                row.block_runs = Some(found.runs.into());
            }
            if row.input_tokens.is_none() && found.tokens.is_some() {
                row.input_tokens = found.tokens;
                row.input_tokens_source = Some(COUNTED_BY_TOKENIZER.into());
            }
        }
        let evicted = self.blocks.take_evicted();
        if evicted > 0 {
            batch.marks.push(MarkRow {
                t_ns: now_ns,
                name: "blocks_evicted".into(),
                detail: format!(r#"{{"blocks":{evicted}}}"#).into(),
            });
        }
        let redaction = &self.privacy.redaction;
        if !redaction.is_empty() {
            redaction.rows(&self.privacy, batch);
        }
        if let Some(Watch(watch)) = &mut self.watch {
            watch(batch);
        }
    }
}
