//! Counting tokens, with a tokenizer or without.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::WorkloadError;
use crate::parallel::on_all_cores;
use crate::prompts::Prompt;

#[cfg(feature = "datasets")]
pub(crate) use tapedeck_tokens::Tokenizer;

/// Stands where a tokenizer would, so that a lean build differs here only.
#[cfg(not(feature = "datasets"))]
#[derive(Debug)]
pub(crate) enum Tokenizer {}

#[cfg(not(feature = "datasets"))]
impl Tokenizer {
    pub(crate) fn path(&self) -> &Path {
        match *self {}
    }

    pub(crate) fn content_hash(&self) -> &str {
        match *self {}
    }

    fn count(&self, _text: &str) -> Result<usize, WorkloadError> {
        match *self {}
    }

    fn encode(&self, _text: &str) -> Result<Vec<u32>, WorkloadError> {
        match *self {}
    }
}

/// Tokens of a text; `None` where it is refused.
type Encode = dyn Fn(&str) -> Option<Vec<u32>> + Send + Sync;

/// A tokenizer that others may use.
#[derive(Clone)]
pub struct Encoder {
    /// Without special tokens.
    pub encode: Arc<Encode>,
    pub path: PathBuf,
    pub content_hash: String,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("path", &self.path)
            .field("content_hash", &self.content_hash)
            .finish_non_exhaustive()
    }
}

/// The tokenizer of `path`, a `tokenizer.json` or a folder with one.
///
/// # Errors
/// When it is none, or when this program was built without tokenizers.
pub fn encoder(path: &Path) -> Result<Option<Encoder>, WorkloadError> {
    Ok(open(Some(path))?.map(|tokenizer| Encoder {
        path: tokenizer.path().to_owned(),
        content_hash: tokenizer.content_hash().to_owned(),
        encode: Arc::new(move |text| tokenizer.encode(text).ok()),
    }))
}

/// Loads the tokenizer of `path`, where one is named.
pub(crate) fn open(path: Option<&Path>) -> Result<Option<Tokenizer>, WorkloadError> {
    #[cfg(feature = "datasets")]
    let opened = |path| Tokenizer::open(path).map_err(WorkloadError::from);
    #[cfg(not(feature = "datasets"))]
    let opened = |_| Err(WorkloadError::NotBuilt("--tokenizer-path"));
    path.map(opened).transpose()
}

/// UTF-8 bytes that pass for a token where no tokenizer counts. Near 4 for
/// English; Chinese characters are 3 bytes and a little under one token each.
const BYTES_PER_TOKEN: usize = 4;

/// Tokens of `text` as `tokenizer` counts them, else estimated: its UTF-8 bytes
/// by 4, rounded up.
pub(crate) fn count(tokenizer: Option<&Tokenizer>, text: &str) -> Result<u32, WorkloadError> {
    let tokens = match tokenizer {
        Some(tokenizer) => tokenizer.count(text)?,
        None => text.len().div_ceil(BYTES_PER_TOKEN),
    };
    Ok(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// [`count`] of every text, on all cores.
pub(crate) fn count_all<T: Sync>(
    tokenizer: Option<&Tokenizer>,
    items: &[T],
    text: impl Fn(&T) -> &str + Sync,
) -> Result<Vec<u32>, WorkloadError> {
    let counted = on_all_cores(items, |item| count(tokenizer, text(item)));
    counted.into_iter().collect()
}

/// Counts the tokens of every prompt anew, by a tokenizer that others use as well.
pub(crate) fn recount(encoder: &Encoder, prompts: &mut [Prompt]) -> Result<(), WorkloadError> {
    let counts = on_all_cores(prompts, |prompt| {
        (encoder.encode)(&prompt.item.text()).map(|tokens| tokens.len())
    });
    for (prompt, count) in prompts.iter_mut().zip(counts) {
        let count = count.ok_or_else(|| WorkloadError::Uncounted(encoder.path.clone()))?;
        prompt.input_tokens = Some(u32::try_from(count).unwrap_or(u32::MAX));
    }
    Ok(())
}

/// Counts the tokens of every prompt anew.
pub(crate) fn count_prompts(
    tokenizer: &Tokenizer,
    prompts: &mut [Prompt],
) -> Result<(), WorkloadError> {
    let texts: Vec<String> = prompts.iter().map(|p| p.item.text()).collect();
    let counts = count_all(Some(tokenizer), &texts, String::as_str)?;
    for (prompt, count) in prompts.iter_mut().zip(counts) {
        prompt.input_tokens = Some(count);
    }
    Ok(())
}
