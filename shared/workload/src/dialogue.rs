//! A conversation under way: each turn is all that was said so far.
//!
//! The messages of a turn are those of the turn before, the reply, and what the
//! user says next, so its body begins with the bytes of the body before.

use std::time::Duration;

use serde_json::Value;

use crate::prompts::{Item, Prompt, Turn, assistant, user};
use crate::sessions::messages_of;

/// Which reply a later turn carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// What the server answered just now.
    Live,
    /// What the data set holds.
    Recorded,
}

impl Replies {
    /// As typed, and as it stands in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Recorded => "recorded",
        }
    }
}

/// How long a user thinks before the next turn: evenly between two durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThinkTime {
    pub low: Duration,
    pub high: Duration,
}

impl ThinkTime {
    /// Before turn `turn` of the session at `place`; equal for equal seeds.
    #[must_use]
    pub fn draw(self, seed: u64, place: u64, turn: usize) -> Duration {
        let key = blake3::hash(format!("think {seed} {place} {turn}").as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key.as_bytes()[..8]);
        // 53 bits make a fraction from 0 to below 1.
        let share = (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64;
        self.low + self.high.saturating_sub(self.low).mul_f64(share)
    }
}

/// A conversation, of which some turns have been sent.
#[derive(Debug)]
pub struct Dialogue {
    said: Item,
    rest: std::vec::IntoIter<Turn>,
    replies: Replies,
}

impl Dialogue {
    /// The conversation that `prompt`, its first turn, begins.
    #[must_use]
    pub fn new(prompt: &Prompt, replies: Replies) -> Self {
        let said = match &prompt.item {
            Item::Text(text) => Item::Messages(vec![user(text.as_str())]),
            other => other.clone(),
        };
        Self {
            said,
            rest: prompt.turns.clone().into_iter(),
            replies,
        }
    }

    /// Turns that have not been sent.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Whether the server's own words are needed.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.replies == Replies::Live && self.left() > 0
    }

    /// The next turn, where there is one; `reply` is what the server said to the
    /// turn before.
    pub fn next_turn(&mut self, reply: String) -> Option<Prompt> {
        let turn = self.rest.next()?;
        let messages = messages_of(&mut self.said)?;
        match self.replies {
            Replies::Live => messages.push(assistant(reply)),
            Replies::Recorded => messages.extend(turn.reply),
        }
        messages.extend(turn.messages);
        Some(Prompt {
            max_tokens: turn.max_tokens,
            ..self.said.clone().into()
        })
    }
}

/// What the turns of `prompt` add to the identity of a workload.
#[must_use]
pub fn turns_text(prompt: &Prompt) -> String {
    let turns = prompt.turns.iter().map(|turn| {
        let parts = [
            Value::Array(turn.reply.clone()),
            Value::Array(turn.messages.clone()),
            turn.max_tokens.into(),
        ];
        Value::Array(parts.into()).to_string()
    });
    turns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::build;
    use crate::{BodyOptions, prompts::message};
    use proptest::prelude::*;
    use serde_json::json;
    use tapedeck_wire::openai::Api;

    fn session(texts: &[String]) -> Prompt {
        let turn = |text: &String| Turn {
            reply: vec![message("assistant", "recorded")],
            messages: vec![user(text.as_str())],
            max_tokens: Some(3),
        };
        Prompt {
            turns: texts[1..].iter().map(turn).collect(),
            ..Item::Text(texts[0].clone()).into()
        }
    }

    /// The front that two bodies of one conversation share: all of the shorter
    /// one's messages.
    fn front(body: &[u8]) -> &[u8] {
        let end = body.windows(2).rposition(|two| two == b"}]").unwrap();
        &body[..=end]
    }

    proptest! {
        #[test]
        fn each_body_begins_with_the_one_before(
            texts in prop::collection::vec(".{0,12}", 1..6),
            reply in ".{0,12}",
            live: bool,
        ) {
            let replies = if live { Replies::Live } else { Replies::Recorded };
            let first = session(&texts);
            let options = BodyOptions { model: Some("m".into()), ..BodyOptions::default() };
            let mut before = build(Api::OpenAiChat, &first, &options).body;
            let mut dialogue = Dialogue::new(&first, replies);
            let mut sent = 1;
            while let Some(next) = dialogue.next_turn(reply.clone()) {
                let body = build(Api::OpenAiChat, &next, &options).body;
                prop_assert!(body.starts_with(front(&before)));
                before = body;
                sent += 1;
            }
            prop_assert_eq!(sent, texts.len());
        }
    }

    #[test]
    fn thinking_is_seeded_and_keeps_to_its_limits() {
        let think = ThinkTime {
            low: Duration::from_millis(100),
            high: Duration::from_millis(300),
        };
        let drawn: Vec<Duration> = (0..2_000).map(|n| think.draw(7, n, 1)).collect();
        assert_eq!(drawn[5], think.draw(7, 5, 1));
        assert_ne!(drawn[5], think.draw(8, 5, 1));
        assert_ne!(drawn[5], think.draw(7, 5, 2));
        assert!(drawn.iter().all(|d| (think.low..think.high).contains(d)));
        let mean_ms = drawn.iter().map(Duration::as_secs_f64).sum::<f64>() / 2.0;
        assert!((mean_ms - 200.0).abs() < 10.0, "{mean_ms}");
    }

    #[test]
    fn a_turn_carries_the_reply_that_was_asked_for() {
        let first = session(&["a".to_owned(), "b".to_owned()]);
        for (replies, said) in [(Replies::Live, "live"), (Replies::Recorded, "recorded")] {
            let mut dialogue = Dialogue::new(&first, replies);
            let next = dialogue.next_turn("live".to_owned()).unwrap();
            let expected = json!([
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": said},
                {"role": "user", "content": "b"},
            ]);
            assert_eq!(
                next.item,
                Item::Messages(expected.as_array().unwrap().clone())
            );
            assert_eq!(next.max_tokens, Some(3));
            assert!(dialogue.next_turn(String::new()).is_none());
        }
    }
}
