//! Downloads of a hub's files: resumed where they broke off, checked, and renamed
//! into place when they are whole. Not measured, so reqwest does it.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::{HeaderMap, IF_RANGE, LOCATION, RANGE};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use url::Url;

use crate::hub::Hub;

/// Until a connection stands, and longest silence within a file.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Hubs redirect to their stores; more hops than this are a loop.
const MAX_REDIRECTS: usize = 8;

/// Longest list of a repository's files.
const MAX_LIST_BYTES: usize = 32 << 20;

/// Something to download.
#[derive(Debug)]
pub(crate) struct Source {
    url: Url,
    /// As messages call it.
    name: String,
}

impl Source {
    /// `at`, a path and its query, below `address`.
    pub(crate) fn new(address: &Url, at: &str, name: &str) -> Result<Self> {
        let base = address.as_str().trim_end_matches('/');
        Ok(Self {
            url: Url::parse(&format!("{base}/{at}"))
                .map_err(|_| anyhow!("{name} has no URL at this hub"))?,
            name: name.to_owned(),
        })
    }
}

/// What the hub told of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Of the content: SHA-256 for large files.
    pub(crate) etag: Option<String>,
    pub(crate) commit: Option<String>,
}

/// A client of one hub, with its token.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    hub: Hub,
    token: Option<String>,
    quiet: bool,
}

/// A final answer, and what all answers on the way to it told.
struct Answer {
    response: Response,
    told: Told,
    linked_bytes: Option<u64>,
}

impl Client {
    pub(crate) fn new(hub: Hub, quiet: bool) -> Result<Self> {
        // Fails when a provider is already installed, which serves as well.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // Followed here: a token must not go to another host.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            http,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime")?,
            hub,
            token: std::env::var(hub.token_variable())
                .ok()
                .filter(|t| !t.is_empty()),
            quiet: quiet || !std::io::stderr().is_terminal(),
        })
    }

    /// A short JSON document.
    pub(crate) fn json(&mut self, source: &Source) -> Result<Value> {
        let read = async {
            let mut answer = self.get(&source.url, &HeaderMap::new()).await?;
            self.expect(answer.response.status(), StatusCode::OK)?;
            let mut body = Vec::new();
            while let Some(piece) = next(&mut answer.response).await? {
                ensure!(
                    body.len() + piece.len() <= MAX_LIST_BYTES,
                    "its list of files is too long"
                );
                body.extend_from_slice(&piece);
            }
            serde_json::from_slice(&body).context("its list of files is no JSON")
        };
        let read = self.runtime.block_on(read);
        read.with_context(|| format!("cannot list {}", source.name))
    }

    /// Downloads `source` to `path`.
    pub(crate) fn download(&mut self, source: &Source, path: &Path) -> Result<()> {
        let done = self.runtime.block_on(self.file(source, path));
        done.with_context(|| format!("cannot download {}", source.name))
    }

    async fn file(&self, source: &Source, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let part = beside(path, ".part");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)?;
        // Somebody else may be downloading the same.
        file.lock()?;
        if path.is_file() {
            return Ok(());
        }
        let begun = file.metadata()?.len();
        let resumed_etag = fs::read_to_string(beside(path, ".part-etag")).ok();
        let mut headers = HeaderMap::new();
        if let Some(etag) = resumed_etag.filter(|_| begun > 0) {
            headers.insert(RANGE, format!("bytes={begun}-").parse()?);
            headers.insert(IF_RANGE, etag.trim().parse()?);
        }
        let mut answer = self.get(&source.url, &headers).await?;
        if answer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            answer = self.get(&source.url, &HeaderMap::new()).await?;
        }
        let kept = if answer.response.status() == StatusCode::PARTIAL_CONTENT {
            ensure!(
                !headers.is_empty(),
                "the hub sent a part that nobody asked for"
            );
            ensure!(
                starts_at(&answer.response) == Some(begun),
                "the hub sent another part than was asked for"
            );
            begun
        } else {
            self.expect(answer.response.status(), StatusCode::OK)?;
            file.set_len(0)?;
            0
        };
        file.seek(SeekFrom::Start(kept))?;
        if let Some(etag) = text(answer.response.headers(), "etag") {
            fs::write(beside(path, ".part-etag"), etag)?;
        }
        let total = answer.response.content_length().map(|n| n + kept);
        self.write(&mut answer.response, &mut file, kept, total, &source.name)
            .await?;
        check(&mut file, &answer, total)?;
        file.sync_all()?;
        let told = json!({"etag": answer.told.etag, "commit": answer.told.commit});
        fs::write(beside(path, ".told"), told.to_string())?;
        fs::rename(&part, path)?;
        File::open(folder)?.sync_all()?;
        fs::remove_file(beside(path, ".part-etag")).ok();
        Ok(())
    }

    async fn write(
        &self,
        response: &mut Response,
        file: &mut File,
        kept: u64,
        total: Option<u64>,
        name: &str,
    ) -> Result<()> {
        let bar = self.bar(total, name);
        bar.set_position(kept);
        loop {
            match next(response).await {
                Ok(Some(piece)) => {
                    file.write_all(&piece)?;
                    bar.inc(piece.len() as u64);
                }
                Ok(None) => break,
                Err(error) => {
                    let resumes = "hint: the same command goes on where it broke off";
                    return Err(anyhow!("{error:#}\n{resumes}"));
                }
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn bar(&self, total: Option<u64>, name: &str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{msg} {spinner} {bytes} {bytes_per_sec}",
            ),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar
    }

    /// GET, redirects followed; the token goes to the hub's own host only.
    async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Answer> {
        let mut at = url.clone();
        let mut told = Told::default();
        let mut linked_bytes = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.http.get(at.clone()).headers(headers.clone());
            if let Some(token) = &self.token
                && at.origin() == url.origin()
                && may_carry_secrets(url)
            {
                request = request.bearer_auth(token);
            }
            // A URL in an error would show its query, and so its secrets.
            let response = request.send().await.map_err(reqwest::Error::without_url)?;
            let own = response.headers();
            told.commit = told.commit.or_else(|| text(own, "x-repo-commit"));
            let etag = text(own, "x-linked-etag").or_else(|| text(own, "etag"));
            told.etag = told.etag.or(etag);
            linked_bytes =
                linked_bytes.or_else(|| text(own, "x-linked-size").and_then(|n| n.parse().ok()));
            if !response.status().is_redirection() {
                return Ok(Answer {
                    response,
                    told,
                    linked_bytes,
                });
            }
            let to = text(own, LOCATION.as_str()).context("redirected to nowhere")?;
            at = at.join(&to).context("redirected to what is no URL")?;
        }
        bail!("redirected more than {MAX_REDIRECTS} times")
    }

    fn expect(&self, status: StatusCode, expected: StatusCode) -> Result<()> {
        if status == expected {
            return Ok(());
        }
        let hint = match status.as_u16() {
            401 | 403 => format!("\nhint: set {} to your token", self.hub.token_variable()),
            404 => "\nhint: check owner, name, file and revision".to_owned(),
            _ => String::new(),
        };
        bail!("HTTP {status}{hint}")
    }
}

