//! Replay: the load generator with arrivals from a recording.
//!
//! [`source`] turns a recording into planned requests, [`run`] sends them through
//! the same harness as `record load`.

pub mod cli;
pub mod run;
pub mod source;

use std::process::ExitCode;

use tapedeck_run::ending::{Ending, exit_code};

use cli::{Cli, Command};

/// Carries out `cli`. Errors of the tool are printed once, here.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Plan(args) => run::print_plan(&args).map(|()| Ending::Fine),
    };
    exit_code(result)
}
