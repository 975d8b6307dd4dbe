use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tapedeck_replay::run(tapedeck_replay::cli::Cli::parse())
}
