//! Prompts where a trace has only lengths and block ids.
//!
//! Texts are words with one space between them, of words that are one token each
//! wherever they stand: so any number of them is as many tokens, and blocks can be
//! put together. The words of a block follow from the seed and its id alone. What
//! no block covers follows from the request, or where there are no blocks from its
//! session, so that a conversation that grows begins as it did before.
//!
//! Without a tokenizer the words are common English ones, which most vocabularies
//! have as one token; then lengths are near, not exact.

use std::collections::HashMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::error::WorkloadError;
use crate::tokens::{self, Tokenizer};

/// One token each in the vocabularies of GPT, Llama, Qwen, Gemma and Mistral, in
/// the middle of a sentence.
const COMMON: &str = "the of and to in for is on that by this with you it not or be are from at \
    as your all have new more an was we will home can us about if page my has free but our one \
    other do no time they site he up may what which their news out use any there see only so his \
    when here who also now help get view first been would how were me some these its like than \
    find date back top people had list name just over state year day into two health world next \
    used go work last most music buy make them should product post her city add policy number \
    such please available copyright support message after best software then good video well \
    where info rights public books high school through each links she review years order very \
    book items company read group need many user said does set under general research map";

/// Distinct words at most.
#[cfg(feature = "datasets")]
const POOL: usize = 1_024;

/// Below this a tokenizer's own words would repeat too much to be a prompt.
const LEAST_WORDS: usize = 16;

/// One prompt's shape.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    pub input_tokens: u32,
    /// `None` where the blocks of the trace have no size.
    pub block_size: Option<u32>,
    pub block_runs: &'a [(i64, i32)],
    pub request_id: i64,
    pub session_id: Option<&'a str>,
    /// Prompts of different salts have nothing in common; empty for none.
    pub salt: &'a str,
}

/// Makes prompts. Equal seeds make equal ones.
#[derive(Debug)]
pub struct Synthesis {
    words: Vec<String>,
    seed: u64,
    tokenizer: Option<Tokenizer>,
    /// Whether every word was seen to be one token.
    exact: bool,
    /// Tokens of the blocks whose size the trace does not say.
    sizes: HashMap<i64, u32>,
}

impl Synthesis {
    /// With the words of a tokenizer, or common ones.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn new(tokenizer: Option<&Path>, seed: u64) -> Result<Self, WorkloadError> {
        let tokenizer = tokens::open(tokenizer)?;
        let own = match &tokenizer {
            Some(tokenizer) => whole_words(tokenizer)?,
            None => Vec::new(),
        };
        let exact = own.len() >= LEAST_WORDS;
        Ok(Self {
            words: if exact { own } else { common() },
            seed,
            tokenizer,
            exact,
            sizes: HashMap::new(),
        })
    }

    /// Where the trace's blocks have no size of their own, as in a RAG trace where
    /// each is a passage: a block is as long as the shortest equal share of any
    /// prompt that holds it, so that it is the same text in all of them.
    pub fn learn_sizes<'a>(&mut self, shapes: impl Iterator<Item = Shape<'a>>) {
        for shape in shapes.filter(|s| s.block_size.is_none()) {
            let blocks = ids(shape.block_runs).count() as u32;
            for id in ids(shape.block_runs) {
                let share = shape.input_tokens / blocks;
                let size = self.sizes.entry(id).or_insert(share);
                *size = share.min(*size);
            }
        }
    }

    /// Whether prompts have the tokens that were asked for, not just words.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// BLAKE3 of the tokenizer's file.
    #[must_use]
    pub fn tokenizer_hash(&self) -> Option<&str> {
        self.tokenizer.as_ref().map(Tokenizer::content_hash)
    }

    /// Tokens of `text` as the tokenizer counts them.
    ///
    /// # Errors
    /// When it refuses the text.
    pub fn count(&self, text: &str) -> Result<Option<u32>, WorkloadError> {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer
            .map(|tokenizer| tokens::count(Some(tokenizer), text))
            .transpose()
    }

    /// A prompt of that shape; at least one word.
    #[must_use]
    pub fn prompt(&self, shape: &Shape<'_>) -> String {
        let mut left = shape.input_tokens.max(1);
        let mut text = String::with_capacity(left as usize * 6);
        for id in ids(shape.block_runs) {
            let size = shape.block_size.or_else(|| self.sizes.get(&id).copied());
            let size = size.unwrap_or(0).min(left);
            self.write(&mut text, &format!("{}block {id}", shape.salt), size);
            left -= size;
            if left == 0 {
                return text;
            }
        }
        let rest = match shape.session_id.filter(|_| shape.block_runs.is_empty()) {
            Some(session) => format!("{}session {session}", shape.salt),
            None => format!("{}request {}", shape.salt, shape.request_id),
        };
        self.write(&mut text, &rest, left);
        text
    }

    /// The first `n` words of the endless text named `name`.
    fn write(&self, text: &mut String, name: &str, n: u32) {
        let key = blake3::hash(format!("tapedeck {} {name}", self.seed).as_bytes());
        let mut rng = StdRng::from_seed(*key.as_bytes());
        for _ in 0..n {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&self.words[rng.random_range(0..self.words.len())]);
        }
    }
}

fn ids(runs: &[(i64, i32)]) -> impl Iterator<Item = i64> {
    runs.iter()
        .flat_map(|(start, len)| *start..*start + i64::from((*len).max(0)))
}

fn common() -> Vec<String> {
    COMMON.split_whitespace().map(str::to_owned).collect()
}

/// Short lower-case words that are one token at the beginning of a text and after a
/// space, the vocabulary's first ones.
#[cfg(feature = "datasets")]
fn whole_words(tokenizer: &Tokenizer) -> Result<Vec<String>, WorkloadError> {
    let mut words: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for token in tokenizer.ordinary_tokens() {
        if words.len() == POOL {
            break;
        }
        let text = tokenizer.decode(&[token])?;
        let word = text.trim_start_matches(['▁', 'Ġ', ' ']);
        let is_word = (2..=8).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase());
        if !is_word || seen.contains(word) {
            continue;
        }
        let stands_alone = tokens::count(Some(tokenizer), word)? == 1;
        if stands_alone && tokens::count(Some(tokenizer), &format!("{word} {word} {word}"))? == 3 {
            seen.insert(word.to_owned());
            words.push(word.to_owned());
        }
    }
    Ok(words)
}

#[cfg(not(feature = "datasets"))]
fn whole_words(_tokenizer: &Tokenizer) -> Result<Vec<String>, WorkloadError> {
    Ok(Vec::new())
}
