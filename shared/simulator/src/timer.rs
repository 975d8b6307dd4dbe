//! Sleeping on absolute `CLOCK_MONOTONIC` deadlines inside a current-thread runtime.
//!
//! One `timerfd` serves all sleepers: the kernel wakes the runtime's `epoll` at
//! the nanosecond asked for, while tokio's wheel turns once a millisecond.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tapedeck_clock::monotonic_ns;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const NS_PER_S: i64 = 1_000_000_000;

#[derive(Debug)]
struct PollableTimer(TimerFd);

impl AsRawFd for PollableTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The sleepers of one thread. [`Timers::run`] must be polled beside them.
#[derive(Debug)]
pub struct Timers {
    fd: AsyncFd<PollableTimer>,
    /// One entry for each live [`Sleep`] that has been polled.
    sleepers: RefCell<BTreeMap<(i64, u64), Waker>>,
    next_number: Cell<u64>,
}

impl Timers {
    /// # Errors
    /// The kernel gives no timer (out of file descriptors), or there is no runtime.
    pub fn new() -> io::Result<Rc<Self>> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = PollableTimer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        #[expect(
            deprecated,
            reason = "its successor is unsafe because a descriptor could be closed while \
                      registered; this one is owned by the timer beside it"
        )]
        let fd = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Rc::new(Self {
            fd,
            sleepers: RefCell::default(),
            next_number: Cell::new(0),
        }))
    }

    /// Wakes sleepers as they fall due, for as long as it is polled.
    ///
    /// # Errors
    /// Only when the runtime or the timer is gone.
    pub async fn run(&self) -> io::Result<()> {
        loop {
            // The expiry count is left unread: setting the timer clears it.
            self.fd.readable().await?.clear_ready();
            self.wake_due(monotonic_ns());
            self.arm()?;
        }
    }

    /// A future that is ready at `deadline_ns`, absolute `CLOCK_MONOTONIC`; at
    /// once when that has passed.
    #[must_use]
    pub fn sleep_until(self: &Rc<Self>, deadline_ns: i64) -> Sleep {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        Sleep {
            timers: Rc::clone(self),
            key: (deadline_ns, number),
        }
    }

    fn wake_due(&self, now_ns: i64) {
        loop {
            let due = {
                let mut sleepers = self.sleepers.borrow_mut();
                match sleepers.first_entry() {
                    Some(first) if first.key().0 <= now_ns => first.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    fn arm(&self) -> io::Result<()> {
        let first = self
            .sleepers
            .borrow()
            .first_key_value()
            .map(|(key, _)| key.0);
        let Some(deadline_ns) = first else {
            return Ok(());
        };
        // Zero would disarm; an instant in the past fires at once.
        let deadline_ns = deadline_ns.max(1);
        let at = TimeSpec::new(deadline_ns / NS_PER_S, deadline_ns % NS_PER_S);
        let timer = &self.fd.get_ref().0;
        timer.set(
            Expiration::OneShot(at),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        )?;
        Ok(())
    }

    fn enlist(&self, key: (i64, u64), waker: &Waker) -> io::Result<()> {
        let is_first = {
            let mut sleepers = self.sleepers.borrow_mut();
            sleepers.insert(key, waker.clone());
            sleepers
                .first_key_value()
                .is_some_and(|(first, _)| *first == key)
        };
        if is_first { self.arm() } else { Ok(()) }
    }
}

/// See [`Timers::sleep_until`].
#[derive(Debug)]
pub struct Sleep {
    timers: Rc<Timers>,
    key: (i64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if monotonic_ns() >= self.key.0 {
            return Poll::Ready(());
        }
        // A timer that cannot be set would hang its sleeper: be early instead.
        match self.timers.enlist(self.key, cx.waker()) {
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timers.sleepers.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    #[test]
    fn sleepers_wake_in_the_order_of_their_deadlines_and_never_early() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let timers = Timers::new().unwrap();
            let order = Rc::new(RefCell::new(Vec::new()));
            let start_ns = monotonic_ns();
            let sleeps: Vec<_> = [5, 1, 4, 2, 3, 0, -1]
                .into_iter()
                .map(|n| {
                    let sleep = timers.sleep_until(start_ns + n * 2_000_000);
                    let order = Rc::clone(&order);
                    tokio::task::spawn_local(async move {
                        sleep.await;
                        assert!(monotonic_ns() >= start_ns + n * 2_000_000);
                        order.borrow_mut().push(n);
                    })
                })
                .collect();
            let all = async {
                for sleep in sleeps {
                    sleep.await.unwrap();
                }
            };
            tokio::select! {
                () = all => {}
                ended = timers.run() => panic!("{ended:?}"),
            }
            assert_eq!(order.borrow()[2..], [1, 2, 3, 4, 5]);
            assert!(timers.sleepers.borrow().is_empty());
        });
    }
}
