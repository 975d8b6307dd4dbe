//! How a program ends.

use std::process::ExitCode;

/// Exit codes of every program: nothing to report, a finding, or the program
/// itself could not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Fine,
    Finding,
}

/// Prints an error as one message and turns the result into an exit code.
#[must_use]
pub fn exit_code(result: anyhow::Result<Ending>) -> ExitCode {
    match result {
        Ok(Ending::Fine) => ExitCode::SUCCESS,
        Ok(Ending::Finding) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(2)
        }
    }
}

/// The chain of causes on one line; the hint, if any, on a line of its own and
/// last.
#[must_use]
pub fn message(error: &anyhow::Error) -> String {
    let mut causes = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let (cause, hint) = match text.split_once("\nhint: ") {
            Some((cause, hint)) => (cause.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        };
        // A transparent error repeats the text of its source.
        if causes.last() != Some(&cause) {
            causes.push(cause);
        }
        hints.extend(hint);
    }
    hints.dedup();
    let hints = hints.iter().map(|hint| format!("\nhint: {hint}"));
    causes.join(": ") + &hints.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_message_is_one_line_with_its_hint_last() {
        let error = anyhow::anyhow!("inner\nhint: do this").context("outer");
        assert_eq!(message(&error), "outer: inner\nhint: do this");
        let io: Result<(), _> = Err(std::io::Error::other("disk"));
        let error = io.context("cannot write x").unwrap_err();
        assert_eq!(message(&error), "cannot write x: disk");
    }
}
