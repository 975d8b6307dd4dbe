//! The plan: which of the source's requests are sent, and when. Pure: equal sources,
//! flags and seeds give equal plans.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tapedeck_recording::{RequestRow, body_hash};

use crate::cli::{Mode, Rounds, ShapeArgs};

mod pace;
mod salts;

use pace::{Pace, scaled};
use salts::Salts;

/// A request of the source as far as it decides which are chosen.
#[derive(Debug, Clone)]
pub struct Seen {
    pub request_id: i64,
    /// From the first request of the source, ns.
    pub t_ns: i64,
    pub session_id: Option<Arc<str>>,
    pub parent_request_id: Option<i64>,
}

/// A chosen request of the source.
#[derive(Debug, Clone)]
pub struct Found {
    /// From the first request of the source, ns.
    pub t_ns: i64,
    /// End of its answer on the same scale, where it is known.
    pub t_end_ns: Option<i64>,
    /// From sending until the client gave it up, where it did.
    pub cancel_after: Option<Duration>,
    pub original: RequestRow,
    pub input_tokens: Option<i32>,
    pub output_tokens: Option<i32>,
}

/// A request that is to be sent.
#[derive(Debug, Clone)]
pub struct Planned {
    /// From the begin of the plan, ns, speed or rates applied. Of a later turn in mode
    /// `closed`: when it would be sent if answers took as long as the original's.
    pub offset_ns: i64,
    pub found: Arc<Found>,
    /// Of [`Plan::requests`](crate::source::Plan::requests): the one whose end it
    /// waits for; `None` in mode `open`.
    pub after: Option<usize>,
    /// From that end, speed or rates applied; mode `closed` alone looks at it.
    pub think: Duration,
    /// The original's parent among the planned requests.
    pub parent: Option<usize>,
    /// The original's, with the number of the copy and the round behind it.
    pub session_id: Option<Arc<str>>,
    pub copy: u32,
    pub round: u32,
    /// What its prompt begins with.
    pub salt: Option<Arc<str>>,
    /// Requests of another salt share no blocks: theirs are numbered from here.
    pub first_block: i64,
}

/// The requests of a plan.
#[derive(Debug)]
pub struct Schedule {
    pub mode: Mode,
    pub requests: Vec<Planned>,
    /// Turns whose think time counts from the start of the turn before, because
    /// nothing says when that ended.
    pub think_from_start: usize,
    /// Requests left out because they would come after the last of the given rates.
    pub after_rates: usize,
}

/// Planned requests at most: each takes some hundred bytes.
const MOST: usize = 50_000_000;

/// For each request the one whose end it waits for: the one before it in its
/// session, or for the first of a session its parent. Both only where they came
/// earlier.
fn predecessors<'a>(
    requests: impl Iterator<Item = (i64, Option<&'a Arc<str>>, Option<i64>)>,
) -> Vec<Option<usize>> {
    let mut last: HashMap<&str, usize> = HashMap::new();
    let mut places: HashMap<i64, usize> = HashMap::new();
    let mut before = Vec::new();
    for (place, (id, session, parent)) in requests.enumerate() {
        let turn_before = session.and_then(|session| last.insert(session, place));
        before.push(turn_before.or_else(|| places.get(&parent?).copied()));
        places.insert(id, place);
    }
    before
}

/// Where each chain of predecessors begins.
fn roots(before: &[Option<usize>]) -> Vec<usize> {
    let mut roots = Vec::with_capacity(before.len());
    for (place, before) in before.iter().enumerate() {
        let root = before.map_or(place, |before| roots[before]);
        roots.push(root);
    }
    roots
}

/// A number from 0 to below 1 that depends on all of `text`.
fn unit(text: &str) -> f64 {
    let hash = body_hash(text.as_bytes());
    // 13 hex digits are 52 bits, which a float holds exactly.
    let bits = u64::from_str_radix(&hash[..13], 16).unwrap_or(0);
    bits as f64 / (1_u64 << 52) as f64
}

