//! A server that lives as long as the run that measures it.
//!
//! The server runs under a [`keep`]er, which stops it with its children however
//! this program ends. Its output goes to a file beside the recording.

mod keeper;
mod log;

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::StatusCode;
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_live::{Stop, StopLevel};
use tapedeck_wire::dialect::Api;
use url::Url;

use crate::args::TargetArgs;
use crate::http_client;
use crate::options::tls_options;
use crate::requests::{further_headers, key_header};
use crate::shell;

pub use keeper::keep;
use log::LogReader;

/// Name of the hidden command that runs [`keep`].
pub const KEEP_COMMAND: &str = "keep-server";

/// Between two questions whether the server is ready.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// One such question.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Beyond the patience with the server, for its keeper to end as well.
const KEEPER_WAIT: Duration = Duration::from_secs(8);

/// What to launch, resolved.
#[derive(Debug, Clone)]
pub struct Launch {
    /// For `/bin/sh`.
    pub command: String,
    pub log: PathBuf,
    /// Where it is to listen: an http(s) URL.
    pub address: String,
    /// Until it is ready.
    pub timeout: Duration,
    /// Until it is killed when asked to stop.
    pub patience: Duration,
}

/// Ports of which [`free_port`] takes one, and how many it tries. They lie below
/// those that Linux gives to whoever asks for any (from 32768 on): one of those
/// would be somebody's connection before the server listens.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: u64 = 100;

/// A port of this machine that nobody listens on now. Somebody may before the
/// server does: then that fails, and says so.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    // The standard library's one source of randomness: who calls next gets another.
    let random = RandomState::new();
    let chosen = (0..PORT_TRIES).find_map(|attempt| {
        let offset = random.hash_one(attempt) % PORTS.len() as u64;
        let port = PORTS.start + u16::try_from(offset).ok()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        listener.is_ok().then_some(port)
    });
    chosen.context("no port is free")
}

/// A server that was started. Dropping it stops it.
#[derive(Debug)]
pub struct Launched {
    keeper: Child,
    /// The keeper stops the server when this closes, whoever closes it.
    alive: Option<ChildStdin>,
    log: LogReader,
    log_path: PathBuf,
    url: Url,
    timeout: Duration,
    patience: Duration,
    shown: String,
    clock: RunClock,
    ready_ns: Option<i64>,
}

impl Launched {
    /// Starts the server. What it prints goes to its log without the secrets in its
    /// command and without `key`.
    ///
    /// # Errors
    /// When something answers at its address already, or the keeper or the log
    /// cannot be made.
    pub fn start(launch: &Launch, key: Option<&str>) -> Result<Self> {
        let url = server_url(&launch.address)?;
        refuse_another(&url)?;
        let masked = shell::mask(&launch.command);
        let mut secrets = masked.secrets;
        secrets.extend(key.filter(|key| key.len() >= 4).map(str::to_owned));
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let log = LogReader::start(&launch.log, reader, secrets)?;
        let errors = writer.try_clone().context("cannot make a pipe")?;
        // Found even when its file was replaced since.
        let mut keeper = Command::new("/proc/self/exe")
            .arg(KEEP_COMMAND)
            .arg(format!("--patience-ms={}", launch.patience.as_millis()))
            .arg(format!("--command={}", launch.command))
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(errors)
            // Ctrl-C is for the program, which then lets requests in flight end.
            .process_group(0)
            .spawn()
            .context("cannot start the server's keeper")?;
        Ok(Self {
            alive: keeper.stdin.take(),
            keeper,
            log,
            log_path: launch.log.clone(),
            url,
            timeout: launch.timeout,
            patience: launch.patience,
            shown: masked.text,
            clock: RunClock::start(),
            ready_ns: None,
        })
    }

