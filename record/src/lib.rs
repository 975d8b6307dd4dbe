//! The recorder: `record load`, `record proxy`, `record simulate`, `record repair`
//! and `record apis`.
//!
//! [`cli`], [`shape`] and [`workload`] are what the user typed, [`config`] and
//! [`source`] what it means, [`arrivals`] what is sent when, [`load`] the run.

pub mod accepted;
mod apis;
pub mod arrivals;
pub mod cli;
pub mod config;
pub mod load;
mod proxy;
mod repair;
mod retention;
mod rotation;
pub mod shape;
mod simulate;
pub mod source;
mod upstreams;
pub mod workload;

use std::process::ExitCode;

use tapedeck_run::ending::{Ending, exit_code};

use cli::{Cli, Command};

/// Carries out `cli`. Errors of the tool are printed once, here.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Load(args) => load::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Simulate(args) => simulate::run(&args).map(|()| Ending::Fine),
        Command::Repair(args) => repair::run(&args).map(|()| Ending::Fine),
        Command::Apis(args) => apis::run(&args),
    };
    exit_code(result)
}
