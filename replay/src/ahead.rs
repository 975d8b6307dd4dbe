//! Requests made ahead of the pacer by a thread of its own, bounded by their bytes.
//!
//! Who makes prompts needs a core for half a millisecond each, and where there are few
//! cores it is the worker's, who is to write at an instant. So there is a reserve, and
//! once it is full nothing is made until half of it is gone; even then not at once,
//! because a request that was just taken is about to be sent, and others of the same
//! instant with it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bodies in the reserve, at most one more.
const MOST_BYTES: usize = 64 << 20;

/// Requests in the reserve.
const MOST: usize = 4_096;

/// The longest that a run waits for its reserve before it begins.
const FILLING: Duration = Duration::from_secs(1);

/// From when the reserve is half empty until it is filled again: the requests of an
/// instant are taken and sent within it.
const AFTER_TAKING: Duration = Duration::from_millis(20);

/// The two ends of an empty reserve.
#[must_use]
pub fn reserve<T>() -> (Maker<T>, Reserve<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            items: VecDeque::new(),
            bytes: 0,
            is_filling: true,
            is_closed: false,
        }),
        changed: Condvar::new(),
    });
    (Maker(Arc::clone(&shared)), Reserve(shared))
}

/// Where what is made goes.
#[derive(Debug)]
pub struct Maker<T>(Arc<Shared<T>>);

/// Where it is taken from, in its order; it ends when the maker is gone.
#[derive(Debug)]
pub struct Reserve<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// Until it is full; then not until half of it is gone.
    is_filling: bool,
    /// Either end is gone.
    is_closed: bool,
}

impl<T> State<T> {
    fn holds(&self, share: usize) -> bool {
        self.bytes >= MOST_BYTES / share || self.items.len() >= MOST / share
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State<T>>,
        mut condition: impl FnMut(&mut State<T>) -> bool,
    ) -> MutexGuard<'a, State<T>> {
        let waited = self.changed.wait_while(state, |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl<T> Maker<T> {
    /// Adds `item`, which keeps `bytes`; waits while the reserve is not to be filled.
    /// False when nobody takes any more.
    #[must_use]
    pub fn give(&self, item: T, bytes: usize) -> bool {
        let mut state = self.0.lock();
        if !state.is_filling {
            state = self.0.wait_while(state, |s| !s.is_filling && !s.is_closed);
            drop(state);
            std::thread::sleep(AFTER_TAKING);
            state = self.0.lock();
        }
        if state.is_closed {
            return false;
        }
        state.items.push_back((item, bytes));
        state.bytes += bytes;
        state.is_filling = !state.holds(1);
        drop(state);
        self.0.changed.notify_all();
        // A worker that has become ready goes first.
        std::thread::yield_now();
        true
    }
}

impl<T> Drop for Maker<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Reserve<T> {
    /// Waits until there is a whole reserve, or all there will be, but no longer than
    /// [`FILLING`].
    pub fn wait_filled(&self) {
        let is_low = |state: &mut State<T>| state.is_filling && !state.is_closed;
        let state = self.0.lock();
        let waited = self.0.changed.wait_timeout_while(state, FILLING, is_low);
        drop(waited);
    }
}

impl<T> Iterator for Reserve<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let state = self.0.lock();
        let nothing_yet = |s: &mut State<T>| s.items.is_empty() && !s.is_closed;
        let mut state = self.0.wait_while(state, nothing_yet);
        let (item, bytes) = state.items.pop_front()?;
        state.bytes -= bytes;
        if !state.is_filling && !state.holds(2) {
            state.is_filling = true;
            self.0.changed.notify_all();
        }
        Some(item)
    }
}

impl<T> Drop for Reserve<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Runs a maker of `n` items of `bytes` each that tells of each one it has given.
    fn making(n: usize, bytes: usize) -> (std::thread::JoinHandle<bool>, Reserve<usize>) {
        let (maker, reserve) = reserve();
        let make = move || (0..n).all(|item| maker.give(item, bytes));
        (std::thread::spawn(make), reserve)
    }

    fn held(reserve: &Reserve<usize>) -> (usize, usize, bool) {
        let state = reserve.0.lock();
        (state.items.len(), state.bytes, state.is_filling)
    }

    #[test]
    fn a_reserve_is_bounded_and_refilled_from_its_half_on() {
        for (bytes, most) in [(MOST_BYTES / 8, 8), (0, MOST)] {
            let (thread, mut reserve) = making(3 * most, bytes);
            reserve.wait_filled();
            assert_eq!(held(&reserve), (most, most * bytes, false));
            // What is gone is not made again before half of it is.
            let half = most / 2;
            assert!(reserve.by_ref().take(half).eq(0..half));
            assert_eq!(held(&reserve), (most - half, (most - half) * bytes, false));
            assert_eq!(reserve.next(), Some(half));
            reserve.wait_filled();
            assert_eq!(held(&reserve).0, most);
            assert!(reserve.by_ref().eq(half + 1..3 * most));
            assert!(thread.join().unwrap());
        }
    }

    #[test]
    fn either_end_may_go_first() {
        let (thread, reserve) = making(2 * MOST, 0);
        reserve.wait_filled();
        drop(reserve);
        assert!(!thread.join().unwrap(), "nobody takes any more");

        let (thread, reserve) = making(3, 1);
        assert!(thread.join().unwrap());
        reserve.wait_filled();
        assert!(reserve.eq(0..3), "what was made is there all the same");

        // A taker that waits is told of the end.
        let (maker, mut reserve) = super::reserve::<u8>();
        let (said, says) = channel();
        let taker = std::thread::spawn(move || said.send(reserve.next()));
        drop(maker);
        assert_eq!(says.recv().unwrap(), None);
        taker.join().unwrap().unwrap();
    }
}
