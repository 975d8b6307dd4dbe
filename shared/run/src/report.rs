//! The closing report: the analyzer's, on what was just recorded.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tapedeck_analyze::report::Verdict;
use tapedeck_analyze::{Report, ReportOptions, Slo, report};

use crate::ending::Ending;

/// The report on `paths`.
///
/// # Errors
/// When a recording cannot be analyzed.
pub(crate) fn of(paths: &[PathBuf], slos: &[Slo]) -> Result<Report> {
    let options = ReportOptions {
        slos: slos.to_vec(),
        ..ReportOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    Ok(runtime.block_on(report(paths, &options))?)
}

/// An invalid recording is a finding, and says why.
pub(crate) fn judge(report: &Report) -> Ending {
    let mut ending = Ending::Fine;
    for recording in &report.recordings {
        if recording.verdict == Verdict::Invalid {
            ending = Ending::Finding;
            let (path, reason) = (recording.path.display(), &recording.verdict_reason);
            eprintln!("invalid: {path}: {reason}");
        }
    }
    ending
}
