//! The text in payloads and bodies: what a tokenizer counts where nobody else did, and
//! what the next turn of a session repeats.

use serde_json::Value;

use super::{Api, Dialect, InterpreterName, Placeholder, Places, TextIs};
use crate::lenient;
use crate::openai::{self, holds_text};
use crate::ppl;

/// Lists and objects within each other that are followed.
const LEVELS: u8 = 8;

impl Dialect {
    /// Whether every payload has all of the text so far.
    #[must_use]
    pub fn is_cumulative(&self) -> bool {
        self.response.text_is == TextIs::Cumulative
    }
}

/// What the model wrote in one payload of a stream, or in a whole answer: reasoning,
/// content, names and arguments of tool calls. `None` where there is no such text, or
/// where the payload does not parse.
#[must_use]
pub fn output_text(api: Api, payload: &[u8]) -> Option<String> {
    let response = &api.dialect().response;
    match response.interpreter {
        InterpreterName::OpenAi => openai::output_text(payload),
        InterpreterName::PplV1 | InterpreterName::PplV2 => ppl::output_text(payload),
        InterpreterName::Places => {
            let document = document(payload)?;
            let mut text = String::new();
            add(&response.reasoning, &document, &mut text);
            add(&response.text, &document, &mut text);
            response.tool.visit(&document, &mut |call| {
                push(call, Objects::Arguments, LEVELS, &mut text);
            });
            Some(text).filter(|text| !text.is_empty())
        }
    }
}

/// What the first choice of one payload says to the user: neither reasoning nor tool
/// calls, which clients do not send back.
#[must_use]
pub fn reply_text(api: Api, payload: &[u8]) -> Option<String> {
    let response = &api.dialect().response;
    match response.interpreter {
        InterpreterName::OpenAi => openai::reply_text(payload),
        InterpreterName::PplV1 | InterpreterName::PplV2 => ppl::output_text(payload),
        InterpreterName::Places => {
            let mut document = document(payload)?;
            let choices = response.choices.as_ref();
            if let Some(list) = choices.and_then(|at| at.one_mut(&mut document)) {
                keep_first(list);
            }
            let mut text = String::new();
            add(&response.text, &document, &mut text);
            Some(text).filter(|text| !text.is_empty())
        }
    }
}

/// Leaves of a list of choices the first: that of index 0, where they have indices.
fn keep_first(choices: &mut Value) {
    if let Value::Array(choices) = choices {
        let is_first = |choice: &Value| choice["index"].as_i64().unwrap_or(0) == 0;
        let first = choices.iter().position(is_first);
        *choices = first
            .map(|at| choices.swap_remove(at))
            .into_iter()
            .collect();
    }
}

/// The text of a request's messages or prompt, without the template that a server
/// puts around it. `None` where there is none, as in a prompt of token ids.
#[must_use]
pub fn input_text(api: Api, body: &[u8]) -> Option<String> {
    let dialect = api.dialect();
    let interpreter = dialect.response.interpreter;
    if let Some(version) = interpreter.ppl() {
        return ppl::input_text(version, body);
    }
    if interpreter == InterpreterName::OpenAi {
        return openai::input_text(body);
    }
    let document = document(body)?;
    let mut texts = Vec::new();
    for (keys, placeholder) in dialect.request.body.places() {
        let value = keys.iter().try_fold(&document, |at, key| at.get(key));
        match (placeholder, value) {
            (Placeholder::Messages | Placeholder::Turns, Some(Value::Array(messages))) => {
                for message in messages {
                    let parts = ["content", "tool_calls"].map(|name| message.get(name));
                    texts.push(parts.into_iter().flatten().map(text_of).collect());
                }
            }
            (Placeholder::Documents, Some(Value::Array(documents))) => {
                texts.extend(documents.iter().map(text_of));
            }
            (placeholder, Some(value)) if placeholder.is_content() => texts.push(text_of(value)),
            _ => {}
        }
    }
    texts.retain(|text: &String| !text.is_empty());
    // Words of two messages are two words.
    Some(texts.join("\n")).filter(|text| !text.is_empty())
}

fn document(payload: &[u8]) -> Option<Value> {
    lenient::document(payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload))
}

fn add(places: &Places, document: &Value, text: &mut String) {
    places.visit(document, &mut |value| {
        push(value, Objects::Parts, LEVELS, text);
    });
}

fn text_of(value: &Value) -> String {
    let mut text = String::new();
    push(value, Objects::Parts, LEVELS, &mut text);
    text
}

/// What an object without a part that holds text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Objects {
    /// An image or the like: no text.
    Parts,
    /// The arguments of a call, which the model wrote as they are.
    Arguments,
}

