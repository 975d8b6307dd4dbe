//! Replay: the load generator with arrivals from a recording.
//!
//! [`source`] reads a recording or a trace, [`schedule`] makes a plan of it, [`bodies`]
//! what is sent, [`ahead`] has some of it ready, [`courses`] knows who waits for whom, and [`run`] sends it through the same
//! harness as `record load`. [`import`] makes a recording of a trace, and [`serve`]
//! stands in for the server that was recorded.

pub mod ahead;
pub mod bodies;
pub mod cli;
pub mod courses;
pub mod import;
pub mod run;
pub mod salt;
pub mod schedule;
pub mod serve;
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
        Command::Import(args) => import::import(&args).map(|()| Ending::Fine),
        Command::Serve(args) => serve::serve(&args),
    };
    exit_code(result)
}
