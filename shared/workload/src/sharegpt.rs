//! ShareGPT: conversations whose first two turns are prompt and completion.
//!
//! The rules are those of Aphrodite's `benchmark_serving.py`, which vLLM's shares:
//! conversations are shuffled; those of at least two turns give a pair, whoever
//! speaks; a pair is left out when its prompt or its completion is under 4 tokens,
//! its prompt over 1024, or both together over 2048. With a fixed output length
//! that length stands for the completion's, and the rule of 4 does not apply to it.
//!
//! Of a conversation of several turns the rules look at the first pair. Each later
//! pair is a turn, its completion the recorded reply that the next turn carries.

use std::path::Path;

use polars::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::columns::{Columns, read};
use crate::dataset::{DatasetSpec, Gathered, Reason};
use crate::error::WorkloadError;
use crate::prompts::{Item, Prompt, Turn, assistant, user};
use crate::tokens::{Tokenizer, count, count_all};

const MIN_TOKENS: u32 = 4;
const MAX_PROMPT_TOKENS: u32 = 1024;
const MAX_TOKENS: u32 = 2048;

/// Pairs whose tokens are counted at once; what is counted beyond the limit is
/// work for nothing.
const COUNTED_AT_ONCE: usize = 512;

struct Pair {
    prompt: String,
    completion: String,
}

/// The first pair of a conversation, and the others.
struct Conversation {
    first: Pair,
    later: Vec<Pair>,
}

