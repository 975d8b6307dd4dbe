//! Conversations: a prompt and the turns that follow it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::prompts::{Item, Prompt, Turn, assistant, user};

/// Cuts the messages of `prompt` into turns, at most `turns` of them. A turn ends
/// where the model answers; what the data set has of that answer becomes the
/// recorded reply. Messages of the model's at the very end have no turn behind
/// them and are left out.
pub(crate) fn split(prompt: &mut Prompt, turns: usize) {
    let Some(messages) = messages_of(&mut prompt.item) else {
        return;
    };
    let mut rest = std::mem::take(messages).into_iter().peekable();
    let mut take_while = |is_users: bool| {
        let mut taken = Vec::new();
        while let Some(message) = rest.next_if(|m| is_of_user(m) == is_users) {
            taken.push(message);
        }
        taken
    };
    // A conversation that the model opens keeps that opening in its first turn.
    let mut first = take_while(false);
    first.extend(take_while(true));
    *messages = first;
    while prompt.turns.len() + 1 < turns {
        let reply = take_while(false);
        let said = take_while(true);
        if said.is_empty() {
            break;
        }
        prompt.turns.push(Turn {
            reply,
            messages: said,
            max_tokens: prompt.max_tokens,
        });
    }
}

/// All but the model's messages and those of its tools.
fn is_of_user(message: &Value) -> bool {
    let role = message.get("role").and_then(Value::as_str);
    !matches!(role, Some("assistant" | "tool" | "function"))
}

pub(crate) fn messages_of(item: &mut Item) -> Option<&mut Vec<Value>> {
    match item {
        Item::Messages(messages) => Some(messages),
        Item::Body(body) => body.get_mut("messages")?.as_array_mut(),
        Item::Text(_) => None,
    }
}

/// Prompts of one session, one behind the other: rows with equal session ids
/// become the turns of one conversation, in their order and where the first of
/// them stands. Prompts without a session stay as they are. `replies` holds what
/// the model answered to each prompt, where that is known.
#[cfg_attr(
    not(feature = "datasets"),
    allow(dead_code, reason = "tables come with that feature")
)]
pub(crate) fn by_session(
    prompts: Vec<Prompt>,
    replies: &[Option<String>],
    turns: usize,
) -> Vec<Prompt> {
    let mut begun: BTreeMap<String, (usize, Option<String>)> = BTreeMap::new();
    let mut sessions: Vec<Prompt> = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let reply = replies.get(index).cloned().flatten();
        let Some(id) = prompt.session_id.clone() else {
            sessions.push(prompt);
            continue;
        };
        match begun.get_mut(&id) {
            Some((place, last_reply)) => {
                let answer = std::mem::replace(last_reply, reply);
                let session = &mut sessions[*place];
                if session.turns.len() + 1 < turns {
                    session.turns.push(turn_of(prompt, answer));
                }
            }
            None => {
                begun.insert(id, (sessions.len(), reply));
                sessions.push(prompt);
            }
        }
    }
    sessions
}

/// Conversations of `turns` consecutive prompts each, whose replies nobody knows.
/// A body without messages has no place for a reply: it stays a lone request.
pub(crate) fn in_groups(prompts: Vec<Prompt>, turns: usize) -> Vec<Prompt> {
    let goes_on = |item: &Item| match item {
        Item::Text(_) | Item::Messages(_) => true,
        Item::Body(body) => body.get("messages").is_some_and(Value::is_array),
    };
    let mut sessions: Vec<Prompt> = Vec::new();
    for prompt in prompts {
        let can_follow = goes_on(&prompt.item);
        match sessions.last_mut() {
            Some(session)
                if can_follow && goes_on(&session.item) && session.turns.len() + 1 < turns =>
            {
                session.turns.push(turn_of(prompt, None));
            }
            _ => sessions.push(prompt),
        }
    }
    sessions
}

fn turn_of(prompt: Prompt, reply: Option<String>) -> Turn {
    let messages = match prompt.item {
        Item::Text(text) => vec![user(text)],
        Item::Messages(messages) => messages,
        Item::Body(mut body) => match body.remove("messages") {
            Some(Value::Array(messages)) => messages,
            _ => Vec::new(),
        },
    };
    Turn {
        reply: reply.map(assistant).into_iter().collect(),
        messages,
        max_tokens: prompt.max_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompt(text: &str, session: Option<&str>) -> Prompt {
        Prompt {
            session_id: session.map(str::to_owned),
            ..Item::Text(text.into()).into()
        }
    }

    fn roles(messages: &[Value]) -> Vec<&str> {
        messages.iter().filter_map(|m| m["role"].as_str()).collect()
    }

    #[test]
    fn messages_are_cut_where_the_model_answers() {
        let messages = [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
            "assistant",
        ];
        let messages = messages.map(|role| json!({"role": role, "content": role}));
        let mut whole: Prompt = Item::Messages(messages.to_vec()).into();
        split(&mut whole, 9);
        assert!(matches!(&whole.item, Item::Messages(m) if roles(m) == ["system", "user"]));
        assert_eq!(whole.turns.len(), 1);
        assert_eq!(
            roles(&whole.turns[0].reply),
            ["assistant", "tool", "assistant"]
        );
        assert_eq!(roles(&whole.turns[0].messages), ["user"]);
        let mut one: Prompt = Item::Messages(messages.to_vec()).into();
        split(&mut one, 1);
        assert!(one.turns.is_empty());
    }

    #[test]
    fn rows_of_a_session_become_its_turns_and_carry_the_reply_before() {
        let rows = vec![
            prompt("a1", Some("a")),
            prompt("lone", None),
            prompt("b1", Some("b")),
            prompt("a2", Some("a")),
            prompt("a3", Some("a")),
        ];
        let replies = [Some("r1".to_owned()), None, None, Some("r2".to_owned())];
        let sessions = by_session(rows, &replies, 9);
        assert_eq!(sessions.len(), 3);
        let turns = &sessions[0].turns;
        assert_eq!(turns.len(), 2);
        assert_eq!(
            turns[0].reply,
            [json!({"role": "assistant", "content": "r1"})]
        );
        assert_eq!(
            turns[1].reply,
            [json!({"role": "assistant", "content": "r2"})]
        );
        assert_eq!(
            turns[1].messages,
            [json!({"role": "user", "content": "a3"})]
        );
        assert!(sessions[1].turns.is_empty());
    }

    #[test]
    fn prompts_without_sessions_are_grouped_in_their_order() {
        let prompts = ["1", "2", "3", "4", "5"].map(|t| prompt(t, None)).to_vec();
        let sessions = in_groups(prompts, 2);
        let lengths = |sessions: &[Prompt]| -> Vec<usize> {
            sessions.iter().map(|s| s.turns.len()).collect()
        };
        assert_eq!(lengths(&sessions), [1, 1, 0]);
        let body = json!({"prompt": "p"}).as_object().unwrap().clone();
        let lone: Prompt = Item::Body(body).into();
        let sessions = in_groups(vec![prompt("1", None), lone.clone(), lone], 2);
        assert_eq!(lengths(&sessions), [0, 0, 0]);
    }
}