/// Plain text, parts with text in them, tool calls.
fn push(value: &Value, objects: Objects, levels_left: u8, text: &mut String) {
    match value {
        Value::String(piece) => text.push_str(piece),
        Value::Array(list) if levels_left > 0 => {
            for value in list {
                push(value, objects, levels_left - 1, text);
            }
        }
        Value::Object(fields) if levels_left > 0 => {
            let mut parts = fields
                .iter()
                .filter(|(name, _)| holds_text(name))
                .peekable();
            if parts.peek().is_none() && objects == Objects::Arguments && !fields.is_empty() {
                text.push_str(&value.to_string());
            }
            for (name, part) in parts {
                let objects = match name.as_str() {
                    "arguments" | "input" => Objects::Arguments,
                    _ => Objects::Parts,
                };
                push(part, objects, levels_left - 1, text);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(name: &str) -> Api {
        Api::from_word(name).unwrap()
    }

    #[test]
    fn every_dialect_finds_its_text() {
        for (name, payload, output, reply) in [
            (
                "openai-chat",
                r#"{"choices":[{"delta":{"reasoning":"so","content":" or"}}]}"#,
                "so or",
                Some(" or"),
            ),
            (
                "anthropic-messages",
                r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hi"}}"#,
                "Hi",
                Some("Hi"),
            ),
            (
                "anthropic-messages",
                r#"{"content":[{"type":"thinking","thinking":"Hm"},{"type":"text","text":"Hi"},{"type":"tool_use","name":"f","input":{"a":1}}]}"#,
                r#"HmHi{"a":1}"#,
                Some("Hi"),
            ),
            (
                "openai-responses",
                r#"{"type":"response.output_text.delta","delta":"Hi"}"#,
                "Hi",
                Some("Hi"),
            ),
            (
                "openai-responses",
                r#"{"type":"response.reasoning_text.delta","delta":"Hm"}"#,
                "Hm",
                None,
            ),
            (
                "ollama",
                r#"{"message":{"thinking":"Hm","content":"Hi","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}"#,
                r#"HmHif{"a":1}"#,
                Some("Hi"),
            ),
            (
                "tgi",
                r#"{"token":{"id":1,"text":" w","special":false},"generated_text":" v w"}"#,
                " w",
                Some(" w"),
            ),
            (
                "sglang",
                r#"{"text":"all so far"}"#,
                "all so far",
                Some("all so far"),
            ),
            (
                "dashscope",
                r#"{"output":{"choices":[{"message":{"content":[{"text":"a"},{"image":"i"}]}}]}}"#,
                "a",
                Some("a"),
            ),
        ] {
            let payload = payload.as_bytes();
            assert_eq!(
                output_text(api(name), payload).as_deref(),
                Some(output),
                "{name}"
            );
            assert_eq!(reply_text(api(name), payload).as_deref(), reply, "{name}");
        }
        for name in ["ollama", "tgi", "sglang", "anthropic-messages", "ppl"] {
            assert_eq!(output_text(api(name), b"[DONE]"), None);
            assert_eq!(output_text(api(name), br#"{"text":"cut"#), None);
        }
    }

    #[test]
    fn of_several_choices_the_first_is_the_reply() {
        for (name, payload, reply) in [
            (
                "dashscope",
                r#"{"output":{"choices":[{"index":1,"message":{"content":"b"}},{"index":0,"message":{"content":[{"text":"a"},{"text":"c"}]}}]}}"#,
                Some("ac"),
            ),
            (
                "dashscope",
                r#"{"output":{"choices":[{"index":1,"message":{"content":"b"}}]}}"#,
                None,
            ),
            (
                "dashscope-cumulative",
                r#"{"output":{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}}"#,
                Some("a"),
            ),
            ("dashscope", r#"{"output":{"text":"t"}}"#, Some("t")),
            ("lightllm", r#"{"generated_text":["a","b"]}"#, Some("a")),
            ("lightllm", r#"{"token":{"text":"w"}}"#, Some("w")),
            (
                "openai-chat",
                r#"{"choices":[{"index":1,"message":{"content":"b"}},{"index":0,"message":{"content":"a"}}]}"#,
                Some("a"),
            ),
        ] {
            let said = reply_text(api(name), payload.as_bytes());
            assert_eq!(said.as_deref(), reply, "{name} {payload}");
        }
    }

    #[test]
    fn every_dialect_finds_the_prompt_in_its_body() {
        for (name, body, text) in [
            (
                "openai-chat",
                r#"{"messages":[{"content":"to be"}]}"#,
                "to be",
            ),
            ("tgi", r#"{"inputs":"to be","parameters":{}}"#, "to be"),
            ("sglang", r#"{"text":"to be"}"#, "to be"),
            (
                "anthropic-messages",
                r#"{"system":"be","messages":[{"role":"user","content":[{"type":"text","text":"to"},{"type":"image","source":{}}]}]}"#,
                "be\nto",
            ),
            (
                "dashscope",
                r#"{"input":{"messages":[{"role":"user","content":"to"},{"role":"assistant","content":"be"}]}}"#,
                "to\nbe",
            ),
            ("openai-responses", r#"{"input":"to be"}"#, "to be"),
            (
                "rerank",
                r#"{"query":"q","documents":["a","b"]}"#,
                "q\na\nb",
            ),
        ] {
            assert_eq!(
                input_text(api(name), body.as_bytes()).as_deref(),
                Some(text),
                "{name}"
            );
        }
        assert_eq!(input_text(api("tgi"), br#"{"inputs":[1,2]}"#), None);
        assert_eq!(input_text(api("tgi"), b"no json"), None);
    }
}
