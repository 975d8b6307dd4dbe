//! What the user typed, and what it leads to.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use tapedeck_recording::Recording;

use crate::check::{self, chain};
use crate::compare::gate::Gate;
use crate::compare::{self, CompareError, CompareOptions};
use crate::explain;
use crate::listing::{self, Entry};
use crate::models;
use crate::output::{Output, OutputError, QueryFormat, TABLE_ROWS, is_broken_pipe};
use crate::parameters::{Parameters, Slo};
use crate::peer::Profile;
use crate::render::{Format, grid};
use crate::report::{self, ReportOptions, Verdict};
use crate::session::{self, Session};
use crate::shell;

/// The program worked and found something: a broken invariant, an invalid run.
const EXIT_FINDING: u8 = 1;
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
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bound on a metric of every request, for goodput; repeatable
    #[arg(long = "slo", value_name = "METRIC=VALUE", value_parser = parse_slo)]
    slos: Vec<Slo>,
    /// Leave out requests sent in the first part of the run (500ms, 30s, 2m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    warmup: Option<f64>,
    /// Percentiles instead of the default ones (50,99.9)
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
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bound on a metric of every request, for goodput; repeatable
    #[arg(long = "slo", value_name = "METRIC=VALUE", value_parser = parse_slo)]
    slos: Vec<Slo>,
    /// Leave out requests sent in the first part of each run (500ms, 30s, 2m)
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

/// What a command may fail with.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Session(#[from] session::Error),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Explain(#[from] explain::Error),
    #[error("no definition is called {0}\nhint: `analyze sql` lists them")]
    UnknownView(String),
    #[error("the shell cannot go on")]
    Shell(#[source] std::io::Error),
}

/// Runs the program. Data goes to stdout, everything else to stderr.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Report(args) => report(args).await,
        Command::Compare(args) => compare(args).await,
        Command::Query(args) => query(args).await,
        Command::Shell(args) => shell(args).await,
        Command::Sql { name } => sql(name.as_deref()),
        Command::Explain(args) => explain(args).await,
        Command::Ls { root } => ls(&root).await,
        Command::Check { recording } => check(&recording).await,
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

/// Writes `text` to the file, or to stdout.
fn write(path: Option<&Path>, text: &str) -> Result<(), OutputError> {
    let mut output = Output::open(path)?;
    output.text(text)?;
    output.finish()
}

async fn report(args: ReportArgs) -> Result<ExitCode, Failed> {
    let mut percentiles = args.percentiles;
    if let Some(list) = &mut percentiles {
        list.sort_by(f64::total_cmp);
        list.dedup();
    }
    let options = ReportOptions {
        warmup_ms: args.warmup.unwrap_or_default(),
        percentiles,
        slos: args.slos,
        tokenizer: args.session.tokenizer_path,
        memory_limit_bytes: Some(args.session.memory_limit),
        profile: args.profile,
    };
    let report = report::report(&args.recordings, &options).await?;
    write(args.output.as_deref(), &report.render(args.format))?;
    let is_finding = args.strict && report.verdict() == Verdict::Invalid;
    Ok(if is_finding {
        ExitCode::from(EXIT_FINDING)
    } else {
        ExitCode::SUCCESS
    })
}

async fn compare(args: CompareArgs) -> Result<ExitCode, Failed> {
    let options = CompareOptions {
        gates: args.gates,
        slos: args.slos,
        warmup_ms: args.warmup.unwrap_or_default(),
        tokenizer: args.session.tokenizer_path,
        memory_limit_bytes: Some(args.session.memory_limit),
        seed: args.seed,
    };
    let compared = compare::compare(&args.base, &args.new, &options).await?;
    write(args.output.as_deref(), &compared.render(args.format))?;
    for gate in compared.gates.iter().filter(|g| g.holds != Some(false)) {
        let level = gate.level.as_deref();
        let level = level.map(|l| format!(" ({l})")).unwrap_or_default();
        let (name, detail) = (&gate.fail_if, &gate.detail);
        drop(writeln!(
            std::io::stderr(),
            "--fail-if {name}{level}: {detail}"
        ));
    }
    Ok(if compared.fails() {
        ExitCode::from(EXIT_FINDING)
    } else {
        ExitCode::SUCCESS
    })
}

