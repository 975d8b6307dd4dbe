//! Servers that are launched for a load: flags, presets, and the command that they
//! come to.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tapedeck_live::Stop;
use tapedeck_run::args::parse_duration;
use tapedeck_run::launch::{Launch, Launched, free_port, log_path};
use tapedeck_run::secrets::mask_url;
use tapedeck_run::shell::{fill, quote};
use url::Url;

use crate::cli::LoadArgs;
use crate::matrix::{Axis, Cell};

/// Where a launched server listens unless --url says otherwise.
pub const LAUNCHED_URL: &str = "http://127.0.0.1:{port}";

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server to launch")]
pub struct LaunchArgs {
    /// Start this command in a shell, wait until it answers /health (or /v1/models),
    /// load it and stop it with all its children, also when this program is killed.
    /// {port} is a free port, or that of --url where it has one; {model} is --model.
    /// --url need not be given. What it prints goes to <recording>.server.log as it
    /// comes: the first 32 MiB and the last MiB. The file lies beside the recording:
    /// a server may serve many, and what it prints --content does not reach.
    #[arg(long, value_name = "COMMAND", conflicts_with = "local")]
    pub launch: Option<String>,
    /// Launch a well-known server with --model.
    #[arg(long, value_name = "SERVER", requires = "model")]
    pub local: Option<Local>,
    /// Further words for the command of --local.
    #[arg(
        long,
        value_name = "ARGS",
        requires = "local",
        allow_hyphen_values = true
    )]
    pub local_args: Option<String>,
    /// Attention that --local is to use, in that server's words.
    #[arg(long, value_name = "NAME", requires = "local")]
    pub attn_implementation: Option<String>,
    /// How long the launched server may take to become ready.
    #[arg(long, value_name = "D", default_value = "10m", value_parser = parse_duration)]
    pub launch_timeout: Duration,
    /// How long the launched server may take to stop before it is killed.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub launch_stop_timeout: Duration,
    /// Launch once for each combination of these values, which stand for {NAME} in
    /// --launch or --local-args: tp=1,2,4 dtype=auto,fp8. Each makes a recording
    /// of its own (a sweep: a folder of them) below --out, with the values as
    /// labels. One that fails does not keep the others from running. --out may
    /// hold results of earlier times: they stay.
    #[arg(long, value_name = "NAME=V,V", num_args = 1..)]
    pub matrix: Vec<Axis>,
}

/// A server that we know how to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Local {
    /// `vllm serve`
    Vllm,
    /// `python3 -m sglang.launch_server`
    Sglang,
    /// `llama-server`, the model being a GGUF file
    #[value(name = "llama.cpp", alias = "llamacpp")]
    LlamaCpp,
    /// `transformers serve`; it loads the model when the probe asks for it
    Transformers,
}

impl Local {
    /// The command, with {model} and {port} open, and the flag for attention.
    const fn command(self) -> (&'static str, &'static str) {
        match self {
            Self::Vllm => (
                "exec vllm serve {model} --host 127.0.0.1 --port {port}",
                "--attention-backend",
            ),
            Self::Sglang => (
                "exec python3 -m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port}",
                "--attention-backend",
            ),
            Self::LlamaCpp => (
                "exec llama-server --model {model} --host 127.0.0.1 --port {port}",
                "--flash-attn",
            ),
            Self::Transformers => (
                "exec transformers serve --host 127.0.0.1 --port {port}",
                "--attn-implementation",
            ),
        }
    }
}

impl LaunchArgs {
    /// The command with its names still open, where there is one to launch.
    #[must_use]
    pub fn template(&self) -> Option<String> {
        let Some(local) = self.local else {
            return self.launch.clone();
        };
        let (mut command, attention_flag) = {
            let (command, flag) = local.command();
            (command.to_owned(), flag)
        };
        if let Some(name) = &self.attn_implementation {
            command.push_str(&format!(" {attention_flag} {}", quote(name)));
        }
        if let Some(words) = &self.local_args {
            command.push(' ');
            command.push_str(words);
        }
        Some(command)
    }
}

