//! The search for the highest level of load at which a server keeps its SLOs: a
//! state machine that is told how trials ended and says what to try next. No
//! clock, no socket, no file.
//!
//! The level is doubled until one fails (halved until one passes), then the gap is
//! bisected until it is as narrow as the tolerance. A level passes when the share
//! of its requests that met every SLO is at least the wanted one. Where Wilson's
//! 95 % interval for that share holds the wanted share, the trial has not decided:
//! a neighbour of the border is then tried again and its trials are counted
//! together, until the interval decides or the repeats are used up. A level that
//! turns over reopens the search. So noise costs trials where it matters, at the
//! border, and none elsewhere.
//!
//! Requests of one trial wait in the same queue and are not independent, so the
//! interval is the least that is in doubt. The search takes for granted that a
//! server which fails at some load fails at more: of levels that pass above one
//! that fails it makes nothing.
//!
//! A trial in which the client was the bottleneck ends the search: it says nothing
//! about the server, and neither would one with more load.

/// Where to search and how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tried first.
    pub start: f64,
    /// Not gone below, not gone above.
    pub least: f64,
    pub most: f64,
    /// Levels are whole numbers.
    pub whole: bool,
    /// Gap between a level that passes and one that fails, over the latter, that
    /// is narrow enough.
    pub tolerance: f64,
    /// Share of requests that is to meet every SLO.
    pub share: f64,
    /// Trials of the whole search.
    pub trials: u32,
    /// Trials of one level.
    pub repeats: u32,
}

/// One trial to be made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    pub level: f64,
    /// How often this level was tried before.
    pub repeat: u32,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    Try(Trial),
    Done(Answer),
}

/// Why a search is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The border lies between two levels within the tolerance.
    Found,
    /// Not even the lowest level passes.
    NonePasses,
    /// The highest level passes.
    AllPass,
    /// No trials are left; the border lies between the levels.
    OutOfTrials,
    /// The client was the bottleneck of the last trial.
    ClientBound,
}

impl End {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NonePasses => "none_passes",
            Self::AllPass => "all_pass",
            Self::OutOfTrials => "out_of_trials",
            Self::ClientBound => "client_bound",
        }
    }
}

/// Between which levels the border lies, as far as the search came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    pub end: End,
    /// The highest level that passes, below all that fail.
    pub highest: Option<f64>,
    /// The lowest level that fails.
    pub lowest_failing: Option<f64>,
}

/// All trials of one level together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    pub level: f64,
    pub requests: u64,
    pub good_requests: u64,
    pub trials: u32,
}

/// Two-sided 95 %.
const Z: f64 = 1.959_963_984_540_054;

impl Standing {
    /// Share of requests that met every SLO; `None` without requests.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.good_requests as f64 / self.requests as f64)
    }

    /// Wilson's 95 % interval for the share: narrow where shares are near 1, never
    /// beyond it, and sound for few requests.
    #[must_use]
    pub fn interval(&self) -> (f64, f64) {
        let Some(share) = self.share() else {
            return (0.0, 1.0);
        };
        let n = self.requests as f64;
        let z2_n = Z * Z / n;
        let middle = share + z2_n / 2.0;
        let half = Z * (share * (1.0 - share) / n + z2_n / n / 4.0).sqrt();
        let bound = |value: f64| (value / (1.0 + z2_n)).clamp(0.0, 1.0);
        (bound(middle - half), bound(middle + half))
    }

    /// Whether the level passes, decided or not. One without requests does not.
    #[must_use]
    pub fn passes(&self, wanted: f64) -> bool {
        self.share().is_some_and(|share| share >= wanted)
    }

    /// Whether the interval leaves no doubt about [`Self::passes`].
    #[must_use]
    pub fn is_decided(&self, wanted: f64) -> bool {
        let (low, high) = self.interval();
        low >= wanted || high < wanted
    }
}

/// A search and what it knows.
#[derive(Debug, Clone)]
pub struct Search {
    limits: Limits,
    /// Every level that was tried, lowest first.
    standings: Vec<Standing>,
    trials: u32,
    client_bound: bool,
}

