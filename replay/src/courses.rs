//! Sessions of a plan as the engine sends them: each turn when it is due, its body
//! made while the turn before is answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use tapedeck_live::{Arrival, Branch, Conversation, NextTurn, PreparedRequest, TurnDue};
use tokio::sync::{mpsc, oneshot};

use crate::bodies::Maker;
use crate::cli::Mode;
use crate::source::Plan;

/// Where requests come from.
#[derive(Debug)]
pub enum Bodies {
    /// Of every planned one.
    Ready(Vec<Arc<PreparedRequest>>),
    /// Made when they are asked for.
    Made(mpsc::Sender<Order>),
}

/// A request to be made: its place in the plan, and who waits for it.
pub type Order = (usize, oneshot::Sender<Arc<PreparedRequest>>);

/// Orders on their way to the maker, and as many that it has taken; each session under
/// way has one for its next turn. A turn that finds no room is ordered when it is due.
const ORDERS: usize = 65_536;

/// A plan and what follows what in it.
#[derive(Debug)]
pub struct Courses {
    plan: Arc<Plan>,
    bodies: Bodies,
    /// Of each request: those that wait for its end.
    followers: Vec<Vec<u32>>,
    /// Of each request: it and all that follow it, directly or not.
    sizes: Vec<u32>,
    /// `request_id` of the first one planned.
    first_id: i64,
}

impl Courses {
    #[must_use]
    pub fn new(plan: Arc<Plan>, bodies: Bodies, first_id: i64) -> Arc<Self> {
        let requests = plan.requests();
        let mut followers = vec![Vec::new(); requests.len()];
        let mut sizes = vec![1; requests.len()];
        // Who waits comes later in the plan than what it waits for.
        for (place, planned) in requests.iter().enumerate() {
            if let Some(after) = planned.after {
                followers[after].push(place as u32);
            }
        }
        for (place, planned) in requests.iter().enumerate().rev() {
            if let Some(after) = planned.after {
                sizes[after] += sizes[place];
            }
        }
        Arc::new(Self {
            followers,
            sizes,
            plan,
            bodies,
            first_id,
        })
    }

    /// Places of the requests that wait for no other.
    pub fn roots(&self) -> impl Iterator<Item = usize> {
        let requests = self.plan.requests().iter().enumerate();
        requests.filter_map(|(place, planned)| planned.after.is_none().then_some(place))
    }

    /// The arrival at `place`, with all that follows it.
    #[must_use]
    pub fn arrival(self: &Arc<Self>, place: usize, request: Arc<PreparedRequest>) -> Arrival {
        let planned = &self.plan.requests()[place];
        let original = &planned.found.original;
        // Ids follow the plan where nobody waits; else the engine knows the parent.
        let is_open = self.plan.schedule.mode == Mode::Open;
        let parent = planned.parent.filter(|_| is_open);
        let has_followers = !self.followers[place].is_empty();
        Arrival {
            request,
            offset_ns: Some(planned.offset_ns),
            phase: original.phase,
            session_id: planned.session_id.clone(),
            turn: original.turn,
            parent_request_id: parent.map(|parent| self.first_id + parent as i64),
            replay_of: Some(original.request_id),
            cancel_after: planned.found.cancel_after,
            conversation: has_followers
                .then(|| Box::new(Course::new(self, place)) as Box<dyn Conversation>),
        }
    }

    fn order(&self, place: usize) -> Ordered {
        let request = match &self.bodies {
            Bodies::Ready(requests) => Request::Ready(Arc::clone(&requests[place])),
            Bodies::Made(orders) => {
                let (give, take) = oneshot::channel();
                match orders.try_send((place, give)) {
                    // A maker that is gone has said why.
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Request::Ordered(take),
                    Err(mpsc::error::TrySendError::Full(_)) => Request::NoRoom(orders.clone()),
                }
            }
        };
        Ordered { place, request }
    }

    /// Bytes that the arrival at `place` keeps where its body has `body_bytes`: about
    /// as many again for each of those that are ordered with it.
    #[must_use]
    pub fn kept_bytes(&self, place: usize, body_bytes: usize) -> usize {
        body_bytes.saturating_mul(1 + self.followers[place].len())
    }

    fn due(&self, place: usize) -> TurnDue {
        let planned = &self.plan.requests()[place];
        match self.plan.schedule.mode {
            Mode::Closed => TurnDue::After(planned.think),
            Mode::Session | Mode::Open => TurnDue::At(planned.offset_ns),
        }
    }
}

/// A request whose body is on its way.
#[derive(Debug)]
struct Ordered {
    place: usize,
    request: Request,
}

#[derive(Debug)]
enum Request {
    Ready(Arc<PreparedRequest>),
    Ordered(oneshot::Receiver<Arc<PreparedRequest>>),
    NoRoom(mpsc::Sender<Order>),
}

