//! `record load --find-max`: the highest load at which a server keeps its SLOs.
//!
//! [`crate::search`] decides, the analyzer judges, this module carries out: every
//! trial is a recording of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tapedeck_live::StopLevel;
use tapedeck_run::args::parse_share;
use tapedeck_run::harness::Harness;
use tapedeck_run::judge::{Judgement, Verdict, judge};

use crate::cli::{LoadArgs, MAX_PARALLEL};
use crate::config::{Level, TrialOf};
use crate::load::{Done, Load};
use crate::search::{Answer, End, Limits, Search, Standing, Step, Trial};

mod salting;

use salting::Salting;

/// Beyond it the gaps between arrivals are below what a timer keeps.
const MAX_RATE: f64 = 1e6;
/// The lowest rate that is tried is the first one over this.
const LEAST_OF_START: f64 = 1024.0;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Search for the highest load")]
pub struct FindArgs {
    /// Search for the highest rate, or the highest number of requests in flight, at
    /// which enough requests meet every --slo. It begins at --rate or --parallel (1),
    /// doubles or halves, then bisects. Every trial is a recording below --out that
    /// lasts --duration or sends --number requests (at N in flight at least 2 N).
    /// Queues build up in time: for rates, give a --duration. The prompts of a trial
    /// all begin with one line of 16 digits, made of --seed, --salt and the trial's
    /// number, so that the server's prefix cache has none of them from the trials
    /// before (nor from an earlier search, with another seed or salt). A trial in which
    /// this client was the bottleneck ends the search. Exit code 1 when no level passes.
    #[arg(long, value_name = "WHAT", requires = "slos")]
    pub find_max: Option<Raised>,
    /// Share of requests that are to meet every --slo, above 0 and at most 1.
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = parse_wanted, requires = "find_max")]
    pub slo_share: f64,
    /// Between the highest level that passes and the lowest that fails, as a share
    /// of the latter; narrower gaps are not searched.
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = parse_share, requires = "find_max")]
    pub find_tolerance: f64,
    /// Trials of a search at most.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "find_max")]
    pub find_trials: u32,
    /// Trials of one level at most: levels at the border are tried again with other
    /// arrivals while the 95 % interval of their share leaves them in doubt.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100), requires = "find_max")]
    pub find_repeats: u32,
    /// Send the prompts as they are, the same in every trial: for lengths to the token,
    /// or a server without a prefix cache. One with it answers later trials sooner.
    #[arg(long, requires = "find_max")]
    pub find_same_prompts: bool,
}

/// What a search raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Raised {
    /// Arrivals per second.
    Rate,
    /// Requests in flight.
    Parallel,
}

impl Raised {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Parallel => "parallel",
        }
    }
}

fn parse_wanted(text: &str) -> Result<f64, String> {
    match parse_share(text)? {
        share if share > 0.0 => Ok(share),
        _ => Err("expected a number above 0".to_owned()),
    }
}

impl FindArgs {
    /// Whether the rest of the command line is one search's.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, args: &LoadArgs) -> Result<()> {
        let Some(what) = self.find_max else {
            return Ok(());
        };
        let shape = &args.shape;
        let lists = [
            ("--rate", shape.rate.len()),
            ("--parallel", shape.parallel.len()),
            ("--number", shape.number.len()),
        ];
        if let Some((flag, _)) = lists.into_iter().find(|(_, len)| *len > 1) {
            bail!("--find-max takes one value of {flag}: where to begin");
        }
        if shape.rate_ramp.is_some() || shape.rate_series.is_some() {
            bail!(
                "--find-max has a constant rate in each trial: leave out --rate-ramp and --rate-series"
            );
        }
        if shape.repeat > 1 {
            bail!("--find-max repeats what needs it: --find-repeats instead of --repeat");
        }
        let clients = &shape.clients;
        let is_of_clients = clients.ramp_up.is_some()
            || clients.client_duration.is_some()
            || clients.client_sequences;
        match what {
            Raised::Rate if is_of_clients => bail!(
                "--find-max rate is an open loop: leave out --ramp-up, --client-duration and --client-sequences\nhint: --duration ends each trial"
            ),
            Raised::Rate if shape.rate.iter().any(|rate| !rate.is_finite()) => {
                bail!("--find-max rate cannot begin with all at once")
            }
            Raised::Parallel if !shape.rate.is_empty() => {
                bail!("--find-max parallel is a closed loop: leave out --rate")
            }
            _ => Ok(()),
        }
    }

    fn limits(&self, what: Raised, base: &Level) -> Limits {
        let (start, least, most) = match what {
            Raised::Rate => {
                let start = base.rate_per_s.unwrap_or(1.0);
                (start, start / LEAST_OF_START, MAX_RATE.max(start))
            }
            Raised::Parallel => (base.parallel.unwrap_or(1) as f64, 1.0, MAX_PARALLEL as f64),
        };
        Limits {
            start,
            least,
            most,
            whole: what == Raised::Parallel,
            tolerance: self.find_tolerance,
            share: self.slo_share,
            trials: self.find_trials,
            repeats: self.find_repeats,
        }
    }
}

