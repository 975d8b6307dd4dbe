//! Prefix blocks: which parts of which prompts are equal, without their text.
//!
//! A prompt is cut into blocks of N tokens (N bytes of text where there is no
//! tokenizer), the last one as short as it comes, as in Mooncake's traces: their
//! number is the prompt's length by N, rounded up. A block's hash covers the hash
//! of the block before it, the model and everything else that a server's prefix
//! cache would tell apart, as in vLLM: equal ids are equal prefixes, and equal
//! words behind different ones are not equal. Hashes are keyed, never written, and
//! turned into ids in order of first sight, so that a new prompt's ids are one run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::prompt::{Piece, pieces};

/// Tokens of a text; `None` where the tokenizer refuses it.
pub type Encode = Arc<dyn Fn(&str) -> Option<Vec<u32>> + Send + Sync>;

/// Tokens of a block: the block of vLLM's prefix cache.
pub const BLOCK_TOKENS: u32 = 16;

/// Bytes of a block where no tokenizer counts: about [`BLOCK_TOKENS`] of English.
pub const BLOCK_BYTES: u32 = 64;

/// Hashes that are remembered: about 50 bytes each. Of 16 tokens a block, 16 million
/// tokens of prompts that differ.
pub const KNOWN_BLOCKS: usize = 1 << 20;

/// Which tokenizer it was, for the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerName {
    pub path: PathBuf,
    pub content_hash: String,
}

/// How prompts are cut.
#[derive(Clone)]
pub struct BlockSpec {
    /// Tokens where `encode` is given, bytes otherwise; at least 1.
    pub size: u32,
    pub encode: Option<Encode>,
    pub tokenizer: Option<TokenizerName>,
}

impl Default for BlockSpec {
    fn default() -> Self {
        Self {
            size: BLOCK_BYTES,
            encode: None,
            tokenizer: None,
        }
    }
}

impl std::fmt::Debug for BlockSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockSpec")
            .field("size", &self.size)
            .field("unit", &self.unit())
            .finish()
    }
}

impl BlockSpec {
    /// What a block is measured in, as it stands in a manifest.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.encode {
            Some(_) => "tokens",
            None => "bytes",
        }
    }
}

/// What is known of one prompt.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// `(start, len)` runs of block ids; empty where no prompt was found.
    pub(super) runs: Vec<(i64, i32)>,
    /// Counted by the tokenizer, where there is one.
    pub(super) tokens: Option<i32>,
}

type Hash = [u8; 16];

/// What stands before a mark among the units of a block: no token and no UTF-8.
const MARK: [u8; 4] = [0xFF; 4];

/// The dictionary of one recording.
#[derive(Debug)]
pub(super) struct Blocks {
    spec: BlockSpec,
    key: [u8; 32],
    known: Known,
}

impl Blocks {
    pub(super) fn new(spec: BlockSpec, key: [u8; 32], capacity: usize) -> Self {
        Self {
            spec,
            key,
            known: Known::new(capacity),
        }
    }

    pub(super) fn size(&self) -> i32 {
        i32::try_from(self.spec.size).unwrap_or(i32::MAX)
    }

    /// Ids that were forgotten since the last call.
    pub(super) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.known.evicted)
    }

    pub(super) fn prompt(&mut self, body: &[u8], model: Option<&str>) -> Prompt {
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return Prompt::default();
        };
        let mut cutter = Cutter::new(&self.spec, &self.key, model.unwrap_or_default());
        pieces(&body, &mut |piece| cutter.take(piece));
        let (hashes, tokens) = cutter.finish();
        let mut runs: Vec<(i64, i32)> = Vec::new();
        for hash in hashes {
            let id = self.known.id(hash);
            match runs.last_mut() {
                Some((start, len)) if *start + i64::from(*len) == id => *len += 1,
                _ => runs.push((id, 1)),
            }
        }
        Prompt { runs, tokens }
    }
}

