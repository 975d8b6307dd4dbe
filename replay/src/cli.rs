//! What the user typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tapedeck_run::args::{
    ConnectionArgs, OutputArgs, ServerMetricsArgs, TargetArgs, parse_duration,
};

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
    /// Send the requests of a recording to a server and record what comes back.
    Run(Box<RunArgs>),
    /// Print the arrivals as CSV without sending anything.
    Plan(PlanArgs),
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub source: SourceArgs,
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
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Recording to take the requests from.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
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

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Each at its recorded offset, whatever happens to the others.
    Open,
}

impl Mode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
        }
    }
}

fn parse_speed(text: &str) -> Result<f64, String> {
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
}
