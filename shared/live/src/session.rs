//! The turns of a session: each is sent when the one before is done.
//!
//! A turn that fails ends its session, and so does a run that is stopped or whose
//! duration is over: what a user would have said next to an answer that never came
//! is nobody's to guess. Replays outlive failures: there it is known. Turns that
//! were not sent are counted in a mark `session_ended`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::json;
use tapedeck_recording::{ChunkKind, MarkRow};
use tapedeck_wire::dialect::{Api, reply_text};

use crate::arrival::{Arrival, Branch, Coming, TurnDue};
use crate::engine::Deadline;
use crate::pace::SlotGuard;
use crate::worker::{Assignment, Worker, as_ns, branch};

/// What all assignments of a run share.
#[derive(Debug)]
pub(crate) struct Course {
    next_request_id: AtomicI64,
    /// What offsets count from, on the clock.
    start_ns: i64,
    /// No turn is sent at or after it.
    until: Deadline,
}

impl Course {
    pub(crate) fn new(first_request_id: i64, start_ns: i64, until: Deadline) -> Self {
        Self {
            next_request_id: AtomicI64::new(first_request_id),
            start_ns,
            until,
        }
    }

    /// Ids follow the order in which requests are handed to a worker, later turns
    /// included: those of the plan a little before they are due.
    pub(crate) fn next_request_id(&self) -> i64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed)
    }

    /// When a turn is planned and when it may go, where the one before it ended at
    /// `t_end_ns`.
    fn instants_of(&self, due: TurnDue, t_end_ns: i64) -> (i64, i64) {
        let planned_ns = match due {
            TurnDue::After(think) => t_end_ns.saturating_add(as_ns(think)),
            TurnDue::At(offset_ns) => self.start_ns.saturating_add(offset_ns),
        };
        (planned_ns, planned_ns.max(t_end_ns))
    }
}

/// Most that is kept of a reply; a longer one is carried on without its end.
const MAX_REPLY_BYTES: usize = 8 << 20;

/// What the next turn needs of the answer to this one.
#[derive(Debug)]
pub(crate) struct Heard {
    api: Api,
    wants_text: bool,
    text: String,
    /// Whether the text was cut.
    is_full: bool,
    ok: bool,
    t_end_ns: i64,
}

impl Heard {
    /// For an arrival that has a session, nothing for a lone request.
    pub(crate) fn of(arrival: &Arrival) -> Option<RefCell<Self>> {
        let conversation = arrival.conversation.as_ref()?;
        Some(RefCell::new(Self {
            api: arrival.request.api,
            wants_text: conversation.wants_reply(),
            text: String::new(),
            is_full: false,
            ok: false,
            t_end_ns: 0,
        }))
    }

    /// A new attempt: what an earlier one said does not count.
    pub(crate) fn begin(&mut self) {
        self.text.clear();
        self.is_full = false;
        self.ok = false;
    }

    /// Takes a chunk, after it was stamped and recorded.
    pub(crate) fn chunk(&mut self, kind: ChunkKind, choice_index: Option<i32>, data: &[u8]) {
        let is_first_choice = choice_index.is_none_or(|index| index == 0);
        if self.wants_text && kind == ChunkKind::Content && is_first_choice {
            self.hear(data);
        }
    }

    /// Takes the end of the attempt; `body` is an answer that was not streamed.
    pub(crate) fn end(&mut self, ok: bool, body: Option<&[u8]>, t_end_ns: i64) {
        self.ok = ok;
        self.t_end_ns = t_end_ns;
        if let Some(body) = body.filter(|_| ok && self.wants_text && self.text.is_empty()) {
            self.hear(body);
        }
    }

    fn hear(&mut self, payload: &[u8]) {
        let text = reply_text(self.api, payload).unwrap_or_default();
        if self.api.dialect().is_cumulative() && !text.is_empty() {
            self.text.clear();
        }
        if self.is_full || self.text.len() + text.len() > MAX_REPLY_BYTES {
            self.is_full = true;
        } else {
            self.text.push_str(&text);
        }
    }
}

/// Waits until the turn behind `assignment` is due and returns it, with the slot.
/// Without one the slot is given back. Sessions that begin within this one are sent
/// on their way.
pub(crate) async fn next_turn(worker: &Rc<Worker>, assignment: Assignment) -> Option<Assignment> {
    let Assignment {
        request_id,
        mut arrival,
        slot,
        course,
        heard,
        ..
    } = assignment;
    let heard = heard?.into_inner();
    let mut conversation = arrival.conversation.take()?;
    for first in conversation.branches() {
        let after = After {
            request_id,
            t_end_ns: heard.t_end_ns,
        };
        let first = first_turn(Rc::clone(worker), first, after, Arc::clone(&course));
        branch(worker, first);
    }
    let left = conversation.turns_left();
    if left == 0 {
        return None;
    }
    let end = |reason| mark_ended(worker, request_id, reason, left);
    if !heard.ok && !conversation.outlives_failure() {
        end("the turn failed");
        return None;
    }
    let next = conversation.next_turn(heard.text)?;
    let Some(request) = made(worker, next.request).await else {
        end(why_none(worker));
        return None;
    };
    let turn = Turn {
        arrival: Arrival {
            request,
            turn: next.turn,
            replay_of: next.replay_of,
            cancel_after: next.cancel_after,
            conversation: Some(conversation),
            ..arrival
        },
        due: next.due,
        after: After {
            request_id,
            t_end_ns: heard.t_end_ns,
        },
    };
    let next = turn.when_due(worker, course, slot).await;
    if next.is_none() {
        end("the run ended");
    }
    next
}

