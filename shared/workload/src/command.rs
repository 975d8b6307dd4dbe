//! A program whose output is the data set.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::process::{Command, Stdio};

use tempfile::TempPath;

use crate::error::WorkloadError;
use crate::files::read_line;

/// Most output that is taken of a program.
const MAX_OUTPUT_BYTES: u64 = 16 << 30;

/// Runs `command` in a shell and keeps its standard output in a temporary file,
/// which goes when the path is dropped. Its standard error is the user's. Errors
/// name it as it is `shown`.
///
/// # Errors
/// When it cannot be started, ends badly, says nothing, or more than is taken.
pub fn output_of(command: &str, shown: &str) -> Result<TempPath, WorkloadError> {
    let failed = |problem: String| WorkloadError::Command {
        command: shown.to_owned(),
        problem,
    };
    let io = |e: std::io::Error| failed(e.to_string());
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io)?;
    let (file, path) = tempfile::NamedTempFile::with_prefix("tapedeck-dataset-")
        .map_err(io)?
        .into_parts();
    let kept = match child.stdout.take() {
        Some(output) => keep(BufReader::new(output), file),
        None => Err(std::io::Error::other("has no standard output")),
    };
    if kept.is_err() {
        // It may go on writing for ever.
        child.kill().ok();
    }
    let status = child.wait().map_err(io)?;
    let bytes = kept.map_err(io)?;
    if !status.success() {
        return Err(failed(format!("ended with {status}")));
    }
    if bytes == 0 {
        return Err(failed("wrote nothing".to_owned()));
    }
    Ok(path)
}

/// Line by line, so that one without an end costs bounded memory.
fn keep(mut output: impl std::io::BufRead, file: File) -> std::io::Result<u64> {
    let mut file = BufWriter::new(file);
    let mut bytes = 0;
    while let Some(line) = read_line(&mut output)? {
        bytes += line.len() as u64;
        if bytes > MAX_OUTPUT_BYTES {
            let too_much = format!("wrote over {MAX_OUTPUT_BYTES} bytes");
            return Err(std::io::Error::other(too_much));
        }
        file.write_all(&line)?;
    }
    file.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_kept_and_a_bad_end_is_an_error() {
        let path = output_of("echo one; echo two", "echo").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        for (command, words) in [
            ("echo one; exit 3", "exit status: 3"),
            ("true", "wrote nothing"),
            ("head -c 70000000 /dev/zero", "a line is over"),
        ] {
            let refused = output_of(command, "so it is").unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
            assert!(refused.contains("so it is") && !refused.contains(command));
        }
    }
}
