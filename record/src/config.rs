//! What the command line means: checked, resolved, no default left open.

use std::time::Duration;

use anyhow::{Result, bail};
use tapedeck_live::ClientTimes;
use tapedeck_workload::{ArrivalProcess, RateShape};

use crate::cli::ShapeArgs;
use crate::shape::RampUp;

/// One level of a load: what the pacer is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    pub parallel: Option<usize>,
    pub rate_per_s: Option<f64>,
    /// A rate that changes, instead of `rate_per_s`.
    pub rate_shape: Option<RateShape>,
    pub burstiness: f64,
    /// When the clients of a closed loop begin; all at once where `None`.
    pub ramp_up: Option<RampUp>,
    pub client_duration: Option<Duration>,
    /// Requests to send; `None` until something else ends the load.
    pub number: Option<u64>,
    /// Place among the levels of the sweep, from 0.
    pub index: usize,
    /// Which time it is carried out, from 1; `None` when there is one only.
    pub repeat: Option<u32>,
    /// Which trial of a search it is.
    pub trial: Option<TrialOf>,
}

/// A trial of a search for the highest load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialOf {
    /// From 0.
    pub number: usize,
    /// How often its level was tried before.
    pub repeat: u32,
    /// What all of its prompts begin with, to be no other trial's; `None` where they
    /// are the same in all trials.
    pub salt: Option<String>,
    /// Prompts of the data set that had a place for it.
    pub salted_prompts: usize,
}

impl Level {
    /// How the arrivals are spread, or `None` in a closed loop.
    #[must_use]
    pub fn process(&self) -> Option<ArrivalProcess> {
        let burstiness = self.burstiness;
        if let Some(shape) = self.rate_shape.clone() {
            return Some(ArrivalProcess::Shaped { shape, burstiness });
        }
        self.rate_per_s.map(|rate_per_s| {
            if rate_per_s.is_infinite() {
                ArrivalProcess::AtOnce
            } else {
                ArrivalProcess::Gamma {
                    rate_per_s,
                    burstiness,
                }
            }
        })
    }

    /// When the clients of this level begin and end.
    #[must_use]
    pub fn clients(&self) -> ClientTimes {
        let count = self.parallel.unwrap_or(1);
        ClientTimes {
            ramp_up: self.ramp_up.map_or(Duration::ZERO, |r| r.total(count)),
            duration: self.client_duration,
        }
    }

    /// What the arrivals are drawn with: a level that is tried again has other ones.
    #[must_use]
    pub fn schedule_seed(&self, seed: u64) -> u64 {
        let repeat = self.trial.as_ref().map_or(0, |trial| trial.repeat);
        seed.wrapping_add(u64::from(repeat))
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
/// When lists of different lengths meet, or there is no rate to warm up with.
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
    let rate_shape = shape.rate_ramp.as_ref().or(shape.rate_series.as_ref());
    let ends_by_itself =
        shape.duration.is_some() || shape.clients.client_duration.is_some() || rate_shape.is_some();
    let level = |index: usize, repeat: Option<u32>| {
        let rate_per_s = shape.rate.get(pick(shape.rate.len(), index)).copied();
        let parallel = shape.parallel.get(pick(shape.parallel.len(), index));
        let parallel = parallel.map(|n| *n as usize);
        let number = shape.number.get(pick(shape.number.len(), index)).copied();
        // A closed loop of one, unless a rate opens it.
        let is_closed = rate_per_s.is_none() && rate_shape.is_none();
        let parallel = parallel.or(is_closed.then_some(1));
        Level {
            parallel,
            rate_per_s,
            rate_shape: rate_shape.cloned(),
            burstiness: shape.burstiness,
            ramp_up: shape.clients.ramp_up,
            client_duration: shape.clients.client_duration,
            number: number.or((!ends_by_itself).then_some(dataset_size)),
            index,
            repeat,
            trial: None,
        }
    };
    check_warmup(shape, &level(0, None))?;
    let rounds = (1..=shape.repeat).map(|n| (shape.repeat > 1).then_some(n));
    Ok(rounds
        .flat_map(|repeat| (0..count).map(move |index| (index, repeat)))
        .map(|(index, repeat)| level(index, repeat))
        .collect())
}

fn check_warmup(shape: &ShapeArgs, level: &Level) -> Result<()> {
    let warmup = &shape.warmup;
    let has_rate = |process: &ArrivalProcess| process.before().is_some();
    let is_wanted = warmup.warmup_requests.is_some() || warmup.warmup_duration.is_some();
    if is_wanted && !level.process().as_ref().is_none_or(has_rate) {
        bail!(
            "a warm-up is sent at the rate that the load begins with, and this one begins with 0\nhint: begin it above 0"
        );
    }
    let at_once = shape.rate.iter().any(|rate| rate.is_infinite());
    if at_once && warmup.warmup_duration.is_some() {
        bail!(
            "--warmup-duration needs a rate, and all at once is none\nhint: --warmup-requests N sends N at once before"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, LoadArgs, load_args};
    use clap::Parser;

    fn load(line: &str) -> LoadArgs {
        load_args(line.split_whitespace())
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
    fn a_rate_that_changes_is_an_open_loop_that_ends_by_itself() {
        for line in ["--rate-ramp 1..50@60s", "--rate-series 10@30s,50@10s"] {
            let args = load(&format!("--url u --prompt p {line} --burstiness 2"));
            let level = levels(&args.shape, 100).unwrap().pop().unwrap();
            assert_eq!((level.parallel, level.number), (None, None));
            let process = level.process();
            assert!(matches!(
                process,
                Some(ArrivalProcess::Shaped {
                    burstiness: 2.0,
                    ..
                })
            ));
        }
    }

    #[test]
    fn clients_begin_by_the_level_that_they_belong_to() {
        let args = load("--url u --prompt p --parallel 1 40 --ramp-up --client-duration 5s");
        let sweep = levels(&args.shape, 100).unwrap();
        let times = |index: usize| (sweep[index].clients().ramp_up, sweep[index].number);
        assert_eq!(times(0), (Duration::from_millis(100), None));
        assert_eq!(times(1), (Duration::from_secs(4), None));
        assert_eq!(sweep[0].clients().duration, Some(Duration::from_secs(5)));
    }

    #[test]
    fn flags_of_the_other_loop_and_warm_ups_without_a_rate_are_refused() {
        for line in [
            "--rate 5 --rate-ramp 1..5@5s",
            "--rate-ramp 1..5@5s --rate-series 1@5s",
            "--rate 5 --ramp-up 1s",
            "--rate-series 1@5s --client-sequences",
            "--rate-ramp 1..5@5s --client-duration 1s",
            "--burstiness 2",
        ] {
            let words = format!("record load --url u --prompt p {line}");
            assert!(
                Cli::try_parse_from(words.split_whitespace()).is_err(),
                "{line}"
            );
        }
        for (line, said) in [
            ("--rate-ramp 0..5@5s --warmup-requests 3", "begins with 0"),
            ("--rate -1 --warmup-duration 3s", "all at once"),
        ] {
            let args = load(&format!("--url u --prompt p {line}"));
            let refused = levels(&args.shape, 100).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        let ramp = load("--url u --prompt p --rate-ramp 1..5@5s --warmup-requests 3");
        assert!(levels(&ramp.shape, 100).is_ok());
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
