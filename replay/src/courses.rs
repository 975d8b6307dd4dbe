//! Sessions of a plan as the engine sends them: each turn when it is due, its body
//! made while the turn before is answered.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use tapedeck_live::{Arrival, Branch, Conversation, Due, NextTurn, PreparedRequest};

use crate::bodies::Maker;
use crate::cli::Mode;
use crate::source::Plan;

/// Where requests come from.
#[derive(Debug)]
pub enum Bodies {
    /// Of every planned one.
    Ready(Vec<Arc<PreparedRequest>>),
    /// Made when they are asked for.
    Made(SyncSender<Order>),
}

/// A request to be made: its place in the plan, and who waits for it.
pub type Order = (usize, SyncSender<Arc<PreparedRequest>>);

/// Orders that wait at most; each session under way has one for its next turn, and
/// who finds no room waits for the maker.
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
            Bodies::Ready(requests) => Coming::Ready(Arc::clone(&requests[place])),
            Bodies::Made(orders) => {
                let (give, take) = sync_channel(1);
                // A maker that is gone has said why.
                orders.send((place, give)).ok();
                Coming::Later(take)
            }
        };
        Ordered { place, request }
    }

    fn due(&self, place: usize) -> Due {
        let planned = &self.plan.requests()[place];
        match self.plan.schedule.mode {
            Mode::Closed => Due::After(planned.think),
            Mode::Session | Mode::Open => Due::At(planned.offset_ns),
        }
    }
}

/// A request whose body is on its way.
#[derive(Debug)]
struct Ordered {
    place: usize,
    request: Coming,
}

#[derive(Debug)]
enum Coming {
    Ready(Arc<PreparedRequest>),
    Later(Receiver<Arc<PreparedRequest>>),
}

impl Ordered {
    /// Waits for the maker, who has had the time of an answer.
    fn take(self) -> Option<Arc<PreparedRequest>> {
        match self.request {
            Coming::Ready(request) => Some(request),
            Coming::Later(coming) => coming.recv().ok(),
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
        let request = next.take()?;
        self.follow(place);
        let found = &self.courses.plan.requests()[place].found;
        Some(NextTurn {
            request,
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
            let place = ordered.place;
            Some(Branch {
                arrival: self.courses.arrival(place, ordered.take()?),
                due: self.courses.due(place),
            })
        };
        branches.filter_map(branch).collect()
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
    pub fn start(plan: &Arc<Plan>, maker: &Arc<Maker>) -> Result<(Self, SyncSender<Order>)> {
        let (orders, ordered) = sync_channel::<Order>(ORDERS);
        let failed = Arc::new(Mutex::new(None));
        let (plan, maker) = (Arc::clone(plan), Arc::clone(maker));
        let first_failure = Arc::clone(&failed);
        let make = move || {
            for (place, give) in ordered {
                match maker.request(&plan.requests()[place]) {
                    // Nobody waits any more when the run was stopped.
                    Ok(request) => drop(give.try_send(Arc::new(request))),
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

/// Wherever the source says so, requests are given up again.
#[must_use]
pub fn cancelled(plan: &Plan) -> usize {
    let after = |p: &crate::schedule::Planned| -> Option<Duration> { p.found.cancel_after };
    plan.requests().iter().filter_map(after).count()
}
