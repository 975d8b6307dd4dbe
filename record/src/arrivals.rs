//! What is sent when: the arrivals of one level of a load.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_live::{Arrival, Arrivals, ClientTimes, PreparedRequest};
use tapedeck_recording::Phase;
use tapedeck_run::dialogue::Sessions;
use tapedeck_run::phases::{WarmUp, WarmUpEnd};
use tapedeck_workload::{ArrivalProcess, Prompt};

use crate::cli::WarmUpArgs;
use crate::config::Level;

/// What there is to send, and how.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    pub level: &'a Level,
    /// One a prompt.
    pub requests: &'a [Arc<PreparedRequest>],
    pub prompts: &'a [Prompt],
    pub sessions: &'a Arc<Sessions>,
    /// Sessions may have several turns.
    pub in_sessions: bool,
    /// Each client has an order of its own.
    pub client_sequences: bool,
    pub seed: u64,
}

/// The seed of a warm-up's schedule: another one than the load's, which is the same
/// with a warm-up and without.
const WARM_SEED: u64 = 0x7761_726d_2d75_7021;

type Offsets = Box<dyn Iterator<Item = i64>>;

/// The measured arrivals of a level.
pub struct LevelArrivals<'a> {
    sent: Sent<'a>,
    /// `None` for a closed loop.
    offsets: Option<Offsets>,
    /// So far; of each client where they have orders of their own, else of all.
    begun: Vec<u64>,
}

impl std::fmt::Debug for LevelArrivals<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LevelArrivals")
            .field("sent", &self.sent)
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

impl<'a> LevelArrivals<'a> {
    #[must_use]
    pub fn new(sent: Sent<'a>) -> Self {
        let process = sent.level.process();
        let queues = match sent.client_sequences {
            true => sent.level.parallel.unwrap_or(1),
            false => 1,
        };
        Self {
            sent,
            offsets: process.map(|process| Box::new(process.offsets_ns(sent.seed)) as Offsets),
            begun: vec![0; queues],
        }
    }
}

impl Arrivals for LevelArrivals<'_> {
    fn clients(&self) -> Option<ClientTimes> {
        self.offsets.is_none().then(|| self.sent.level.clients())
    }

    fn next_of(&mut self, client: usize) -> Option<Arrival> {
        let queues = self.begun.len();
        let queue = client % queues;
        let number = self.sent.level.number;
        let index = self.begun[queue];
        if number.is_some_and(|number| index >= share(number, queues, queue)) {
            return None;
        }
        let offset_ns = match &mut self.offsets {
            // A shape of rates ends.
            Some(offsets) => Some(offsets.next()?),
            None => None,
        };
        self.begun[queue] += 1;
        Some(if self.sent.client_sequences {
            self.sent.of_client(client, queues, index)
        } else {
            self.sent.of_all(index, offset_ns)
        })
    }
}

/// Of `number` requests those of client `client` of `clients`: as many as of any
/// other, or one more.
fn share(number: u64, clients: usize, client: usize) -> u64 {
    let clients = clients as u64;
    number / clients + u64::from((client as u64) < number % clients)
}

/// Where client `client` is in a data set of `count` prompts with its request `index`:
/// from its own number on, clients of odd numbers backwards. So llm.perf has it.
fn place_of_client(client: usize, index: u64, count: u64) -> u64 {
    let (begin, step) = (client as u64 % count, index % count);
    if client.is_multiple_of(2) {
        (begin + step) % count
    } else {
        (begin + 2 * count - 1 - step) % count
    }
}

impl Sent<'_> {
    fn count(&self) -> u64 {
        self.requests.len() as u64
    }

    /// Arrival `index` of an order that all share: the data set over and over.
    fn of_all(&self, index: u64, offset_ns: Option<i64>) -> Arrival {
        let place = (index % self.count()) as usize;
        let session_id = self.session_id(place, index, index / self.count());
        Arrival {
            offset_ns,
            session_id: session_id.map(Arc::from),
            ..self.session(place, index)
        }
    }

    /// Arrival `index` of one client.
    fn of_client(&self, client: usize, clients: usize, index: u64) -> Arrival {
        let place = place_of_client(client, index, self.count()) as usize;
        let session_id = match self.session_id(place, index, index / self.count()) {
            Some(id) => format!("client-{client}/{id}"),
            None => format!("client-{client}"),
        };
        // Of all sessions, whichever client is faster.
        let number = index.saturating_mul(clients as u64) + client as u64;
        Arrival {
            session_id: Some(session_id.into()),
            ..self.session(place, number)
        }
    }

    /// The prompt at `place` as session `number`.
    fn session(&self, place: usize, number: u64) -> Arrival {
        Arrival {
            turn: self.in_sessions.then_some(0),
            conversation: self.sessions.begin(&self.prompts[place], number),
            ..self.request(place, Phase::Measure)
        }
    }

    fn request(&self, place: usize, phase: Phase) -> Arrival {
        Arrival {
            request: Arc::clone(&self.requests[place]),
            offset_ns: None,
            phase,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
            cancel_after: None,
            conversation: None,
        }
    }

    /// As the data set names it, with the round behind it when it is sent again;
    /// else by its number. Lone requests of no session have none.
    fn session_id(&self, place: usize, index: u64, round: u64) -> Option<String> {
        match &self.prompts[place].session_id {
            Some(id) if round == 0 => Some(id.clone()),
            Some(id) => Some(format!("{id}#{round}")),
            None => self.in_sessions.then(|| format!("session-{index}")),
        }
    }

    /// Request `index` of the warm-up: what the data set ends with, backwards, which
    /// is what the load comes to last.
    fn of_warmup(&self, index: u64, offset_ns: Option<i64>) -> Arrival {
        let place = self.count() - 1 - index % self.count();
        Arrival {
            offset_ns,
            ..self.request(place as usize, Phase::Warmup)
        }
    }
}

