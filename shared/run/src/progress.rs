//! The progress bar. Its numbers are approximate and reach no report.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tapedeck_live::Gauges;

const REFRESH: Duration = Duration::from_millis(200);

/// A bar that follows the gauges of a run until it is dropped.
pub(crate) struct Progress {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows a bar on stderr, unless it is no terminal or `quiet`.
    pub(crate) fn start(gauges: Arc<Gauges>, total: Option<u64>, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self {
                stop: None,
                thread: None,
            };
        }
        let bar = bar(total);
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("tapedeck-progress".into())
            .spawn(move || {
                while stopped.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                    show(&bar, &gauges);
                }
                show(&bar, &gauges);
                bar.finish_and_clear();
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

fn show(bar: &ProgressBar, gauges: &Gauges) {
    bar.set_position(gauges.ended_requests());
    bar.set_message(format!(
        "in flight {} failed {}",
        gauges.in_flight(),
        gauges.failed_requests()
    ));
}
