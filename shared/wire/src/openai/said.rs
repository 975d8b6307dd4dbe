//! The text in a payload: what a tokenizer counts where the server counted nothing.

use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use serde_json::Value;

use crate::lenient::{self, Any, Key, Reader};

/// What the model wrote in one payload of a stream, or in a whole answer: reasoning,
/// content, names and arguments of tool calls, in the order of the document.
///
/// `None` where there is no such text, or where the payload is no JSON, as one that
/// was cut is not: half of a text has no token count.
#[must_use]
pub fn output_text(payload: &[u8]) -> Option<String> {
    let payload = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let answer = lenient::read::<Answer>(payload)?;
    (!answer.0.is_empty()).then_some(answer.0)
}

/// What the first choice says to the user: neither reasoning nor tool calls, which
/// clients do not send back.
#[must_use]
pub fn reply_text(payload: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(payload).ok()?;
    let choices = document.get("choices")?.as_array()?;
    let is_first = |choice: &&Value| choice["index"].as_i64().unwrap_or(0) == 0;
    let choice = choices.iter().find(is_first)?;
    let said = ["/delta/content", "/message/content", "/text"];
    match said.iter().find_map(|at| choice.pointer(at))? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            Some(texts.collect())
        }
        _ => None,
    }
}

/// The text of a request's messages or prompt, without the template that a server
/// puts around it. `None` where there is none, as in a prompt of token ids.
#[must_use]
pub fn input_text(body: &[u8]) -> Option<String> {
    let question = lenient::read::<Question>(body)?;
    (!question.0.is_empty()).then_some(question.0)
}

#[derive(Debug, Default)]
struct Answer(String);

impl<'de> Reader<'de> for &mut Answer {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(is_choices) =
            object.next_key_seed(Any(Key(|name: &str| name == "choices")))?
        {
            if is_choices {
                object.next_value_seed(Any(Choices(&mut self.0)))?;
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Choices<'t>(&'t mut String);

impl<'de> Reader<'de> for Choices<'_> {
    type Out = ();

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Any(Choice(self.0)))?.is_some() {}
        Ok(())
    }
}

struct Choice<'t>(&'t mut String);

impl<'de> Reader<'de> for Choice<'_> {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        #[derive(Default)]
        enum Part {
            Message,
            Text,
            #[default]
            Unknown,
        }
        let part = |name: &str| match name {
            "delta" | "message" => Part::Message,
            "text" => Part::Text,
            _ => Part::Unknown,
        };
        while let Some(key) = object.next_key_seed(Any(Key(part)))? {
            match key {
                Part::Message => object.next_value_seed(Any(Message(self.0)))?,
                Part::Text => object.next_value_seed(Pieces::of(self.0))?,
                Part::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Question(String);

impl<'de> Reader<'de> for &mut Question {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        #[derive(Default)]
        enum Part {
            Messages,
            Prompt,
            #[default]
            Unknown,
        }
        let part = |name: &str| match name {
            "messages" => Part::Messages,
            "prompt" => Part::Prompt,
            _ => Part::Unknown,
        };
        while let Some(key) = object.next_key_seed(Any(Key(part)))? {
            match key {
                Part::Messages => object.next_value_seed(Any(Messages(&mut self.0)))?,
                Part::Prompt => object.next_value_seed(Pieces::of(&mut self.0))?,
                Part::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Messages<'t>(&'t mut String);

impl<'de> Reader<'de> for Messages<'_> {
    type Out = ();

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        loop {
            let mut message = String::new();
            let more = list.next_element_seed(Any(Message(&mut message)))?;
            // Words of two messages are two words.
            if !message.is_empty() && !self.0.is_empty() {
                self.0.push('\n');
            }
            self.0.push_str(&message);
            if more.is_none() {
                return Ok(());
            }
        }
    }
}

/// A `delta` or `message`.
struct Message<'t>(&'t mut String);

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum MessageKey {
    Text,
    Reasoning,
    #[default]
    Unknown,
}

fn message_key(name: &str) -> MessageKey {
    match name {
        "content" | "refusal" | "tool_calls" | "function_call" => MessageKey::Text,
        "reasoning" | "reasoning_content" => MessageKey::Reasoning,
        _ => MessageKey::Unknown,
    }
}

impl<'de> Reader<'de> for Message<'_> {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut has_reasoning = false;
        while let Some(key) = object.next_key_seed(Any(Key(message_key)))? {
            // vLLM has sent one reasoning under both of its names.
            if key == MessageKey::Unknown || (key == MessageKey::Reasoning && has_reasoning) {
                object.next_value::<IgnoredAny>()?;
                continue;
            }
            let before = self.0.len();
            object.next_value_seed(Pieces::of(self.0))?;
            has_reasoning |= key == MessageKey::Reasoning && self.0.len() > before;
        }
        Ok(())
    }
}

