//! Counts and error messages, wherever in a document they stand.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess};
use serde_json::Value;

use super::Usage;
use crate::lenient::{Any, Key, Length, Number, Reader, Text};
use crate::text;

/// The number of tokens in `logprobs`: `content` (chat) or `tokens` (completions).
pub(super) struct Logprobs;

impl<'de> Reader<'de> for Logprobs {
    type Out = Option<i32>;

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        let is_list = |name: &str| matches!(name, "content" | "tokens");
        let mut tokens = None;
        while let Some(counts) = object.next_key_seed(Any(Key(is_list)))? {
            if counts {
                tokens = object.next_value_seed(Any(Length))?.or(tokens);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(tokens)
    }
}

/// A `usage` object; `None` when no count is in it.
pub(super) struct UsageCounts;

#[derive(Default)]
enum UsageKey {
    Input,
    Output,
    Cached,
    Reasoning,
    Details,
    #[default]
    Unknown,
}

fn usage_key(name: &str) -> UsageKey {
    match name {
        "prompt_tokens" | "input_tokens" => UsageKey::Input,
        "completion_tokens" | "output_tokens" => UsageKey::Output,
        "cached_tokens" | "prompt_cache_hit_tokens" => UsageKey::Cached,
        "reasoning_tokens" => UsageKey::Reasoning,
        "prompt_tokens_details"
        | "completion_tokens_details"
        | "input_tokens_details"
        | "output_tokens_details" => UsageKey::Details,
        _ => UsageKey::Unknown,
    }
}

impl<'de> Reader<'de> for UsageCounts {
    type Out = Option<Usage>;

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        let mut usage = Usage::default();
        while let Some(key) = object.next_key_seed(Any(Key(usage_key)))? {
            let count = match key {
                UsageKey::Input => &mut usage.input_tokens,
                UsageKey::Output => &mut usage.output_tokens,
                UsageKey::Cached => &mut usage.cached_tokens,
                UsageKey::Reasoning => &mut usage.reasoning_tokens,
                UsageKey::Details => {
                    let details = object.next_value_seed(Any(UsageCounts))?;
                    usage = usage.or(details.unwrap_or_default());
                    continue;
                }
                UsageKey::Unknown => {
                    object.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let number = object.next_value_seed(Any(Number))?;
            *count = number.filter(|count| *count >= 0).or(*count);
        }
        Ok((usage != Usage::default()).then_some(usage))
    }
}

/// An error that a document reports, with its message where it has one.
#[derive(Debug, Default)]
pub(crate) struct ErrorNote {
    pub(crate) message: Option<String>,
}

/// What `value` reports, if anything; the rules are those of [`ErrorNotes`].
pub(crate) fn note_of(value: &Value) -> Option<ErrorNote> {
    Any(ErrorNotes).deserialize(value).ok().flatten()
}

/// `error` or `detail`: text, `true`, an object, or a list of such. Empty text,
/// `false`, null and numbers (`"error": 0`) report nothing.
pub(super) struct ErrorNotes;

#[derive(Default)]
enum ErrorKey {
    Message,
    Substitute,
    #[default]
    Unknown,
}

fn error_key(name: &str) -> ErrorKey {
    match name {
        "message" => ErrorKey::Message,
        "msg" | "detail" | "type" => ErrorKey::Substitute,
        _ => ErrorKey::Unknown,
    }
}

impl<'de> Reader<'de> for ErrorNotes {
    type Out = Option<ErrorNote>;

    fn text(self, text: &str) -> Self::Out {
        (!text.is_empty()).then(|| ErrorNote {
            message: Some(text::message(text)),
        })
    }

    fn flag(self, flag: bool) -> Self::Out {
        flag.then(ErrorNote::default)
    }

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Out, A::Error> {
        let mut first = None;
        while let Some(note) = list.next_element_seed(Any(ErrorNotes))? {
            first = first.or(note);
        }
        Ok(first)
    }

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        let (mut message, mut substitute) = (None, None);
        while let Some(key) = object.next_key_seed(Any(Key(error_key)))? {
            match key {
                ErrorKey::Message => message = object.next_value_seed(Any(Text))?,
                ErrorKey::Substitute => {
                    substitute = object.next_value_seed(Any(Text))?.or(substitute);
                }
                ErrorKey::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(ErrorNote {
            message: message.or(substitute),
        }))
    }
}
