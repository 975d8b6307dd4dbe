//! What the command line means: checked, resolved, no default left open.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tapedeck_workload::dataset::{self, DatasetSpec, Loaded, RandomLengths};
use tapedeck_workload::{ArrivalProcess, PromptLengths};

use crate::cli::{Dataset, LoadArgs, RandomArgs, ShapeArgs, WorkloadArgs};

/// One level of a load: what the pacer is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    pub parallel: Option<usize>,
    pub rate_per_s: Option<f64>,
    pub burstiness: f64,
    /// Requests to send; `None` until the duration has passed.
    pub number: Option<u64>,
    /// Place among the levels of the sweep, from 0.
    pub index: usize,
    /// Which time it is carried out, from 1; `None` when there is one only.
    pub repeat: Option<u32>,
}

impl Level {
    /// How the arrivals are spread, or `None` in a closed loop.
    #[must_use]
    pub fn process(&self) -> Option<ArrivalProcess> {
        self.rate_per_s.map(|rate_per_s| {
            if rate_per_s.is_infinite() {
                ArrivalProcess::AtOnce
            } else {
                ArrivalProcess::Gamma {
                    rate_per_s,
                    burstiness: self.burstiness,
                }
            }
        })
    }

    /// Folder name of this level within a sweep; folders sort by level, then by
    /// repetition.
    #[must_use]
    pub fn folder(&self) -> String {
        let index = Some(format!("{:03}", self.index));
        let parallel = self.parallel.map(|n| format!("parallel-{n}"));
        let rate = self.rate_per_s.map(|r| format!("rate-{r}"));
        let number = self.number.map(|n| format!("number-{n}"));
        let repeat = self.repeat.map(|n| format!("repeat-{n:03}"));
        [index, parallel, rate, number, repeat]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("-")
    }
}

/// The levels of `shape`: every `--parallel` or `--rate`, each with its
/// `--number`. A list of one applies to all. With `--repeat` all of them come
/// again and again, so that what drifts slowly touches all levels alike.
///
/// # Errors
/// When lists of different lengths meet.
pub fn levels(shape: &ShapeArgs, dataset_size: u64) -> Result<Vec<Level>> {
    let lens = [shape.parallel.len(), shape.rate.len(), shape.number.len()];
    let count = lens.into_iter().max().unwrap_or(1).max(1);
    for (flag, len) in [
        ("--parallel", shape.parallel.len()),
        ("--rate", shape.rate.len()),
        ("--number", shape.number.len()),
    ] {
        if len > 1 && len != count {
            bail!(
                "{flag} has {len} values, the sweep has {count} levels\nhint: give one value, or one for each level"
            );
        }
    }
    let pick = |len: usize, index: usize| if len == 1 { 0 } else { index };
    let level = |index: usize, repeat: Option<u32>| {
        let rate_per_s = shape.rate.get(pick(shape.rate.len(), index)).copied();
        let parallel = shape.parallel.get(pick(shape.parallel.len(), index));
        let parallel = parallel.map(|n| *n as usize);
        let number = shape.number.get(pick(shape.number.len(), index)).copied();
        Level {
            // A closed loop of one, unless a rate opens it.
            parallel: parallel.or(rate_per_s.is_none().then_some(1)),
            rate_per_s,
            burstiness: shape.burstiness,
            number: number.or(shape.duration.is_none().then_some(dataset_size)),
            index,
            repeat,
        }
    };
    let rounds = (1..=shape.repeat).map(|n| (shape.repeat > 1).then_some(n));
    Ok(rounds
        .flat_map(|repeat| (0..count).map(move |index| (index, repeat)))
        .map(|(index, repeat)| level(index, repeat))
        .collect())
}

/// The data set of a load.
#[derive(Debug)]
pub struct Source {
    pub kind: &'static str,
    pub spec: DatasetSpec,
    pub loaded: Loaded,
    /// Requests to send when `--number` does not say.
    pub default_number: u64,
}

