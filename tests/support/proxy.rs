//! The real proxy as a process, and a client that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapedeck_recording::{EventBatch, Recording};

use super::programs::{Ran, program, run};
use super::recording::events;

/// A running `record proxy`. Killed when it is dropped without [`Self::stop`].
pub struct ProxyProcess {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
    root: PathBuf,
    pub addr: SocketAddr,
    pub admin: SocketAddr,
}

impl ProxyProcess {
    /// Starts the proxy before `upstream`, recording below `root`.
    pub fn start(upstream: &str, root: &Path, further: &[&str]) -> Self {
        let mut child = program("record")
            .args(["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--upstream", upstream, "--json", "--out"])
            .arg(root)
            .args(further)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let admin = address(&mut stderr, &mut said, "metrics on http://");
        let addr = address(&mut stderr, &mut said, "proxy on http");
        Self {
            child,
            stderr,
            said,
            root: root.to_owned(),
            addr,
            admin,
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// What it was started with, as the kernel knows it.
    pub fn environment(&self) -> String {
        let path = format!("/proc/{}/environ", self.child.id());
        String::from_utf8(std::fs::read(path).unwrap()).unwrap()
    }

    /// Waits until it has said `words`.
    pub fn await_said(&mut self, words: &str) {
        while !self.said.contains(words) {
            let n = self.stderr.read_line(&mut self.said).unwrap();
            assert!(n > 0, "the program ended: {}", self.said);
        }
    }

    /// Stops it and waits for its end; what it said.
    pub fn stop(mut self) -> Ran {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    pub fn wait(&mut self) -> Ran {
        self.stderr.read_to_string(&mut self.said).unwrap();
        let mut stdout = String::new();
        let pipe = self.child.stdout.as_mut().unwrap();
        pipe.read_to_string(&mut stdout).unwrap();
        Ran {
            code: self.child.wait().unwrap().code(),
            stdout,
            stderr: self.said.clone(),
        }
    }

    /// The only recording below the root.
    pub fn recording(root: &Path) -> PathBuf {
        let mut found: Vec<_> = std::fs::read_dir(root).unwrap().collect();
        assert_eq!(found.len(), 1, "one start, one recording");
        found.remove(0).unwrap().path()
    }

    /// Stops it; the rows of its recording, which keeps the invariants.
    pub fn finish(self) -> EventBatch {
        let root = self.root.clone();
        self.stop().expect(0);
        let path = Self::recording(&root);
        run("analyze", ["check", path.to_str().unwrap()]).expect(0);
        rows(&path)
    }

    pub fn metrics(&self) -> String {
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
        let seen = converse(self.admin, request, Duration::from_secs(5));
        String::from_utf8(seen.body).unwrap()
    }

    /// The value of the metric whose line begins with `name`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the metric is there").trim().parse().unwrap()
    }

    /// Waits until the metric has the value, for things that follow an answer.
    pub fn await_metric(&self, name: &str, value: f64) {
        for _ in 0..250 {
            if self.metric(name) == value {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{name} never was {value}:\n{}", self.metrics());
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Reads to the line that begins with `start`; the address in it.
pub fn address(stderr: &mut impl BufRead, said: &mut String, start: &str) -> SocketAddr {
    loop {
        let mut line = String::new();
        let n = stderr.read_line(&mut line).unwrap();
        assert!(n > 0, "the program ended: {said}");
        said.push_str(&line);
        if line.starts_with(start) {
            let (_, rest) = line.split_once("://").unwrap();
            let end = rest.find(['/', ' ']).unwrap();
            return rest[..end].parse().unwrap();
        }
    }
}

/// Every table of a recording.
pub fn rows(path: &Path) -> EventBatch {
    events(&Recording::open(path).unwrap())
}

/// How an answer ended for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// As HTTP wants it.
    Whole,
    /// The connection ended first.
    Broken,
    /// Nothing more came, and the client left.
    Silent,
}

/// What the client's last read came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Bytes, the last of a whole answer.
    Bytes,
    Fin,
    Rst,
    /// Nothing, until the client lost patience.
    Silence,
}

/// What a client saw of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Status and reason; empty where no answer came.
    pub status: String,
    /// End-to-end headers in their case, sorted.
    pub headers: Vec<String>,
    /// Without chunk framing.
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
    pub finish: Finish,
}

impl Seen {
    /// No answer.
    pub fn nothing() -> Self {
        Self {
            status: String::new(),
            headers: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            finish: Finish::Broken,
        }
    }
}

/// Headers that are the connection's and not the message's.
const HOP_BY_HOP: [&str; 3] = ["connection", "keep-alive", "transfer-encoding"];

/// Sends `request` on a connection of its own and reads the answer, for as long as
/// no silence lasts longer than `patience`.
pub fn converse(addr: SocketAddr, request: &[u8], patience: Duration) -> Seen {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(request).unwrap();
    let is_head = request.starts_with(b"HEAD ");
    receive(&mut stream, is_head, patience)
}

/// Reads one answer.
pub fn receive(stream: &mut TcpStream, is_head: bool, patience: Duration) -> Seen {
    receive_to_end(stream, is_head, patience).0
}

/// Reads one answer, to the last byte of a whole one.
pub fn receive_to_end(stream: &mut TcpStream, is_head: bool, patience: Duration) -> (Seen, Last) {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let last = match stream.read(&mut buffer) {
            Ok(0) => Last::Fin,
            Ok(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                Last::Bytes
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Last::Silence,
            Err(_) => Last::Rst,
        };
        let (seen, by_close) = parse(&bytes, is_head);
        let finish = match (last, seen.finish) {
            (_, Finish::Whole) => Finish::Whole,
            (Last::Bytes, _) => continue,
            (Last::Silence, _) => Finish::Silent,
            (Last::Fin | Last::Rst, _) if by_close && bytes.len() > 1 => Finish::Whole,
            (Last::Fin | Last::Rst, _) => Finish::Broken,
        };
        return (Seen { finish, ..seen }, last);
    }
}

/// What `bytes` are so far, and whether the end of the connection ends the body.
fn parse(bytes: &[u8], is_head: bool) -> (Seen, bool) {
    let mut seen = Seen::nothing();
    let Some(end) = find(bytes, b"\r\n\r\n").filter(|_| bytes.starts_with(b"HTTP/")) else {
        return (seen, false);
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let rest = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let (_, status) = lines.next().unwrap().split_once(' ').unwrap();
    if status.starts_with('1') && !status.starts_with("101") {
        return parse(rest, is_head);
    }
    seen.status = status.to_owned();
    let all: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let value = |wanted: &str| {
        all.iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.clone())
    };
    let mut headers: Vec<String> = all
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort();
    seen.headers = headers;
    let bodiless = is_head || ["101", "204", "304"].iter().any(|s| status.starts_with(s));
    let mut by_close = false;
    if bodiless {
        seen.finish = Finish::Whole;
        seen.body = rest.to_vec();
    } else if value("transfer-encoding").is_some() {
        dechunk(rest, &mut seen);
    } else if let Some(length) = value("content-length") {
        let length: usize = length.parse().unwrap();
        seen.body = rest[..rest.len().min(length)].to_vec();
        if rest.len() >= length {
            seen.finish = Finish::Whole;
        }
    } else {
        seen.body = rest.to_vec();
        by_close = true;
    }
    (seen, by_close)
}

fn dechunk(mut rest: &[u8], seen: &mut Seen) {
    while let Some(line) = find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16);
        let Ok(size) = size else { return };
        rest = &rest[line + 2..];
        if size == 0 {
            let Some(end) = find(rest, b"\r\n\r\n").or(rest.starts_with(b"\r\n").then_some(0))
            else {
                return;
            };
            let trailers = std::str::from_utf8(&rest[..end]).unwrap();
            let lines = trailers.split("\r\n").filter(|line| !line.is_empty());
            seen.trailers = lines.map(str::to_owned).collect();
            seen.finish = Finish::Whole;
            return;
        }
        let part = &rest[..rest.len().min(size)];
        seen.body.extend_from_slice(part);
        let Some(next) = rest.get(size + 2..) else {
            return;
        };
        rest = next;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|w| w == wanted)
}

/// A streamed chat request for the answer `case`.
pub fn chat(case: &str, headers: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"{case}","stream":true,"max_tokens":20,"messages":[{{"role":"user","content":"x"}}]}}"#
    );
    post("/v1/chat/completions", headers, &body)
}

/// A request with a body.
pub fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: example\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