/// Cuts one prompt into blocks and hashes them.
struct Cutter<'a> {
    spec: &'a BlockSpec,
    key: &'a [u8; 32],
    parent: Hash,
    /// The open block: units and marks.
    open: Vec<u8>,
    /// Units of the open block.
    filled: u32,
    hashes: Vec<Hash>,
    tokens: Option<i32>,
}

impl<'a> Cutter<'a> {
    fn new(spec: &'a BlockSpec, key: &'a [u8; 32], model: &str) -> Self {
        Self {
            spec,
            key,
            parent: keyed(key, model.as_bytes()),
            open: Vec::new(),
            filled: 0,
            hashes: Vec::new(),
            tokens: spec.encode.is_some().then_some(0),
        }
    }

    fn take(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Mark(mark) => {
                let hash = keyed(self.key, mark.as_bytes());
                self.open.extend_from_slice(&MARK);
                self.open.extend_from_slice(&hash);
            }
            Piece::Tokens(tokens) => self.take_tokens(&tokens),
            Piece::Text(text) => match &self.spec.encode {
                None => self.take_bytes(text.as_bytes()),
                Some(encode) => match encode(text) {
                    Some(tokens) => self.take_tokens(&tokens),
                    // It stays a difference, and the number is not known.
                    None => {
                        self.tokens = None;
                        self.take(Piece::Mark(text.to_owned()));
                    }
                },
            },
        }
    }

    fn take_tokens(&mut self, tokens: &[u32]) {
        let count = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
        self.tokens = self.tokens.map(|n| n.saturating_add(count));
        for token in tokens {
            self.open.extend_from_slice(&token.to_le_bytes());
            self.fill(1);
        }
    }

    fn take_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.spec.size - self.filled) as usize;
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(taken);
            self.fill(taken.len() as u32);
            bytes = rest;
        }
    }

    fn fill(&mut self, units: u32) {
        self.filled += units;
        if self.filled >= self.spec.size {
            self.close();
        }
    }

    fn close(&mut self) {
        let mut hasher = blake3::Hasher::new_keyed(self.key);
        hasher.update(&self.parent);
        hasher.update(&self.open);
        self.parent = first_half(&hasher.finalize());
        self.hashes.push(self.parent);
        self.open.clear();
        self.filled = 0;
    }

    fn finish(mut self) -> (Vec<Hash>, Option<i32>) {
        if self.filled > 0 {
            self.close();
        }
        (self.hashes, self.tokens)
    }
}

fn keyed(key: &[u8; 32], bytes: &[u8]) -> Hash {
    first_half(&blake3::keyed_hash(key, bytes))
}

