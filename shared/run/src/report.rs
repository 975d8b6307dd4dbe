//! The closing report: the analyzer's, on what was just recorded.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use tapedeck_analyze::{Format, ReportOptions, Slo, report};

/// Prints the report of `paths` on stdout.
///
/// # Errors
/// When a recording cannot be analyzed.
pub(crate) fn print(paths: &[PathBuf], slos: &[Slo]) -> Result<()> {
    let options = ReportOptions {
        slos: slos.to_vec(),
        ..ReportOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let report = runtime.block_on(report(paths, &options))?;
    match std::io::stdout().write_all(report.render(Format::Table).as_bytes()) {
        // A reader that has seen enough is no error.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the report"),
    }
}
