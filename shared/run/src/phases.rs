//! The phases of a run: what warms the server up, and then what is measured.

use std::cell::Cell;
use std::time::Duration;

use serde_json::json;
use tapedeck_live::{Arrival, Arrivals, ClientTimes, Deadline, StopLevel};
use tapedeck_recording::{Phase, Sink};

use crate::harness::{LEAD_NS, Run};

/// What is sent before the measured phase, as phase `warmup`.
pub struct WarmUp<'a> {
    /// Offsets count from the start of the run. Each is one request, of no session.
    pub arrivals: Box<dyn Iterator<Item = Arrival> + 'a>,
    pub end: WarmUpEnd,
}

impl std::fmt::Debug for WarmUp<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WarmUp").field(&self.end).finish()
    }
}

/// When the measured phase begins. Requests of the warm-up may still be under way,
/// but in the last case: the server goes from load to load without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmUpEnd {
    /// When all of the warm-up are handed out, or so long after the start: the clients
    /// of a closed loop go on.
    HandedOut { longest: Option<Duration> },
    /// So long after the start; the offsets of what is measured count from there.
    At(Duration),
    /// When all of the warm-up have ended.
    Ended,
}

/// The arrivals of a run, phase by phase, at instants of its clock.
pub(crate) struct Phases<'a, A> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) sink: &'a Sink,
    /// `None` once the measured phase has begun.
    pub(crate) warmup: Option<WarmUp<'a>>,
    pub(crate) measured: A,
    /// From which offsets count.
    pub(crate) start_ns: i64,
    /// Of the measured phase, at whose end `until` is set once that is known.
    pub(crate) duration_ns: Option<i64>,
    pub(crate) until: Deadline,
    /// Requests of the warm-up so far.
    pub(crate) handed_out: u64,
    /// The one that is under way.
    pub(crate) phase: &'a Cell<Phase>,
}

/// How often a run that waits for the end of its warm-up looks.
const LOOK: Duration = Duration::from_millis(1);

impl<A: Arrivals> Phases<'_, A> {
    /// Begins the first phase.
    pub(crate) fn begin(mut self) -> Self {
        if self.warmup.is_some() {
            self.phase.set(Phase::Warmup);
            self.mark("phase_begin", self.start_ns);
        } else {
            self.measure_from(self.start_ns);
        }
        self
    }

    /// At the instant that is meant: arrivals are asked for before they are due.
    fn mark(&self, name: &str, t_ns: i64) {
        let detail = json!({"phase": self.phase.get().as_str()});
        self.run.mark_at(t_ns, self.sink, name, &detail);
    }

    fn measure_from(&mut self, start_ns: i64) {
        self.start_ns = start_ns;
        if let Some(ns) = self.duration_ns {
            self.until.set(start_ns.saturating_add(ns));
        }
        self.phase.set(Phase::Measure);
        self.mark("phase_begin", start_ns);
    }

    fn next_of_warmup(&mut self) -> Option<Arrival> {
        let warmup = self.warmup.as_mut()?;
        let longest = match warmup.end {
            WarmUpEnd::HandedOut { longest } => longest.map(as_ns),
            WarmUpEnd::At(_) | WarmUpEnd::Ended => None,
        };
        let is_over =
            longest.is_some_and(|ns| self.run.clock.now_ns() >= self.start_ns.saturating_add(ns));
        match warmup.arrivals.next() {
            Some(arrival) if !is_over => {
                self.handed_out += 1;
                Some(arrival)
            }
            _ => {
                let end = warmup.end;
                self.warmup = None;
                self.end_warmup(end);
                None
            }
        }
    }

    fn end_warmup(&mut self, end: WarmUpEnd) {
        if end == WarmUpEnd::Ended {
            self.wait_until_ended();
        }
        let now_ns = self.run.clock.now_ns();
        let start_ns = match end {
            WarmUpEnd::HandedOut { .. } => now_ns,
            WarmUpEnd::At(after) => self.start_ns.saturating_add(as_ns(after)),
            WarmUpEnd::Ended => now_ns + LEAD_NS,
        };
        // Of two marks at one instant nobody could tell which is the first.
        self.mark("phase_end", start_ns - 1);
        self.measure_from(start_ns);
    }

    /// Bounded by the timeouts of the requests; one whose task died ends never.
    fn wait_until_ended(&self) {
        let run = self.run;
        let is_stopped = || {
            run.harness.stop.level() != StopLevel::Run
                || self.sink.failed()
                || run.gauges.is_broken()
        };
        while run.gauges.ended_requests() < self.handed_out && !is_stopped() {
            run.clock.sleep_until(run.clock.now_ns() + as_ns(LOOK));
        }
    }
}

impl<A: Arrivals> Arrivals for Phases<'_, A> {
    fn clients(&self) -> Option<ClientTimes> {
        self.measured.clients()
    }

    fn counts_from_ns(&self) -> Option<i64> {
        self.warmup.is_none().then_some(self.start_ns)
    }

    fn next_of(&mut self, client: usize) -> Option<Arrival> {
        let arrival = self
            .next_of_warmup()
            .or_else(|| self.measured.next_of(client));
        let start_ns = self.start_ns;
        arrival.map(|mut arrival| {
            arrival.offset_ns = arrival.offset_ns.map(|ns| start_ns.saturating_add(ns));
            arrival
        })
    }
}

pub(crate) fn as_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
