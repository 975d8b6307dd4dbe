//! What a delta holds: the strongest kind of text that is not empty.

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::lenient::{Any, Key, Reader};
use crate::words::ChunkKind;

/// A `delta` or `message`: lowers the kind to the strongest thing in it.
pub(super) struct Delta<'k>(pub(super) &'k mut ChunkKind);

/// The kind that a non-empty value under `name` gives a chunk.
fn delta_key(name: &str) -> Option<ChunkKind> {
    match name {
        "content" | "refusal" => Some(ChunkKind::Content),
        "tool_calls" | "function_call" => Some(ChunkKind::Tool),
        "reasoning" | "reasoning_content" => Some(ChunkKind::Reasoning),
        "role" => Some(ChunkKind::Role),
        _ => None,
    }
}

impl<'de> Reader<'de> for Delta<'_> {
    type Out = ();

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key_seed(Any(Key(delta_key)))? {
            match key {
                Some(kind) => object.next_value_seed(Substance::of(kind, self.0))?,
                None => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A value that gives its chunk a kind if a string in it is not empty: plain text,
/// an array of parts, tool calls. A tool call whose name and arguments are empty
/// says as little as empty text does.
pub(super) struct Substance<'k> {
    kind: ChunkKind,
    found: &'k mut ChunkKind,
    levels_left: u8,
}

impl<'k> Substance<'k> {
    /// Parts nest three deep; what lies deeper is skipped, which serde_json does
    /// without recursion.
    const LEVELS: u8 = 8;

    pub(super) fn of(kind: ChunkKind, found: &'k mut ChunkKind) -> Any<Self> {
        Any(Self {
            kind,
            found,
            levels_left: Self::LEVELS,
        })
    }

    fn below(&mut self, kind: ChunkKind) -> Any<Substance<'_>> {
        Any(Substance {
            kind,
            found: self.found,
            levels_left: self.levels_left - 1,
        })
    }
}

#[derive(Default)]
enum PartKey {
    /// Says what the part is, not what it holds.
    Label,
    /// Mistral sends reasoning as a content part.
    Thinking,
    #[default]
    Value,
}

fn part_key(name: &str) -> PartKey {
    match name {
        "type" | "index" | "role" => PartKey::Label,
        "thinking" | "reasoning" => PartKey::Thinking,
        _ => PartKey::Value,
    }
}

impl<'de> Reader<'de> for Substance<'_> {
    type Out = ();

    fn text(self, text: &str) {
        if !text.is_empty() {
            *self.found = (*self.found).min(self.kind);
        }
    }

    fn list<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        if self.levels_left == 0 {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while list.next_element_seed(self.below(self.kind))?.is_some() {}
        Ok(())
    }

    fn object<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key_seed(Any(Key(part_key)))? {
            match key {
                PartKey::Value if self.levels_left > 0 => {
                    object.next_value_seed(self.below(self.kind))?;
                }
                PartKey::Thinking if self.levels_left > 0 => {
                    let kind = match self.kind {
                        ChunkKind::Content => ChunkKind::Reasoning,
                        other => other,
                    };
                    object.next_value_seed(self.below(kind))?;
                }
                _ => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
