//! Where recordings go, and what is printed when they are done.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tapedeck_live::{Failure, PreparedRequest};
use tapedeck_recording::body_hash;

use crate::args::OutputArgs;
use crate::ending::Ending;
use crate::manifest::utc_now;

/// One finished recording.
#[derive(Debug)]
pub struct Outcome {
    pub path: PathBuf,
    pub requests: u64,
    pub failed: u64,
    pub failures: Vec<Failure>,
    /// Requests that were not sent because they would have been too late.
    pub late_dropped: u64,
}

/// The folder that `--out` names or its default. Refuses one that holds anything,
/// before a single request is sent.
///
/// # Errors
/// When the folder is not empty.
pub fn root(output: &OutputArgs, command: &str) -> Result<PathBuf> {
    let root = shared_root(output, command)?;
    if root.exists() && root.read_dir()?.next().is_some() {
        bail!(
            "--out {} is not an empty folder\nhint: choose another, recordings are never overwritten",
            root.display()
        );
    }
    Ok(root)
}

/// The folder that `--out` names or its default, for recordings that stand beside
/// those of other runs.
///
/// # Errors
/// When it is no folder.
pub fn shared_root(output: &OutputArgs, command: &str) -> Result<PathBuf> {
    let root = output
        .out
        .clone()
        .unwrap_or_else(|| default_out(output, command));
    if root.exists() && !root.is_dir() {
        bail!("--out {} is not a folder", root.display());
    }
    Ok(root)
}

/// Prints `text` on stdout.
///
/// # Errors
/// When stdout cannot be written.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the report"),
    }
}

/// BLAKE3 over the hashes of the bodies in their order, 32 hex digits.
#[must_use]
pub fn content_hash(requests: &[Arc<PreparedRequest>]) -> String {
    let hashes = requests.iter().filter_map(|r| r.body_hash.as_deref());
    body_hash(hashes.collect::<String>().as_bytes())
}

fn default_out(output: &OutputArgs, command: &str) -> PathBuf {
    let parent = output.result_dir.clone();
    let parent = parent.unwrap_or_else(|| "recordings".into());
    match &output.result_filename {
        Some(name) => parent.join(safe_name(name.strip_suffix(".json").unwrap_or(name))),
        None => new_folder(&parent, &output.name_or(command)),
    }
}

/// [`folder_name`] in `root`, with a number where the folder is there already:
/// several recordings may begin in one second.
#[must_use]
pub fn new_folder(root: &Path, name: &str) -> PathBuf {
    let folder = folder_name(name);
    let numbered = (1..).map(|n| root.join(format!("{folder}.{n}")));
    let mut free = std::iter::once(root.join(&folder))
        .chain(numbered)
        .skip_while(|path| path.exists());
    free.next().unwrap_or_else(|| root.join(folder))
}

/// `<utc>-<name>`, with nothing in it that a file name cannot bear.
#[must_use]
pub fn folder_name(name: &str) -> String {
    format!("{}-{}", utc_now(), safe_name(name))
}

