//! Requests made ahead of the pacer by a thread of its own, bounded by their bytes.
//!
//! Who makes prompts needs a core for half a millisecond each, and where there are few
//! cores it is the worker's, who is to write at an instant. A request that was just
//! taken is about to be sent, and others of the same instant with it: while half of the
//! reserve is there, nothing is made for a while then.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bodies in the reserve, at most one more.
const MOST_BYTES: usize = 64 << 20;

/// Requests in the reserve.
const MOST: usize = 4_096;

/// The longest that a run waits for its reserve before it begins.
const FILLING: Duration = Duration::from_secs(1);

/// Nothing is made for so long after one was taken, if that can wait: the requests of an
/// instant are taken and sent within it.
const AFTER_TAKING: Duration = Duration::from_millis(20);

/// The two ends of an empty reserve.
#[must_use]
pub fn reserve<T>() -> (Maker<T>, Reserve<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::default()),
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

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            was_taken: false,
            is_closed: false,
        }
    }
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// Since the maker last looked.
    was_taken: bool,
    /// Either end is gone.
    is_closed: bool,
}

/// What the maker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Make,
    /// For [`AFTER_TAKING`].
    Pause,
    /// Until one is taken.
    Wait,
    End,
}

impl<T> State<T> {
    /// Whether there is this part of a whole reserve.
    fn has(&self, part: usize) -> bool {
        self.bytes >= MOST_BYTES / part || self.items.len() >= MOST / part
    }

    fn turn(&mut self) -> Turn {
        let was_taken = std::mem::take(&mut self.was_taken);
        if self.is_closed {
            Turn::End
        } else if self.has(1) {
            Turn::Wait
        } else if self.has(2) && was_taken {
            Turn::Pause
        } else {
            Turn::Make
        }
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
    /// Adds `item`, which keeps `bytes`, and waits until another may be made. False when
    /// nobody takes any more.
    #[must_use]
    pub fn give(&mut self, item: T, bytes: usize) -> bool {
        let mut state = self.0.lock();
        state.items.push_back((item, bytes));
        state.bytes += bytes;
        self.0.changed.notify_all();
        loop {
            let turn = state.turn();
            if turn == Turn::Wait {
                state = self.0.wait_while(state, |s| s.has(1) && !s.is_closed);
                continue;
            }
            drop(state);
            if turn != Turn::Pause {
                return turn == Turn::Make;
            }
            std::thread::sleep(AFTER_TAKING);
            state = self.0.lock();
        }
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
        let is_low = |state: &mut State<T>| !state.has(1) && !state.is_closed;
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
        state.was_taken = true;
        self.0.changed.notify_all();
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
    use std::thread::{Builder, JoinHandle};

    use super::*;

    fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        Builder::new().name("test".into()).spawn(work).unwrap()
    }

    /// A maker of `n` items of `bytes` each; it says whether all were taken.
    fn making(n: usize, bytes: usize) -> (JoinHandle<bool>, Reserve<usize>) {
        let (mut maker, reserve) = reserve();
        let make = move || (0..n).all(|item| maker.give(item, bytes));
        (spawn(make), reserve)
    }

    #[test]
    fn a_reserve_is_bounded_by_its_bytes_and_its_number() {
        for (bytes, most) in [(MOST_BYTES / 8, 8), (0, MOST)] {
            let (thread, mut reserve) = making(2 * most + 1, bytes);
            // It waits no longer than a second.
            while reserve.0.lock().items.len() < most {
                reserve.wait_filled();
            }
            for item in 0..=2 * most {
                let state = reserve.0.lock();
                assert!(state.items.len() <= most, "{} of {most}", state.items.len());
                assert_eq!(state.bytes, state.items.len() * bytes);
                drop(state);
                assert_eq!(reserve.next(), Some(item));
            }
            assert_eq!(reserve.next(), None);
            assert!(thread.join().unwrap());
        }
    }

    /// The upper half is made while nobody takes, the lower one whatever happens.
    #[test]
    fn who_takes_is_not_disturbed_while_there_is_enough() {
        let mut state = State::<()>::default();
        for (held, takes, turn) in [
            (0, 0, Turn::Make),
            (MOST - 1, 0, Turn::Make),
            (MOST, 0, Turn::Wait),
            (MOST - 1, 1, Turn::Pause),
            (MOST - 1, 0, Turn::Make),
            (MOST / 2, 3, Turn::Pause),
            (MOST / 2 - 1, 3, Turn::Make),
            (0, 3, Turn::Make),
        ] {
            state.items = (0..held).map(|_| ((), 0)).collect();
            state.was_taken = takes > 0;
            assert_eq!(state.turn(), turn, "{held} held, {takes} taken");
        }
        state.is_closed = true;
        assert_eq!(state.turn(), Turn::End);
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
        let taker = spawn(move || reserve.next());
        drop(maker);
        assert_eq!(taker.join().unwrap(), None);
    }
}
