//! What a launched server prints, into a bounded file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::secrets::MASK;

/// The beginning is kept whole up to here: how the server was set up.
const HEAD_BYTES: u64 = 32 << 20;
/// Of what comes later the last of it: how the server ended. Held in memory.
const TAIL_BYTES: usize = 1 << 20;
/// A longer line is taken in pieces.
const LINE_BYTES: u64 = 64 << 10;
/// Last lines kept for a message, and how much of each.
const RECENT_LINES: usize = 12;
const RECENT_LINE_BYTES: usize = 400;
/// How long the end of the log is waited for, once its writers should be gone.
const END_WAIT: Duration = Duration::from_secs(2);

/// A thread that reads what a server prints until the last writer is gone.
#[derive(Debug)]
pub(super) struct LogReader {
    recent: Arc<Mutex<VecDeque<String>>>,
    ended: Receiver<u64>,
}

impl LogReader {
    /// Reads `from` into a new file at `path`, for its owner only, with `secrets`
    /// masked.
    ///
    /// # Errors
    /// When the file or the thread cannot be made.
    pub(super) fn start(path: &Path, from: PipeReader, secrets: Vec<String>) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write the server's log {}", path.display()))?;
        let recent = Arc::new(Mutex::new(VecDeque::new()));
        let mut log = Log {
            file,
            secrets,
            written: 0,
            tail: VecDeque::new(),
            lost: 0,
            recent: Arc::clone(&recent),
        };
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new()
            .name("tapedeck-server-log".into())
            .spawn(move || {
                log.copy(BufReader::new(from));
                // Nobody waits any longer when the run was broken off.
                end.send(log.finish()).ok();
            })
            .context("cannot start a thread for the server's log")?;
        Ok(Self { recent, ended })
    }

    /// The last lines so far, oldest first.
    pub(super) fn recent(&self) -> Vec<String> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().cloned().collect()
    }

    /// Waits for the end of the log; bytes that were left out of the file, `None`
    /// when a process that left its group still holds the log open.
    pub(super) fn finish(&self) -> Option<u64> {
        self.ended.recv_timeout(END_WAIT).ok()
    }
}

struct Log {
    file: File,
    secrets: Vec<String>,
    written: u64,
    tail: VecDeque<u8>,
    lost: u64,
    recent: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    fn copy(&mut self, mut from: impl BufRead) {
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => self.line(&line),
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = scrub(line, &self.secrets);
        self.remember(&line);
        let bytes = line.len() as u64;
        if self.tail.is_empty() && self.lost == 0 && self.written + bytes <= HEAD_BYTES {
            match self.file.write_all(&line) {
                Ok(()) => self.written += bytes,
                // A full disk is no reason to stop the server.
                Err(_) => self.lost += bytes,
            }
            return;
        }
        self.tail.extend(&line);
        let beyond = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..beyond);
        self.lost += beyond as u64;
    }

    fn remember(&self, line: &[u8]) {
        let text = line.trim_ascii_end();
        if text.is_empty() {
            return;
        }
        let text = &text[..text.len().min(RECENT_LINE_BYTES)];
        #[expect(clippy::disallowed_methods, reason = "for a message")]
        let text = String::from_utf8_lossy(text);
        let text = text.replace(|c: char| c.is_control() && c != '\t', " ");
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_back(text);
        while recent.len() > RECENT_LINES {
            recent.pop_front();
        }
    }

    /// Writes what is held; bytes that were left out.
    fn finish(&mut self) -> u64 {
        if self.lost > 0 {
            let note = format!("\n[tapedeck: {} bytes left out here]\n", self.lost);
            self.file.write_all(note.as_bytes()).ok();
        }
        let tail = self.tail.make_contiguous();
        if self.file.write_all(tail).is_err() {
            self.lost += tail.len() as u64;
        }
        self.lost
    }
}

/// `line` with every one of `secrets` masked.
fn scrub(line: &[u8], secrets: &[String]) -> Vec<u8> {
    secrets.iter().fold(line.to_vec(), |line, secret| {
        let secret = secret.as_bytes();
        let mut kept = Vec::with_capacity(line.len());
        let mut rest = &line[..];
        while let Some(at) = find(rest, secret) {
            kept.extend_from_slice(&rest[..at]);
            kept.extend_from_slice(MASK.as_bytes());
            rest = &rest[at + secret.len()..];
        }
        kept.extend_from_slice(rest);
        kept
    })
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|w| w == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(path: &Path, secrets: &[&str]) -> Log {
        Log {
            file: File::create(path).unwrap(),
            secrets: secrets.iter().map(|s| (*s).to_owned()).collect(),
            written: 0,
            tail: VecDeque::new(),
            lost: 0,
            recent: Arc::default(),
        }
    }

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end_and_counts_the_rest() {
        let path = std::env::temp_dir().join(format!("tapedeck-log-{}", std::process::id()));
        let mut log = log(&path, &[]);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let lines = 40 << 10;
        let mut text = line.repeat(lines);
        text.extend_from_slice(b"the end\n");
        let total = text.len() as u64;
        log.copy(&text[..]);
        let lost = log.finish();
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let note = format!("\n[tapedeck: {lost} bytes left out here]\n");
        assert_eq!(kept.len() as u64, total - lost + note.len() as u64);
        assert_eq!(
            kept.len() as u64,
            HEAD_BYTES + TAIL_BYTES as u64 + note.len() as u64
        );
        assert!(kept.starts_with(&line) && kept.ends_with(b"\nthe end\n"));
        assert!(find(&kept, note.as_bytes()).is_some());
    }

    #[test]
    fn secrets_are_masked_in_the_file_and_in_messages() {
        let path = std::env::temp_dir().join(format!("tapedeck-scrub-{}", std::process::id()));
        let mut log = log(&path, &["hunter2"]);
        log.copy(&b"args: api_key='hunter2' hunter2\r\n\x1b[31m\xffred\n\n"[..]);
        log.finish();
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(kept, b"args: api_key='***' ***\r\n\x1b[31m\xffred\n\n");
        let recent: Vec<String> = log.recent.lock().unwrap().iter().cloned().collect();
        assert_eq!(recent, ["args: api_key='***' ***", " [31m\u{fffd}red"]);
    }
}
