//! Other people's traces: lists of arrivals with lengths, block ids or bodies.
//!
//! [`read`] turns a file into [`Row`]s in order of arrival; [`Trace::lint`] says
//! what is odd about them; [`synthesis`] makes prompts of the lengths and block
//! ids. Pure but for reading files.

mod aiperf;
mod bodies;
mod csv;
mod guess;
mod hashed;
mod instants;
mod lint;
mod otel;
mod reading;
mod servegen;
pub mod synthesis;
mod weka;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tapedeck_wire::word_enum;

pub use lint::Lint;
use reading::Reading;

use crate::error::WorkloadError;

word_enum! {
    /// A trace's format.
    ///
    /// `azure` covers the CSV files of 2023, 2024 and 2025, `mooncake` all its
    /// traces, `vllm` what its `timed_trace` reads: Mooncake's shape with seconds
    /// and blocks of 16 tokens. `servegen` draws requests from its clients' windows,
    /// `aiperf` reads its `inputs.json` and its records.
    Format {
        Azure = "azure",
        BurstGpt = "burstgpt",
        Mooncake = "mooncake",
        Bailian = "bailian",
        RagPulse = "ragpulse",
        Weka = "weka",
        Vllm = "vllm",
        EvalScope = "evalscope",
        Har = "har",
        GoReplay = "goreplay",
        OTel = "otel",
        ServeGen = "servegen",
        AiPerf = "aiperf",
    }
}

impl Format {
    /// Tokens of a prefix block, where the format has blocks of one size.
    fn block_size(self) -> Option<u32> {
        match self {
            Self::Mooncake => Some(512),
            Self::Bailian | Self::Vllm => Some(16),
            Self::Weka => Some(64),
            _ => None,
        }
    }
}

/// A trace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    File(#[from] WorkloadError),
    #[error("{} has no shape of a known trace\nhint: --from names the format: {}", .0.display(), names())]
    Unknown(PathBuf),
    #[error("{} does not look like {format}: {problem}", path.display())]
    NotOfFormat {
        path: PathBuf,
        format: &'static str,
        problem: String,
    },
    #[error("{} holds no request", .0.display())]
    Empty(PathBuf),
}

fn names() -> String {
    let names: Vec<&str> = Format::ALL.iter().map(|f| f.as_str()).collect();
    names.join(", ")
}

/// What a request was, where a trace has that.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub url_path: Arc<str>,
    pub body: Bytes,
    pub max_output_tokens: Option<i32>,
}

/// One request of a trace. What the trace does not say is `None` or empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Line of the file, or record where records are no lines; from 1.
    pub number: u64,
    /// Arrival, ns since whatever the trace counts from.
    pub t_ns: i64,
    /// End of the response, on the same clock.
    pub t_end_ns: Option<i64>,
    pub input_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    pub session: Option<Arc<str>>,
    /// Of the session, from 0.
    pub turn: Option<i32>,
    /// Index in [`Trace::rows`].
    pub parent: Option<usize>,
    pub model: Option<Arc<str>>,
    pub stream: bool,
    /// `(start, len)` runs of prefix-block ids. Ids are dense, in the order in
    /// which the file names them; equal ids are equal blocks, whatever the scope
    /// that the trace gives its own.
    pub blocks: Box<[(i64, i32)]>,
    pub content: Option<Content>,
    /// Whether the client gave it up, at `t_end_ns`.
    pub cancelled: bool,
}

impl Row {
    fn new(number: u64, t_ns: i64) -> Self {
        Self {
            number,
            t_ns,
            t_end_ns: None,
            input_tokens: None,
            output_tokens: None,
            session: None,
            turn: None,
            parent: None,
            model: None,
            stream: true,
            blocks: Box::default(),
            content: None,
            cancelled: false,
        }
    }

    /// Prefix-block ids in their order.
    pub fn block_ids(&self) -> impl Iterator<Item = i64> {
        self.blocks
            .iter()
            .flat_map(|(start, len)| *start..*start + i64::from(*len))
    }
}

/// What is wanted of a trace.
#[derive(Debug, Clone)]
pub struct TraceSpec {
    pub path: PathBuf,
    /// `None` finds out by looking.
    pub format: Option<Format>,
    /// Leaves out rows that cannot be read, and counts them.
    pub skip_bad: bool,
    /// Tokens of a prefix block, instead of the format's own.
    pub block_size: Option<u32>,
    /// Of what is drawn.
    pub seed: u64,
}

/// A trace in order of arrival.
#[derive(Debug)]
pub struct Trace {
    pub path: PathBuf,
    pub format: Format,
    /// BLAKE3 of the file, 32 hex digits; of several, of their hashes.
    pub content_hash: String,
    pub block_size: Option<u32>,
    pub rows: Vec<Row>,
    /// Rows that came before one that the file lists earlier.
    pub out_of_order: u64,
    /// Requests of other kinds, which are no rows.
    pub other: u64,
    /// Rows left out, and what was wrong with the first of them.
    pub bad: u64,
    pub first_bad: Option<String>,
}

/// Reads a trace whole: a row takes about 200 bytes and its block runs.
///
/// # Errors
/// When a file cannot be read or is of no known format, no row is left, or a row
/// is bad and those are not to be left out; the message names file and row.
pub fn read(spec: &TraceSpec) -> Result<Trace, TraceError> {
    let files = files(&spec.path)?;
    let format = match spec.format {
        Some(format) => format,
        None => guess::format(&spec.path, &files[0])?,
    };
    let mut reading = Reading::new(format, spec.skip_bad);
    for file in &files {
        reading.begin_file();
        match format {
            Format::Azure => csv::azure(file, &mut reading)?,
            Format::BurstGpt => csv::burstgpt(file, &mut reading)?,
            Format::Mooncake => hashed::mooncake(file, &mut reading)?,
            Format::Vllm => hashed::vllm(file, &mut reading)?,
            Format::Bailian => hashed::bailian(file, &mut reading)?,
            Format::RagPulse => hashed::ragpulse(file, &mut reading)?,
            Format::Weka => weka::session(file, &mut reading)?,
            Format::EvalScope => bodies::evalscope(file, &mut reading)?,
            Format::Har => bodies::har(file, &mut reading)?,
            Format::GoReplay => bodies::goreplay(file, &mut reading)?,
            Format::OTel => otel::spans(file, &mut reading)?,
            Format::ServeGen if servegen::is_dataset(file) => {}
            Format::ServeGen => servegen::client(file, spec.seed, &mut reading)?,
            Format::AiPerf => aiperf::export(file, &mut reading)?,
        }
    }
    let block_size = spec
        .block_size
        .or(reading.block_size)
        .or(format.block_size());
    reading.finish(spec, files.as_slice(), block_size)
}

/// The file itself, or those in the folder, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, TraceError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let read_error = |source| WorkloadError::read(path, source);
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(read_error)? {
        let file = entry.map_err(read_error)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".gz").to_lowercase();
        let is_data = [".json", ".jsonl", ".csv"]
            .iter()
            .any(|e| name.ends_with(e));
        if is_data && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(TraceError::Empty(path.to_owned()));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