/// Whether [`folder_name`] makes `folder` of `name` at some instant, a number
/// `.N` behind it or not.
#[must_use]
pub fn is_folder_name(folder: &str, name: &str) -> bool {
    let Some((utc, rest)) = folder.split_once('-') else {
        return false;
    };
    let number = rest.strip_prefix(&safe_name(name));
    let numbered = |n: &str| {
        let digits = n.strip_prefix('.').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let pattern = |(at, b): (usize, u8)| match at {
        8 => b == b'T',
        15 => b == b'Z',
        _ => b.is_ascii_digit(),
    };
    utc.len() == 16
        && utc.bytes().enumerate().all(pattern)
        && number.is_some_and(|n| n.is_empty() || numbered(n))
}

fn safe_name(name: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.chars()
        .map(|c| if safe(c) { c } else { '-' })
        .collect()
}

/// One failure on one line: what the server or the network said.
pub fn failure_text(failure: &Failure) -> String {
    let status = failure.status.map(|s| format!("HTTP {s}"));
    let error = failure.error.clone();
    let parts = [Some(failure.outcome.as_str().to_owned()), status, error];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Prints what the user asked for and decides how the program ends.
///
/// # Errors
/// When the recordings cannot be analyzed.
pub fn finish(output: &OutputArgs, done: &[Outcome]) -> Result<Ending> {
    finish_with(output, done, serde_json::Map::new())
}

/// As [`finish`], with `further` members in the JSON object.
///
/// # Errors
/// When the recordings cannot be analyzed.
pub fn finish_with(
    output: &OutputArgs,
    done: &[Outcome],
    further: serde_json::Map<String, serde_json::Value>,
) -> Result<Ending> {
    let paths: Vec<PathBuf> = done.iter().map(|o| o.path.clone()).collect();
    for path in &paths {
        eprintln!("recorded {}", path.display());
    }
    if output.json {
        let mut summary = counts_of(done);
        summary.extend(further);
        print_object(&summary);
    }
    let judged = match done {
        [] => Ending::Fine,
        _ => report(&paths, output)?,
    };
    Ok(match fate(done) {
        Ending::Fine => judged,
        Ending::Finding => Ending::Finding,
    })
}

/// Prints the report where it is wanted, and judges by it with `--strict`.
#[cfg(feature = "report")]
fn report(paths: &[PathBuf], output: &OutputArgs) -> Result<Ending> {
    let wanted = !output.json && !output.no_report;
    if !wanted && !output.strict {
        return Ok(Ending::Fine);
    }
    let report = crate::report::of(paths, &output.slos)?;
    if wanted {
        print(&report.render(tapedeck_analyze::Format::Table))?;
    }
    Ok(match output.strict {
        true => crate::report::judge(&report),
        false => Ending::Fine,
    })
}

#[cfg(not(feature = "report"))]
fn report(_paths: &[PathBuf], output: &OutputArgs) -> Result<Ending> {
    if !output.json && !output.no_report {
        eprintln!("built without reports: use analyze report");
    }
    Ok(Ending::Fine)
}

/// Paths and counts of recordings.
fn counts_of(done: &[Outcome]) -> serde_json::Map<String, serde_json::Value> {
    let paths: Vec<&Path> = done.iter().map(|o| o.path.as_path()).collect();
    let requests = done.iter().map(|o| o.requests).sum();
    let failed = done.iter().map(|o| o.failed).sum();
    counts(&paths, requests, failed)
}

fn counts(
    paths: &[&Path],
    requests: u64,
    failed: u64,
) -> serde_json::Map<String, serde_json::Value> {
    let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    [
        ("recordings", json!(paths)),
        ("requests", json!(requests)),
        ("succeeded", json!(requests - failed)),
        ("failed", json!(failed)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// Prints paths and counts over all recordings as one JSON object on stdout.
pub fn print_counts(paths: &[&Path], requests: u64, failed: u64) {
    print_object(&counts(paths, requests, failed));
}

fn print_object(summary: &serde_json::Map<String, serde_json::Value>) {
    // A reader that has seen enough is no error.
    writeln!(std::io::stdout(), "{}", json!(summary)).ok();
}

/// A recording in which every request failed is a finding, and says why.
fn fate(done: &[Outcome]) -> Ending {
    let mut ending = Ending::Fine;
    for outcome in done {
        if outcome.requests == 0 {
            eprintln!(
                "nothing was measured: no request of {} was sent outside of its probe and warm-up",
                outcome.path.display()
            );
        } else if outcome.failed == outcome.requests {
            ending = Ending::Finding;
            eprintln!(
                "all {} requests of {} failed, the first of them:",
                outcome.requests,
                outcome.path.display()
            );
            for failure in outcome.failures.iter().take(3) {
                eprintln!(
                    "  request {}: {}",
                    failure.request_id,
                    failure_text(failure)
                );
            }
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_of_one_second_have_folders_of_their_own() {
        let root = std::env::temp_dir().join(format!("tapedeck-folders-{}", std::process::id()));
        let made: std::collections::BTreeSet<PathBuf> = (0..3)
            .map(|_| {
                let folder = new_folder(&root, "x");
                std::fs::create_dir_all(&folder).unwrap();
                folder
            })
            .collect();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(made.len(), 3);
    }

    #[test]
    fn a_folder_tells_whose_it_is() {
        let folder = folder_name("my proxy");
        assert!(is_folder_name(&folder, "my proxy"));
        assert!(is_folder_name(&format!("{folder}.12"), "my proxy"));
        for (folder, name) in [
            (folder.as_str(), "my"),
            (&format!("{folder}.x"), "my proxy"),
            (&format!("{folder}-kept"), "my proxy"),
            (&format!("kept-{folder}"), "my proxy"),
            ("my-proxy", "my proxy"),
            ("", ""),
        ] {
            assert!(!is_folder_name(folder, name), "{folder} {name}");
        }
    }
}