/// A trial and what came of it.
struct Tried {
    path: PathBuf,
    trial: Trial,
    /// What its prompts begin with, and no other trial's.
    salt: Option<String>,
    judgement: Judgement,
}

/// Searches with `base` as the level that all others are made from.
pub(crate) fn run(
    what: Raised,
    load: &Load<'_>,
    harness: &Harness<'_>,
    root: &Path,
    base: &Level,
    done: &mut Done,
) -> Result<()> {
    let find = &load.args.find;
    let mut search = Search::new(find.limits(what, base));
    let salting = Salting::new(load)?;
    let mut tried = Vec::new();
    let answer = loop {
        let trial = match search.next() {
            Step::Try(trial) if harness.stop.level() == StopLevel::Run => trial,
            Step::Try(_) => break None,
            Step::Done(answer) => break Some(answer),
        };
        let mut level = level(load.args, what, base, trial, tried.len());
        let prompts = salting.of(load, &mut level)?;
        let path = root.join(level.folder());
        let args = trial_args(load.args, tried.len());
        let outcome = load
            .of_trial(&args, prompts)
            .record(harness, &level, &path)?;
        done.recordings.push(outcome);
        if harness.stop.level() != StopLevel::Run {
            // Broken off: what it has is not a trial.
            break None;
        }
        let judgement = judge(&path, &args.output.slos, find.slo_share)?;
        match judgement.verdict {
            Verdict::Ok => search.judged(trial.level, judgement.requests, judgement.good_requests),
            _ => search.client_was_the_bottleneck(),
        }
        let one = Tried {
            path,
            trial,
            salt: level.trial.and_then(|trial| trial.salt),
            judgement,
        };
        eprintln!("{}", one.text(what, tried.len() + 1, find.slo_share));
        tried.push(one);
    };
    let found = Found {
        what,
        share: find.slo_share,
        answer,
        standings: search.standings(),
        tried: &tried,
    };
    if answer.is_some_and(|answer| answer.highest.is_none()) {
        done.finding = true;
    }
    eprintln!("{}", found.sentence());
    done.searches.push(found.json(load.args));
    found.table(&load.args.output.all_labels(), &mut done.tables);
    Ok(())
}

fn level(args: &LoadArgs, what: Raised, base: &Level, trial: Trial, index: usize) -> Level {
    let mut level = base.clone();
    level.index = index;
    level.trial = Some(TrialOf {
        number: index,
        repeat: trial.repeat,
        salt: None,
        salted_prompts: 0,
    });
    match what {
        Raised::Rate => {
            level.rate_per_s = Some(trial.level);
            // Without a rate the base is a closed loop of one; here it is a cap or none.
            level.parallel = args.shape.parallel.first().map(|n| *n as usize);
        }
        Raised::Parallel => {
            let parallel = trial.level as usize;
            level.parallel = Some(parallel);
            // With fewer the level would not be reached, or only be touched.
            level.number = level.number.map(|n| n.max(2 * parallel as u64));
        }
    }
    level
}

/// No probe of a server that has answered before.
fn trial_args(args: &LoadArgs, index: usize) -> LoadArgs {
    let mut args = args.clone();
    args.shape.no_probe |= index > 0;
    args
}

impl Tried {
    fn standing(&self) -> Standing {
        Standing {
            level: self.trial.level,
            requests: self.judgement.requests,
            good_requests: self.judgement.good_requests,
            trials: 1,
        }
    }

