//! `analyze`: SQL over recordings.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    tapedeck_analyze::cli::run(tapedeck_analyze::cli::Cli::parse()).await
}
