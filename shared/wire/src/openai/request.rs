//! What a request body says about the answer it asks for.

use serde::de::{IgnoredAny, MapAccess};

use crate::lenient::{self, Any, Key, Number, Reader, Text};

/// The fields of a request that a recording has columns for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts {
    pub model: Option<String>,
    pub stream: bool,
    /// `max_completion_tokens`, else `max_tokens`.
    pub max_output_tokens: Option<i32>,
}

/// Reads a request body; nothing is known of one that is no JSON object.
#[must_use]
pub fn request_facts(body: &[u8]) -> RequestFacts {
    let fields = lenient::read::<Fields>(body).unwrap_or_default();
    RequestFacts {
        model: fields.model,
        stream: fields.stream,
        max_output_tokens: fields.max_completion_tokens.or(fields.max_tokens),
    }
}

#[derive(Debug, Default)]
struct Fields {
    model: Option<String>,
    stream: bool,
    max_tokens: Option<i32>,
    max_completion_tokens: Option<i32>,
}

#[derive(Default)]
enum FieldKey {
    Model,
    Stream,
    MaxTokens,
    MaxCompletionTokens,
    #[default]
    Unknown,
}

fn field_key(name: &str) -> FieldKey {
    match name {
        "model" => FieldKey::Model,
        "stream" => FieldKey::Stream,
        "max_tokens" => FieldKey::MaxTokens,
        "max_completion_tokens" => FieldKey::MaxCompletionTokens,
        _ => FieldKey::Unknown,
    }
}

struct Flag;

impl Reader<'_> for Flag {
    type Out = bool;

    fn flag(self, flag: bool) -> bool {
        flag
    }
}

impl<'de> Reader<'de> for &mut Fields {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key_seed(Any(Key(field_key)))? {
            match key {
                FieldKey::Model => self.model = object.next_value_seed(Any(Text))?,
                FieldKey::Stream => self.stream = object.next_value_seed(Any(Flag))?,
                FieldKey::MaxTokens => self.max_tokens = object.next_value_seed(Any(Number))?,
                FieldKey::MaxCompletionTokens => {
                    self.max_completion_tokens = object.next_value_seed(Any(Number))?;
                }
                FieldKey::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_whatever_stands_around_them() {
        let body = br#"{"messages":[{"content":"\"stream\":false"}],"stream":true,
            "model":"m","max_tokens":5,"max_completion_tokens":null,"x":{"model":"y"}}"#;
        let facts = request_facts(body);
        assert_eq!(facts.model.as_deref(), Some("m"));
        assert!(facts.stream);
        assert_eq!(facts.max_output_tokens, Some(5));
    }

    #[test]
    fn a_body_of_another_shape_says_nothing() {
        for body in [
            &b""[..],
            b"[1]",
            b"{\"model\":7,\"stream\":\"yes\"}",
            b"{\"model\":\"m\"",
        ] {
            assert_eq!(request_facts(body), RequestFacts::default(), "{body:?}");
        }
    }
}
