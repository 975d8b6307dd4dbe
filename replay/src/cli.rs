//! What the user typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tapedeck_run::args::{
    ConnectionArgs, OutputArgs, ServerMetricsArgs, TargetArgs, parse_api, parse_duration,
    parse_pair, parse_series,
};
use tapedeck_wire::dialect::Api;
use tapedeck_workload::RateShape;
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
    /// Drop requests that would leave later than this after their planned instant:
    /// they are marked `late_dropped` and counted. Without it all are sent, however
    /// late.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub max_lateness: Option<Duration>,
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
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Only requests for which this holds, in SQL over the columns of `requests`.
    #[arg(long = "where", value_name = "SQL")]
    pub filter: Option<String>,
}

/// What becomes of the source's arrivals. Applied in this order: window, --where,
/// sessions, limit, idle cap, copies, loop, speed or rates.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Plan")]
pub struct ShapeArgs {
    /// When requests are sent; default: session where the source knows sessions,
    /// else open.
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Divides all offsets and think times: 2 is twice as fast.
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse_speed)]
    pub speed: f64,
    /// So many requests per second on average, instead of --speed: the source's time
    /// is stretched, and gaps stay to each other as they are.
    #[arg(long, alias = "request-rate", value_name = "R", value_parser = parse_speed, conflicts_with_all = ["speed", "rate_series"])]
    pub rate: Option<f64>,
    /// The same with rates that change, each a constant or a ramp: 10@30s,50@10s,
    /// 50..5@1m, 1..50:exponential@2m. The plan ends with them.
    #[arg(long, value_name = "R@D,…", value_parser = parse_series, conflicts_with = "speed")]
    pub rate_series: Option<RateShape>,
    /// Only requests that came from offset A until before B after the source's
    /// first: 10s..2m, ..5m, 1h..
    #[arg(long, value_name = "A..B", value_parser = parse_window)]
    pub window: Option<Window>,
    /// Only this share of the sessions, whole ones, chosen by a hash of their name
    /// and --seed; a request of no session counts as one.
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub sample_sessions: Option<f64>,
    /// Only the first N by arrival.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// No longer than D without an arrival, and no longer think time, in the
    /// source's own time: what is over it is cut out.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub idle_cap: Option<Duration>,
    /// K of everything at once, their sessions begun at other instants of the same
    /// span. Copies share no prompts: bodies of all but the first are salted.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub copies: u32,
    /// Everything N times one after the other, or for so long (90s, 1h). Sessions
    /// of later rounds have names of their own; their bodies are the same.
    #[arg(long = "loop", value_name = "N|D", default_value = "1", value_parser = parse_rounds)]
    pub rounds: Rounds,
    /// Begin prompts with a text that no earlier run had, so that no prefix cache
    /// knows them: one for the run, or one for each session.
    #[arg(long, value_enum)]
    pub salt: Option<Salt>,
}

/// How somebody else's trace is read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Trace")]
pub struct TraceArgs {
    /// Format of the source: recording, azure, burstgpt, mooncake, bailian,
    /// ragpulse, weka, vllm (timed_trace), evalscope (workload_trace), har,
    /// goreplay, otel (GenAI spans), servegen (client windows) or aiperf
    /// (inputs.json, raw records). Default: what it looks like.
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
    /// Seed of whatever is drawn: prompts, servegen's requests, --dequantize,
    /// --sample-sessions, --copies.
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
    /// The first of a session at its offset; a later turn at its own, or when the
    /// turn before is done if that is later.
    Session,
    /// The first of a session at its offset; a later turn when the turn before is
    /// done and the recorded think time has passed.
    Closed,
}

/// What prompts begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Salt {
    Run,
    Session,
}

/// Offsets from the first request of the source, ns: from the one until before the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from_ns: i64,
    pub until_ns: i64,
}

/// How often everything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    Times(u32),
    /// For so long after the start, ns.
    For(i64),
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
            Self::Session => "session",
            Self::Closed => "closed",
        }
    }
}

impl Salt {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Session => "session",
        }
    }
}

fn duration_ns(text: &str) -> Result<i64, String> {
    if text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) == "0" {
        return Ok(0);
    }
    let duration = parse_duration(text)?;
    i64::try_from(duration.as_nanos()).map_err(|_| "too long".to_owned())
}

fn parse_window(text: &str) -> Result<Window, String> {
    let (from, until) = text
        .split_once("..")
        .ok_or("expected two offsets such as 10s..2m")?;
    let or = |text: &str, open_ns: i64| match text {
        "" => Ok(open_ns),
        text => duration_ns(text),
    };
    let window = Window {
        from_ns: or(from, 0)?,
        until_ns: or(until, i64::MAX)?,
    };
    if window.from_ns < window.until_ns {
        Ok(window)
    } else {
        Err("ends before it begins".to_owned())
    }
}

fn parse_rounds(text: &str) -> Result<Rounds, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(times @ 1..) => Ok(Rounds::Times(times)),
            _ => Err("expected a number above zero".to_owned()),
        };
    }
    duration_ns(text).map(Rounds::For)
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0, at most 1".to_owned()),
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
    fn windows_and_rounds_are_read_or_refused() {
        let window = |from_s: i64, until_ns: i64| {
            Ok(Window {
                from_ns: from_s * 1_000_000_000,
                until_ns,
            })
        };
        assert_eq!(parse_window("10s..2m"), window(10, 120_000_000_000));
        assert_eq!(parse_window("..500ms"), window(0, 500_000_000));
        assert_eq!(parse_window("0..1"), window(0, 1_000_000_000));
        assert_eq!(parse_window("1h.."), window(3600, i64::MAX));
        for bad in ["", "5s", "2m..10s", "1s..1s", "a..b", "-1s..1s"] {
            assert!(parse_window(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rounds("3"), Ok(Rounds::Times(3)));
        assert_eq!(parse_rounds("90s"), Ok(Rounds::For(90_000_000_000)));
        for bad in ["", "0", "99999999999", "-1", "x"] {
            assert!(parse_rounds(bad).is_err(), "{bad}");
        }
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