/// The first turn of a session that began within another.
async fn first_turn(
    worker: Rc<Worker>,
    first: Branch,
    after: After,
    course: Arc<Course>,
) -> Option<Assignment> {
    let Branch {
        arrival,
        due,
        turns,
    } = first;
    let end = |reason| mark_ended(&worker, after.request_id, reason, turns);
    let Some(arrival) = made(&worker, arrival).await else {
        end(why_none(&worker));
        return None;
    };
    let turn = Turn {
        arrival,
        due,
        after,
    };
    let next = turn.when_due(&worker, course, None).await;
    if next.is_none() {
        end("the run ended");
    }
    next
}

/// What is in the making, unless the run ends first.
async fn made<T>(worker: &Worker, coming: Coming<T>) -> Option<T> {
    tokio::select! {
        biased;
        made = coming => made,
        () = worker.alarm.sleep_until(i64::MAX) => None,
    }
}

fn why_none(worker: &Worker) -> &'static str {
    if worker.is_ending() {
        "the run ended"
    } else {
        "the turn could not be made"
    }
}

/// A turn that waits for its instant.
struct Turn {
    arrival: Arrival,
    due: TurnDue,
    after: After,
}

/// The request that a turn follows, and when that ended.
#[derive(Clone, Copy)]
struct After {
    request_id: i64,
    t_end_ns: i64,
}

impl Turn {
    /// `None` when the run ends first; the slot is then given back.
    async fn when_due(
        self,
        worker: &Worker,
        course: Arc<Course>,
        slot: Option<SlotGuard>,
    ) -> Option<Assignment> {
        let (t_planned_ns, due_ns) = course.instants_of(self.due, self.after.t_end_ns);
        if !wait_until(worker, &course, self.due, due_ns).await {
            return None;
        }
        let arrival = Arrival {
            offset_ns: None,
            parent_request_id: Some(self.after.request_id),
            ..self.arrival
        };
        Some(Assignment {
            request_id: course.next_request_id(),
            heard: Heard::of(&arrival),
            arrival,
            t_scheduled_ns: due_ns,
            t_planned_ns,
            t_ready_ns: due_ns,
            slot,
            course,
        })
    }
}

/// False when the run ends first. An instant of the plan is met by polling the clock
/// at last. A think time may be as late as waking is, and costs no CPU, by which a
/// closed loop is judged.
async fn wait_until(worker: &Worker, course: &Course, due: TurnDue, due_ns: i64) -> bool {
    let goes_on = |t_ns: i64| t_ns < course.until.t_ns() && !worker.is_ending();
    if !goes_on(due_ns) {
        return false;
    }
    match due {
        TurnDue::After(_) => worker.alarm.sleep_until(due_ns).await,
        TurnDue::At(_) => {
            worker.alarm.sleep_until_nearly(due_ns).await;
            if goes_on(due_ns) {
                worker.alarm.spin_until(due_ns).await;
            }
        }
    }
    goes_on(worker.clock.now_ns())
}

fn mark_ended(worker: &Worker, request_id: i64, reason: &str, turns_not_sent: usize) {
    let detail = json!({
        "request_id": request_id,
        "reason": reason,
        "turns_not_sent": turns_not_sent,
    });
    let mark = MarkRow {
        t_ns: worker.clock.now_ns(),
        name: "session_ended".into(),
        detail: detail.to_string().into(),
    };
    worker.record(0, |batch| batch.marks.push(mark));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(api: &str) -> Heard {
        Heard {
            api: Api::from_word(api).unwrap(),
            wants_text: true,
            text: String::new(),
            is_full: false,
            ok: false,
            t_end_ns: 0,
        }
    }

    #[test]
    fn text_that_has_all_so_far_takes_the_place_of_what_was_heard() {
        for (api, payloads, said) in [
            (
                "sglang",
                [r#"{"text":"to"}"#, r#"{"text":"to be"}"#],
                "to be",
            ),
            (
                "ollama",
                [
                    r#"{"message":{"content":"to"}}"#,
                    r#"{"message":{"content":" be"}}"#,
                ],
                "to be",
            ),
        ] {
            let mut heard = heard(api);
            for payload in payloads {
                heard.chunk(ChunkKind::Content, None, payload.as_bytes());
            }
            assert_eq!(heard.text, said);
        }
    }

    #[test]
    fn an_attempt_that_is_sent_again_says_nothing_twice() {
        let mut heard = heard("openai-chat");
        let chunk = br#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        heard.chunk(ChunkKind::Content, Some(0), chunk);
        heard.end(false, None, 5);
        heard.begin();
        heard.chunk(ChunkKind::Content, Some(0), chunk);
        heard.chunk(ChunkKind::Content, Some(1), chunk);
        heard.chunk(ChunkKind::Reasoning, Some(0), chunk);
        heard.end(true, Some(br#"{"choices":[{"text":"not this"}]}"#), 9);
        assert_eq!(
            (heard.text.as_str(), heard.ok, heard.t_end_ns),
            ("a", true, 9)
        );
    }
}