/// Requests that one prompt is sent for when `--number` does not say.
const PROMPT_REQUESTS: u64 = 100;

/// Field of the prompt in OpenQA's records.
const OPENQA_COLUMN: &str = "question";

/// Reads what is to be sent.
///
/// # Errors
/// When the data set is missing, unreadable or holds nothing that may be sent.
pub fn source(args: &LoadArgs) -> Result<Source> {
    let (kind, origin) = origin(&args.workload)?;
    let limit = args.shape.number.iter().max();
    let lengths = &args.workload.lengths;
    let spec = DatasetSpec {
        source: origin,
        tokenizer_path: args.workload.tokenizer_path.clone(),
        skip_bad: args.workload.skip_bad,
        seed: args.workload.seed,
        limit: limit.map(|n| usize::try_from(*n).unwrap_or(usize::MAX)),
        lengths: PromptLengths {
            min_chars: lengths.min_prompt_chars,
            max_chars: lengths.max_prompt_chars,
            min_tokens: lengths.min_prompt_tokens,
            max_tokens: lengths.max_prompt_tokens,
        },
        max_tokens: args.body.max_tokens,
    };
    let loaded = dataset::load(&spec)?;
    Ok(Source {
        kind,
        default_number: match spec.source {
            dataset::Source::Prompt(_) => PROMPT_REQUESTS,
            _ => loaded.prompts.len() as u64,
        },
        spec,
        loaded,
    })
}

/// Where prompts come from, with its name in the manifest.
fn origin(workload: &WorkloadArgs) -> Result<(&'static str, dataset::Source)> {
    let path = &workload.dataset_path;
    if let Some(text) = &workload.prompt {
        if path.is_some() {
            bail!(
                "--prompt and --dataset-path exclude each other\nhint: a file of prompts is --dataset line_by_line --dataset-path FILE"
            );
        }
        refuse_strangers(workload, None)?;
        return Ok(("prompt", dataset::Source::Prompt(text.clone())));
    }
    let Some(named) = workload.dataset.or_else(|| guess(workload)) else {
        bail!(
            "nothing to send\nhint: --prompt TEXT, or --dataset line_by_line --dataset-path FILE"
        );
    };
    refuse_strangers(workload, Some(named))?;
    let file = || -> Result<PathBuf> {
        let kind = named.as_str();
        path.clone()
            .with_context(|| format!("--dataset {kind} needs --dataset-path FILE"))
    };
    let origin = match named {
        Dataset::LineByLine => dataset::Source::LineByLine(file()?),
        Dataset::ShareGpt => dataset::Source::ShareGpt(file()?),
        Dataset::OpenQa | Dataset::Table => {
            let default = (named == Dataset::OpenQa).then(|| OPENQA_COLUMN.to_owned());
            let column = workload.prompt_column.clone().or(default);
            dataset::Source::Column {
                path: file()?,
                column: column.context("--dataset table needs --prompt-column NAME")?,
            }
        }
        Dataset::Random => dataset::Source::Random(random(&workload.random)?),
    };
    Ok((named.as_str(), origin))
}

/// A file without a data set's name is one of lines.
fn guess(workload: &WorkloadArgs) -> Option<Dataset> {
    workload.dataset_path.as_ref().map(|_| Dataset::LineByLine)
}

