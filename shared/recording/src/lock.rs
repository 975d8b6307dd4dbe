//! Who may write a recording: whoever holds the lock on its `wal/` folder.
//!
//! The lock is the kernel's (`flock`) on the folder itself: it goes with its
//! process however that ends, and leaves no file behind. A reader only asks.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

/// The folder of the write-ahead log inside a recording.
pub(crate) const WAL_DIR: &str = "wal";

/// A reader that asks holds a shared lock for an instant; a writer asks again.
const TRIES: u32 = 10;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Locks `recording` for writing until the file is dropped; `None` when somebody
/// else writes it.
pub(crate) fn exclusive(recording: &Path) -> io::Result<Option<File>> {
    let folder = File::open(recording.join(WAL_DIR))?;
    for _ in 0..TRIES {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_AGAIN),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// True while a program writes `recording`. Where that cannot be found out, as
/// on some network file systems, the answer is no.
pub(crate) fn is_held(recording: &Path) -> bool {
    File::open(recording.join(WAL_DIR))
        .is_ok_and(|folder| matches!(folder.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