/// Does `work` while the server of `args` runs, where there is one to launch.
/// `work` gets the arguments with the server's address, and what a manifest says
/// of the launch.
///
/// # Errors
/// When the server cannot be started or does not become ready, and those of
/// `work`.
pub fn with_server<T>(
    args: &LoadArgs,
    cell: &Cell,
    root: &Path,
    stop: &Stop,
    work: impl FnOnce(&LoadArgs, Option<Value>) -> Result<T>,
) -> Result<T> {
    let Some((launch, args)) = resolve(args, cell, root)? else {
        return work(args, None);
    };
    if let Some(folder) = launch.log.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let (address, log) = (mask_url(&launch.address), launch.log.display());
    eprintln!("launching a server at {address}, its log is {log}");
    if args.output.privacy.hides_text() {
        eprintln!(
            "warning: --content and --redact do not reach what the server prints: if it prints texts, {log} has them"
        );
    }
    let mut launched = Launched::start(&launch, args.target.api_key.as_deref())?;
    launched.wait_ready(&args.target, args.api, stop)?;
    let result = work(&args, Some(launched.describe()));
    launched.stop();
    result
}

/// What to launch, and the arguments with the address that it listens at.
fn resolve(args: &LoadArgs, cell: &Cell, root: &Path) -> Result<Option<(Launch, LoadArgs)>> {
    let Some(template) = args.launch.template() else {
        return Ok(None);
    };
    let mut args = args.clone();
    let target = &args.target;
    let is_named = target.url.is_some() || target.host.is_some() || target.port.is_some();
    let address = match is_named {
        true => target.address(),
        false => LAUNCHED_URL.to_owned(),
    };
    let port = match address.contains("{port}") {
        true => free_port()?,
        false => port_of(&address)?,
    };
    let port = port.to_string();
    let address = fill(&address, [("port", port.as_str())]);
    args.target.url = Some(address.clone());
    (args.target.host, args.target.port) = (None, None);
    let quoted: Vec<(&str, String)> = cell
        .values()
        .map(|(name, value)| (name, quote(value)))
        .chain([("port", port)])
        .chain(args.target.model.iter().map(|m| ("model", quote(m))))
        .collect();
    let launch = Launch {
        command: fill(&template, quoted.iter().map(|(n, v)| (*n, v.as_str()))),
        log: log_path(root),
        address,
        timeout: args.launch.launch_timeout,
        patience: args.launch.launch_stop_timeout,
    };
    Ok(Some((launch, args)))
}

fn port_of(url: &str) -> Result<u16> {
    let url = Url::parse(url).ok();
    url.and_then(|url| url.port_or_known_default())
        .context("--url is no http(s) URL\nhint: with --launch it is where the server listens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, load_args};
    use clap::Parser;

    fn load(words: &[&str]) -> LoadArgs {
        load_args(["--prompt", "p"].iter().chain(words).copied())
    }

    fn resolved(words: &[&str]) -> (Launch, LoadArgs) {
        let cell = Cell::default();
        resolve(&load(words), &cell, Path::new("out/r"))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_preset_is_a_command_with_model_and_port_filled_in() {
        let (launch, args) = resolved(&[
            "--local",
            "llama.cpp",
            "--model",
            "/a model.gguf",
            "--attn-implementation",
            "on",
            "--local-args",
            "--ctx-size 512",
            "--url",
            "http://127.0.0.1:8123/v1",
        ]);
        assert_eq!(
            launch.command,
            "exec llama-server --model '/a model.gguf' --host 127.0.0.1 --port 8123 --flash-attn on --ctx-size 512"
        );
        assert_eq!(args.target.address(), "http://127.0.0.1:8123/v1");
        assert_eq!(launch.log, Path::new("out/r.server.log"));
    }

    #[test]
    fn without_a_url_a_free_port_is_taken() {
        let (launch, args) = resolved(&["--launch", "serve -p {port} -m {model}"]);
        let address = args.target.address();
        let port = address.strip_prefix("http://127.0.0.1:").unwrap();
        assert!(port.parse::<u16>().unwrap() > 0);
        // No --model: what is not known stays.
        assert_eq!(launch.command, format!("serve -p {port} -m {{model}}"));
    }

    #[test]
    fn a_url_is_needed_where_nothing_is_launched() {
        let parsed = Cli::try_parse_from(["record", "load", "--prompt", "p"]);
        assert!(parsed.unwrap_err().to_string().contains("--url"));
        for words in [
            ["--launch", "x", "--local", "vllm", "--model", "m"].as_slice(),
            &["--local", "vllm"],
            &["--url", "u", "--local-args", "x"],
        ] {
            let words = ["record", "load", "--prompt", "p"].iter().chain(words);
            assert!(Cli::try_parse_from(words).is_err());
        }
    }
}
