//! Who had the processor.

use std::fs::read_to_string;
use std::ops::Sub;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tapedeck_clock::monotonic_ns;

/// Totals since some instant; all but [`Self::turns`] in ns.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU of the proxy's worker, or of a relay's threads.
    pub(crate) worker: f64,
    /// CPU of all threads of the proxy.
    pub(crate) all: f64,
    /// The worker could have run and somebody else had its core.
    pub(crate) waited: f64,
    /// How often the worker got a core.
    pub(crate) turns: f64,
    /// CPU of other programs, and of the kernel's own threads.
    pub(crate) others: f64,
}

impl Usage {
    /// Of `seconds` from now.
    pub(crate) fn of(seconds: f64) -> Self {
        let before = Self::now();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        Self::now() - before
    }

    fn now() -> Self {
        let mut usage = Self {
            others: busy_ns() - own_ns(),
            ..Self::default()
        };
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let path = task.unwrap().path();
            let read = |file: &str| read_to_string(path.join(file)).unwrap_or_default();
            let name = read("comm");
            let spent = read("schedstat");
            let mut spent = spent.split_whitespace().map(|n| n.parse().unwrap_or(0.0));
            let (cpu, waited, turns) = (spent.next(), spent.next(), spent.next());
            if name.starts_with("tapedeck") {
                usage.all += cpu.unwrap_or(0.0);
            }
            if name.starts_with("tapedeck-proxy") {
                usage.worker += cpu.unwrap_or(0.0);
                usage.waited += waited.unwrap_or(0.0);
                usage.turns += turns.unwrap_or(0.0);
            }
        }
        usage
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            worker: self.worker - before.worker,
            all: self.all - before.all,
            waited: self.waited - before.waited,
            turns: self.turns - before.turns,
            others: self.others - before.others,
        }
    }
}

/// Time that all cores together were not idle.
fn busy_ns() -> f64 {
    // `cpu user nice system idle iowait …` in hundredths of a second. What a tick
    // finds is a guess, the time in idle is measured.
    let stat = read_to_string("/proc/stat").unwrap();
    let cores = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    let total = stat.lines().next().unwrap();
    let idle = total.split_whitespace().skip(4).take(2);
    let idle: f64 = idle.map(|n| n.parse::<f64>().unwrap()).sum();
    cores as f64 * monotonic_ns() as f64 - idle * 1e7
}

fn own_ns() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let ns = |t: TimeVal| t.tv_sec() as f64 * 1e9 + t.tv_usec() as f64 * 1e3;
    ns(usage.user_time()) + ns(usage.system_time())
}
