use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tapedeck_record::run(tapedeck_record::cli::Cli::parse())
}
