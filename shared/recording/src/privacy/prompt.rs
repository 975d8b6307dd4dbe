//! A prompt in the order in which a server reads it, whatever API it came by.

use serde_json::{Map, Value};

/// A part of a prompt.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'v> {
    /// What a tokenizer turns into tokens.
    Text(&'v str),
    /// A prompt given in tokens.
    Tokens(Vec<u32>),
    /// What else makes two prompts different: a role, an image, a tool.
    Mark(String),
}

/// Members of a message that are texts of it, beside `content`.
const TEXTS: [&str; 3] = ["reasoning_content", "reasoning", "refusal"];

/// Calls `visit` with the parts of the prompt in `body`. What a chat template writes
/// first comes first: tools, then the system's words, then the messages.
pub(super) fn pieces<'v>(body: &'v Value, visit: &mut dyn FnMut(Piece<'v>)) {
    for name in ["cache_salt", "tools", "functions"] {
        if let Some(value) = body.get(name).filter(|v| !v.is_null()) {
            visit(Piece::Mark(format!("{name}:{value}")));
        }
    }
    for name in ["system", "instructions"] {
        if let Some(value) = body.get(name).filter(|v| !v.is_null()) {
            visit(Piece::Mark("role:system".to_owned()));
            content(value, visit);
        }
    }
    for name in ["messages", "prompt", "inputs", "input"] {
        match body.get(name) {
            Some(Value::Array(items)) => items_of(items, visit),
            Some(value) => content(value, visit),
            None => {}
        }
    }
}

/// Messages, several prompts, or one prompt in tokens.
fn items_of<'v>(items: &'v [Value], visit: &mut dyn FnMut(Piece<'v>)) {
    if let Some(tokens) = tokens(items) {
        return visit(Piece::Tokens(tokens));
    }
    for item in items {
        match item {
            Value::Object(message) => of_message(message, visit),
            Value::Array(inner) => {
                visit(Piece::Mark("prompt".to_owned()));
                items_of(inner, visit);
            }
            other => {
                visit(Piece::Mark("prompt".to_owned()));
                content(other, visit);
            }
        }
    }
}

fn of_message<'v>(message: &'v Map<String, Value>, visit: &mut dyn FnMut(Piece<'v>)) {
    let role = message.get("role").and_then(Value::as_str);
    visit(Piece::Mark(format!("role:{}", role.unwrap_or_default())));
    for (name, value) in message {
        match name.as_str() {
            "role" => {}
            "content" => content(value, visit),
            name if TEXTS.contains(&name) => content(value, visit),
            "tool_calls" => tool_calls(value, visit),
            name => visit(Piece::Mark(format!("{name}:{value}"))),
        }
    }
}

fn content<'v>(value: &'v Value, visit: &mut dyn FnMut(Piece<'v>)) {
    match value {
        Value::Null => {}
        Value::String(text) => visit(Piece::Text(text)),
        Value::Array(parts) => parts.iter().for_each(|part| content(part, visit)),
        Value::Object(part) => match part.get("text").and_then(Value::as_str) {
            Some(text) => visit(Piece::Text(text)),
            None => visit(Piece::Mark(value.to_string())),
        },
        other => visit(Piece::Mark(other.to_string())),
    }
}

/// Their ids are drawn anew by every client and are in no template.
fn tool_calls<'v>(value: &'v Value, visit: &mut dyn FnMut(Piece<'v>)) {
    for call in value.as_array().into_iter().flatten() {
        for name in ["name", "arguments"] {
            if let Some(part) = call.get("function").and_then(|f| f.get(name)) {
                content(part, visit);
            }
        }
    }
}

fn tokens(items: &[Value]) -> Option<Vec<u32>> {
    let token = |item: &Value| item.as_u64().and_then(|n| u32::try_from(n).ok());
    items
        .iter()
        .map(token)
        .collect::<Option<Vec<_>>>()
        .filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(body: &Value) -> Vec<String> {
        let mut found = Vec::new();
        pieces(body, &mut |piece| match piece {
            Piece::Text(text) => found.push(text.to_owned()),
            Piece::Tokens(tokens) => found.push(format!("{tokens:?}")),
            Piece::Mark(_) => {}
        });
        found
    }

    #[test]
    fn texts_are_found_in_the_servers_order() {
        for (body, expected) in [
            (
                json!({"messages": [
                    {"role": "system", "content": "a"},
                    {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "x"}}]},
                    {"role": "assistant", "content": null, "tool_calls": [{"id": "7", "function": {"name": "c", "arguments": "{}"}}]},
                ]}),
                vec!["a", "b", "c", "{}"],
            ),
            (
                json!({"messages": [{"role": "user", "content": "b"}], "system": "a"}),
                vec!["a", "b"],
            ),
            (json!({"prompt": "a"}), vec!["a"]),
            (json!({"prompt": ["a", "b"]}), vec!["a", "b"]),
            (json!({"prompt": [1, 2]}), vec!["[1, 2]"]),
            (json!({"prompt": [[1], [2, 3]]}), vec!["[1]", "[2, 3]"]),
            (json!({"model": "m"}), vec![]),
            (json!([1]), vec![]),
        ] {
            assert_eq!(texts(&body), expected, "{body}");
        }
    }
}
