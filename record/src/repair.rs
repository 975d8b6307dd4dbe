//! `record repair`: what a dead recorder left in its log becomes sealed files.

use anyhow::Result;
use tapedeck_recording::Recording;
use tapedeck_recording::repair::{Repaired, repair};

use crate::cli::RepairArgs;

/// Repairs the recording, or every recording of the folder, that was named.
///
/// # Errors
/// When there is none, somebody is writing one of them, or the disk refuses.
pub(crate) fn run(args: &RepairArgs) -> Result<()> {
    for (dir, _) in Recording::below(&args.recording)? {
        let done = match repair(&dir)? {
            Repaired::NothingToDo => "nothing to repair".to_owned(),
            Repaired::Recovered(counts) => format!(
                "recovered {} rows, {} rows lost, {} bytes torn",
                counts.rows, counts.lost_rows, counts.torn_bytes
            ),
        };
        eprintln!("{}: {done}", dir.display());
    }
    Ok(())
}
