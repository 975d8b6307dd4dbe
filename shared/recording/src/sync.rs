//! The thread that syncs the log, so that a slow disk does not stop the writer.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::files;
use crate::lag::Oldest;
use crate::sink::Gauges;

/// From the first write to the sync that covers it. With the 120 ms that a row
/// may wait to be written this leaves a slow disk a third of the second that is
/// promised.
const SYNC_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Shared {
    /// Files written since the last sync: the open one, and the one before it
    /// where a cut came between.
    dirty: Vec<Arc<File>>,
    error: Option<io::Error>,
    stop: bool,
}

#[derive(Debug)]
pub(crate) struct Syncer {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    gauges: Arc<Gauges>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Syncs files of the folder `dir`.
    pub(crate) fn start(dir: PathBuf, gauges: Arc<Gauges>) -> io::Result<Self> {
        let shared = Arc::new((Mutex::new(Shared::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let watched = Arc::clone(&gauges);
        let thread = std::thread::Builder::new()
            .name("tapedeck-sync".into())
            .spawn(move || run(&theirs, &watched.oldest, &dir))?;
        Ok(Self {
            shared,
            gauges,
            thread: Some(thread),
        })
    }

    /// `file` has bytes that are to reach the disk. Returns the error of the last
    /// sync, once.
    pub(crate) fn note(&self, file: Arc<File>) -> io::Result<()> {
        let mut shared = lock(&self.shared.0);
        // Under the lock: a sync that begins now knows of these rows and this file, or
        // of neither.
        self.gauges.oldest.written();
        if !shared.dirty.iter().any(|known| Arc::ptr_eq(known, &file)) {
            shared.dirty.push(file);
            self.shared.1.notify_one();
        }
        shared.error.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        lock(&self.shared.0).stop = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run((shared, changed): &(Mutex<Shared>, Condvar), oldest: &Oldest, dir: &Path) {
    loop {
        let waiting = changed
            .wait_while(lock(shared), |s| s.dirty.is_empty() && !s.stop)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = changed
            .wait_timeout_while(waiting, SYNC_EVERY, |s| !s.stop)
            .unwrap_or_else(PoisonError::into_inner);
        let stop = waiting.stop;
        let dirty = std::mem::take(&mut waiting.dirty);
        oldest.sync_begins();
        drop(waiting);
        let synced = dirty.iter().try_for_each(|file| sync(file, dir));
        match synced {
            Ok(()) => oldest.synced(),
            Err(error) => lock(shared).error = Some(error),
        }
        if stop {
            return;
        }
    }
}

/// The content of `file` and its name in `dir`.
pub(crate) fn sync(file: &File, dir: &Path) -> io::Result<()> {
    file.sync_data()?;
    files::sync_dir(dir)
}