    fn passed(&self, wanted: f64) -> &'static str {
        match self.judgement.verdict {
            Verdict::Ok if self.standing().passes(wanted) => "passes",
            Verdict::Ok => "fails",
            _ => "client",
        }
    }

    fn text(&self, what: Raised, number: usize, wanted: f64) -> String {
        let judged = &self.judgement;
        let counts = format!("{} of {}", judged.good_requests, judged.requests);
        let (what, level) = (what.as_str(), self.trial.level);
        let share = share_text(&self.standing());
        let start =
            format!("trial {number}: {what} {level}: {counts} requests meet the SLOs ({share})");
        match judged.verdict {
            Verdict::Ok => format!("{start}: {}", self.passed(wanted)),
            verdict => format!("{start}: {}: {}", verdict.as_str(), judged.reason),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn share_text(standing: &Standing) -> String {
    let (low, high) = standing.interval();
    let share = standing.share().map_or("none".to_owned(), percent);
    format!(
        "{share}, 95 % interval {} to {}",
        percent(low),
        percent(high)
    )
}

struct Found<'a> {
    what: Raised,
    share: f64,
    /// `None` when the user ended the search.
    answer: Option<Answer>,
    /// Lowest level first.
    standings: &'a [Standing],
    tried: &'a [Tried],
}

impl Found<'_> {
    fn standing(&self, level: Option<f64>) -> Option<&Standing> {
        let level = level?;
        self.standings
            .iter()
            .find(|s| s.level.total_cmp(&level).is_eq())
    }

    /// The answer in words.
    fn sentence(&self) -> String {
        let what = self.what.as_str();
        let wanted = percent(self.share);
        let Some(answer) = self.answer else {
            return format!("the search for the highest {what} was stopped: no answer");
        };
        let pass = answer.highest.map(|level| format!("{what} {level}"));
        let fail = answer.lowest_failing.map(|level| format!("{what} {level}"));
        let text = match (answer.end, pass, fail) {
            (End::ClientBound, Some(pass), _) => {
                format!(
                    "the server keeps its SLOs at {pass} at least; beyond, this client was the bottleneck"
                )
            }
            (End::ClientBound, None, _) => {
                "this client was the bottleneck before any level passed: no answer".to_owned()
            }
            (End::OutOfTrials, Some(pass), Some(fail)) => {
                format!("the trials ran out: the server keeps its SLOs at {pass}, not at {fail}")
            }
            (_, Some(pass), Some(fail)) => {
                format!(
                    "the server keeps its SLOs for {wanted} of requests up to {pass}, not at {fail}"
                )
            }
            (_, Some(pass), None) => {
                format!("the server keeps its SLOs at {pass} at least, the highest that was tried")
            }
            (_, None, Some(fail)) => {
                format!(
                    "the server does not keep its SLOs for {wanted} of requests at {fail}, the lowest that was tried"
                )
            }
            (_, None, None) => "no answer".to_owned(),
        };
        let undecided = self.undecided();
        if undecided.is_empty() {
            return text;
        }
        let undecided: Vec<String> = undecided
            .iter()
            .map(|s| format!("{what} {} ({})", s.level, share_text(s)))
            .collect();
        format!(
            "{text}; in doubt: {}\nhint: longer trials or more --find-repeats narrow the intervals",
            undecided.join(", ")
        )
    }

    /// Whether no prompt of a trial is one of another trial.
    fn is_salted(&self) -> bool {
        self.tried.iter().any(|one| one.salt.is_some())
    }

    /// Levels at the border whose interval holds the wanted share.
    fn undecided(&self) -> Vec<&Standing> {
        let Some(answer) = self.answer else {
            return Vec::new();
        };
        [answer.highest, answer.lowest_failing]
            .into_iter()
            .filter_map(|level| self.standing(level))
            .filter(|s| !s.is_decided(self.share))
            .collect()
    }

    fn json(&self, args: &LoadArgs) -> Value {
        let levels = self.standings.iter().map(|s| {
            json!({
                "level": s.level,
                "trials": s.trials,
                "requests": s.requests,
                "good_requests": s.good_requests,
                "share": s.share(),
                "interval": s.interval(),
                "passes": s.passes(self.share),
                "decided": s.is_decided(self.share),
            })
        });
        let trials = self.tried.iter().map(|one| {
            let judged = &one.judgement;
            let held = judged.held.iter();
            json!({
                "path": one.path.display().to_string(),
                "level": one.trial.level,
                "repeat": one.trial.repeat,
                "salt": one.salt,
                "requests": judged.requests,
                "good_requests": judged.good_requests,
                "share": one.standing().share(),
                "interval": one.standing().interval(),
                "request_throughput": judged.request_throughput,
                "held": held.map(|h| json!({"metric": h.metric, "stat": h.stat, "bound": h.bound, "value": h.value})).collect::<Vec<_>>(),
                "result": one.passed(self.share),
                "verdict": judged.verdict.as_str(),
                "reason": judged.reason,
            })
        });
        json!({
            "what": self.what.as_str(),
            "labels": args.output.all_labels(),
            "slo_share": self.share,
            "trial_prompts": if self.is_salted() { "salted" } else { "same" },
            "end": self.answer.map_or("stopped", |answer| answer.end.as_str()),
            "highest": self.answer.and_then(|answer| answer.highest),
            "lowest_failing": self.answer.and_then(|answer| answer.lowest_failing),
            "decided": self.answer.is_some() && self.undecided().is_empty(),
            "levels": levels.collect::<Vec<_>>(),
            "trials": trials.collect::<Vec<_>>(),
        })
    }

    /// Every trial in its order, and the answer.
    fn table(&self, labels: &BTreeMap<String, String>, out: &mut String) {
        let held = self.tried.first().map(|one| one.judgement.held.as_slice());
        let held = held.unwrap_or_default().iter();
        let mut rows = vec![
            [
                "trial",
                self.what.as_str(),
                "requests",
                "in SLO",
                "share",
                "95 % interval",
                "req/s",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain(held.map(|h| format!("{} {} (SLO {})", h.metric, h.stat, h.bound)))
            .chain(["result".to_owned()])
            .collect::<Vec<_>>(),
        ];
        rows.extend(
            self.tried
                .iter()
                .zip(1..)
                .map(|(one, number)| self.row(one, number)),
        );
        let labels = labels
            .iter()
            .map(|(name, value)| format!(" {name}={value}"));
        let (what, labels) = (self.what.as_str(), labels.collect::<String>());
        writeln!(out, "\nSearch for the highest {what}{labels}").ok();
        write_columns(out, &rows);
        let prompts = match self.is_salted() {
            true => {
                "each trial's prompts begin with a line of its own: no prefix cache has them from another"
            }
            false => "all trials sent the same prompts: a prefix cache flatters the later ones",
        };
        writeln!(out, "{prompts}\n{}", self.sentence()).ok();
    }

    fn row(&self, one: &Tried, number: usize) -> Vec<String> {
        let judged = &one.judgement;
        let number_or = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.2}"));
        let standing = one.standing();
        let (low, high) = standing.interval();
        let facts = [
            number.to_string(),
            one.trial.level.to_string(),
            judged.requests.to_string(),
            judged.good_requests.to_string(),
            standing.share().map_or("–".to_owned(), percent),
            format!("{} to {}", percent(low), percent(high)),
            number_or(judged.request_throughput),
        ];
        let held = judged.held.iter().map(|h| number_or(h.value));
        let result = one.passed(self.share).to_owned();
        facts.into_iter().chain(held).chain([result]).collect()
    }
}