/// Places of the requests that are to be sent, of `seen` in order of arrival.
#[must_use]
pub fn chosen(
    seen: &[Seen],
    kept: Option<&BTreeSet<i64>>,
    args: &ShapeArgs,
    seed: u64,
) -> Vec<usize> {
    let sampled = args.sample_sessions.map(|share| {
        let lines = seen.iter();
        let before =
            predecessors(lines.map(|s| (s.request_id, s.session_id.as_ref(), s.parent_request_id)));
        let is_in = |root: usize| {
            let name = match &seen[root].session_id {
                Some(session) => format!("session {session}"),
                None => format!("request {}", seen[root].request_id),
            };
            unit(&format!("sample {seed} {name}")) < share
        };
        roots(&before).into_iter().map(is_in).collect::<Vec<_>>()
    });
    let in_window = |t_ns: i64| {
        args.window
            .is_none_or(|window| (window.from_ns..window.until_ns).contains(&t_ns))
    };
    let places = (0..seen.len()).filter(|place| {
        let request = &seen[*place];
        in_window(request.t_ns)
            && kept.is_none_or(|kept| kept.contains(&request.request_id))
            && sampled.as_ref().is_none_or(|sampled| sampled[*place])
    });
    let limit = args.limit.map_or(usize::MAX, |n| n as usize);
    places.take(limit).collect()
}

/// Settles when the requests `found`, in order of arrival, are sent. Salts of this
/// run, where they are asked for, follow from `fresh`.
///
/// # Errors
/// When a mode needs sessions that nobody knows, a loop has no length, or it all
/// comes to more than memory should hold.
pub fn schedule(found: Vec<Found>, args: &ShapeArgs, seed: u64, fresh: &str) -> Result<Schedule> {
    let source = Source::new(found, args);
    let mode = source.mode(args.mode)?;
    let mut shots = source.shots(args, seed)?;
    let drawn = shots.len();
    let span_ns = shots.iter().map(|shot| shot.at_ns).max().unwrap_or(0);
    let pace = Pace::new(args, drawn, span_ns)?;
    shots.retain_mut(|shot| {
        let offset_ns = pace.offset_ns(shot.at_ns);
        shot.offset_ns = offset_ns.unwrap_or(shot.offset_ns);
        offset_ns.is_some()
    });
    shots.sort_by_key(|shot| (shot.offset_ns, shot.round, shot.copy, shot.place));
    let mut salts = Salts::new(&source.found, args.salt, seed, fresh);
    let mut positions = HashMap::with_capacity(shots.len());
    for (position, shot) in shots.iter().enumerate() {
        positions.insert((shot.round, shot.copy, shot.place), position);
    }
    let requests = shots.iter().map(|shot| {
        let found = &source.found[shot.place];
        let position_of =
            |place: Option<usize>| positions.get(&(shot.round, shot.copy, place?)).copied();
        let (salt, first_block) = salts.of(shot, &source);
        Planned {
            offset_ns: shot.offset_ns,
            found: Arc::clone(found),
            after: position_of(source.before[shot.place]).filter(|_| mode != Mode::Open),
            think: Duration::from_nanos(
                pace.think_ns(shot.at_ns, source.think_ns[shot.place]) as u64
            ),
            parent: position_of(source.parents[shot.place]),
            session_id: shot.session_id(found.original.session_id.as_ref()),
            copy: shot.copy,
            round: shot.round,
            salt,
            first_block,
        }
    });
    let requests = requests.collect();
    let think_from_start = match mode {
        Mode::Closed => source.think_from_start,
        Mode::Open | Mode::Session => 0,
    };
    Ok(Schedule {
        mode,
        after_rates: drawn - shots.len(),
        requests,
        think_from_start,
    })
}

/// The chosen requests and what lies between them.
struct Source {
    found: Vec<Arc<Found>>,
    before: Vec<Option<usize>>,
    roots: Vec<usize>,
    parents: Vec<Option<usize>>,
    think_ns: Vec<i64>,
    think_from_start: usize,
    /// Offsets from the first, ns, idle time cut out.
    t_ns: Vec<i64>,
    /// Until everything could begin again: the span and one mean gap.
    period_ns: i64,
}

/// One sending of a request.
struct Shot {
    /// In the source's time, from the begin of the plan.
    at_ns: i64,
    /// In the plan's.
    offset_ns: i64,
    round: u32,
    copy: u32,
    place: usize,
}