async fn query(mut args: QueryArgs) -> Result<ExitCode, Failed> {
    // clap has seen at least two arguments.
    let sql = args.arguments.pop().unwrap_or_default();
    let paths: Vec<PathBuf> = args.arguments.iter().map(PathBuf::from).collect();
    let recordings = session::open_all(&paths)?;
    let session = Session::open_known(recordings, &args.session.parameters()).await?;
    let rows = session.query(&sql).await?.execute_stream().await;
    let rows = rows.map_err(session::Error::Query)?;
    let mut output = Output::open(args.output.as_deref())?;
    let count = output.rows(rows, args.format, TABLE_ROWS).await?;
    output.finish()?;
    if count.total > count.shown {
        let more = count.total - count.shown;
        let hint = "hint: --format csv, json or parquet writes all";
        drop(writeln!(std::io::stderr(), "{more} more rows\n{hint}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn shell(args: ShellArgs) -> Result<ExitCode, Failed> {
    let recordings = session::open_all(&args.recordings)?;
    let session = Session::open_known(recordings, &args.session.parameters()).await?;
    let failed = shell::run(&session).await.map_err(Failed::Shell)?;
    Ok(if failed {
        ExitCode::from(EXIT_FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

async fn explain(args: ExplainArgs) -> Result<ExitCode, Failed> {
    let found = explain::explain(&args.recording, args.request_id, args.attempt).await?;
    let text = match args.format {
        ExplainFormat::Json => format!("{:#}\n", found.to_json()),
        ExplainFormat::Text => found.render(explain_style(args.output.is_some())),
    };
    write(args.output.as_deref(), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// As wide as the terminal, with colours only there and where NO_COLOR allows.
fn explain_style(to_file: bool) -> explain::Style {
    let is_terminal = !to_file && std::io::stdout().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let width = terminal_size::terminal_size().filter(|_| is_terminal);
    explain::Style {
        width: width.map_or(explain::Style::DEFAULT_WIDTH, |(w, _)| w.0.into()),
        color: is_terminal && !no_color,
    }
}

fn sql(name: Option<&str>) -> Result<ExitCode, Failed> {
    let text = match name {
        Some(name) => {
            let model = models::view(name);
            let model = model.ok_or_else(|| Failed::UnknownView(name.to_owned()))?;
            model.sql.to_owned()
        }
        None => models::all_views()
            .map(|m| format!("{:<20} {}\n", m.name, m.grain))
            .collect(),
    };
    Output::open(None)?.text(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ls(root: &Path) -> Result<ExitCode, Failed> {
    let found = listing::below(root).await?;
    for entry in &found {
        if let Err(error) = &entry.summary {
            let dir = entry.dir.display();
            // The table has the row in any case.
            drop(writeln!(std::io::stderr(), "{dir}: {}", message(error)));
        }
    }
    let rows: Vec<Vec<String>> = found.iter().map(ls_row).collect();
    let header = [
        "Name",
        "Path",
        "Labels",
        "Target",
        "Requests",
        "Succeeded",
        "Failed",
        "Unfinished",
        "Verdict",
    ];
    Output::open(None)?.text(&format!("{}\n", grid(&header, &rows, false)))?;
    Ok(if found.iter().any(|entry| entry.summary.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}

fn ls_row(entry: &Entry) -> Vec<String> {
    let none = || "-".to_owned();
    let manifest = entry.recording.as_ref().map(|r| &r.manifest);
    let labels = manifest.map(|m| m.labels.iter().map(|(k, v)| format!("{k}={v}")));
    let summary = entry.summary.as_ref().ok().and_then(Option::as_ref);
    let verdict = match &entry.summary {
        Ok(summary) => summary.as_ref().map_or("-", |s| s.verdict.as_str()),
        Err(_) => "not read",
    };
    let count =
        |get: fn(&report::Counts) -> u64| summary.map_or_else(none, |s| get(&s.counts).to_string());
    vec![
        manifest.map_or_else(none, |m| m.name.clone()),
        entry.dir.display().to_string(),
        labels.map_or_else(none, |l| l.collect::<Vec<_>>().join(" ")),
        manifest.and_then(|m| m.target.clone()).unwrap_or_else(none),
        count(|c| c.requests),
        count(|c| c.succeeded),
        count(|c| c.failed),
        count(|c| c.unfinished),
        verdict.to_owned(),
    ]
}

async fn check(path: &Path) -> Result<ExitCode, Failed> {
    let mut output = Output::open(None)?;
    let mut code = 0;
    let found = Recording::below(path).map_err(session::Error::Read)?;
    let is_only_one = found.len() == 1;
    for (dir, opened) in found {
        let dir = dir.display();
        let broken = match opened {
            Ok(recording) => check::check(&recording).await,
            Err(error) => Err(error.into()),
        };
        let broken = match broken {
            Err(error) if is_only_one => return Err(error.into()),
            // Those after it are checked all the same.
            Err(error) => {
                code = EXIT_FAILED;
                drop(writeln!(std::io::stderr(), "{dir}: {}", message(&error)));
                continue;
            }
            Ok(broken) => broken,
        };
        if broken.is_empty() {
            output.text(&format!("{dir}: sound\n"))?;
        } else {
            code = code.max(EXIT_FINDING);
        }
        for finding in broken {
            output.text(&format!("{dir}: {finding}\n"))?;
        }
    }
    Ok(ExitCode::from(code))
}

/// What vLLM's `--goodput` calls the metrics, in ms as well. `itl` is here to be
/// refused by its full name.
const SHORT_NAMES: [(&str, &str); 4] = [
    ("ttft", "ttft_ms"),
    ("tpot", "tpot_ms"),
    ("e2el", "e2el_ms"),
    ("itl", "itl_ms"),
];

/// `METRIC=VALUE`, or `METRIC:VALUE` as vLLM has it.
///
/// # Errors
/// When the metric is not one that every request has a value of, or the value is
/// not a finite number.
pub fn parse_slo(text: &str) -> Result<Slo, String> {
    let (metric, bound) = text
        .split_once(['=', ':'])
        .ok_or("expected METRIC=VALUE, for example ttft_ms=200")?;
    let metric = metric.trim();
    let mut short_names = SHORT_NAMES.iter();
    let long = short_names.find(|(short, _)| *short == metric);
    let metric = long.map_or(metric, |(_, long)| long);
    let bound: f64 = bound
        .trim()
        .parse()
        .map_err(|_| format!("{bound} is not a number"))?;
    if !bound.is_finite() {
        return Err("the bound must be a finite number".to_owned());
    }
    Slo::new(metric, bound).map_err(|error| error.to_string())
}

/// A duration in ms; a bare number is seconds.
fn parse_duration_ms(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3)];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, scale) = match unit {
        Some((unit, scale)) => (text.strip_suffix(unit).unwrap_or(text), *scale),
        None => (text, 1e3),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| "expected a duration such as 500ms, 30s or 2m".to_owned())?;
    if number.is_finite() && number >= 0.0 {
        Ok(number * scale)
    } else {
        Err("a duration is finite and not negative".to_owned())
    }
}

/// Least memory with which the engine can sort at all.
const LEAST_MEMORY: usize = 64 << 20;

/// A number of bytes, in units of 1024.
fn parse_size(text: &str) -> Result<usize, String> {
    let (number, shift) = match text.trim().to_ascii_uppercase() {
        text if text.ends_with('K') => (text, 10),
        text if text.ends_with('M') => (text, 20),
        text if text.ends_with('G') => (text, 30),
        text => (text, 0),
    };
    let number = number
        .trim_end_matches(['K', 'M', 'G'])
        .trim()
        .parse::<usize>();
    let size = number.ok().and_then(|n| n.checked_mul(1 << shift));
    match size {
        Some(size) if size >= LEAST_MEMORY => Ok(size),
        Some(_) => Err("the least is 64M".to_owned()),
        None => Err("expected a size such as 512M or 8G".to_owned()),
    }
}

fn parse_percentile(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let number = text.strip_prefix('p').unwrap_or(text).parse::<f64>();
    match number {
        Ok(p) if (0.0..=100.0).contains(&p) => Ok(p),
        _ => Err(format!("{text} is not a percentile from 0 to 100")),
    }
}