/// Plain text, an array of parts, tool calls: every string under a name that holds
/// text. Ids, types and the data of images are none.
struct Pieces<'t> {
    text: &'t mut String,
    levels_left: u8,
}

impl<'t> Pieces<'t> {
    /// Parts nest three deep.
    const LEVELS: u8 = 8;

    fn of(text: &'t mut String) -> Any<Self> {
        Any(Self {
            text,
            levels_left: Self::LEVELS,
        })
    }

    fn below(&mut self) -> Any<Pieces<'_>> {
        Any(Pieces {
            text: self.text,
            levels_left: self.levels_left - 1,
        })
    }
}

/// Whether a field of that name has text for people, or lists and objects with such.
pub(crate) fn holds_text(name: &str) -> bool {
    matches!(
        name,
        "text"
            | "content"
            | "thinking"
            | "reasoning"
            | "refusal"
            | "function"
            | "custom"
            | "name"
            | "arguments"
            | "input"
    )
}

impl<'de> Reader<'de> for Pieces<'_> {
    type Out = ();

    fn text(self, text: &str) {
        self.text.push_str(text);
    }

    fn list<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        if self.levels_left == 0 {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while list.next_element_seed(self.below())?.is_some() {}
        Ok(())
    }

    fn object<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some(is_text) = object.next_key_seed(Any(Key(holds_text)))? {
            if is_text && self.levels_left > 0 {
                object.next_value_seed(self.below())?;
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(payload: &str) -> Option<String> {
        output_text(payload.as_bytes())
    }

    fn input(body: &str) -> Option<String> {
        input_text(body.as_bytes())
    }

    #[test]
    fn a_chunk_gives_what_the_model_wrote_in_it() {
        for (payload, text) in [
            (
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":" to"}}]}"#,
                " to",
            ),
            (r#"{"choices":[{"text":"be"}]}"#, "be"),
            (
                r#"{"choices":[{"delta":{"reasoning":"so","reasoning_content":"so"}}]}"#,
                "so",
            ),
            (
                r#"{"choices":[{"delta":{"reasoning":"","reasoning_content":"so"}}]}"#,
                "so",
            ),
            (
                r#"{"choices":[{"delta":{"reasoning":"so","content":" or"}}]}"#,
                "so or",
            ),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"find","arguments":"{\"a\":"}}]}}]}"#,
                r#"find{"a":"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]}}]}"#,
                "hm",
            ),
            (
                r#"{"choices":[{"message":{"content":"one"}},{"message":{"content":"two"}}],"usage":{"prompt_tokens":1}}"#,
                "onetwo",
            ),
        ] {
            assert_eq!(output(payload).as_deref(), Some(text), "{payload}");
        }
    }

    #[test]
    fn the_reply_is_what_the_first_choice_says_to_the_user() {
        for (payload, text) in [
            (
                r#"{"choices":[{"index":0,"delta":{"content":"a","reasoning_content":"r"}}]}"#,
                Some("a"),
            ),
            (
                r#"{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}"#,
                Some("a"),
            ),
            (
                r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"text":"b"}]}}]}"#,
                Some("ab"),
            ),
            (r#"{"choices":[{"text":" a"}]}"#, Some(" a")),
            (r#"{"choices":[{"delta":{"content":null}}]}"#, None),
            (r#"{"choices":[]}"#, None),
            ("[DONE]", None),
        ] {
            assert_eq!(reply_text(payload.as_bytes()).as_deref(), text, "{payload}");
        }
    }

    #[test]
    fn a_payload_without_text_or_not_whole_gives_none() {
        for payload in [
            "[DONE]",
            "",
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"cut"#,
            r#"{"error":{"message":"no"}}"#,
        ] {
            assert_eq!(output(payload), None, "{payload}");
        }
    }

    #[test]
    fn a_body_gives_the_text_of_its_messages_or_prompt() {
        for (body, text) in [
            (r#"{"model":"m","prompt":"to be"}"#, "to be"),
            (
                r#"{"messages":[{"role":"system","content":"be"},{"role":"user","content":[{"type":"text","text":"to"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}"#,
                "be\nto",
            ),
            (r#"{"messages":[{"content":""},{"content":"be"}]}"#, "be"),
        ] {
            assert_eq!(input(body).as_deref(), Some(text), "{body}");
        }
        assert_eq!(input(r#"{"prompt":[1,2,3]}"#), None);
        assert_eq!(input("{}"), None);
    }

    #[test]
    fn nesting_without_end_is_left_out() {
        let deep = format!("{}\"x\"{}", "[".repeat(60), "]".repeat(60));
        assert_eq!(
            output(&format!(r#"{{"choices":[{{"text":{deep}}}]}}"#)),
            None
        );
    }
}
