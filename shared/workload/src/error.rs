//! What can be wrong with a workload.

use std::path::{Path, PathBuf};

/// A data set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} line {line}: {problem}\nhint: correct the line, or leave such lines out with --skip-bad", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    /// `offset` counts bytes of the text, after decompression.
    #[error("{} record {record}, which begins at byte {offset}: {problem}\nhint: correct the record, or leave such records out with --skip-bad", path.display())]
    Record {
        path: PathBuf,
        record: u64,
        offset: u64,
        problem: String,
    },
    #[error("{} row {row}: {problem}\nhint: correct the row, or leave such rows out with --skip-bad", path.display())]
    Row {
        path: PathBuf,
        row: u64,
        problem: String,
    },
    #[error("{} gives no texts from column {column:?}: {problem}\nhint: --prompt-column names the column of the prompts", path.display())]
    Table {
        path: PathBuf,
        column: String,
        problem: String,
    },
    #[error("{}: after {whole} whole records {problem}\nhint: --skip-bad takes the whole records and counts the loss", path.display())]
    Broken {
        path: PathBuf,
        whole: u64,
        problem: String,
    },
    #[error("{} holds no prompt", .0.display())]
    Empty(PathBuf),
    #[error("none of the {records} records of {} may be sent: {left_out}\nhint: wider length limits, or the tokenizer of the model", path.display())]
    AllLeftOut {
        path: PathBuf,
        records: u64,
        left_out: String,
    },
    #[error("{} is no regular file\nhint: a data set is read more than once; write it to a file first", .0.display())]
    NoFile(PathBuf),
    #[error("{} is no folder\nhint: a single file of prompts is --dataset line_by_line", .0.display())]
    NoFolder(PathBuf),
    #[error("image {} {problem}", path.display())]
    Image { path: PathBuf, problem: String },
    #[error("--dataset-command {command}: {problem}")]
    Command { command: String, problem: String },
    #[error("these lengths cannot be had: {0}")]
    Lengths(String),
    #[error("--prompt is empty")]
    EmptyPrompt,
    #[error("the limits on prompt lengths leave nothing to send: {0}")]
    PromptLeftOut(String),
    #[error("{0} needs --tokenizer-path, a tokenizer.json or the folder of a model")]
    NeedsTokenizer(&'static str),
    #[error("{0} is not in this build\nhint: build with the default feature `datasets`")]
    NotBuilt(&'static str),
    #[cfg(feature = "datasets")]
    #[error(transparent)]
    Tokenizer(#[from] tapedeck_tokens::TokenizerError),
    #[error("no prompt of exactly {tokens} tokens was found in {draws} draws: {} does not give back the tokens it was given\nhint: another length, or the model's own tokenizer.json", tokenizer.display())]
    NotExact {
        tokens: usize,
        draws: usize,
        tokenizer: PathBuf,
    },
    #[error("{} refuses a prompt", .0.display())]
    Uncounted(PathBuf),
    #[error("{} has no token that stands for itself, random prompts cannot be made of it", .0.display())]
    NoUsableToken(PathBuf),
}

impl WorkloadError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}
