//! Wakes tasks of one worker at instants. tokio's own timer counts milliseconds;
//! this one is a timer of the kernel among the sockets of the worker's `epoll`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Poll, Waker};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tapedeck_clock::RunClock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::lead::Lead;

const NS_PER_S: i64 = 1_000_000_000;

/// The timer, as `epoll` wants it.
#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A task that waits: when it is to be woken, and a number that tells it from
/// others of the same instant.
type Place = (i64, u64);

/// The alarm of one worker. [`Self::ring`] must run beside those who wait.
#[derive(Debug)]
pub(crate) struct Alarm {
    clock: RunClock,
    timer: AsyncFd<Timer>,
    waiting: RefCell<BTreeMap<Place, Waker>>,
    next_number: Cell<u64>,
    /// The instant for which the timer is set, `i64::MAX` for none.
    set_ns: Cell<i64>,
    /// Nobody sleeps any more.
    is_over: Cell<bool>,
    lead: Lead,
}

impl Alarm {
    /// Must be called within the worker's runtime.
    pub(crate) fn new(clock: RunClock) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        #[expect(
            deprecated,
            reason = "its successor is unsafe for the sake of descriptors that may be closed; this one owns its own"
        )]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self {
            clock,
            timer,
            waiting: RefCell::default(),
            next_number: Cell::new(0),
            set_ns: Cell::new(i64::MAX),
            is_over: Cell::new(false),
            lead: Lead::new(),
        })
    }

    /// Ends every sleep, those to come too: the run is ending, and who waits is to see.
    pub(crate) fn end_sleep(&self) {
        if !self.is_over.replace(true) {
            let waiting = self.waiting.take();
            waiting.into_values().for_each(Waker::wake);
        }
    }

    /// Sleeps until all but the [`Lead`] before `due_ns` has passed.
    pub(crate) async fn sleep_until_nearly(&self, due_ns: i64) {
        let wake_ns = due_ns - self.lead.ns();
        if self.clock.now_ns() < wake_ns {
            self.sleep_until(wake_ns).await;
            self.lead.observe(due_ns - self.clock.now_ns());
        }
    }

    /// Waits out what is left until `due_ns`. Between two looks at the clock the other
    /// tasks and the sockets have their turn, so the wait delays no read.
    pub(crate) async fn spin_until(&self, due_ns: i64) {
        while self.clock.now_ns() < due_ns {
            tokio::task::yield_now().await;
        }
    }

    /// Sleeps until `t_ns`, or the end of the run. Waking takes its time: see [`Lead`].
    pub(crate) async fn sleep_until(&self, t_ns: i64) {
        self.wait_until(t_ns, || self.is_over.get()).await;
    }

    /// Sleeps until `t_ns`, whatever the run does.
    pub(crate) async fn sleep_through_until(&self, t_ns: i64) {
        self.wait_until(t_ns, || false).await;
    }

    async fn wait_until(&self, t_ns: i64, is_over: impl Fn() -> bool) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let place = WaitingPlace {
            alarm: self,
            place: (t_ns, number),
        };
        poll_fn(|cx| {
            if is_over() || self.clock.now_ns() >= t_ns {
                return Poll::Ready(());
            }
            let waker = cx.waker().clone();
            self.waiting.borrow_mut().insert(place.place, waker);
            self.set_for(t_ns);
            Poll::Pending
        })
        .await;
    }

    /// Sets the timer for `t_ns` unless it rings before.
    fn set_for(&self, t_ns: i64) {
        if t_ns < self.set_ns.get() {
            self.set_ns.set(t_ns);
            // Absolute; zero would switch the timer off.
            let at_ns = self.clock.origin_ns().saturating_add(t_ns).max(1);
            let at = TimeSpec::new(at_ns / NS_PER_S, at_ns % NS_PER_S);
            let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
            let timer = &self.timer.get_ref().0;
            // Refused for instants that are none, which these are not.
            timer.set(Expiration::OneShot(at), flags).ok();
        }
    }

    /// Wakes whoever is due, for as long as the worker lives.
    pub(crate) async fn ring(&self) -> io::Result<()> {
        loop {
            // Setting the timer again forgets that it has rung: nothing is to be read.
            self.timer.readable().await?.clear_ready();
            self.set_ns.set(i64::MAX);
            let now_ns = self.clock.now_ns();
            let next_ns = {
                let mut waiting = self.waiting.borrow_mut();
                while let Some(first) = waiting.first_entry()
                    && first.key().0 <= now_ns
                {
                    first.remove().wake();
                }
                waiting.first_key_value().map(|((t_ns, _), _)| *t_ns)
            };
            if let Some(next_ns) = next_ns {
                self.set_for(next_ns);
            }
        }
    }
}

/// Takes its task off the list, also when that is dropped in its sleep.
struct WaitingPlace<'a> {
    alarm: &'a Alarm,
    place: Place,
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        self.alarm.waiting.borrow_mut().remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    /// Sleepers in any order, some for the same instant, one for an instant that has
    /// passed, and one that is dropped in its sleep: all wake, none early. At the end
    /// of the run nobody sleeps.
    #[test]
    fn everybody_is_woken_and_nobody_early() {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let clock = RunClock::start();
            let alarm = Rc::new(Alarm::new(clock).unwrap());
            let ringing = Rc::clone(&alarm);
            let ring = tokio::task::spawn_local(async move { ringing.ring().await });
            let base_ns = clock.now_ns() + 2_000_000;
            let offsets_us = [900, 300, 300, 1_200, -5_000, 600];
            let mut sleepers = tokio::task::JoinSet::new();
            for us in offsets_us {
                let alarm = Rc::clone(&alarm);
                sleepers.spawn_local(async move {
                    alarm.sleep_until(base_ns + us * 1_000).await;
                    (us, alarm.clock.now_ns())
                });
            }
            let gone = Rc::clone(&alarm);
            let gone =
                tokio::task::spawn_local(async move { gone.sleep_until(base_ns + 100_000).await });
            tokio::task::yield_now().await;
            gone.abort();
            let mut woken = Vec::new();
            while let Some(sleeper) = sleepers.join_next().await {
                let (us, woken_ns) = sleeper.unwrap();
                assert!(woken_ns >= base_ns + us * 1_000, "{us}");
                woken.push(us);
            }
            assert_eq!(woken.len(), offsets_us.len());
            assert!(alarm.waiting.borrow().is_empty());

            let far = Rc::clone(&alarm);
            let far = tokio::task::spawn_local(async move { far.sleep_until(i64::MAX).await });
            tokio::task::yield_now().await;
            assert_eq!(alarm.waiting.borrow().len(), 1);
            alarm.end_sleep();
            far.await.unwrap();
            alarm.sleep_until(i64::MAX).await;
            assert!(alarm.waiting.borrow().is_empty());
            ring.abort();
        });
    }
}
