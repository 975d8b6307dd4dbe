//! Prompts of lines of a poem, with a prefix that all share.
//!
//! As Aphrodite's and vLLM's benchmarks make them: a fixed question, the first
//! lines of the file as far as the prefix goes, then lines drawn at random, so many
//! that the mean length of a line makes up the input length. Lengths are therefore
//! approximate, as theirs are. No chat template is counted in: the server's is not
//! known here.

use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, index};

use crate::dataset::{DatasetSpec, Gathered};
use crate::error::WorkloadError;
use crate::files::read_text;
use crate::prompts::{Item, Prompt};
use crate::tokens::{Tokenizer, count, count_all};

const QUESTION: &str = "Pick as many lines as you can from these poem lines:\n";

/// Prompts when nothing says how many: the peers' default.
const PROMPTS: usize = 1_000;

/// Distinct prompts at most: they lie in memory, and a longer run sends them again.
const MAX_PROMPTS: usize = 100_000;

/// Lengths of prompts made of poem lines, tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SonnetLengths {
    pub input_tokens: u32,
    pub output_tokens: u32,
    /// Part of the input that all prompts begin with.
    pub prefix_tokens: u32,
}

impl Default for SonnetLengths {
    /// The peers' defaults.
    fn default() -> Self {
        Self {
            input_tokens: 550,
            output_tokens: 150,
            prefix_tokens: 200,
        }
    }
}

pub(crate) fn gather(
    path: &Path,
    lengths: SonnetLengths,
    spec: &DatasetSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Gathered, WorkloadError> {
    let text = read_text(path)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.is_empty() {
        return Err(WorkloadError::Empty(path.to_owned()));
    }
    let own = count(tokenizer, QUESTION)?;
    let all: u64 = (count_all(tokenizer, &lines, |line| line)?.iter())
        .map(|n| u64::from(*n))
        .sum();
    let mean = all as f64 / lines.len() as f64;
    let wanted = |tokens: u32| (f64::from(tokens.saturating_sub(own)) / mean).round() as usize;
    let SonnetLengths {
        input_tokens,
        output_tokens,
        prefix_tokens,
    } = lengths;
    if input_tokens <= own || input_tokens < prefix_tokens {
        return Err(WorkloadError::Lengths(format!(
            "--input-tokens {input_tokens} is not above the question's {own} tokens and --prefix-length {prefix_tokens}"
        )));
    }
    let prefix = &lines[..wanted(prefix_tokens).min(lines.len())];
    let drawn = wanted(input_tokens).saturating_sub(prefix.len());
    let mut rng = StdRng::seed_from_u64(spec.seed);
    let number = spec.wanted().unwrap_or(PROMPTS).min(MAX_PROMPTS);
    let prompts = (0..number).map(|_| {
        let mut text = QUESTION.to_owned();
        text.extend(prefix.iter().copied());
        text.extend(draw(&lines, drawn, &mut rng));
        Prompt {
            max_tokens: Some(output_tokens),
            ..Item::Text(text).into()
        }
    });
    Ok(Gathered {
        prompts: prompts.collect(),
        records: number as u64,
        is_estimated: tokenizer.is_none(),
        ..Gathered::default()
    })
}

/// `number` of `lines`, none twice while they last.
fn draw<'l>(lines: &[&'l str], number: usize, rng: &mut StdRng) -> Vec<&'l str> {
    if number <= lines.len() {
        let chosen = index::sample(rng, lines.len(), number);
        return chosen.iter().map(|at| lines[at]).collect();
    }
    (0..number)
        .filter_map(|_| lines.choose(rng).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{self, Source};

    #[test]
    fn prompts_share_a_prefix_and_are_about_as_long_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("poem.txt");
        let lines: String = (0..50)
            .map(|n| format!("line {n:02} of a poem that has many of them, all alike\n"))
            .collect();
        std::fs::write(&path, &lines).unwrap();
        let lengths = SonnetLengths {
            input_tokens: 300,
            output_tokens: 9,
            prefix_tokens: 100,
        };
        let load = |seed| {
            let spec = DatasetSpec {
                seed,
                limit: Some(20),
                ..DatasetSpec::new(Source::Sonnet {
                    path: path.clone(),
                    lengths,
                })
            };
            dataset::load(&spec).unwrap().prompts
        };
        let prompts = load(1);
        assert_eq!(prompts, load(1));
        assert_ne!(prompts, load(2));
        let texts: Vec<String> = prompts.iter().map(|p| p.item.text()).collect();
        // A token is 4 bytes here; the question has 14, a line 13: 7 lines make up
        // the prefix.
        let shared = QUESTION.len() + lines.len() / 50 * 7;
        for text in &texts {
            assert_eq!(text[..shared], texts[0][..shared]);
            assert!((text.len() as i64 / 4 - 300).abs() <= 14, "{}", text.len());
        }
        assert_ne!(texts[0], texts[1]);
        assert!(prompts.iter().all(|p| p.max_tokens == Some(9)));
    }
}
