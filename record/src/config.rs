//! What the command line means: checked, resolved, no default left open.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tapedeck_workload::ArrivalProcess;
use tapedeck_workload::prompts::{Item, line_by_line, prompt};

use crate::cli::{Dataset, LoadArgs, ShapeArgs};

/// One level of a load: what the pacer is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    pub parallel: Option<usize>,
    pub rate_per_s: Option<f64>,
    pub burstiness: f64,
    /// Requests to send; `None` until the duration has passed.
    pub number: Option<u64>,
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

    /// Folder name of this level within a sweep.
    #[must_use]
    pub fn folder(&self) -> String {
        let parallel = self.parallel.map(|n| format!("parallel-{n}"));
        let rate = self.rate_per_s.map(|r| format!("rate-{r}"));
        let number = self.number.map(|n| format!("number-{n}"));
        [parallel, rate, number]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("-")
    }
}

/// The levels of `shape`: every `--parallel` or `--rate`, each with its
/// `--number`. A list of one applies to all.
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
    let level = |index: usize| {
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
        }
    };
    Ok((0..count).map(level).collect())
}

/// The data set of a load.
#[derive(Debug)]
pub struct Source {
    pub kind: &'static str,
    pub path: Option<PathBuf>,
    pub items: Vec<Item>,
    pub skipped_lines: usize,
    /// Requests to send when `--number` does not say.
    pub default_number: u64,
}

/// Requests that one prompt is sent for when `--number` does not say.
const PROMPT_REQUESTS: u64 = 100;

/// Reads what is to be sent.
///
/// # Errors
/// When the data set is missing, unreadable or holds nothing.
pub fn source(args: &LoadArgs) -> Result<Source> {
    let workload = &args.workload;
    match (&workload.prompt, workload.dataset, &workload.dataset_path) {
        (Some(_), _, Some(_)) => {
            bail!(
                "--prompt and --dataset-path exclude each other\nhint: a file of prompts is --dataset line_by_line --dataset-path FILE"
            )
        }
        (Some(text), ..) => Ok(Source {
            kind: "prompt",
            path: text.strip_prefix('@').map(PathBuf::from),
            items: vec![prompt(text)?],
            skipped_lines: 0,
            default_number: PROMPT_REQUESTS,
        }),
        // A file without a data set's name can only be the one kind there is.
        (None, None | Some(Dataset::LineByLine), Some(path)) => {
            let loaded = line_by_line(path, workload.skip_bad)?;
            Ok(Source {
                kind: "line_by_line",
                path: Some(path.clone()),
                default_number: loaded.items.len() as u64,
                items: loaded.items,
                skipped_lines: loaded.skipped_lines,
            })
        }
        (None, Some(_), None) => bail!("--dataset line_by_line needs --dataset-path FILE"),
        (None, None, None) => {
            bail!(
                "nothing to send\nhint: --prompt TEXT, or --dataset line_by_line --dataset-path FILE"
            )
        }
    }
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
            Command::Proxy(_) | Command::Simulate(_) => unreachable!(),
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
}
