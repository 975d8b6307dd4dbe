//! The turns of a session: each is sent when the one before is done.
//!
//! A turn that fails ends its session, and so does a run that is stopped or whose
//! duration is over: what a user would have said next to an answer that never came
//! is nobody's to guess. Turns that were not sent are counted in a mark
//! `session_ended`.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use tapedeck_recording::{ChunkKind, MarkRow};
use tapedeck_wire::dialect::{Api, reply_text};

use crate::arrival::Arrival;
use crate::engine::{Deadline, Stop, StopLevel};
use crate::worker::{Assignment, Worker, as_ns};

/// What all assignments of a run share.
#[derive(Debug)]
pub(crate) struct Course {
    next_request_id: AtomicI64,
    /// No turn is sent at or after it.
    until: Deadline,
    stop: Arc<Stop>,
}

impl Course {
    pub(crate) fn new(first_request_id: i64, until: Deadline, stop: Arc<Stop>) -> Self {
        Self {
            next_request_id: AtomicI64::new(first_request_id),
            until,
            stop,
        }
    }

    /// Ids follow the order in which requests become due, later turns included.
    pub(crate) fn next_request_id(&self) -> i64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed)
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

/// How often a pause looks up, to notice a stopped run.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Waits until the turn behind `assignment` is due and returns it, with the slot.
/// Without one the slot is given back. A think time ends up to 2 ms late: tokio's
/// timer counts milliseconds.
pub(crate) async fn next_turn(worker: &Worker, assignment: Assignment) -> Option<Assignment> {
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
    let left = conversation.turns_left();
    if left == 0 {
        return None;
    }
    let end = |reason| mark_ended(worker, request_id, reason, left);
    if !heard.ok {
        end("the turn failed");
        return None;
    }
    let next = conversation.next_turn(heard.text)?;
    let due_ns = heard.t_end_ns.saturating_add(as_ns(next.think));
    if !wait_until(worker, &course, due_ns).await {
        end("the run ended");
        return None;
    }
    let next = Arrival {
        request: next.request,
        offset_ns: None,
        turn: arrival.turn.map(|turn| turn + 1),
        parent_request_id: Some(request_id),
        conversation: Some(conversation),
        ..arrival
    };
    Some(Assignment {
        request_id: course.next_request_id(),
        heard: Heard::of(&next),
        arrival: next,
        t_scheduled_ns: due_ns,
        t_ready_ns: due_ns,
        slot,
        course,
    })
}

/// False when the run ends first.
async fn wait_until(worker: &Worker, course: &Course, due_ns: i64) -> bool {
    loop {
        let now_ns = worker.clock.now_ns();
        let ended = due_ns.max(now_ns) >= course.until.t_ns();
        if ended || course.stop.level() != StopLevel::Run {
            return false;
        }
        match u64::try_from(due_ns - now_ns) {
            Ok(left_ns @ 1..) => {
                tokio::time::sleep(Duration::from_nanos(left_ns).min(LOOK_UP)).await;
            }
            _ => return true,
        }
    }
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