/// TLS, or this very machine.
fn may_carry_secrets(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || is_loopback
}

async fn next(response: &mut Response) -> Result<Option<bytes::Bytes>> {
    Ok(response
        .chunk()
        .await
        .map_err(reqwest::Error::without_url)?)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The first byte of a part, as `Content-Range: bytes 5-9/10` tells.
fn starts_at(response: &Response) -> Option<u64> {
    let range = text(response.headers(), "content-range")?;
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}

/// A file that is not what the hub says it is goes: what is wrong with it would
/// be carried on for ever.
fn check(file: &mut File, answer: &Answer, total: Option<u64>) -> Result<()> {
    let bytes = file.metadata()?.len();
    if let Some(expected) = answer.linked_bytes.or(total)
        && bytes != expected
    {
        file.set_len(0)?;
        bail!("{bytes} bytes came instead of {expected}");
    }
    let etag = answer
        .told
        .etag
        .as_deref()
        .unwrap_or_default()
        .trim_matches('"');
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    if is_sha256 && sha256(file)? != etag.to_ascii_lowercase() {
        file.set_len(0)?;
        bail!("its SHA-256 is not what the hub says it is");
    }
    Ok(())
}

fn sha256(file: &mut File) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    file.seek(SeekFrom::Start(0))?;
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            let digest = hasher.finalize();
            return Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&piece[..length]);
    }
}

/// `path` with `end` behind its name, hidden.
fn beside(path: &Path, end: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{end}"))
}

/// What the hub told of `path` when it was downloaded; nothing where that is lost.
pub(crate) fn told_of(path: &Path) -> Told {
    let read = fs::read(beside(path, ".told")).ok();
    let told: Option<Value> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let field = |name: &str| Some(told.as_ref()?.get(name)?.as_str()?.to_owned());
    Told {
        etag: field("etag"),
        commit: field("commit"),
    }
}

/// Whole files below `folder`, as paths from it.
pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if path.is_dir() {
                folders.push(path);
            } else if !is_hidden && let Ok(relative) = path.strip_prefix(folder) {
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
