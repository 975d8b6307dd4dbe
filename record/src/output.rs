//! Where recordings go, and what is printed when they are done.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tapedeck_live::Failure;

use crate::Ending;
use crate::cli::{LoadArgs, OutputArgs};
use crate::config::Level;
use crate::manifest::utc_now;

/// One finished recording.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) path: PathBuf,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) failures: Vec<Failure>,
}

/// The folder of each level's recording. Refuses one that holds anything before
/// a single request is sent.
///
/// # Errors
/// When a folder is not empty.
pub(crate) fn folders(output: &OutputArgs, levels: &[Level]) -> Result<Vec<PathBuf>> {
    let root = output.out.clone().unwrap_or_else(|| default_out(&output.name));
    if root.exists() && (!root.is_dir() || root.read_dir()?.next().is_some()) {
        bail!(
            "--out {} is not an empty folder\nhint: choose another, recordings are never overwritten",
            root.display()
        );
    }
    if levels.len() == 1 {
        return Ok(vec![root]);
    }
    let numbered = levels.iter().enumerate();
    Ok(numbered
        .map(|(index, level)| root.join(format!("{index:03}-{}", level.folder())))
        .collect())
}

fn default_out(name: &str) -> PathBuf {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().map(|c| if safe(c) { c } else { '-' }).collect();
    PathBuf::from("recordings").join(format!("{}-{name}", utc_now()))
}

/// One failure on one line: what the server or the network said.
pub(crate) fn failure_text(failure: &Failure) -> String {
    let status = failure.status.map(|s| format!("HTTP {s}"));
    let error = failure.error.clone();
    let parts = [Some(failure.outcome.as_str().to_owned()), status, error];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Prints what the user asked for and decides how the program ends.
///
/// # Errors
/// When the recordings cannot be analyzed.
pub(crate) fn finish(args: &LoadArgs, done: &[Outcome]) -> Result<Ending> {
    let paths: Vec<PathBuf> = done.iter().map(|o| o.path.clone()).collect();
    for path in &paths {
        eprintln!("recorded {}", path.display());
    }
    if args.output.json {
        print_json(done);
    } else if !args.output.no_report && !done.is_empty() {
        crate::report::print(&paths, &args.output)?;
    }
    Ok(verdict(done))
}

fn print_json(done: &[Outcome]) {
    let paths: Vec<String> = done.iter().map(|o| o.path.display().to_string()).collect();
    let requests: u64 = done.iter().map(|o| o.requests).sum();
    let failed: u64 = done.iter().map(|o| o.failed).sum();
    let summary = json!({
        "recordings": paths,
        "requests": requests,
        "succeeded": requests - failed,
        "failed": failed,
    });
    println!("{summary}");
}

/// A recording in which every request failed is a finding, and says why.
fn verdict(done: &[Outcome]) -> Ending {
    let mut ending = Ending::Fine;
    for outcome in done {
        if outcome.requests > 0 && outcome.failed == outcome.requests {
            ending = Ending::Finding;
            eprintln!(
                "all {} requests of {} failed, the first of them:",
                outcome.requests,
                outcome.path.display()
            );
            for failure in outcome.failures.iter().take(3) {
                eprintln!("  request {}: {}", failure.request_id, failure_text(failure));
            }
        }
    }
    ending
}
