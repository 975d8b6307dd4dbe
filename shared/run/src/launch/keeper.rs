//! The process between a program and the server it launched.
//!
//! Whatever becomes of the program (an error, Ctrl-C, `kill -9`), the pipe to its
//! keeper closes, and the keeper stops the server with all its descendants. Those
//! that left the server's process group are found too: the keeper is their
//! subreaper, so that none of them can leave its tree.
//!
//! `PR_SET_PDEATHSIG` was refused: it needs code between fork and exec, which is
//! `unsafe` in Rust, and reaches the child alone, not the child's children.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tapedeck_clock::RunClock;

/// Between two looks at who is still there.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After a kill, which no process can ignore; one that waits for a dead disk is
/// left behind then.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Runs `command` in a shell until it ends or stdin does, and then stops what is
/// left of it: asks first, kills after `patience`. Returns the exit code of the
/// command, as shells give it.
///
/// # Errors
/// When the shell cannot be started.
pub fn keep(command: &str, patience: Duration) -> Result<u8> {
    // Where it is refused, those that leave the group are not found.
    set_child_subreaper(true).ok();
    let server = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start /bin/sh")?;
    // After the start, or the server would have them blocked too; before the threads,
    // so that one of them gets them.
    let mut stops = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        stops.add(signal);
    }
    stops.thread_block().context("cannot block signals")?;
    let server = Pid::from_raw(i32::try_from(server.id()).context("no such process id")?);
    // The wait below reaps whoever these end.
    let running = || Some(descendants()).filter(|left| !left.is_empty());
    let stop_server = move || stop(server, patience, running);
    on_a_thread(move || {
        let mut byte = [0];
        // Nobody writes: it ends with its writer.
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        stop_server();
    })?;
    on_a_thread(move || {
        stops.wait().ok();
        stop_server();
    })?;
    let code = exit_code(server);
    // Children that outlived the server.
    stop(server, patience, || (!has_no_child()).then(descendants));
    Ok(code)
}

/// Reaps who has ended, and asks the kernel for more: orphans come to a subreaper
/// before their parent can be reaped, so who has no child has no descendant, and
/// leaves no zombie to somebody else.
fn has_no_child() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}

fn on_a_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("tapedeck-keeper".into());
    thread.spawn(work).context("cannot start a thread")?;
    Ok(())
}

/// Waits for `server` to end, and reaps whoever else does.
fn exit_code(server: Pid) -> u8 {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == server => {
                return u8::try_from(code).unwrap_or(u8::MAX);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == server => {
                return u8::try_from(128 + signal as i32).unwrap_or(u8::MAX);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return u8::MAX,
        }
    }
}

/// Ends the group of `server` and all descendants of this process, until nobody is
/// `left`.
fn stop(server: Pid, patience: Duration, left: impl Fn() -> Option<Vec<Process>>) {
    for (signal, wait) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, KILL_WAIT)] {
        let clock = RunClock::start();
        let until_ns = i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX);
        let mut is_asked = false;
        while !is_asked || clock.now_ns() < until_ns {
            let Some(left) = left() else {
                return;
            };
            // Asked once; killed until nobody new is found.
            if !is_asked || signal == Signal::SIGKILL {
                is_asked = true;
                // Who is gone by now needs no signal. Nobody gets two of them: to many
                // a server the second means at once.
                if left.iter().any(|p| p.group == server) {
                    killpg(server, signal).ok();
                }
                for process in left.iter().filter(|p| p.group != server) {
                    kill(process.id, signal).ok();
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    id: Pid,
    parent: Pid,
    group: Pid,
}

/// Every process below this one that still runs.
fn descendants() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let entries = entries.filter_map(|entry| {
        let id = entry.ok()?.file_name().to_str()?.parse().ok()?;
        process(
            id,
            &std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?,
        )
    });
    let alive: Vec<Process> = entries.collect();
    let children = |of: Pid| alive.iter().filter(move |p| p.parent == of).copied();
    let mut found: Vec<Process> = children(Pid::this()).collect();
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(children(parent.id));
        at += 1;
    }
    found
}

/// What a line of `/proc/<id>/stat` says; nothing of a zombie, which waits for its
/// parent and not for a signal.
fn process(id: i32, stat: &str) -> Option<Process> {
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?;
    let mut number = || Some(Pid::from_raw(words.next()?.parse().ok()?));
    let (parent, group) = (number()?, number()?);
    let id = Pid::from_raw(id);
    let is_alive = !matches!(state, "Z" | "X");
    is_alive.then_some(Process { id, parent, group })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_no_parent() {
        let found = process(12, "12 (a) b) S 7 9 12 0").unwrap();
        assert_eq!((found.parent.as_raw(), found.group.as_raw()), (7, 9));
        assert_eq!(process(12, "12 (x) Z 7 12 12 0"), None);
        assert_eq!(process(12, "garbage"), None);
    }
}
