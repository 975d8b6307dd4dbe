//! What a process that runs for months keeps of the memory it no longer uses.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Freed blocks from this size up go back to the system, and so does as much free
/// memory at the end of an arena.
const GIVE_BACK_BYTES: &str = "1048576";

/// What glibc reads before `main`.
const SETTINGS: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];

/// Another way to set the same.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Starts this program anew, as the same process, with an allocator that gives
/// memory back; whoever has set it up is left alone.
///
/// By default glibc raises both sizes with the largest block that was ever freed,
/// to tens of MB where segments are sealed, and each arena then keeps twice as much:
/// after five rotations 1.5 MB were in use and 144 MB held. The environment is the
/// only way to say so without `unsafe`, and another allocator held more.
pub(crate) fn give_back() {
    let is_set = |name: &str| env::var_os(name).is_some();
    if !cfg!(target_env = "gnu") || SETTINGS.iter().any(|name| is_set(name)) || is_set(TUNABLES) {
        return;
    }
    let (Ok(program), mut args) = (env::current_exe(), env::args_os()) else {
        return;
    };
    let mut again = Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // Returns only where it cannot be done; then memory is all that is lost.
    drop(
        again
            .args(args)
            .envs(SETTINGS.map(|name| (name, GIVE_BACK_BYTES)))
            .exec(),
    );
}
