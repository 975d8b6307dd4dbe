//! `record repair`: what a dead recorder left in its log becomes sealed files.

use std::path::Path;

use anyhow::{Result, bail};
use tapedeck_recording::Recording;
use tapedeck_recording::repair::{RepairError, Repaired, repair};

use crate::cli::RepairArgs;

/// Repairs the recording, or every recording of the folder, that was named. In a
/// folder one that cannot be repaired does not keep the others from it, and one
/// that is being written is passed over.
///
/// # Errors
/// When there is none, somebody is writing the one named, or the disk refuses.
pub(crate) fn run(args: &RepairArgs) -> Result<()> {
    let found = Recording::folders(&args.recording)?;
    let dirs: Vec<_> = found.into_iter().map(|(dir, _)| dir).collect();
    if let [dir] = dirs.as_slice()
        && *dir == args.recording
    {
        say(dir, &repair(dir)?);
        return Ok(());
    }
    let mut failed = 0;
    for dir in &dirs {
        match repair(dir) {
            Ok(done) => say(dir, &done),
            Err(error @ RepairError::InUse(_)) => eprintln!("passed over: {error}"),
            Err(error) => {
                failed += 1;
                eprintln!("error: {:#}", anyhow::Error::new(error));
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} recordings could not be repaired",
            dirs.len()
        );
    }
    Ok(())
}

fn say(dir: &Path, repaired: &Repaired) {
    let done = match repaired {
        Repaired::NothingToDo => "nothing to repair".to_owned(),
        Repaired::Recovered(counts) => format!(
            "recovered {} rows, {} rows lost, {} bytes torn",
            counts.rows, counts.lost_rows, counts.torn_bytes
        ),
    };
    eprintln!("{}: {done}", dir.display());
}
