//! Prompts of random tokens, exact in length.
//!
//! Text made of `n` tokens is rarely `n` tokens again: neighbours merge. So each
//! text is encoded again, cut or filled up, and encoded once more, until the
//! count is right, as vLLM's benchmark does, but here nothing inexact is sent:
//! a prompt that does not settle is drawn anew, and in the end it is an error.
//!
//! Lengths are drawn as vLLM's benchmark does (`--random-range-ratio`). Prompts
//! have no white space at their ends: many chat templates would strip it.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::dataset::{DatasetSpec, Gathered, PrefixGroups, RandomLengths};
use crate::error::WorkloadError;
use crate::parallel::on_all_cores;
use crate::prompts::{Item, Prompt};
use crate::tokens::Tokenizer;

/// Prompts when neither a number nor a duration says how many.
const PROMPTS: usize = 1_000;

/// Distinct prompts at most: they lie in memory, and a longer run sends them
/// again.
const MAX_PROMPTS: usize = 100_000;

/// Different tokens that prompts are made of, at most.
const POOL: usize = 4_096;

/// Times a text is cut or filled up before it is drawn anew.
const REPAIRS: usize = 24;

/// Times a text is drawn before it is an error.
const DRAWS: usize = 16;

pub(crate) fn gather(
    lengths: RandomLengths,
    spec: &DatasetSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Gathered, WorkloadError> {
    let tokenizer = tokenizer.ok_or(WorkloadError::NeedsTokenizer("--dataset random"))?;
    let maker = Maker::new(tokenizer, spec.seed)?;
    let prefix = maker.prefix(
        lengths.prefix_tokens as usize,
        &mut rng(spec.seed, "prefix"),
    )?;
    let number = spec.wanted().unwrap_or(PROMPTS);
    let groups = vec![0; number.min(MAX_PROMPTS)];
    maker.prompts(lengths, spec.seed, &[prefix], &groups)
}

/// As [`gather`], each prompt with the prefix of its group. Groups take turns, and
/// then all prompts are shuffled.
pub(crate) fn gather_groups(
    groups: &PrefixGroups,
    spec: &DatasetSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Gathered, WorkloadError> {
    let tokenizer = tokenizer.ok_or(WorkloadError::NeedsTokenizer("--dataset prefix"))?;
    let maker = Maker::new(tokenizer, spec.seed)?;
    let count = (groups.groups as usize).clamp(1, MAX_PROMPTS);
    let length = groups.lengths.prefix_tokens as usize;
    let prefixes = (0..count).map(|group| {
        let mut rng = rng(spec.seed, &format!("prefix {group}"));
        maker.prefix(length, &mut rng)
    });
    let prefixes = prefixes.collect::<Result<Vec<_>, _>>()?;
    let whole = groups.prompts_per_group.map(|n| count * n as usize);
    let number = match (spec.wanted(), whole) {
        (Some(wanted), Some(whole)) => wanted.min(whole),
        (wanted, whole) => wanted.or(whole).unwrap_or(PROMPTS),
    };
    let mut order: Vec<usize> = (0..number.min(MAX_PROMPTS)).map(|i| i % count).collect();
    order.shuffle(&mut rng(spec.seed, "order"));
    maker.prompts(groups.lengths, spec.seed, &prefixes, &order)
}

/// A generator of its own for each `purpose`.
fn rng(seed: u64, purpose: &str) -> StdRng {
    let key = blake3::hash(format!("random {seed} {purpose}").as_bytes());
    StdRng::from_seed(*key.as_bytes())
}

/// Uniform in `[n(1-r), n(1+r)]`, at least 1.
fn around(rng: &mut StdRng, n: u32, ratio: f64) -> u32 {
    let low = (f64::from(n) * (1.0 - ratio)).floor() as u32;
    let high = (f64::from(n) * (1.0 + ratio)).ceil() as u32;
    rng.random_range(low.max(1)..=high.max(1))
}

/// Text that prompts begin with, and its tokens.
#[derive(Debug, Default)]
struct Prefix {
    text: String,
    tokens: Vec<u32>,
}

impl Prefix {
    fn followed_by(&self, text: &str, separator: &str) -> String {
        match (self.text.as_str(), text.trim()) {
            ("", text) => text.to_owned(),
            (prefix, text) => format!("{prefix}{separator}{text}"),
        }
    }
}

struct Maker<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that stand for themselves: their text alone is one token again.
    pool: Vec<u32>,
}

impl<'a> Maker<'a> {
    fn new(tokenizer: &'a Tokenizer, seed: u64) -> Result<Self, WorkloadError> {
        let mut tokens = tokenizer.ordinary_tokens();
        tokens.shuffle(&mut rng(seed, "pool"));
        let mut pool = Vec::new();
        for token in tokens {
            if pool.len() < POOL && stands_for_itself(tokenizer, token)? {
                pool.push(token);
            }
        }
        if pool.is_empty() {
            let path = tokenizer.path().to_owned();
            return Err(WorkloadError::NoUsableToken(path));
        }
        Ok(Self { tokenizer, pool })
    }

    /// A prompt for each of `order`, which says whose prefix it begins with.
    fn prompts(
        &self,
        lengths: RandomLengths,
        seed: u64,
        prefixes: &[Prefix],
        order: &[usize],
    ) -> Result<Gathered, WorkloadError> {
        let indices: Vec<usize> = (0..order.len()).collect();
        // A generator for each prompt, so that threads change nothing.
        let made = on_all_cores(&indices, |index| -> Result<Prompt, WorkloadError> {
            let mut rng = rng(seed, &format!("prompt {index}"));
            let input = match lengths.input_range {
                Some((low, high)) => rng.random_range(low.max(1)..=high.max(1)),
                None => around(&mut rng, lengths.input_tokens, lengths.range_ratio),
            };
            let output = lengths
                .output_tokens
                .map(|n| around(&mut rng, n, lengths.range_ratio));
            let prefix = &prefixes[order[*index]];
            Ok(Prompt {
                input_tokens: Some(lengths.prefix_tokens + input),
                max_tokens: output,
                ..Item::Text(self.exact(&mut rng, prefix, input as usize)?).into()
            })
        });
        let prompts = made.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Gathered {
            records: prompts.len() as u64,
            prompts,
            ..Gathered::default()
        })
    }

    fn prefix(&self, length: usize, rng: &mut StdRng) -> Result<Prefix, WorkloadError> {
        if length == 0 {
            return Ok(Prefix::default());
        }
        let text = self.exact(rng, &Prefix::default(), length)?;
        let tokens = self.tokenizer.encode(&text)?;
        Ok(Prefix { text, tokens })
    }

    /// A text that begins with `prefix`, whose tokens stay what they are, and
    /// goes on for exactly `length` tokens.
    fn exact(
        &self,
        rng: &mut StdRng,
        prefix: &Prefix,
        length: usize,
    ) -> Result<String, WorkloadError> {
        for draw in 0..DRAWS {
            // A space keeps words apart, but may cost a token of its own.
            let separator = if draw % 2 == 0 { " " } else { "" };
            let mut tokens = Vec::new();
            for repair in 0..REPAIRS {
                // Cutting a little more each time leads out of texts that grow
                // back whenever they are cut.
                tokens.truncate(length.saturating_sub(repair));
                while tokens.len() < length {
                    tokens.push(self.pool[rng.random_range(0..self.pool.len())]);
                }
                let text = self.tokenizer.decode(&tokens)?;
                let text = prefix.followed_by(&text, separator);
                let encoded = self.tokenizer.encode(&text)?;
                let Some(own) = encoded.strip_prefix(&prefix.tokens[..]) else {
                    break;
                };
                if own.len() == length {
                    return Ok(text);
                }
                own.clone_into(&mut tokens);
            }
        }
        Err(WorkloadError::NotExact {
            tokens: length,
            draws: DRAWS,
            tokenizer: self.tokenizer.path().to_owned(),
        })
    }
}

