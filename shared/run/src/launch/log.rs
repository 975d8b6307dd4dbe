//! What a launched server prints, into a bounded file as it comes: nothing of it is
//! lost with this program.
//!
//! The file lies beside the recording and not in it. One server is loaded for many
//! recordings (sweeps, searches), it prints before there is any and when there never
//! will be one, and what it prints may hold prompts, which a recording under
//! `--content hashed` or `lengths` has none of.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::secrets::MASK;

/// What is kept of a log, bytes.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The beginning is kept whole up to here: how the server was set up.
    head: u64,
    /// Of what comes later at least the last of it: how the server ended. There may be
    /// twice as much and a line before the older half is let go.
    tail: u64,
}

const BOUNDS: Bounds = Bounds {
    head: 32 << 20,
    tail: 1 << 20,
};
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
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write the server's log {}", path.display()))?;
        let recent = Arc::new(Mutex::new(VecDeque::new()));
        let mut log = Log::new(file, secrets, BOUNDS, Arc::clone(&recent));
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new()
            .name("tapedeck-server-log".into())
            .spawn(move || {
                log.copy(BufReader::new(from));
                // Nobody waits any longer when the run was broken off.
                end.send(log.lost).ok();
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
    bounds: Bounds,
    /// Bytes in the file.
    written: u64,
    /// Where the head ended, once it has.
    head: Option<u64>,
    /// Bytes that are not in the file any more, or never were.
    lost: u64,
    /// The file says between its head and its tail how many.
    is_noted: bool,
    recent: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    fn new(
        file: File,
        secrets: Vec<String>,
        bounds: Bounds,
        recent: Arc<Mutex<VecDeque<String>>>,
    ) -> Self {
        Self {
            file,
            secrets,
            bounds,
            written: 0,
            head: None,
            lost: 0,
            is_noted: false,
            recent,
        }
    }

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
        if self.written + bytes > self.bounds.head && self.head.is_none() {
            self.head = Some(self.written);
        }
        let kept = match self.head {
            Some(head) if self.written > head + NOTE_BYTES + 2 * self.bounds.tail => {
                self.let_go(head)
            }
            _ => Ok(()),
        };
        match kept.and_then(|()| self.file.write_all_at(&line, self.written)) {
            Ok(()) => self.written += bytes,
            // A full disk is no reason to stop the server.
            Err(_) => self.lost += bytes,
        }
    }

    /// Moves the tail up behind the head. Where it comes from and where it goes to do
    /// not overlap, so that the file ends with it whenever this program is killed.
    fn let_go(&mut self, head: u64) -> io::Result<()> {
        let size = usize::try_from(self.bounds.tail).map_err(io::Error::other)?;
        let mut tail = vec![0; size];
        self.file
            .read_exact_at(&mut tail, self.written - self.bounds.tail)?;
        // It begins with a line, where one begins early in it.
        let begin = tail[..size / 2].iter().position(|byte| *byte == b'\n');
        let tail = &tail[begin.map_or(0, |at| at + 1)..];
        let at = head + NOTE_BYTES;
        self.file.write_all_at(tail, at)?;
        let end = at + tail.len() as u64;
        // The note of an earlier time was none of the server's bytes.
        let noted = if self.is_noted { NOTE_BYTES } else { 0 };
        let lost = self.lost + self.written - head - noted - tail.len() as u64;
        self.file.write_all_at(note(lost).as_bytes(), head)?;
        self.file.set_len(end)?;
        (self.written, self.lost, self.is_noted) = (end, lost, true);
        Ok(())
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
}

/// Stands where bytes were left out; always as long.
fn note(lost: u64) -> String {
    format!("\n[tapedeck: {lost:20} bytes left out here]\n")
}

const NOTE_BYTES: u64 = 54;

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

    fn log(path: &Path, secrets: &[&str], bounds: Bounds) -> Log {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let secrets = secrets.iter().map(|s| (*s).to_owned()).collect();
        Log::new(options.open(path).unwrap(), secrets, bounds, Arc::default())
    }

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end_and_counts_the_rest() {
        let path = std::env::temp_dir().join(format!("tapedeck-log-{}", std::process::id()));
        let bounds = Bounds {
            head: 100,
            tail: 300,
        };
        let mut log = log(&path, &[], bounds);
        let mut printed = Vec::new();
        for number in 0..200_usize {
            let line = format!("{number} {}\n", "x".repeat(number * 7 % 40));
            log.copy(line.as_bytes());
            printed.extend_from_slice(line.as_bytes());
            // What a recorder that is killed now leaves behind.
            let kept = std::fs::read(&path).unwrap();
            let most = bounds.head + NOTE_BYTES + 2 * bounds.tail + 100;
            assert!((kept.len() as u64) < most);
            let note = note(log.lost);
            let Some(at) = find(&kept, note.as_bytes()) else {
                assert_eq!((log.lost, &kept), (0, &printed));
                continue;
            };
            let (head, tail) = (&kept[..at], &kept[at + note.len()..]);
            assert!(head.len() as u64 > bounds.head - 50 && printed.starts_with(head));
            assert!(tail.len() as u64 > bounds.tail - 50 && printed.ends_with(tail));
            assert!(head.ends_with(b"\n") && tail[0].is_ascii_digit());
            assert_eq!(
                log.lost,
                (printed.len() - head.len() - tail.len()) as u64,
                "line {number}"
            );
        }
        assert!(log.lost > 0);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_note_is_always_as_long() {
        for lost in [0, 1, u64::MAX] {
            assert_eq!(note(lost).len() as u64, NOTE_BYTES);
        }
    }

    #[test]
    fn secrets_are_masked_in_the_file_and_in_messages() {
        let path = std::env::temp_dir().join(format!("tapedeck-scrub-{}", std::process::id()));
        let mut log = log(&path, &["hunter2"], BOUNDS);
        log.copy(&b"args: api_key='hunter2' hunter2\r\n\x1b[31m\xffred\n\n"[..]);
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(kept, b"args: api_key='***' ***\r\n\x1b[31m\xffred\n\n");
        let recent: Vec<String> = log.recent.lock().unwrap().iter().cloned().collect();
        assert_eq!(recent, ["args: api_key='***' ***", " [31m\u{fffd}red"]);
    }
}
