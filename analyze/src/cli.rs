//! What the user typed, and what it leads to.

mod commands;
mod values;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::check::chain;
use crate::compare::gate::Gate;
use crate::output::{QueryFormat, is_broken_pipe};
use crate::parameters::{Parameters, Slo};
use crate::peer::Profile;
use crate::render::Format;

pub use self::values::parse_slo;
use self::values::{parse_duration_ms, parse_percentile, parse_size};

/// The program could not do what it was asked.
const EXIT_FAILED: u8 = 2;

/// Ask recordings of LLM inference traffic, in SQL.
#[derive(Debug, Parser)]
#[command(name = "analyze", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Latency, throughput and health of one or more recordings
    Report(ReportArgs),
    /// One recording against another: is it worse, and is that more than noise?
    Compare(CompareArgs),
    /// Run one SQL query over recordings
    Query(QueryArgs),
    /// Ask one question after the other
    Shell(ShellArgs),
    /// List the metric definitions, or print one
    Sql {
        /// Name of a view
        name: Option<String>,
    },
    /// One request: what happened when, and its numbers under every definition
    Explain(ExplainArgs),
    /// List the recordings below a folder
    Ls {
        /// A folder of recordings
        root: PathBuf,
    },
    /// Test the invariants of recordings; exit 1 with findings
    Check {
        /// A recording, or a folder of them
        recording: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Recordings, or folders of them
    #[arg(required = true, value_name = "RECORDING")]
    recordings: Vec<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bound on a metric of every request, for goodput; repeatable
    #[arg(long = "slo", value_name = "METRIC=VALUE", value_parser = parse_slo)]
    slos: Vec<Slo>,
    /// Leave out requests sent in the first part of the run (500ms, 30s, 2m; a bare number is
    /// seconds); default: none
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    warmup: Option<f64>,
    /// Percentiles from 0 to 100, such as 50,99.9; default:
    /// 1,5,10,25,50,66,75,80,90,95,98,99,99.9, of which text shows some
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_percentile)]
    percentiles: Option<Vec<f64>>,
    /// The metrics in another tool's definitions: vllm, aiperf, evalscope…
    #[arg(long = "as", value_name = "PROFILE")]
    profile: Option<Profile>,
    /// Exit 1 when the verdict is invalid
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// What it was: a recording, a folder of repetitions, or a sweep
    base: PathBuf,
    /// What it is now
    new: PathBuf,
    /// Exit 1 when this holds; repeatable. 'ttft_ms.p99 > +5%' is against base,
    /// 'ttft_ms.p99 > +20' a difference, 'success_rate < 0.99' of NEW alone; of a
    /// replay also 'schedule_error_ms.p99 > 1'
    #[arg(long = "fail-if", value_name = "CONDITION", value_parser = str::parse::<Gate>)]
    gates: Vec<Gate>,
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bound on a metric of every request, for goodput; repeatable
    #[arg(long = "slo", value_name = "METRIC=VALUE", value_parser = parse_slo)]
    slos: Vec<Slo>,
    /// Leave out requests sent in the first part of each run (500ms, 30s, 2m; a bare number is
    /// seconds); default: none
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    warmup: Option<f64>,
    /// Of the resampling behind intervals
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Debug, Args)]
struct SessionArgs {
    /// A tokenizer.json, or the folder of one: counts tokens that no server counted
    #[arg(long, value_name = "PATH")]
    tokenizer_path: Option<PathBuf>,
    /// What sorts, joins and groups may hold before they go to the disk (512M, 8G)
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_size)]
    memory_limit: usize,
}

impl SessionArgs {
    fn parameters(self) -> Parameters {
        Parameters {
            tokenizer: self.tokenizer_path,
            memory_limit_bytes: self.memory_limit,
            ..Parameters::default()
        }
    }
}

#[derive(Debug, Args)]
struct ShellArgs {
    /// Recordings, or folders of them
    #[arg(required = true, value_name = "RECORDING")]
    recordings: Vec<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Debug, Args)]
struct QueryArgs {
    /// Recordings or folders of them, then one SQL query
    #[arg(required = true, num_args = 2.., value_names = ["RECORDING", "SQL"])]
    arguments: Vec<String>,
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: QueryFormat,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A recording
    recording: PathBuf,
    /// As in column `request_id`
    request_id: i64,
    /// Another attempt than the last one
    #[arg(long, value_name = "N")]
    attempt: Option<i32>,
    /// How it is written
    #[arg(long, value_enum, default_value = "text")]
    format: ExplainFormat,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How one request is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ExplainFormat {
    Text,
    Json,
}

/// Runs the program. Data goes to stdout, everything else to stderr.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Report(args) => commands::report(args).await,
        Command::Compare(args) => commands::compare(args).await,
        Command::Query(args) => commands::query(args).await,
        Command::Shell(args) => commands::shell(args).await,
        Command::Sql { name } => commands::sql(name.as_deref()),
        Command::Explain(args) => commands::explain(args).await,
        Command::Ls { root } => commands::ls(&root).await,
        Command::Check { recording } => commands::check(&recording).await,
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell anybody when stderr is gone too.
            drop(writeln!(std::io::stderr(), "{}", message(&error)));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// One message: the error and its causes, then what can be done about it.
pub(crate) fn message(error: &dyn std::error::Error) -> String {
    let text = chain(error);
    let (hints, lines): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("hint: "));
    let hints: Vec<String> = hints.into_iter().map(|hint| format!("\n{hint}")).collect();
    format!("error: {}{}", lines.join("\n"), hints.concat())
}
