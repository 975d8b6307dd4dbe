//! The document around the text: choices, usage, errors.

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use super::Meaning;
use super::delta::{Delta, Substance};
use super::values::{ErrorNote, ErrorNotes, Logprobs, UsageCounts};
use crate::lenient::{Any, Key, Length, Number, Reader, Text};
use crate::openai::Usage;
use crate::text;
use crate::words::ChunkKind;

/// What reading a document gathers.
#[derive(Debug, Default)]
pub(super) struct Facts {
    kind: ChunkKind,
    choices: u32,
    /// Choices that bear content.
    bearing: u32,
    /// Index of the only choice, or of the only one that bears content.
    choice_index: Option<i32>,
    tokens: Option<i32>,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    pub(super) error: Option<ErrorNote>,
    object_is_error: bool,
    pub(super) message: Option<String>,
    pub(super) detail: Option<ErrorNote>,
}

impl Facts {
    pub(super) fn meaning(self, named_error: bool, payload: &[u8]) -> Meaning {
        let is_error = self.error.is_some() || self.object_is_error || named_error;
        let message = self.error.and_then(|note| note.message).or(self.message);
        let kind = if is_error {
            ChunkKind::Error
        } else if self.usage.is_some() {
            self.kind.min(ChunkKind::Usage)
        } else {
            self.kind
        };
        let one_choice = self.bearing == 1 || (self.bearing == 0 && self.choices == 1);
        Meaning {
            kind,
            choice_index: self.choice_index.filter(|_| one_choice),
            tokens: self.tokens,
            end_marker: self.finish_reason.is_some(),
            finish_reason: self.finish_reason,
            usage: self.usage,
            error: is_error.then(|| message.unwrap_or_else(|| text::snippet(payload))),
            malformed: false,
        }
    }

    fn add_choice(&mut self, choice: Choice) {
        let bears = choice.kind <= ChunkKind::Reasoning;
        self.choices += 1;
        self.bearing += u32::from(bears);
        if bears || self.choices == 1 {
            self.choice_index = choice.index;
        }
        self.kind = self.kind.min(choice.kind);
        if let Some(tokens) = choice.token_ids.or(choice.logprobs) {
            self.tokens = Some(self.tokens.unwrap_or(0).saturating_add(tokens));
        }
        self.finish_reason = self.finish_reason.take().or(choice.finish_reason);
        self.add_usage(choice.usage);
    }

    fn add_usage(&mut self, usage: Option<Usage>) {
        if let Some(usage) = usage {
            self.usage = Some(usage.or(self.usage.unwrap_or_default()));
        }
    }
}

#[derive(Default)]
enum TopKey {
    Choices,
    Usage,
    Error,
    Object,
    Message,
    Detail,
    #[default]
    Unknown,
}

fn top_key(name: &str) -> TopKey {
    match name {
        "choices" => TopKey::Choices,
        "usage" => TopKey::Usage,
        "error" => TopKey::Error,
        "object" => TopKey::Object,
        "message" => TopKey::Message,
        "detail" => TopKey::Detail,
        _ => TopKey::Unknown,
    }
}

impl<'de> Reader<'de> for &mut Facts {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key_seed(Any(Key(top_key)))? {
            match key {
                TopKey::Choices => object.next_value_seed(Any(Choices(self)))?,
                TopKey::Usage => {
                    let usage = object.next_value_seed(Any(UsageCounts))?;
                    self.add_usage(usage);
                }
                TopKey::Error => self.error = object.next_value_seed(Any(ErrorNotes))?,
                TopKey::Object => {
                    let is_error = |name: &str| name == "error";
                    self.object_is_error = object.next_value_seed(Any(Key(is_error)))?;
                }
                TopKey::Message => self.message = object.next_value_seed(Any(Text))?,
                TopKey::Detail => self.detail = object.next_value_seed(Any(ErrorNotes))?,
                TopKey::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Choices<'f>(&'f mut Facts);

impl<'de> Reader<'de> for Choices<'_> {
    type Out = ();

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(choice) = list.next_element_seed(Any(ChoiceFields))? {
            if let Some(choice) = choice {
                self.0.add_choice(choice);
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Choice {
    index: Option<i32>,
    kind: ChunkKind,
    token_ids: Option<i32>,
    logprobs: Option<i32>,
    finish_reason: Option<String>,
    usage: Option<Usage>,
}

#[derive(Default)]
enum ChoiceKey {
    Index,
    Delta,
    Text,
    FinishReason,
    Logprobs,
    TokenIds,
    Usage,
    #[default]
    Unknown,
}

fn choice_key(name: &str) -> ChoiceKey {
    match name {
        "index" => ChoiceKey::Index,
        "delta" | "message" => ChoiceKey::Delta,
        "text" => ChoiceKey::Text,
        "finish_reason" => ChoiceKey::FinishReason,
        "logprobs" => ChoiceKey::Logprobs,
        "token_ids" => ChoiceKey::TokenIds,
        "usage" => ChoiceKey::Usage,
        _ => ChoiceKey::Unknown,
    }
}

struct ChoiceFields;

impl<'de> Reader<'de> for ChoiceFields {
    type Out = Option<Choice>;

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        let mut choice = Choice::default();
        while let Some(key) = object.next_key_seed(Any(Key(choice_key)))? {
            match key {
                ChoiceKey::Index => choice.index = object.next_value_seed(Any(Number))?,
                ChoiceKey::Delta => object.next_value_seed(Any(Delta(&mut choice.kind)))?,
                ChoiceKey::Text => {
                    object.next_value_seed(Substance::of(ChunkKind::Content, &mut choice.kind))?;
                }
                ChoiceKey::FinishReason => {
                    choice.finish_reason = object.next_value_seed(Any(Text))?;
                }
                ChoiceKey::Logprobs => choice.logprobs = object.next_value_seed(Any(Logprobs))?,
                ChoiceKey::TokenIds => choice.token_ids = object.next_value_seed(Any(Length))?,
                // Moonshot puts it here.
                ChoiceKey::Usage => choice.usage = object.next_value_seed(Any(UsageCounts))?,
                ChoiceKey::Unknown => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(choice))
    }
}