fn stands_for_itself(tokenizer: &Tokenizer, token: u32) -> Result<bool, WorkloadError> {
    let text = tokenizer.decode(&[token])?;
    let is_odd = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
    if text.trim().is_empty() || text.contains(is_odd) {
        return Ok(false);
    }
    Ok(tokenizer.encode(&text)? == [token])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{self, Source};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn write(dir: &Path, tokenizer: &Value) -> std::path::PathBuf {
        let path = dir.join("tokenizer.json");
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        path
    }

    /// One token a word; no text gives `[UNK]` back.
    fn word_level() -> Value {
        let words = ["[UNK]", "to", "be", "or", "not", ",", "7"];
        let vocab: BTreeMap<_, _> = words.iter().zip(0..).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
        })
    }

    /// GPT-2's letters for bytes: those that print stand for themselves.
    fn byte_letters() -> Vec<String> {
        let prints = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut next = 0x100..;
        let mut letter = |b: u8| {
            let code = if prints(b) {
                Some(u32::from(b))
            } else {
                next.next()
            };
            code.and_then(char::from_u32).unwrap().to_string()
        };
        (0..=255).map(&mut letter).collect()
    }

    /// A byte-level BPE that merges its way through `words` from the left.
    fn byte_level(words: &[String], splits_words: bool) -> Value {
        let letters = byte_letters();
        let mut vocab: BTreeMap<String, usize> = BTreeMap::new();
        for letter in &letters {
            vocab.insert(letter.clone(), vocab.len());
        }
        let mut merges: Vec<String> = Vec::new();
        for word in words {
            let mut left = String::new();
            for byte in word.bytes() {
                let right = &letters[usize::from(byte)];
                let merge = format!("{left} {right}");
                if !left.is_empty() && !merges.contains(&merge) {
                    merges.push(merge);
                }
                left.push_str(right);
                let next = vocab.len();
                vocab.entry(left.clone()).or_insert(next);
            }
        }
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": splits_words});
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}
        })
    }

    fn spec(tokenizer: &Path, lengths: RandomLengths, seed: u64, number: usize) -> DatasetSpec {
        DatasetSpec {
            tokenizer_path: Some(tokenizer.to_owned()),
            seed,
            limit: Some(number),
            ..DatasetSpec::new(Source::Random(lengths))
        }
    }

    /// Every prompt is as long as it says, in range, and begins as all do.
    fn expect_exact(tokenizer: &Value, lengths: RandomLengths, seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), tokenizer);
        let loaded = dataset::load(&spec(&path, lengths, seed, 6)).unwrap();
        let tokenizer = Tokenizer::open(&path).unwrap();
        let mut beginnings = Vec::new();
        for prompt in &loaded.prompts {
            let text = prompt.item.text();
            let encoded = tokenizer.encode(&text).unwrap();
            assert_eq!(Some(encoded.len() as u32), prompt.input_tokens, "{text:?}");
            assert_eq!(text, text.trim());
            let own = encoded.len() as f64 - f64::from(lengths.prefix_tokens);
            let n = f64::from(lengths.input_tokens);
            assert!(own >= (n * (1.0 - lengths.range_ratio)).floor().max(1.0));
            assert!(own <= (n * (1.0 + lengths.range_ratio)).ceil());
            beginnings.push(encoded[..lengths.prefix_tokens as usize].to_vec());
        }
        assert!(beginnings.iter().all(|b| *b == beginnings[0]));
    }

    fn lengths() -> impl Strategy<Value = RandomLengths> {
        (1_u32..70, 0_u32..20, 0.0..0.9_f64).prop_map(|(input_tokens, prefix_tokens, ratio)| {
            RandomLengths {
                input_tokens,
                output_tokens: Some(input_tokens),
                range_ratio: if ratio < 0.3 { 0.0 } else { ratio },
                prefix_tokens,
                input_range: None,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn bytes_that_merge_come_back_exact(
            words in prop::collection::vec(" ?[ab]{1,4}|é|熵|the|ing| then", 0..40),
            splits_words: bool,
            lengths in lengths(),
            seed: u64,
        ) {
            expect_exact(&byte_level(&words, splits_words), lengths, seed);
        }

        #[test]
        fn words_come_back_exact(lengths in lengths(), seed: u64) {
            expect_exact(&word_level(), lengths, seed);
        }
    }

    #[test]
    fn a_prompt_depends_on_the_seed_and_its_place_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            dir.path(),
            &byte_level(&["the".into(), " the".into()], true),
        );
        let lengths = RandomLengths {
            input_tokens: 20,
            range_ratio: 0.5,
            prefix_tokens: 3,
            ..RandomLengths::default()
        };
        let prompts = |seed, number| {
            let loaded = dataset::load(&spec(&path, lengths, seed, number)).unwrap();
            loaded.prompts
        };
        let all = prompts(1, 9);
        assert_eq!(prompts(1, 4), all[..4]);
        assert_ne!(prompts(2, 9), all);
        assert_ne!(all[0], all[1]);
    }

    #[test]
    fn groups_begin_alike_and_lengths_keep_to_their_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &word_level());
        let groups = PrefixGroups {
            lengths: RandomLengths {
                input_range: Some((4, 6)),
                prefix_tokens: 12,
                ..RandomLengths::default()
            },
            groups: 3,
            prompts_per_group: Some(5),
        };
        let spec = DatasetSpec {
            tokenizer_path: Some(path),
            ..DatasetSpec::new(Source::Prefix(groups))
        };
        let prompts = dataset::load(&spec).unwrap().prompts;
        assert_eq!(prompts, dataset::load(&spec).unwrap().prompts);
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for prompt in &prompts {
            let text = prompt.item.text();
            // A token of this tokenizer is a word.
            let words: Vec<&str> = text.split(' ').collect();
            assert!((16..=18).contains(&words.len()));
            *sizes.entry(words[..12].join(" ")).or_default() += 1;
        }
        assert_eq!(sizes.into_values().collect::<Vec<_>>(), [5, 5, 5]);
    }

    #[test]
    fn a_tokenizer_that_gives_nothing_back_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut lossy = word_level();
        // All that is encoded becomes two words.
        lossy["normalizer"] =
            json!({"type": "Replace", "pattern": {"Regex": "\\S+"}, "content": "be be"});
        let path = write(dir.path(), &lossy);
        let lengths = RandomLengths {
            input_tokens: 5,
            ..RandomLengths::default()
        };
        let refused = dataset::load(&spec(&path, lengths, 0, 1)).unwrap_err();
        assert!(matches!(refused, WorkloadError::NoUsableToken(_)));
    }
}
