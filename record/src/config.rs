//! What the command line means: checked, resolved, no default left open.

use anyhow::{Result, bail};
use tapedeck_workload::ArrivalProcess;

use crate::cli::ShapeArgs;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, LoadArgs};
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
}
