//! What the user typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tapedeck_run::args::{
    ConnectionArgs, OutputArgs, ServerMetricsArgs, TargetArgs, parse_api, parse_duration,
    parse_pair,
};
use tapedeck_wire::dialect::Api;
use tapedeck_workload::trace::Format;

use crate::serve::args::ServeArgs;

/// Send recorded traffic again with its original timing; the result is again a
/// recording.
#[derive(Debug, Parser)]
#[command(name = "replay", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send the requests of a recording or a trace to a server and record what
    /// comes back.
    Run(Box<RunArgs>),
    /// Print the arrivals as CSV without sending anything.
    Plan(PlanArgs),
    /// Make a recording of somebody else's trace.
    Import(ImportArgs),
    /// Answer requests with a recording's answers, at the recorded pace.
    Serve(Box<ServeArgs>),
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub synthesis: SynthesisArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub connection: ConnectionArgs,
    #[command(flatten)]
    pub server_metrics: ServerMetricsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Stop sending after this long (10s, 5m, 1h).
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Send no probe request first.
    #[arg(long)]
    pub no_probe: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Trace to read: a file, or a folder of them.
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    #[command(flatten)]
    pub from: TraceArgs,
    /// Folder of the recording.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Name of the recording; default: the trace's file name.
    #[arg(long)]
    pub name: Option<String>,
    /// Labels, to tell recordings apart in SQL.
    #[arg(long = "label", value_name = "K=V", value_parser = parse_pair, num_args = 1..)]
    pub labels: Vec<(String, String)>,
    /// Print one JSON object with paths and counts on stdout.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Recording or trace to take the requests from.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    #[command(flatten)]
    pub from: TraceArgs,
    /// When requests are sent.
    #[arg(long, value_enum, default_value = "open")]
    pub mode: Mode,
    /// Divides all offsets: 2 is twice as fast.
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse_speed)]
    pub speed: f64,
    /// Only requests for which this holds, in SQL over the columns of `requests`.
    #[arg(long = "where", value_name = "SQL")]
    pub filter: Option<String>,
    /// Only the first N by arrival.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// How somebody else's trace is read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Trace")]
pub struct TraceArgs {
    /// Format of the source: recording, azure, burstgpt, mooncake, bailian,
    /// ragpulse, weka, vllm (timed_trace), evalscope (workload_trace), har,
    /// goreplay or otel (GenAI spans). Default: what it looks like.
    #[arg(long, value_name = "FORMAT", value_parser = parse_from)]
    pub from: Option<From>,
    /// Leave out rows that cannot be read, and count them.
    #[arg(long)]
    pub skip_bad: bool,
    /// Spread the instants that a coarse clock made equal over one of its steps,
    /// at random by --seed, in their order.
    #[arg(long)]
    pub dequantize: bool,
    /// Tokens of a prefix block, instead of the format's own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub trace_block_size: Option<u32>,
    /// API of requests whose trace does not say.
    #[arg(long, value_name = "API", default_value = "openai-chat", value_parser = parse_api)]
    pub api: Api,
    /// Seed of prompts that are made and of --dequantize.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Recording,
    Trace(Format),
}

/// What is sent where the source has no bodies.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Synthesis")]
pub struct SynthesisArgs {
    /// Make prompts of exactly the source's tokens with this tokenizer.json, or the
    /// one in this folder; without it, one common word for each token.
    #[arg(long, alias = "tokenizer", value_name = "PATH")]
    pub tokenizer_path: Option<PathBuf>,
    /// Ask for the source's output lengths: `exact` with max_tokens, min_tokens and
    /// ignore_eos (vLLM, SGLang), `max` with max_tokens. Default: exact where
    /// prompts are made, off where bodies were recorded. Requests with constrained
    /// decoding stay as they are.
    #[arg(long, value_enum, value_name = "HOW")]
    pub pin_output: Option<Pin>,
}

/// How output lengths are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pin {
    Exact,
    Max,
    Off,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Each at its recorded offset, whatever happens to the others.
    Open,
}

impl Pin {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Max => "max",
            Self::Off => "off",
        }
    }
}

impl Mode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
        }
    }
}

fn parse_from(text: &str) -> Result<From, String> {
    if text == "recording" {
        return Ok(From::Recording);
    }
    let names = || {
        let formats = Format::ALL.iter().map(|f| f.as_str());
        let names: Vec<&str> = std::iter::once("recording").chain(formats).collect();
        format!("known: {}", names.join(", "))
    };
    Format::from_word(text).map(From::Trace).ok_or_else(names)
}

pub(crate) fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("expected a positive number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_format() {
        let mut command = Cli::command();
        let help = command
            .find_subcommand_mut("import")
            .unwrap()
            .render_long_help()
            .to_string();
        for format in Format::ALL {
            assert!(help.contains(format.as_str()), "{}", format.as_str());
        }
    }
}
