//! Ctrl-C and SIGTERM: the first stops sending, the second stops at once. Both
//! still seal the recording. SIGHUP asks a proxy for a new recording.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tapedeck_live::{Stop, StopLevel};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code of a process that a signal ended, as shells give it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Raises `stop` on signals, from a thread of its own, until the process ends. From
/// the return of this call on a signal ends nothing unsealed.
///
/// # Errors
/// When the thread or the handlers cannot be set up.
pub fn watch(stop: Arc<Stop>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch signals")?;
    let of_kind = |kind| signal(kind).context("cannot watch signals");
    let (interrupts, terminations) = {
        let _entered = runtime.enter();
        (
            of_kind(SignalKind::interrupt())?,
            of_kind(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("tapedeck-signals".into())
        .spawn(move || runtime.block_on(raise(&stop, interrupts, terminations)))
        .context("cannot watch signals")?;
    Ok(())
}

/// A flag that is set at each SIGHUP, from a thread of its own.
///
/// # Errors
/// When the thread or the handler cannot be set up.
pub fn watch_hangups() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch SIGHUP")?;
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    let mut hangups = {
        let _entered = runtime.enter();
        signal(SignalKind::hangup()).context("cannot watch SIGHUP")?
    };
    let note = async move {
        while hangups.recv().await.is_some() {
            raised.store(true, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new()
        .name("tapedeck-hangups".into())
        .spawn(move || runtime.block_on(note))
        .context("cannot watch SIGHUP")?;
    Ok(flag)
}

async fn raise(stop: &Stop, mut interrupts: Signal, mut terminations: Signal) {
    let mut levels = [
        (
            StopLevel::Drain,
            "stopping: waiting for requests in flight (again to stop at once)",
        ),
        (StopLevel::Now, "stopping at once"),
    ]
    .into_iter();
    loop {
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
        }
        // Everything is sealed; what is still to come is a report at most.
        if stop.is_over() {
            std::process::exit(INTERRUPTED);
        }
        if let Some((level, message)) = levels.next() {
            stop.raise(level);
            eprintln!("\n{message}");
        }
    }
}
