//! What is wrong with a dialect.

use thiserror::Error;

/// Messages name the file, the key and a remedy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialectError {
    #[error(
        "{origin}: {problem}\nhint: `record apis NAME` prints a built-in dialect to start from"
    )]
    Syntax { origin: String, problem: String },
    #[error("{origin}: `{key}` {problem}\nhint: {hint}")]
    Key {
        origin: String,
        key: String,
        problem: String,
        hint: String,
    },
    #[error(
        "{origin}: format version {found}, this program reads up to {known}\nhint: a newer tapedeck reads it"
    )]
    Version {
        origin: String,
        found: i64,
        known: u32,
    },
}

impl DialectError {
    pub(super) fn key(origin: &str, key: &str, problem: &str, hint: &str) -> Self {
        Self::Key {
            origin: origin.to_owned(),
            key: key.to_owned(),
            problem: problem.to_owned(),
            hint: hint.to_owned(),
        }
    }
}