impl Ordered {
    /// Waits for the maker, who has had the time of an answer.
    async fn take(self) -> Option<Arc<PreparedRequest>> {
        match self.request {
            Request::Ready(request) => Some(request),
            Request::Ordered(coming) => coming.await.ok(),
            Request::NoRoom(orders) => {
                let (give, take) = oneshot::channel();
                orders.send((self.place, give)).await.ok()?;
                take.await.ok()
            }
        }
    }
}

/// One session under way.
#[derive(Debug)]
struct Course {
    courses: Arc<Courses>,
    next: Option<Ordered>,
    branches: Vec<Ordered>,
}

impl Course {
    /// What follows the request at `place`: the next turn of its session, and
    /// sessions that begin with it.
    fn new(courses: &Arc<Courses>, place: usize) -> Self {
        let mut course = Self {
            courses: Arc::clone(courses),
            next: None,
            branches: Vec::new(),
        };
        course.follow(place);
        course
    }

    fn follow(&mut self, place: usize) {
        let requests = self.courses.plan.requests();
        let session = requests[place].session_id.as_ref();
        for follower in &self.courses.followers[place] {
            let follower = *follower as usize;
            let ordered = self.courses.order(follower);
            let is_next = session.is_some() && requests[follower].session_id.as_ref() == session;
            if is_next && self.next.is_none() {
                self.next = Some(ordered);
            } else {
                self.branches.push(ordered);
            }
        }
    }
}

impl Conversation for Course {
    fn wants_reply(&self) -> bool {
        false
    }

    fn turns_left(&self) -> usize {
        let next = self.next.as_ref();
        next.map_or(0, |next| self.courses.sizes[next.place] as usize)
    }

    fn next_turn(&mut self, _reply: String) -> Option<NextTurn> {
        let next = self.next.take()?;
        let place = next.place;
        self.follow(place);
        let found = &self.courses.plan.requests()[place].found;
        Some(NextTurn {
            request: Box::pin(next.take()),
            due: self.courses.due(place),
            turn: found.original.turn,
            replay_of: Some(found.original.request_id),
            cancel_after: found.cancel_after,
        })
    }

    fn outlives_failure(&self) -> bool {
        // What was said then is in the bodies, whatever is said now.
        true
    }

    fn branches(&mut self) -> Vec<Branch> {
        let branches = std::mem::take(&mut self.branches).into_iter();
        let branch = |ordered: Ordered| {
            let (place, courses) = (ordered.place, Arc::clone(&self.courses));
            Branch {
                due: courses.due(place),
                turns: courses.sizes[place] as usize,
                arrival: Box::pin(async move {
                    let request = ordered.take().await?;
                    Some(courses.arrival(place, request))
                }),
            }
        };
        branches.map(branch).collect()
    }
}

/// Makes requests of later turns on a thread of its own.
#[derive(Debug)]
pub struct TurnMaker {
    thread: std::thread::JoinHandle<()>,
    failed: Arc<Mutex<Option<Error>>>,
}

impl TurnMaker {
    /// The maker and where to order.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(plan: &Arc<Plan>, maker: &Arc<Maker>) -> Result<(Self, mpsc::Sender<Order>)> {
        let (orders, mut ordered) = mpsc::channel::<Order>(ORDERS);
        let failed = Arc::new(Mutex::new(None));
        let (plan, maker) = (Arc::clone(plan), Arc::clone(maker));
        let first_failure = Arc::clone(&failed);
        let mut waiting = BTreeMap::new();
        let make = move || {
            while let Some((place, give)) = most_urgent(&mut ordered, &mut waiting) {
                // Nobody waits any more when the run was stopped.
                if give.is_closed() {
                    continue;
                }
                match maker.request(&plan.requests()[place]) {
                    Ok(request) => drop(give.send(Arc::new(request))),
                    Err(error) => {
                        let mut failed =
                            first_failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("tapedeck-turns".into())
            .spawn(make)
            .context("cannot start a thread")?;
        Ok((Self { thread, failed }, orders))
    }

    /// Ends when nobody can order any more.
    ///
    /// # Errors
    /// The first request that could not be made.
    pub fn finish(self) -> Result<()> {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map_or(Ok(()), Err)
    }
}

/// The order that the plan has first: sessions that have only been looked at ahead of
/// their time give way to those under way. `None` when nobody can order any more.
fn most_urgent(
    ordered: &mut mpsc::Receiver<Order>,
    waiting: &mut BTreeMap<usize, oneshot::Sender<Arc<PreparedRequest>>>,
) -> Option<Order> {
    while waiting.len() < ORDERS
        && let Ok((place, give)) = ordered.try_recv()
    {
        waiting.insert(place, give);
    }
    waiting.pop_first().or_else(|| ordered.blocking_recv())
}

/// Wherever the source says so, requests are given up again.
#[must_use]
pub fn cancelled(plan: &Plan) -> usize {
    let after = |p: &crate::schedule::Planned| -> Option<Duration> { p.found.cancel_after };
    plan.requests().iter().filter_map(after).count()
}

#[cfg(test)]
mod tests;
