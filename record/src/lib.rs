//! The recorder: `record load`, `record proxy`, `record simulate`, `record repair`
//! and `record apis`.
//!
//! [`cli`], [`shape`] and [`workload`] are what the user typed, [`config`] and
//! [`source`] what it means, [`arrivals`] what is sent when, [`load`] the run;
//! [`local`] launches the server to be loaded, once for each cell of a [`matrix`].
//! `find_max` searches for the highest load: `search` decides which level is tried
//! next. Of the proxy, `rotation` and `retention` are about its recordings,
//! `upstreams` about the servers behind it.

pub mod accepted;
mod apis;
pub mod arrivals;
pub mod cli;
pub mod config;
#[cfg(feature = "report")]
pub mod find_max;
mod labels;
pub mod load;
pub mod local;
pub mod matrix;
mod memory;
mod proxy;
mod repair;
mod retention;
mod rotation;
#[cfg(feature = "report")]
pub mod search;
pub mod shape;
mod simulate;
pub mod source;
mod upstreams;
pub mod workload;

use std::process::ExitCode;
use std::time::Duration;

use tapedeck_run::ending::{Ending, exit_code};

use cli::{Cli, Command, KeepArgs};

/// Carries out `cli`. Errors of the tool are printed once, here.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Load(args) => load::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Simulate(args) => simulate::run(&args).map(|()| Ending::Fine),
        Command::Repair(args) => repair::run(&args).map(|()| Ending::Fine),
        Command::Apis(args) => apis::run(&args),
        Command::KeepServer(args) => return keep(&args),
    };
    exit_code(result)
}

/// Ends as the server does; what goes wrong is seen in the server's log.
fn keep(args: &KeepArgs) -> ExitCode {
    let patience = Duration::from_millis(args.patience_ms);
    match tapedeck_run::launch::keep(&args.command, patience) {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit_code(Err(error)),
    }
}
