//! Labels that a run gives its recordings itself, to tell them apart.

use anyhow::{Result, bail};

use crate::cli::LoadArgs;
use crate::config::Level;

const REPEAT: &str = "repeat";
const TRIAL: &str = "trial";
const LEVEL: &str = "level";

/// Which repetition or which trial of a search `level` is.
pub(crate) fn of_level(level: &Level) -> Vec<(String, String)> {
    let label = |name: &str, value: String| (name.to_owned(), value);
    let mut labels = Vec::new();
    if let Some(repeat) = level.repeat {
        labels.push(label(REPEAT, repeat.to_string()));
    }
    if let Some(trial) = &level.trial {
        let tried = level.parallel.map(|n| n.to_string());
        let tried = level.rate_per_s.map(|rate| rate.to_string()).or(tried);
        labels.push(label(TRIAL, trial.number.to_string()));
        labels.extend(tried.map(|tried| label(LEVEL, tried)));
    }
    labels
}

/// Names that this run will label its recordings with, and whose they are.
fn own(args: &LoadArgs) -> Vec<(&str, &'static str)> {
    let axes = args.launch.matrix.iter();
    let mut own: Vec<_> = axes.map(|axis| (axis.name(), "--matrix")).collect();
    if args.shape.repeat > 1 {
        own.push((REPEAT, "--repeat"));
    }
    #[cfg(feature = "report")]
    if args.find.find_max.is_some() {
        own.extend([(TRIAL, "--find-max"), (LEVEL, "--find-max")]);
    }
    own
}

/// # Errors
/// When two would give one label: a recording would not say which cell, repetition
/// or trial it is.
pub(crate) fn check(args: &LoadArgs) -> Result<()> {
    let own = own(args);
    for (at, (name, flag)) in own.iter().enumerate() {
        if let Some((_, other)) = own[..at].iter().find(|(earlier, _)| earlier == name) {
            bail!(
                "{other} and {flag} both label recordings with {name}\nhint: call it something else in {other}"
            );
        }
        if args.output.all_labels().contains_key(*name) {
            bail!(
                "--label (or --metadata) names {name}, which {flag} labels its recordings with\nhint: give yours another name"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn refused(line: &str) -> Option<String> {
        let words = format!("record load --url u --prompt p {line}");
        let parsed = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Load(args) = parsed.command else {
            unreachable!()
        };
        check(&args).err().map(|error| error.to_string())
    }

    #[test]
    fn a_label_has_one_who_gives_it() {
        for (line, said) in [
            ("--launch x{tp} --matrix tp=1,2 --label tp=9", "names tp"),
            (
                "--launch x{tp} --matrix tp=1,2 --metadata tp=9,a=1",
                "names tp",
            ),
            ("--repeat 2 --metadata repeat=9", "names repeat"),
            (
                "--launch x{repeat} --matrix repeat=1,2 --repeat 2",
                "both label",
            ),
        ] {
            let message = refused(line).unwrap_or_default();
            assert!(message.contains(said), "{line}: {message}");
        }
        for line in [
            "--launch x{tp} --matrix tp=1,2 --label pp=9 --metadata dp=1",
            "--repeat 1 --metadata repeat=9,trial=1,level=2",
        ] {
            assert_eq!(refused(line), None, "{line}");
        }
    }

    #[cfg(feature = "report")]
    #[test]
    fn those_of_a_search_are_its_own() {
        let search = "--find-max rate --slo ttft_ms=1";
        for line in ["--label trial=1", "--metadata level=2"] {
            let message = refused(&format!("{search} {line}")).unwrap_or_default();
            assert!(message.contains("--find-max"), "{line}: {message}");
        }
    }
}