impl Source {
    fn new(found: Vec<Found>, args: &ShapeArgs) -> Self {
        let cap_ns = args.idle_cap.map_or(i64::MAX, as_ns);
        let lines = found.iter().map(|f| {
            let original = &f.original;
            (
                original.request_id,
                original.session_id.as_ref(),
                original.parent_request_id,
            )
        });
        let before = predecessors(lines);
        let places: HashMap<i64, usize> = found
            .iter()
            .map(|f| f.original.request_id)
            .zip(0..)
            .collect();
        let parents = found
            .iter()
            .map(|f| places.get(&f.original.parent_request_id?).copied())
            .collect();
        let mut think_from_start = 0;
        let think_ns = found.iter().zip(&before).map(|(turn, before)| {
            let Some(before) = before.map(|place| &found[place]) else {
                return 0;
            };
            think_from_start += usize::from(before.t_end_ns.is_none());
            let from_ns = before.t_end_ns.unwrap_or(before.t_ns);
            (turn.t_ns - from_ns).clamp(0, cap_ns)
        });
        let think_ns = think_ns.collect();
        let mut t_ns: Vec<i64> = Vec::with_capacity(found.len());
        for (place, request) in found.iter().enumerate() {
            t_ns.push(match place {
                0 => 0,
                _ => t_ns[place - 1] + (request.t_ns - found[place - 1].t_ns).min(cap_ns),
            });
        }
        let span_ns = t_ns.last().copied().unwrap_or(0);
        let gaps = t_ns.len().saturating_sub(1).max(1) as i64;
        Self {
            roots: roots(&before),
            before,
            parents,
            think_ns,
            think_from_start,
            t_ns,
            period_ns: span_ns + span_ns / gaps,
            found: found.into_iter().map(Arc::new).collect(),
        }
    }

    fn mode(&self, wanted: Option<Mode>) -> Result<Mode> {
        let has_session = |f: &Arc<Found>| f.original.session_id.is_some();
        let known = self.found.iter().any(has_session) || self.before.iter().any(Option::is_some);
        match wanted {
            None if known => Ok(Mode::Session),
            None => Ok(Mode::Open),
            Some(mode @ (Mode::Session | Mode::Closed)) if !known => bail!(
                "--mode {} needs sessions, and none of these requests has one\nhint: --mode open",
                mode.as_str()
            ),
            Some(mode) => Ok(mode),
        }
    }

    /// All sendings, in no order.
    fn shots(&self, args: &ShapeArgs, seed: u64) -> Result<Vec<Shot>> {
        let (rounds, until_ns) = match args.rounds {
            Rounds::Times(times) => (times, i64::MAX),
            Rounds::For(long_ns) => {
                let round_ns = scaled(self.period_ns, args.speed);
                if round_ns == 0 {
                    bail!(
                        "--loop for a time needs requests at more than one instant\nhint: --loop N"
                    );
                }
                let rounds = long_ns.div_euclid(round_ns) + 1;
                (u32::try_from(rounds).unwrap_or(u32::MAX), long_ns)
            }
        };
        let number = self.found.len() as u128 * u128::from(args.copies) * u128::from(rounds);
        if number > MOST as u128 {
            bail!(
                "these are {number} requests, at most {MOST} can be planned\nhint: --limit, fewer --copies, a shorter --loop"
            );
        }
        let mut shots = Vec::with_capacity(number as usize);
        for round in 0..rounds {
            let round_ns = i64::from(round).saturating_mul(self.period_ns);
            for copy in 0..args.copies {
                let shift_ns = self.shift_ns(copy, args.copies, seed);
                for place in 0..self.found.len() {
                    let at_ns = round_ns.saturating_add(self.shifted_ns(place, shift_ns));
                    if scaled(at_ns, args.speed) < until_ns {
                        shots.push(Shot {
                            at_ns,
                            offset_ns: at_ns,
                            round,
                            copy,
                            place,
                        });
                    }
                }
            }
        }
        Ok(shots)
    }

    /// Copies begin one in each of as many equal parts of the period, anywhere
    /// within it: evenly spaced ones would meet where the trace has a beat.
    fn shift_ns(&self, copy: u32, copies: u32, seed: u64) -> i64 {
        if copy == 0 {
            return 0;
        }
        let within = unit(&format!("copy {seed} {copy}"));
        let share = (f64::from(copy) + within) / f64::from(copies);
        (self.period_ns as f64 * share) as i64
    }

    /// A session whose beginning is pushed over the end begins where the period
    /// does; its turns stay together, even over the end.
    fn shifted_ns(&self, place: usize, shift_ns: i64) -> i64 {
        let root_ns = self.t_ns[self.roots[place]];
        let begins_ns = match self.period_ns {
            0 => 0,
            period_ns => (root_ns + shift_ns).rem_euclid(period_ns),
        };
        begins_ns + (self.t_ns[place] - root_ns)
    }
}

impl Shot {
    /// Equal names of two copies or rounds would be one session.
    fn session_id(&self, original: Option<&Arc<str>>) -> Option<Arc<str>> {
        let original = original?;
        let mut name = original.to_string();
        if self.copy > 0 {
            name = format!("{name}/copy{}", self.copy);
        }
        if self.round > 0 {
            name = format!("{name}/round{}", self.round);
        }
        Some(match self.copy + self.round {
            0 => Arc::clone(original),
            _ => name.into(),
        })
    }
}

fn as_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
