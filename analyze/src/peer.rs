//! Other tools' definitions, as profiles: which there are, and what their views'
//! headers say about them. The definitions themselves are `sql/6_peer/*.sql`.

use std::fmt;
use std::str::FromStr;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde::Serialize;

use crate::models::{self, Model};
use crate::rows;

/// Names as `--as` takes them, in the order of the view `peer_profile`.
const NAMES: [&str; 12] = [
    "vllm",
    "sglang",
    "aiperf",
    "guidellm",
    "evalscope",
    "evalscope-0.8",
    "aphrodite",
    "inference-perf",
    "llmperf",
    "llm.perf",
    "byzer-perf",
    "mlperf",
];

/// Views of [`models::peers`] that a session computes once: at most one row per
/// request, rule of `peer_token` and profile.
pub(crate) const KEPT_VIEWS: [&str; 4] = [
    "peer_profile",
    "peer_request",
    "peer_token_stream",
    "peer_answer",
];

/// What a profile's header says, by key, and what Tapedeck's own definition is.
const ASPECTS: [(&str, &str); 9] = [
    (
        "Start",
        "last byte of the request written; from scheduled beside it",
    ),
    (
        "First token",
        "first chunk with content, reasoning or tool call, of any choice",
    ),
    ("Last token", "last such chunk; end of the stream beside it"),
    (
        "TPOT",
        "(last - first token) / (tokens - tokens of the first chunk, 1 when unknown)",
    ),
    (
        "ITL",
        "gap between such chunks of one choice, one value a chunk",
    ),
    (
        "Output tokens",
        "usage, else tokens in the stream, else a tokenizer; never the chunk count",
    ),
    ("Statistics", "linear percentiles, population std"),
    ("Window", "first sent to last end, failed requests inside"),
    (
        "Requests",
        "outcome ok: finished by the API's own finish or end marker",
    ),
];

/// Another tool whose definitions a report can be read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    name: &'static str,
}

/// A name that is no profile's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no profile is called {0}: there are {list}", list = NAMES.join(", "))]
pub struct UnknownProfile(String);

/// One row of the comparison of a profile with our own definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Aspect {
    pub aspect: &'static str,
    pub theirs: &'static str,
    pub ours: &'static str,
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut known = NAMES.into_iter();
        let name = known.find(|name| *name == text);
        name.map(|name| Self { name })
            .ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Profile {
    /// All of them, in the order of a report.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(|name| Self { name })
    }

    /// As `--as` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The view that holds its definitions.
    #[must_use]
    pub fn view(self) -> String {
        format!("peer_{}", self.name.replace(['-', '.'], "_"))
    }

    fn model(self) -> Option<&'static Model> {
        models::view(&self.view())
    }

    fn note(self, key: &str) -> &'static str {
        let note = self.model().and_then(|model| model.note(key));
        note.unwrap_or_default()
    }

    /// The tool and the version that was read.
    #[must_use]
    pub fn tool(self) -> &'static str {
        self.note("Tool")
    }

    /// How its numbers differ from ours, in one line.
    #[must_use]
    pub fn differs(self) -> &'static str {
        self.note("Differs")
    }

    /// Its definitions beside ours.
    #[must_use]
    pub fn aspects(self) -> Vec<Aspect> {
        let aspect = |(aspect, ours)| Aspect {
            aspect,
            theirs: self.note(aspect),
            ours,
        };
        ASPECTS.into_iter().map(aspect).collect()
    }
}

/// The table `profiles`: which of them a session computes.
pub(crate) fn table(profiles: &[Profile]) -> Result<RecordBatch, ArrowError> {
    #[derive(Serialize)]
    struct Row {
        profile: &'static str,
    }
    let rows: Vec<Row> = profiles.iter().map(|p| Row { profile: p.name }).collect();
    rows::to_batch(&rows::schema(&[("profile", DataType::Utf8)]), &rows)
}
