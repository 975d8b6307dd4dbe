//! A text in front of a recorded prompt that sets it apart from all others.

use anyhow::{Result, bail};
use bytes::Bytes;
use serde_json::Value;
use tapedeck_recording::RequestRow;
use tapedeck_wire::dialect::{Api, Placeholder};

use crate::bodies::fields_of;

/// Where a body may have its first words, in the order in which models read them.
const PLACES: [Placeholder; 6] = [
    Placeholder::System,
    Placeholder::Messages,
    Placeholder::Turns,
    Placeholder::Prompt,
    Placeholder::Query,
    Placeholder::Documents,
];

/// Keys within a message that lead to its text.
const TEXTS: [&str; 3] = ["content", "parts", "text"];

/// Messages within messages, at most.
const MAX_DEPTH: usize = 8;

/// `body` with `salt` as its prompt's first word.
///
/// # Errors
/// When it has no text where bodies of `api` have their prompt.
pub fn salted(api: Api, original: &RequestRow, body: &Bytes, salt: &str) -> Result<Bytes> {
    let mut fields = Value::Object(fields_of(original, body, "--salt")?);
    let template = &api.dialect().request.body;
    for keys in PLACES.iter().filter_map(|place| template.place_of(*place)) {
        let mut keys = keys.iter();
        let place = keys.try_fold(&mut fields, |at, key| at.get_mut(key.as_str()));
        if place.is_some_and(|place| salt_first_text(place, salt, 0)) {
            return Ok(Bytes::from(fields.to_string()));
        }
    }
    bail!(
        "request {} cannot be salted: its body has no text where {} has its prompt\nhint: --where leaves such requests out; --copies salts too",
        original.request_id,
        api.as_str()
    )
}

fn salt_first_text(value: &mut Value, salt: &str, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return false;
    }
    match value {
        Value::String(text) => {
            text.insert_str(0, &format!("{salt} "));
            true
        }
        Value::Array(list) => list
            .iter_mut()
            .any(|value| salt_first_text(value, salt, depth + 1)),
        Value::Object(fields) => TEXTS.iter().any(|key| {
            let value = fields.get_mut(*key);
            value.is_some_and(|value| salt_first_text(value, salt, depth + 1))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_text_is_salted_and_nothing_else() {
        for (mut value, expected) in [
            (json!("a"), json!("s a")),
            (
                json!([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
                json!([{"role": "system", "content": "s a"}, {"role": "user", "content": "b"}]),
            ),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "b"}]}]),
                json!([{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "s b"}]}]),
            ),
            (
                json!([{"role": "user", "parts": [{"text": "b"}]}]),
                json!([{"role": "user", "parts": [{"text": "s b"}]}]),
            ),
        ] {
            assert!(salt_first_text(&mut value, "s", 0));
            assert_eq!(value, expected);
        }
        for mut none in [json!([1, 2, 3]), json!({}), json!(null)] {
            assert!(!salt_first_text(&mut none, "s", 0));
        }
    }
}