pub(crate) fn gather(
    path: &Path,
    spec: &DatasetSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Gathered, WorkloadError> {
    let (mut found, mut gathered) = conversations(path, spec)?;
    gathered.is_estimated = tokenizer.is_none();
    found.shuffle(&mut StdRng::seed_from_u64(spec.seed));
    let limit = spec.limit.unwrap_or(usize::MAX);
    gathered.unused = found.len() as u64;
    for some in found.chunks(COUNTED_AT_ONCE) {
        let prompt_tokens = count_all(tokenizer, some, |one| &one.first.prompt)?;
        let output_tokens = match spec.max_tokens {
            Some(fixed) => vec![fixed; some.len()],
            None => count_all(tokenizer, some, |one| &one.first.completion)?,
        };
        for ((one, prompt), output) in some.iter().zip(prompt_tokens).zip(output_tokens) {
            if gathered.prompts.len() >= limit {
                break;
            }
            gathered.unused -= 1;
            match objection(&one.first, prompt, output, spec) {
                Some(reason) => gathered.left_out.add(reason, 1),
                None => gathered.prompts.push(Prompt {
                    input_tokens: tokenizer.map(|_| prompt),
                    max_tokens: Some(output),
                    turns: turns(one, spec, tokenizer)?,
                    ..Item::Text(one.first.prompt.clone()).into()
                }),
            }
        }
        if gathered.prompts.len() >= limit {
            break;
        }
    }
    Ok(gathered)
}

/// The turns behind the first, each with the reply to the one before it.
fn turns(
    one: &Conversation,
    spec: &DatasetSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Turn>, WorkloadError> {
    let before = std::iter::once(&one.first).chain(&one.later);
    let turn = |(before, pair): (&Pair, &Pair)| {
        let output = match spec.max_tokens {
            Some(fixed) => fixed,
            None => count(tokenizer, &pair.completion)?,
        };
        Ok(Turn {
            reply: vec![assistant(before.completion.as_str())],
            messages: vec![user(pair.prompt.as_str())],
            max_tokens: Some(output),
        })
    };
    before.zip(&one.later).map(turn).collect()
}

fn objection(pair: &Pair, prompt: u32, output: u32, spec: &DatasetSpec) -> Option<Reason> {
    if prompt < MIN_TOKENS {
        Some(Reason::FewPromptTokens)
    } else if spec.max_tokens.is_none() && output < MIN_TOKENS {
        Some(Reason::FewOutputTokens)
    } else if prompt > MAX_PROMPT_TOKENS {
        Some(Reason::ManyPromptTokens)
    } else if prompt.saturating_add(output) > MAX_TOKENS {
        Some(Reason::ManyTokens)
    } else {
        spec.lengths.objection(&pair.prompt, Some(prompt))
    }
}

/// Every conversation of at least a prompt and a completion, in the file's order,
/// with as many pairs as turns are wanted.
fn conversations(
    path: &Path,
    spec: &DatasetSpec,
) -> Result<(Vec<Conversation>, Gathered), WorkloadError> {
    let turn = DataType::Struct(vec![Field::new("value".into(), DataType::String)]);
    let turns = DataType::List(Box::new(turn));
    let nth = |n: usize| {
        let turn = col("conversations").list().get(lit(n as i64), true);
        turn.struct_().field_by_name("value")
    };
    let texts: Vec<Expr> = (0..2 * spec.num_turns).map(nth).collect();
    let columns = Columns {
        schema: Schema::from_iter([Field::new("conversations".into(), turns)]),
        texts: &texts,
    };
    let mut found = Vec::new();
    let mut few_turns = 0;
    let tally = read(path, spec.skip_bad, &columns, |row| {
        let pairs = row.chunks(2).map_while(|pair| match pair {
            [Some(prompt), Some(completion)] => Some(Pair {
                prompt: (*prompt).to_owned(),
                completion: (*completion).to_owned(),
            }),
            _ => None,
        });
        let mut pairs = pairs.fuse();
        match pairs.next() {
            Some(first) => found.push(Conversation {
                first,
                later: pairs.collect(),
            }),
            None => few_turns += 1,
        }
        Ok(())
    })?;
    let mut gathered = Gathered {
        records: tally.records,
        left_out: tally.left_out,
        lost: tally.lost,
        ..Gathered::default()
    };
    gathered.left_out.add(Reason::FewTurns, few_turns);
    Ok((found, gathered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{self, CountedBy, LeftOut, Source};
    use serde_json::{Value, json};
    use std::path::PathBuf;

    fn record(turns: &[&str]) -> Value {
        let speakers = ["human", "gpt"].into_iter().cycle();
        let turns = turns.iter().zip(speakers);
        let turns = turns.map(|(text, from)| json!({"from": from, "value": text}));
        json!({"id": "x_0", "conversations": turns.collect::<Vec<_>>(), "model": 4})
    }

    fn spec(path: PathBuf) -> DatasetSpec {
        DatasetSpec::new(Source::ShareGpt(path))
    }

    fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("s.json");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn reasons(left_out: &LeftOut) -> Vec<(&'static str, u64)> {
        left_out.iter().map(|(r, n)| (r.as_str(), n)).collect()
    }

    /// Texts of so many tokens by the estimate.
    fn tokens(n: usize) -> String {
        "word".repeat(n)
    }

    #[test]
    fn the_filter_is_that_of_the_peers() {
        let dir = tempfile::tempdir().unwrap();
        let records = [
            record(&[&tokens(4), &tokens(4), "third"]),
            record(&[&tokens(1024), &tokens(1024)]),
            record(&[&tokens(3), &tokens(9)]),
            record(&[&tokens(9), &tokens(3)]),
            record(&[&tokens(1025), &tokens(9)]),
            record(&[&tokens(1024), &tokens(1025)]),
            record(&[&tokens(9)]),
            record(&[]),
            json!({"id": "no conversations"}),
        ];
        let path = file(&dir, &format!("{:#}", json!(records)));
        let loaded = dataset::load(&spec(path.clone())).unwrap();
        assert_eq!(loaded.counted_by, CountedBy::Estimate);
        assert_eq!(loaded.records, 9);
        let mut limits: Vec<_> = loaded.prompts.iter().map(|p| p.max_tokens).collect();
        limits.sort_unstable();
        assert_eq!(limits, [Some(4), Some(1024)]);
        assert!(loaded.prompts.iter().all(|p| p.input_tokens.is_none()));
        assert_eq!(
            reasons(&loaded.left_out),
            [
                ("few_turns", 3),
                ("few_prompt_tokens", 1),
                ("few_output_tokens", 1),
                ("many_prompt_tokens", 1),
                ("many_tokens", 1)
            ]
        );

        // A fixed output stands for the completion's, and may be short.
        let fixed = DatasetSpec {
            max_tokens: Some(1),
            ..spec(path)
        };
        let loaded = dataset::load(&fixed).unwrap();
        assert_eq!(loaded.prompts.len(), 4);
    }

    #[test]
    fn later_pairs_are_turns_that_carry_the_reply_before() {
        let dir = tempfile::tempdir().unwrap();
        let said: Vec<String> = (4..9).map(tokens).collect();
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        let path = file(&dir, &json!([record(&said)]).to_string());
        let load = |num_turns| {
            let spec = DatasetSpec {
                num_turns,
                ..spec(path.clone())
            };
            dataset::load(&spec).unwrap().prompts
        };
        assert!(load(1)[0].turns.is_empty());
        // The fifth has no completion: it is no turn.
        let whole = load(9);
        assert_eq!(whole, load(2));
        let [turn] = &whole[0].turns[..] else {
            panic!("{whole:?}")
        };
        assert_eq!(turn.reply, [assistant(said[1])]);
        assert_eq!(turn.messages, [user(said[2])]);
        assert_eq!(turn.max_tokens, Some(7));
    }

    #[test]
    fn a_seed_is_one_sample_and_a_limit_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<Value> = (0..2_000)
            .map(|n| record(&[&format!("prompt number {n:05}"), &tokens(9)]))
            .collect();
        let path = file(&dir, &json!(records).to_string());
        let sample = |seed, limit| {
            let spec = DatasetSpec {
                seed,
                limit,
                ..spec(path.clone())
            };
            dataset::load(&spec).unwrap()
        };
        let all = sample(1, None);
        assert_eq!(all.prompts.len(), 2_000);
        assert_eq!(all.prompts, sample(1, None).prompts);
        assert_ne!(all.prompts, sample(2, None).prompts);
        let some = sample(1, Some(700));
        assert_eq!(some.prompts, all.prompts[..700]);
        assert_eq!((some.records, some.unused), (2_000, 1_300));
    }

    #[test]
    fn bad_records_are_named_or_counted_and_take_nothing_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let good = record(&[&tokens(5), &tokens(5)]).to_string();
        let bad = [
            "{\"conversations\": 7 8}",
            "{\"conversations\": [{\"value\": \"\\x\"}]}",
            "{\"conversations\": {\"value\": \"a\"}}",
        ];
        let text = format!("[{good},{},{good},{},{},{good}]", bad[0], bad[1], bad[2]);
        let path = file(&dir, &text);
        let refused = dataset::load(&spec(path.clone())).unwrap_err().to_string();
        let offset = text.find(bad[0]).unwrap();
        let words = format!("record 2, which begins at byte {offset}");
        assert!(refused.contains(&words), "{refused}");
        let skipping = DatasetSpec {
            skip_bad: true,
            ..spec(path)
        };
        let loaded = dataset::load(&skipping).unwrap();
        assert_eq!(loaded.prompts.len(), 3);
        assert_eq!(reasons(&loaded.left_out), [("bad", 3)]);
    }
}
