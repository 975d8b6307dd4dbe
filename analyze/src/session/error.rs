//! Why a question has no answer, in words for whoever asked.

use std::path::PathBuf;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use tapedeck_recording::reader::ReadError;
use tapedeck_tokens::TokenizerError;

use crate::check::chain;
use crate::parameters::UnknownMetric;

/// Recordings that cannot be analyzed, or a question that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "{} and {} are the same recording\nhint: name only one of them",
        first.display(), second.display()
    )]
    Twice { first: PathBuf, second: PathBuf },
    #[error(transparent)]
    UnknownMetric(#[from] UnknownMetric),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("{} cannot be given to the query engine as a file", path.display())]
    Path { path: PathBuf },
    #[error("view {view} cannot be read: {}", explain(cause))]
    View {
        view: &'static str,
        cause: DataFusionError,
    },
    #[error("{}", explain(.0))]
    Query(DataFusionError),
}

/// What a user can use of an engine's error: no prefixes that name its parts.
pub(crate) fn explain(error: &DataFusionError) -> String {
    let text = match error.find_root() {
        DataFusionError::ResourcesExhausted(text) => format!(
            "the question needs more memory than it may have: {text}\n\
             hint: --memory-limit allows more"
        ),
        DataFusionError::SQL(error, _) => error.to_string(),
        DataFusionError::Plan(text)
        | DataFusionError::NotImplemented(text)
        | DataFusionError::Execution(text) => text.clone(),
        DataFusionError::External(error) => chain(error.as_ref()),
        root => root.strip_backtrace(),
    };
    let text = text.replace("datafusion.public.", "");
    let is_unknown_table = text.starts_with("table '") && text.ends_with("not found");
    if is_unknown_table {
        format!(
            "{text}\nhint: tables are requests, chunks, responses, samples, marks and recordings; \
             `analyze sql` lists the views"
        )
    } else {
        text
    }
}

pub(crate) fn arrow_error(error: ArrowError) -> Error {
    Error::Query(error.into())
}
