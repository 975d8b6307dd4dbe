//! Tokenizers: how many tokens a text is, and which text some tokens are.
//!
//! The model's own `tokenizer.json` counts as its server does; special tokens
//! are neither added nor hidden, because a server adds its template's by itself.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::tokenizer::Tokenizer as HubTokenizer;

/// File that a model's folder keeps its tokenizer in.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A tokenizer that cannot be used, or a text it cannot take.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read the tokenizer {}\nhint: name a tokenizer.json or the folder that holds one", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a tokenizer: {problem}", path.display())]
    Parse { path: PathBuf, problem: String },
    #[error("the tokenizer refuses the text: {0}")]
    Encode(String),
    #[error("the tokenizer refuses the tokens: {0}")]
    Decode(String),
}

/// A loaded tokenizer; encoding takes `&self` from any thread.
#[derive(Debug)]
pub struct Tokenizer {
    inner: HubTokenizer,
    path: PathBuf,
    content_hash: String,
}

impl Tokenizer {
    /// Loads `path`: a `tokenizer.json`, or a folder that holds one.
    ///
    /// # Errors
    /// When there is no such file or it is not a tokenizer.
    pub fn open(path: &Path) -> Result<Self, TokenizerError> {
        let (path, content) = read(path)?;
        let inner = HubTokenizer::from_bytes(&content).map_err(|e| TokenizerError::Parse {
            path: path.clone(),
            problem: e.to_string(),
        })?;
        Ok(Self {
            inner: without_limits(inner),
            path,
            content_hash: hash(&content),
        })
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// BLAKE3 of the file, 32 hex digits.
    #[must_use]
    pub fn content_hash(&self) -> &str {
        &self.content_hash
    }

    /// Tokens of `text`, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// How many tokens `text` is, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn count(&self, text: &str) -> Result<usize, TokenizerError> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.len())
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// The text of `tokens`, special tokens included.
    ///
    /// # Errors
    /// When the tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(tokens, false)
            .map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// Ids of ordinary tokens, ascending: neither special nor added.
    #[must_use]
    pub fn ordinary_tokens(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let mut ids: Vec<u32> = self
            .inner
            .get_vocab(false)
            .into_values()
            .filter(|id| !added.contains_key(id))
            .collect();
        ids.sort_unstable();
        ids
    }
}

/// What [`Tokenizer::content_hash`] of `path` would be, without loading it.
///
/// # Errors
/// When there is no such file.
pub fn content_hash(path: &Path) -> Result<String, TokenizerError> {
    read(path).map(|(_, content)| hash(&content))
}

/// The file that `path` is or holds, and its bytes.
fn read(path: &Path) -> Result<(PathBuf, Vec<u8>), TokenizerError> {
    let path = if path.is_dir() {
        path.join(TOKENIZER_FILE)
    } else {
        path.to_owned()
    };
    match fs::read(&path) {
        Ok(content) => Ok((path, content)),
        Err(source) => Err(TokenizerError::Read { path, source }),
    }
}

fn hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex()[..32].to_owned()
}

/// Files made for training carry a maximum length and padding; a counter that
/// stops at 512 would be wrong without saying so.
fn without_limits(mut tokenizer: HubTokenizer) -> HubTokenizer {
    // Removing a limit cannot fail: only a stride as long as the limit can.
    tokenizer.with_truncation(None).ok();
    tokenizer.with_padding(None);
    tokenizer
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// One token a word, with a limit of 2 as files from training have.
    fn words() -> String {
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false, "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "to": 1, "be": 2, "<s>": 3}, "unk_token": "[UNK]"}
        })
        .to_string()
    }

    #[test]
    fn a_folder_and_its_file_are_the_same_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TOKENIZER_FILE), words()).unwrap();
        let by_folder = Tokenizer::open(dir.path()).unwrap();
        let by_file = Tokenizer::open(&dir.path().join(TOKENIZER_FILE)).unwrap();
        assert_eq!(by_folder.content_hash(), by_file.content_hash());
        assert_eq!(content_hash(dir.path()).unwrap(), by_file.content_hash());
        assert_eq!(by_folder.encode("be to be or").unwrap(), [2, 1, 2, 0]);
        assert_eq!(by_file.decode(&[1, 2]).unwrap(), "to be");
    }

    #[test]
    fn a_limit_in_the_file_does_not_cap_the_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        fs::write(&path, words()).unwrap();
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(tokenizer.count("to be or not to be").unwrap(), 6);
        assert_eq!(tokenizer.ordinary_tokens(), [0, 1, 2]);
    }

    #[test]
    fn what_is_not_a_tokenizer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(missing.contains(TOKENIZER_FILE), "{missing}");
        let path = dir.path().join("t.json");
        fs::write(&path, "{}").unwrap();
        let broken = Tokenizer::open(&path).unwrap_err().to_string();
        assert!(broken.contains("t.json is not a tokenizer"), "{broken}");
    }
}