/// Columns as wide as their widest cell, numbers to the right.
fn write_columns(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:>width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config;
    use clap::Parser;

    fn level_of(line: &str, level_tried: f64) -> Level {
        let line = format!("record load --url u --prompt p --slo ttft_ms=1 {line}");
        let args = match Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        {
            Command::Load(args) => *args,
            _ => unreachable!(),
        };
        let base = config::levels(&args.shape, 100).unwrap().remove(0);
        let trial = Trial {
            level: level_tried,
            repeat: 0,
        };
        level(&args, args.find.find_max.unwrap(), &base, trial, 3)
    }

    #[test]
    fn a_rate_is_an_open_loop_with_a_cap_only_where_one_is_given() {
        let open = level_of("--find-max rate", 8.0);
        assert_eq!((open.rate_per_s, open.parallel), (Some(8.0), None));
        let capped = level_of("--find-max rate --rate 2 --parallel 5", 8.0);
        assert_eq!((capped.rate_per_s, capped.parallel), (Some(8.0), Some(5)));
    }

    #[test]
    fn a_trial_is_long_enough_to_reach_its_level() {
        let few = level_of("--find-max parallel --number 10", 64.0);
        assert_eq!(
            (few.parallel, few.number, few.rate_per_s),
            (Some(64), Some(128), None)
        );
        let timed = level_of("--find-max parallel --duration 5s", 64.0);
        assert_eq!(timed.number, None);
    }
}