    /// Waits until the server answers `/health`, or `/v1/models` where it has no
    /// `/health`.
    ///
    /// # Errors
    /// When it ends first, is not ready in time, or `stop` is raised.
    pub fn wait_ready(&mut self, target: &TargetArgs, api: Api, stop: &Stop) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let questions = Questions::new(&self.url, target, api)?;
        let timeout_ns = i64::try_from(self.timeout.as_nanos()).unwrap_or(i64::MAX);
        loop {
            if let Some(status) = self.ended()? {
                // What it said last may still be on its way.
                self.log.finish();
                bail!(
                    "the launched server ended before it was ready, with {}{}",
                    status_text(status),
                    self.last_words()
                );
            }
            if stop.level() != StopLevel::Run {
                bail!("stopped before the launched server was ready");
            }
            if runtime.block_on(questions.answered()) {
                self.ready_ns = Some(self.clock.now_ns());
                return Ok(());
            }
            if self.clock.now_ns() > timeout_ns {
                bail!(
                    "the launched server was not ready within {} s{}\nhint: --launch-timeout gives it longer; ready is who answers {} or /v1/models with success",
                    self.timeout.as_secs_f64(),
                    self.last_words(),
                    questions.health
                );
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.keeper.try_wait();
        status.context("cannot tell whether the launched server runs")
    }

    /// Where the log is and how it ends.
    fn last_words(&self) -> String {
        let path = self.log_path.display();
        let lines = self.log.recent();
        if lines.is_empty() {
            return format!("; it printed nothing to {path}");
        }
        let lines: String = lines.iter().map(|line| format!("\n  | {line}")).collect();
        format!("; the end of {path}:{lines}")
    }

    /// As it stands in the settings of a manifest: no secrets.
    #[must_use]
    pub fn describe(&self) -> Value {
        json!({
            "command": self.shown,
            "ready_after_s": self.ready_ns.map(|ns| ns as f64 / 1e9),
            "log": self.log_path.file_name().map(|name| name.to_string_lossy()),
        })
    }

    /// Stops the server with its children, and tells what is odd about its end.
    pub fn stop(mut self) {
        let path = self.log_path.display().to_string();
        if let Ok(Some(status)) = self.keeper.try_wait() {
            let words = status_text(status);
            eprintln!("warning: the launched server ended by itself, with {words}: {path} has why");
        }
        self.end();
        match self.log.finish() {
            Some(0) => {}
            Some(lost) => eprintln!("warning: {lost} bytes of {path} were left out"),
            None => eprintln!("warning: {path} may lack its end: somebody still holds it open"),
        }
    }

    fn end(&mut self) {
        self.alive.take();
        let clock = RunClock::start();
        let until = i64::try_from((self.patience + KEEPER_WAIT).as_nanos()).unwrap_or(i64::MAX);
        while let Ok(None) = self.keeper.try_wait() {
            if clock.now_ns() > until {
                eprintln!("warning: the launched server does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.alive.is_some() {
            self.end();
            // The error that led here is already on its way.
            self.log.finish();
        }
    }
}

/// `http(s)://host:port`, where a launched server is to listen.
fn server_url(text: &str) -> Result<Url> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.host().is_some());
    url.context("--url is no http(s) URL\nhint: with --launch it is where the server listens; without --url it is http://127.0.0.1:{port}")
}

/// Whoever answers before the launch is not who is to be measured.
fn refuse_another(url: &Url) -> Result<()> {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or_default();
    let addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("--url: {host} cannot be resolved"))?
        .collect();
    for address in addresses {
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            bail!(
                "something answers at {address} before the server is launched\nhint: {{port}} in --launch and no --url takes a free port"
            );
        }
    }
    Ok(())
}

/// What is asked of a server that is to become ready.
struct Questions {
    client: reqwest::Client,
    headers: http::HeaderMap,
    health: Url,
    models: Url,
}

impl Questions {
    fn new(url: &Url, target: &TargetArgs, api: Api) -> Result<Self> {
        let mut headers = further_headers(target)?;
        if let Some((name, value)) = key_header(target, &api.dialect().request)? {
            headers.insert(name, value);
        }
        let mut health = url.clone();
        health.set_query(None);
        health.set_path("/health");
        let mut models = health.clone();
        models.set_path("/v1/models");
        Ok(Self {
            client: http_client::build(&tls_options(target), ASK_TIMEOUT, ASK_TIMEOUT)?,
            headers,
            health,
            models,
        })
    }

    async fn answered(&self) -> bool {
        match self.ask(&self.health).await {
            Some(status) if status.is_success() => true,
            // No such path: an older server, or one that has only the API.
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                // Who asks for a key is up; the probe tells whether ours is good.
                let up = |s: StatusCode| s.is_success() || s == StatusCode::UNAUTHORIZED;
                self.ask(&self.models).await.is_some_and(up)
            }
            _ => false,
        }
    }

    async fn ask(&self, url: &Url) -> Option<StatusCode> {
        let request = self.client.get(url.clone()).headers(self.headers.clone());
        Some(request.send().await.ok()?.status())
    }
}

fn status_text(status: ExitStatus) -> String {
    match status.code() {
        // A shell's way to say that a signal ended it.
        Some(code @ 129..) => format!("signal {}", code - 128),
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// `<recording>.server.log`: beside the recording, which holds only its own files.
#[must_use]
pub fn log_path(recording: &Path) -> PathBuf {
    let mut name = recording.file_name().unwrap_or_default().to_owned();
    name.push(".server.log");
    recording.with_file_name(name)
}