impl Search {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            standings: Vec::new(),
            trials: 0,
            client_bound: false,
        }
    }

    /// Every level that was tried, lowest first.
    #[must_use]
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// `good_requests` of the `requests` of a trial at `level` met every SLO.
    pub fn judged(&mut self, level: f64, requests: u64, good_requests: u64) {
        self.trials += 1;
        let at = self.standings.partition_point(|s| s.level < level);
        let known = self.standings.get_mut(at);
        match known.filter(|s| s.level.total_cmp(&level).is_eq()) {
            Some(standing) => {
                standing.requests += requests;
                standing.good_requests += good_requests;
                standing.trials += 1;
            }
            None => self.standings.insert(
                at,
                Standing {
                    level,
                    requests,
                    good_requests,
                    trials: 1,
                },
            ),
        }
    }

    /// A trial told about the client, not about the server.
    pub fn client_was_the_bottleneck(&mut self) {
        self.trials += 1;
        self.client_bound = true;
    }

    /// What to do next. The same until something new is known.
    #[must_use]
    pub fn next(&self) -> Step {
        if self.client_bound {
            return self.done(End::ClientBound);
        }
        let open = self.open_question();
        match open {
            // Whatever is known may be the answer, out of trials or not.
            Step::Done(_) => open,
            Step::Try(_) if self.trials >= self.limits.trials => self.done(End::OutOfTrials),
            Step::Try(_) => open,
        }
    }

    fn open_question(&self) -> Step {
        let Limits { least, most, .. } = self.limits;
        let (highest, failing) = self.border();
        match (highest, failing) {
            (None, None) => self.try_level(self.limits.start),
            (Some(lo), None) if lo.level >= most => self.settle(&[lo], End::AllPass),
            (Some(lo), None) => self.try_level((lo.level * 2.0).min(most)),
            (None, Some(hi)) if hi.level <= least => self.settle(&[hi], End::NonePasses),
            (None, Some(hi)) => self.try_level(self.rounded(hi.level / 2.0).max(least)),
            (Some(lo), Some(hi)) => {
                let middle = self.rounded(f64::midpoint(lo.level, hi.level));
                let gap = hi.level - lo.level;
                let narrow = gap <= self.limits.tolerance * hi.level;
                if narrow || middle <= lo.level || middle >= hi.level {
                    self.settle(&[lo, hi], End::Found)
                } else {
                    self.try_level(middle)
                }
            }
        }
    }

    /// The highest level that passes below the lowest that fails, and that one.
    fn border(&self) -> (Option<Standing>, Option<Standing>) {
        let passes = |s: &&Standing| s.passes(self.limits.share);
        let failing = self.standings.iter().find(|s| !passes(s)).copied();
        let below = self.standings.iter().take_while(passes);
        (below.last().copied(), failing)
    }

    /// Tries again what has not decided on the border, the least tried first.
    fn settle(&self, border: &[Standing], end: End) -> Step {
        let undecided = border
            .iter()
            .filter(|s| !s.is_decided(self.limits.share) && s.trials < self.limits.repeats);
        match undecided.min_by_key(|s| s.trials) {
            Some(standing) => self.try_level(standing.level),
            None => self.done(end),
        }
    }

    fn try_level(&self, level: f64) -> Step {
        let known = self
            .standings
            .iter()
            .find(|s| s.level.total_cmp(&level).is_eq());
        Step::Try(Trial {
            level,
            repeat: known.map_or(0, |s| s.trials),
        })
    }

    fn done(&self, end: End) -> Step {
        let (highest, failing) = self.border();
        Step::Done(Answer {
            end,
            highest: highest.map(|s| s.level),
            lowest_failing: failing.map(|s| s.level),
        })
    }

    /// A level that reads well: whole, or of three digits.
    fn rounded(&self, level: f64) -> f64 {
        if self.limits.whole {
            return level.floor();
        }
        let scale = 10f64.powi(2 - level.log10().floor() as i32);
        (level * scale).round() / scale
    }
}

#[cfg(test)]
mod tests;
