//! What a run says while it goes on: a bar, or a line now and then. Its numbers are
//! approximate and reach no report.

use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tapedeck_clock::monotonic_ns;
use tapedeck_live::Gauges;

use crate::harness::Log;

const REFRESH: Duration = Duration::from_millis(200);

/// Follows the gauges of a run until it is dropped.
pub(crate) struct Progress {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows on stderr what `log` asks for; a bar only on a terminal.
    pub(crate) fn start(gauges: Arc<Gauges>, total: Option<u64>, log: Log) -> Self {
        let bar = (log.bar && std::io::stderr().is_terminal()).then(|| bar(total));
        if bar.is_none() && log.every.is_none() {
            return Self {
                stop: None,
                thread: None,
            };
        }
        let mut shown = Shown {
            bar,
            lines: log.every.map(|every| Lines::new(every, total)),
            gauges,
        };
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("tapedeck-progress".into())
            .spawn(move || {
                while stopped.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                    shown.refresh();
                }
                shown.refresh();
                if let Some(bar) = shown.bar {
                    bar.finish_and_clear();
                }
            });
        // A run without its bar is still a run.
        Self {
            stop: Some(stop),
            thread: thread.ok(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Shown {
    bar: Option<ProgressBar>,
    lines: Option<Lines>,
    gauges: Arc<Gauges>,
}

impl Shown {
    fn refresh(&mut self) {
        let ended = self.gauges.ended_requests();
        let state = format!(
            "in flight {} failed {}",
            self.gauges.in_flight(),
            self.gauges.failed_requests()
        );
        let line = self.lines.as_mut();
        let line = line.and_then(|lines| lines.next(ended, &state, monotonic_ns()));
        match (&self.bar, line) {
            (None, Some(line)) => eprintln!("{line}"),
            (Some(bar), line) => {
                if let Some(line) = line {
                    bar.println(line);
                }
                bar.set_position(ended);
                bar.set_message(state);
            }
            (None, None) => {}
        }
    }
}

/// `--log-every-n-query`: when the next line is due.
struct Lines {
    every: NonZeroU64,
    total: Option<u64>,
    start_ns: i64,
    /// Requests that had ended, in whole steps, at the last line.
    steps: u64,
}

impl Lines {
    fn new(every: NonZeroU64, total: Option<u64>) -> Self {
        Self {
            every,
            total,
            start_ns: monotonic_ns(),
            steps: 0,
        }
    }

    /// The line, if another step was taken; one for several that were.
    fn next(&mut self, ended: u64, state: &str, now_ns: i64) -> Option<String> {
        let steps = ended / self.every;
        if steps == self.steps {
            return None;
        }
        self.steps = steps;
        let of = self.total.map(|total| format!(" of {total}"));
        let of = of.unwrap_or_default();
        let elapsed_s = (now_ns - self.start_ns).max(1) as f64 / 1e9;
        let rate = ended as f64 / elapsed_s;
        Some(format!(
            "{ended}{of} requests ended after {elapsed_s:.1} s (about {rate:.1} a second), {state}"
        ))
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{elapsed_precise} {bar:30} {pos}/{len} {per_sec} {msg} eta {eta}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{elapsed_precise} {spinner} {pos} {per_sec} {msg}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_with_every_step_and_one_for_several() {
        let mut lines = Lines {
            every: NonZeroU64::new(10).unwrap(),
            total: Some(100),
            start_ns: 0,
            steps: 0,
        };
        let second = 1_000_000_000;
        assert_eq!(lines.next(9, "", second), None);
        let line = lines.next(35, "failed 2", 7 * second).unwrap();
        let expected = "35 of 100 requests ended after 7.0 s (about 5.0 a second), failed 2";
        assert_eq!(line, expected);
        assert_eq!(lines.next(39, "", 8 * second), None);
        assert!(lines.next(40, "", 9 * second).is_some());
    }
}