/// Flags that would say nothing to the data set are an error, not a surprise.
fn refuse_strangers(workload: &WorkloadArgs, dataset: Option<Dataset>) -> Result<()> {
    let is_random = dataset == Some(Dataset::Random);
    let random = &workload.random;
    let lengths = &workload.lengths;
    let random_flags = [
        ("--input-tokens", random.input_tokens.is_some()),
        ("--output-tokens", random.output_tokens.is_some()),
        ("--random-range-ratio", random.random_range_ratio.is_some()),
        ("--prefix-length", random.prefix_length.is_some()),
    ];
    let file_flags = [
        ("--dataset-path", workload.dataset_path.is_some()),
        ("--min-prompt-chars", lengths.min_prompt_chars.is_some()),
        ("--max-prompt-chars", lengths.max_prompt_chars.is_some()),
        ("--min-prompt-tokens", lengths.min_prompt_tokens.is_some()),
        ("--max-prompt-tokens", lengths.max_prompt_tokens.is_some()),
    ];
    for (flag, is_set) in random_flags {
        if is_set && !is_random {
            bail!("{flag} is for --dataset random\nhint: the output limit is --max-tokens");
        }
    }
    for (flag, is_set) in file_flags {
        if is_set && is_random {
            bail!(
                "{flag} is not for --dataset random\nhint: its lengths are --input-tokens and --random-range-ratio"
            );
        }
    }
    let has_columns = matches!(dataset, Some(Dataset::OpenQa | Dataset::Table));
    if workload.prompt_column.is_some() && !has_columns {
        bail!("--prompt-column is for --dataset table and openqa");
    }
    Ok(())
}

fn random(args: &RandomArgs) -> Result<RandomLengths> {
    let input_tokens = args.input_tokens;
    Ok(RandomLengths {
        input_tokens: input_tokens.context("--dataset random needs --input-tokens N")?,
        output_tokens: args.output_tokens,
        range_ratio: args.random_range_ratio.unwrap_or(0.0),
        prefix_tokens: args.prefix_length.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn load(line: &str) -> LoadArgs {
        let words = ["record", "load"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Load(args) => *args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_rate_without_parallel_is_an_uncapped_open_loop() {
        let open = levels(&load("--url u --prompt p --rate 5").shape, 100).unwrap();
        assert_eq!(open[0].parallel, None);
        assert!(open[0].process().is_some());
        let closed = levels(&load("--url u --prompt p").shape, 100).unwrap();
        assert_eq!(closed[0].parallel, Some(1));
        assert_eq!(closed[0].number, Some(100));
        assert!(closed[0].process().is_none());
    }

    #[test]
    fn lists_make_levels_and_must_match() {
        let args = load("--url u --prompt p --parallel 1 8 32 --number 10 80 320");
        let sweep = levels(&args.shape, 100).unwrap();
        assert_eq!(sweep.len(), 3);
        assert_eq!((sweep[2].parallel, sweep[2].number), (Some(32), Some(320)));
        let args = load("--url u --prompt p --parallel 1 8 32 --number 10 80");
        assert!(
            levels(&args.shape, 100)
                .unwrap_err()
                .to_string()
                .contains("--number has 2")
        );
    }

    #[test]
    fn repetitions_come_in_rounds_and_sort_by_level() {
        let args = load("--url u --prompt p --parallel 1 8 --repeat 2");
        let sweep = levels(&args.shape, 100).unwrap();
        let mut folders: Vec<String> = sweep.iter().map(Level::folder).collect();
        let expected = [
            "000-parallel-1-number-100-repeat-001",
            "001-parallel-8-number-100-repeat-001",
            "000-parallel-1-number-100-repeat-002",
            "001-parallel-8-number-100-repeat-002",
        ];
        assert_eq!(folders, expected);
        folders.sort();
        assert_eq!(
            folders,
            [expected[0], expected[2], expected[1], expected[3]]
        );
    }

    #[test]
    fn flags_of_another_data_set_are_refused() {
        for (line, flag) in [
            ("--prompt p --input-tokens 5", "--input-tokens"),
            ("--dataset-path f --prefix-length 5", "--prefix-length"),
            ("--dataset random --dataset-path f", "--dataset-path"),
            (
                "--dataset sharegpt --dataset-path f --prompt-column q",
                "--prompt-column",
            ),
            ("--dataset sharegpt", "--dataset-path"),
            ("--dataset table --dataset-path f", "--prompt-column"),
            ("--dataset random --tokenizer-path t", "--input-tokens"),
        ] {
            let args = load(&format!("--url u {line}"));
            let message = source(&args).unwrap_err().to_string();
            assert!(message.contains(flag), "{line}: {message}");
        }
    }
}
