//! The closing report: the analyzer's, on what was just recorded.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::OutputArgs;

/// Prints the report of `paths` on stdout.
///
/// # Errors
/// When a recording cannot be analyzed.
pub(crate) fn print(_paths: &[PathBuf], _output: &OutputArgs) -> Result<()> {
    Ok(())
}