fn first_half(hash: &blake3::Hash) -> Hash {
    let mut half = Hash::default();
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

/// Ids of the hashes seen of late, by the clock's two hands: what neither
/// generation has seen is new, and when the young one is full the old one goes. So
/// everything that was used within the last half of the capacity is known, and a
/// block never outlives the one before it, which is always looked up first.
#[derive(Debug)]
struct Known {
    young: HashMap<Hash, i64>,
    old: HashMap<Hash, i64>,
    half: usize,
    next_id: i64,
    evicted: u64,
}

impl Known {
    fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: (capacity / 2).max(1),
            next_id: 0,
            evicted: 0,
        }
    }

    fn id(&mut self, hash: Hash) -> i64 {
        if let Some(id) = self.young.get(&hash) {
            return *id;
        }
        let id = self.old.remove(&hash).unwrap_or_else(|| {
            self.next_id += 1;
            self.next_id - 1
        });
        if self.young.len() >= self.half {
            self.evicted += self.old.len() as u64;
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    /// A token a word, numbered by its bytes.
    fn words(text: &str) -> Option<Vec<u32>> {
        let word = |w: &str| w.bytes().fold(0, |n, b| n * 31 + u32::from(b));
        Some(text.split_whitespace().map(word).collect())
    }

    fn blocks(size: u32, capacity: usize) -> Blocks {
        let spec = BlockSpec {
            size,
            encode: Some(Arc::new(words)),
            tokenizer: None,
        };
        Blocks::new(spec, KEY, capacity)
    }

    fn chat(text: &str) -> Vec<u8> {
        json!({"messages": [{"role": "user", "content": text}]})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn equal_prefixes_have_equal_ids_and_runs_are_short() {
        let mut blocks = blocks(2, 100);
        let first = blocks.prompt(&chat("a b c d e f g"), None);
        assert_eq!((first.runs, first.tokens), (vec![(0, 4)], Some(7)));
        let same_start = blocks.prompt(&chat("a b c d x y"), None);
        assert_eq!(same_start.runs, [(0, 2), (4, 1)]);
        // `e f` was seen behind other words: another block.
        let other_parent = blocks.prompt(&chat("x y e f"), None);
        assert_eq!(other_parent.runs, [(5, 2)]);
        let again = blocks.prompt(&chat("a b c d e f g"), None);
        assert_eq!(again.runs, [(0, 4)]);
    }

    #[test]
    fn what_a_prefix_cache_tells_apart_has_other_ids() {
        let mut blocks = blocks(2, 100);
        let mut ids = |body: Value, model| blocks.prompt(body.to_string().as_bytes(), model).runs;
        let text = json!("a b");
        let bodies = [
            (
                json!({"messages": [{"role": "user", "content": text}]}),
                None,
            ),
            (
                json!({"messages": [{"role": "system", "content": text}]}),
                None,
            ),
            (
                json!({"messages": [{"role": "user", "content": text}]}),
                Some("m"),
            ),
            (
                json!({"messages": [{"role": "user", "content": text}], "tools": [1]}),
                None,
            ),
            (
                json!({"messages": [{"role": "user", "content": text}], "cache_salt": "s"}),
                None,
            ),
            (json!({"prompt": text}), None),
        ];
        for (at, (body, model)) in bodies.into_iter().enumerate() {
            assert_eq!(ids(body.clone(), model), [(at as i64, 1)], "{body}");
        }
        // The name of the sampled seed is none of the cache's business.
        let seeded = json!({"messages": [{"role": "user", "content": text}], "seed": 3});
        assert_eq!(ids(seeded, None), [(0, 1)]);
    }

    #[test]
    fn without_a_tokenizer_blocks_are_bytes() {
        let mut blocks = Blocks::new(BlockSpec::default(), KEY, 100);
        let long = "x".repeat(100);
        let prompt = blocks.prompt(&chat(&long), None);
        assert_eq!((prompt.runs, prompt.tokens), (vec![(0, 2)], None));
        let longer = blocks.prompt(&chat(&format!("{}y{long}", &long[..64])), None);
        assert_eq!(longer.runs, [(0, 1), (2, 2)]);
        for nothing in [&b"{"[..], b"{}", b"[]", br#"{"messages":[]}"#] {
            assert_eq!(blocks.prompt(nothing, None), Prompt::default());
        }
    }

    #[test]
    fn a_full_dictionary_forgets_what_was_not_used_and_counts_it() {
        let mut blocks = blocks(1, 4);
        blocks.prompt(&chat("a"), None);
        for text in ["b", "c", "d", "a", "e"] {
            blocks.prompt(&chat(text), None);
        }
        assert!(blocks.take_evicted() > 0);
        assert_eq!(blocks.take_evicted(), 0);
        assert_eq!(
            blocks.prompt(&chat("a"), None).runs,
            [(0, 1)],
            "it was used"
        );
        let forgotten = blocks.prompt(&chat("b"), None).runs;
        assert!(forgotten[0].0 >= 5, "{forgotten:?}");
    }

    #[test]
    fn a_key_decides_the_hashes() {
        let hashes = |key| {
            let spec = BlockSpec::default();
            let mut cutter = Cutter::new(&spec, key, "m");
            cutter.take(Piece::Text("text"));
            cutter.finish().0
        };
        assert_eq!(hashes(&KEY), hashes(&KEY));
        assert_ne!(hashes(&KEY), hashes(&[8; 32]));
    }
}