/// What is sent before the measured arrivals, where `args` ask for it.
#[must_use]
pub fn warm_up<'a>(sent: Sent<'a>, args: &WarmUpArgs) -> Option<WarmUp<'a>> {
    let (count, duration) = (args.warmup_requests, args.warmup_duration);
    let most = count.or(duration.map(|_| u64::MAX))?;
    let Some(process) = sent.level.process() else {
        return Some(WarmUp {
            arrivals: Box::new((0..most).map(move |index| sent.of_warmup(index, None))),
            end: WarmUpEnd::HandedOut { longest: duration },
        });
    };
    let before = process.before()?;
    let end = match before {
        ArrivalProcess::AtOnce => WarmUpEnd::Ended,
        _ => WarmUpEnd::At(length(&before, sent.seed ^ WARM_SEED, count, duration)?),
    };
    let within = move |offset_ns: &i64| match end {
        WarmUpEnd::At(length) => i128::from(*offset_ns) < length.as_nanos() as i128,
        WarmUpEnd::Ended | WarmUpEnd::HandedOut { .. } => true,
    };
    let offsets = before.offsets_ns(sent.seed ^ WARM_SEED).take_while(within);
    let arrivals = (0..most).zip(offsets);
    Some(WarmUp {
        arrivals: Box::new(arrivals.map(move |(index, ns)| sent.of_warmup(index, Some(ns)))),
        end,
    })
}

/// How long the warm-up of an open loop lasts: until the arrival after the last one
/// would come, or its duration.
fn length(
    before: &ArrivalProcess,
    seed: u64,
    count: Option<u64>,
    duration: Option<Duration>,
) -> Option<Duration> {
    let of_count = count.and_then(|count| {
        let mut offsets = before.clone().offsets_ns(seed);
        let after_last = offsets.nth(usize::try_from(count).unwrap_or(usize::MAX))?;
        Some(Duration::from_nanos(
            u64::try_from(after_last).unwrap_or(u64::MAX),
        ))
    });
    [of_count, duration].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_walk_the_data_set_as_llm_perf_has_them() {
        let count = 5_usize;
        for client in 0..12 {
            let mut order: Vec<usize> = (0..count).collect();
            order.rotate_left(client % count);
            if client % 2 == 1 {
                order.reverse();
            }
            let walked = (0..2 * count as u64)
                .map(|index| place_of_client(client, index, count as u64) as usize);
            let expected: Vec<usize> = order.iter().chain(&order).copied().collect();
            assert_eq!(walked.collect::<Vec<_>>(), expected, "client {client}");
        }
    }

    #[test]
    fn shares_come_to_the_number_and_differ_by_one_at_most() {
        for (number, clients) in [(0, 3), (1, 3), (10, 4), (12, 4), (7, 1)] {
            let shares: Vec<u64> = (0..clients).map(|c| share(number, clients, c)).collect();
            assert_eq!(shares.iter().sum::<u64>(), number);
            let spread = shares.iter().max().unwrap() - shares.iter().min().unwrap();
            assert!(spread <= 1, "{shares:?}");
        }
    }

    #[test]
    fn a_warm_up_lasts_until_its_next_arrival_or_its_duration() {
        let process = ArrivalProcess::Gamma {
            rate_per_s: 10.0,
            burstiness: f64::INFINITY,
        };
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(length(&process, 0, Some(20), None), ms(2_000));
        assert_eq!(length(&process, 0, Some(20), ms(1_500)), ms(1_500));
        assert_eq!(length(&process, 0, None, ms(3_000)), ms(3_000));
        assert_eq!(length(&process, 0, None, None), None);
    }
}
