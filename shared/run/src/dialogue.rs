//! Sessions whose later turns are built when they are due.

use std::future::ready;
use std::sync::Arc;

use tapedeck_live::{Conversation, NextTurn, TurnDue};
use tapedeck_workload::dialogue::{Dialogue, Replies, ThinkTime};
use tapedeck_workload::{BodyOptions, Prompt};

use crate::requests::RequestBuilder;

/// What all sessions of a load share.
#[derive(Debug)]
pub struct Sessions {
    pub builder: RequestBuilder,
    pub options: BodyOptions,
    pub replies: Replies,
    pub think: ThinkTime,
    pub seed: u64,
}

/// One session under way.
#[derive(Debug)]
struct Session {
    shared: Arc<Sessions>,
    dialogue: Dialogue,
    /// Of this session among all.
    place: u64,
    turn: usize,
}

impl Sessions {
    /// What follows `prompt`, the first turn of the session at `place`; nothing
    /// where it has no later turns.
    #[must_use]
    pub fn begin(self: &Arc<Self>, prompt: &Prompt, place: u64) -> Option<Box<dyn Conversation>> {
        (!prompt.turns.is_empty()).then(|| {
            Box::new(Session {
                shared: Arc::clone(self),
                dialogue: Dialogue::new(prompt, self.replies),
                place,
                turn: 0,
            }) as Box<dyn Conversation>
        })
    }
}

impl Conversation for Session {
    fn wants_reply(&self) -> bool {
        self.dialogue.wants_reply()
    }

    fn turns_left(&self) -> usize {
        self.dialogue.left()
    }

    fn next_turn(&mut self, reply: String) -> Option<NextTurn> {
        let prompt = self.dialogue.next_turn(reply)?;
        self.turn += 1;
        let Sessions {
            builder,
            options,
            think,
            seed,
            ..
        } = &*self.shared;
        Some(NextTurn {
            request: Box::pin(ready(Some(Arc::new(builder.request(&prompt, options))))),
            due: TurnDue::After(think.draw(*seed, self.place, self.turn)),
            turn: i32::try_from(self.turn).ok(),
            replay_of: None,
            cancel_after: None,
        })
    }
}
