//! Prompts from the command line and from files of lines.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::WorkloadError;
use crate::files::{open, read_line, read_text};

/// What one request asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Text(String),
    /// Chat messages.
    Messages(Vec<Value>),
    /// A whole request body.
    Body(Map<String, Value>),
}

impl Item {
    /// All text that the model is given, a line for each message. A template
    /// that the server puts around it is not in it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(messages) => joined(messages),
            Self::Body(body) => match (body.get("messages"), body.get("prompt")) {
                (Some(Value::Array(messages)), _) => joined(messages),
                (_, Some(Value::String(prompt))) => prompt.clone(),
                _ => String::new(),
            },
        }
    }
}

/// A conversation as one text, for what knows no roles.
pub(crate) fn joined(messages: &[Value]) -> String {
    let texts: Vec<&str> = messages
        .iter()
        .filter_map(|message| message.get("content"))
        .flat_map(texts)
        .collect();
    texts.join("\n")
}

/// The texts of one message: its content, or the text parts of it.
fn texts(content: &Value) -> Vec<&str> {
    match content {
        Value::String(text) => vec![text],
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect(),
        _ => Vec::new(),
    }
}

/// An item and what its data set knows of its lengths and of what follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    pub item: Item,
    /// Tokens of [`Item::text`], where a tokenizer counted them. A server adds
    /// those of its chat template.
    pub input_tokens: Option<u32>,
    /// Output limit that the data set asks for.
    pub max_tokens: Option<u32>,
    /// The conversation that it begins, as the data set names it.
    pub session_id: Option<String>,
    /// What follows in that conversation; empty for a lone request.
    pub turns: Vec<Turn>,
}

/// A later turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Turn {
    /// Messages between the turn before and this one, where the data set has
    /// them: the recorded reply.
    pub reply: Vec<Value>,
    /// What is said then.
    pub messages: Vec<Value>,
    /// Output limit that the data set asks for.
    pub max_tokens: Option<u32>,
}

/// A message of the user's.
#[must_use]
pub(crate) fn user(content: impl Into<Value>) -> Value {
    message("user", content)
}

/// A message of the model's.
#[must_use]
pub(crate) fn assistant(content: impl Into<Value>) -> Value {
    message("assistant", content)
}

pub(crate) fn message(role: &str, content: impl Into<Value>) -> Value {
    json!({"role": role, "content": content.into()})
}

impl From<Item> for Prompt {
    fn from(item: Item) -> Self {
        Self {
            item,
            input_tokens: None,
            max_tokens: None,
            session_id: None,
            turns: Vec::new(),
        }
    }
}

/// Items of a file of lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    pub items: Vec<Item>,
    /// Lines left out by `--skip-bad`.
    pub bad: u64,
}

/// `--prompt TEXT`, or `--prompt @FILE` for the whole text of a file.
///
/// # Errors
/// When the file cannot be read or the prompt is empty.
pub fn prompt(argument: &str) -> Result<Item, WorkloadError> {
    let text = match argument.strip_prefix('@') {
        Some(path) => read_text(Path::new(path))?,
        None => argument.to_owned(),
    };
    if text.trim().is_empty() {
        return Err(WorkloadError::EmptyPrompt);
    }
    Ok(Item::Text(text))
}

/// Each line a prompt: plain text, a JSON array of messages, or a JSON object
/// that is a whole body. Blank lines are passed over; gzip is recognised by its
/// first bytes.
///
/// # Errors
/// With the number of the first bad line, unless `skip_bad`.
pub fn line_by_line(path: &Path, skip_bad: bool) -> Result<Lines, WorkloadError> {
    let mut reader = open(path)?;
    let mut items = Vec::new();
    let mut bad = 0;
    for line in 1.. {
        let next = read_line(&mut reader).map_err(|source| WorkloadError::read(path, source))?;
        let Some(bytes) = next else {
            break;
        };
        match parse_line(&bytes) {
            Ok(None) => {}
            Ok(Some(item)) => items.push(item),
            Err(_) if skip_bad => bad += 1,
            Err(problem) => {
                return Err(WorkloadError::Line {
                    path: path.to_owned(),
                    line,
                    problem,
                });
            }
        }
    }
    if items.is_empty() {
        return Err(WorkloadError::Empty(path.to_owned()));
    }
    Ok(Lines { items, bad })
}

fn parse_line(bytes: &[u8]) -> Result<Option<Item>, String> {
    let line = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    // A byte order mark stands at the start of many exported files.
    let line = line.trim_start_matches('\u{feff}').trim();
    match line.as_bytes().first() {
        None => Ok(None),
        Some(b'{') => match serde_json::from_str(line) {
            Ok(Value::Object(body)) => Ok(Some(Item::Body(body))),
            Ok(_) => Err("not a JSON object".to_owned()),
            Err(e) => Err(format!("begins like a JSON body but is not one: {e}")),
        },
        Some(b'[') => match serde_json::from_str(line) {
            Ok(Value::Array(messages)) if messages.iter().all(Value::is_object) => {
                Ok(Some(Item::Messages(messages)))
            }
            Ok(_) => Err("an array whose elements are not messages".to_owned()),
            Err(e) => Err(format!(
                "begins like an array of messages but is not one: {e}"
            )),
        },
        Some(_) => Ok(Some(Item::Text(line.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_messages_or_a_body() {
        assert_eq!(parse_line(b"  \r\n"), Ok(None));
        assert_eq!(
            parse_line(b"hello\r\n"),
            Ok(Some(Item::Text("hello".into())))
        );
        assert!(matches!(
            parse_line(br#"[{"role":"user","content":"x"}]"#),
            Ok(Some(Item::Messages(m))) if m.len() == 1
        ));
        assert!(matches!(
            parse_line(br#"{"prompt":"x"}"#),
            Ok(Some(Item::Body(_)))
        ));
    }

    #[test]
    fn broken_lines_say_what_is_wrong() {
        assert!(parse_line(b"{\"a\":").unwrap_err().contains("not one"));
        assert!(parse_line(b"[1,2]").unwrap_err().contains("not messages"));
        assert!(parse_line(b"\xff\xfe").unwrap_err().contains("UTF-8"));
    }
}
