//! The queues between sockets and writer and between writer and sealer, bounded in
//! items and in bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Batches that wait for the writer at most.
pub const QUEUE_BATCHES: usize = 256;

/// Bytes that wait for the writer at most. The live layer makes batches of
/// 256 KiB and the one row that went over, and a row can be 8 MiB: by number
/// alone the queue could hold 2 GiB. A single batch above this still passes, when
/// the queue is empty.
pub const QUEUE_BYTES: usize = 64 << 20;

/// Why an item was not taken; it is given back.
#[derive(Debug)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

/// What [`Queue::pop`] came back with.
#[derive(Debug)]
pub(crate) enum Popped<T> {
    Item(T),
    Timeout,
    /// Closed and empty: nothing will come.
    Closed,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
    most_items: usize,
    most_bytes: usize,
}

/// Many producers, one consumer.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Condvar,
    emptied: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new(QUEUE_BATCHES, QUEUE_BYTES)
    }
}

impl<T> Queue<T> {
    /// Holds up to `most_items` of up to `most_bytes` together, or a single one above
    /// that.
    pub(crate) fn new(most_items: usize, most_bytes: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::with_capacity(most_items),
                bytes: 0,
                closed: false,
                most_items,
                most_bytes,
            }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }
}

impl<T> Inner<T> {
    fn has_room(&self, bytes: usize) -> bool {
        self.items.is_empty()
            || (self.items.len() < self.most_items && self.bytes + bytes <= self.most_bytes)
    }

    fn put(&mut self, item: T, bytes: usize) {
        self.bytes += bytes;
        self.items.push_back((item, bytes));
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room. Gives the item back when the queue is closed.
    pub(crate) fn push(&self, item: T, bytes: usize) -> Result<(), T> {
        let mut inner = self.lock();
        while !inner.closed && !inner.has_room(bytes) {
            inner = self
                .emptied
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if inner.closed {
            return Err(item);
        }
        inner.put(item, bytes);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for room, up to `patience`.
    pub(crate) fn push_within(
        &self,
        item: T,
        bytes: usize,
        patience: Duration,
    ) -> Result<(), Refused<T>> {
        let inner = self.lock();
        let waited = self
            .emptied
            .wait_timeout_while(inner, patience, |i| !i.closed && !i.has_room(bytes));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.try_push(item, bytes)
    }

    pub(crate) fn try_push(&self, item: T, bytes: usize) -> Result<(), Refused<T>> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Refused::Closed(item));
        }
        if !inner.has_room(bytes) {
            return Err(Refused::Full(item));
        }
        inner.put(item, bytes);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// The oldest item, waiting up to `timeout` for one.
    pub(crate) fn pop(&self, timeout: Duration) -> Popped<T> {
        let inner = self.lock();
        let (mut inner, _) = self
            .filled
            .wait_timeout_while(inner, timeout, |i| i.items.is_empty() && !i.closed)
            .unwrap_or_else(PoisonError::into_inner);
        match inner.items.pop_front() {
            Some((item, bytes)) => {
                inner.bytes -= bytes;
                drop(inner);
                // Waiters need different amounts of room: each looks for itself.
                self.emptied.notify_all();
                Popped::Item(item)
            }
            None if inner.closed => Popped::Closed,
            None => Popped::Timeout,
        }
    }

    /// Takes nothing more; what is queued can still be popped.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Whether an item of `bytes` would be taken now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let inner = self.lock();
        !inner.closed && inner.has_room(bytes)
    }

    /// What `look` sees of the oldest item.
    pub(crate) fn oldest<R>(&self, look: impl FnOnce(&T) -> Option<R>) -> Option<R> {
        let inner = self.lock();
        inner.items.front().and_then(|(item, _)| look(item))
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_bound_the_queue_and_one_large_item_passes_when_it_is_empty() {
        let queue = Queue::default();
        queue.push("large", QUEUE_BYTES * 2).unwrap();
        assert!(matches!(
            queue.try_push("small", 1),
            Err(Refused::Full("small"))
        ));
        assert!(matches!(queue.pop(Duration::ZERO), Popped::Item("large")));
        queue.try_push("small", 1).unwrap();
        queue.try_push("fits", QUEUE_BYTES - 1).unwrap();
        assert!(matches!(queue.try_push("not", 1), Err(Refused::Full(_))));
    }

    #[test]
    fn a_closed_queue_is_emptied_and_takes_nothing() {
        let queue = Queue::default();
        queue.push(1, 1).unwrap();
        queue.close();
        assert!(matches!(queue.try_push(2, 1), Err(Refused::Closed(2))));
        assert_eq!(queue.push(2, 1), Err(2));
        assert!(matches!(queue.pop(Duration::ZERO), Popped::Item(1)));
        assert!(matches!(queue.pop(Duration::ZERO), Popped::Closed));
    }
}
