//! Reading JSON of any shape: a value of an unexpected type is skipped, not an
//! error, and what is skipped is never allocated.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::text;

/// What one place in a document is read for, by the type found there. Types
/// without a method of their own count as absent.
pub(crate) trait Reader<'de>: Sized {
    type Out: Default;

    fn text(self, _text: &str) -> Self::Out {
        Self::Out::default()
    }

    fn flag(self, _flag: bool) -> Self::Out {
        Self::Out::default()
    }

    /// A number; `None` where it is no whole number that fits.
    fn number(self, _number: Option<i32>) -> Self::Out {
        Self::Out::default()
    }

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Out, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::Out::default())
    }

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::Out::default())
    }
}

/// Reads with `R` whatever the value's type is.
pub(crate) struct Any<R>(pub(crate) R);

impl<'de, R: Reader<'de>> DeserializeSeed<'de> for Any<R> {
    type Value = R::Out;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<R::Out, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de, R: Reader<'de>> Visitor<'de> for Any<R> {
    type Value = R::Out;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<R::Out, E> {
        Ok(self.0.text(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<R::Out, E> {
        Ok(self.0.flag(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<R::Out, E> {
        Ok(self.0.number(i32::try_from(value).ok()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<R::Out, E> {
        Ok(self.0.number(i32::try_from(value).ok()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<R::Out, E> {
        let whole = value.fract() == 0.0 && value.abs() <= f64::from(i32::MAX);
        Ok(self.0.number(whole.then_some(value as i32)))
    }

    fn visit_unit<E: Error>(self) -> Result<R::Out, E> {
        Ok(R::Out::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<R::Out, A::Error> {
        self.0.list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<R::Out, A::Error> {
        self.0.object(object)
    }
}

/// A key, turned into what it stands for; other keys are the default.
pub(crate) struct Key<F>(pub(crate) F);

impl<K: Default, F: FnOnce(&str) -> K> Reader<'_> for Key<F> {
    type Out = K;

    fn text(self, text: &str) -> K {
        self.0(text)
    }
}

/// A whole number.
pub(crate) struct Number;

impl Reader<'_> for Number {
    type Out = Option<i32>;

    fn number(self, number: Option<i32>) -> Self::Out {
        number
    }
}

/// A string that is not empty.
pub(crate) struct Text;

impl Reader<'_> for Text {
    type Out = Option<String>;

    fn text(self, text: &str) -> Self::Out {
        (!text.is_empty()).then(|| text::message(text))
    }
}

/// The number of elements of a list.
pub(crate) struct Length;

impl<'de> Reader<'de> for Length {
    type Out = Option<i32>;

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Out, A::Error> {
        let mut length = 0_i32;
        while list.next_element::<IgnoredAny>()?.is_some() {
            length = length.saturating_add(1);
        }
        Ok(Some(length))
    }
}

/// Reads a document into `S`, or `None` where the payload is no JSON. Bytes that
/// are not UTF-8 and escapes of half a UTF-16 pair, which servers send when a token
/// ends inside a character, do not make it invalid.
pub(crate) fn read<S: Default + 'static>(payload: &[u8]) -> Option<S>
where
    for<'s, 'de> &'s mut S: Reader<'de, Out = ()>,
{
    read_strict(payload).or_else(|| read_strict(&repaired(payload)?))
}

/// The document in `payload`, as tolerant as [`read`]; for readers that do not know
/// beforehand what they look for.
pub(crate) fn document(payload: &[u8]) -> Option<serde_json::Value> {
    let strict = |payload: &[u8]| serde_json::from_slice(payload).ok();
    strict(payload).or_else(|| strict(&repaired(payload)?))
}

fn read_strict<S: Default + 'static>(payload: &[u8]) -> Option<S>
where
    for<'s, 'de> &'s mut S: Reader<'de, Out = ()>,
{
    let mut state = S::default();
    let mut document = serde_json::Deserializer::from_slice(payload);
    Any(&mut state).deserialize(&mut document).ok()?;
    document.end().ok()?;
    Some(state)
}

/// `payload` with U+FFFD for everything that no Rust string can hold; `None` where
/// there is no such thing, so that plain junk is not read twice.
fn repaired(payload: &[u8]) -> Option<Vec<u8>> {
    let (mut bytes, was_utf8) = match std::str::from_utf8(payload) {
        Ok(text) => (text.as_bytes().to_vec(), true),
        Err(_) => (text::lossy(payload).into_bytes(), false),
    };
    let replaced = replace_lone_surrogates(&mut bytes);
    (replaced || !was_utf8).then_some(bytes)
}

/// Turns `\udXXX` escapes without their other half into `\uFFFD`; whether there
/// were any.
fn replace_lone_surrogates(bytes: &mut [u8]) -> bool {
    let mut replaced = false;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        at += found;
        at += match escaped_unit(&bytes[at..]) {
            Some(0xD800..=0xDBFF)
                if matches!(escaped_unit(&bytes[at + 6..]), Some(0xDC00..=0xDFFF)) =>
            {
                12
            }
            Some(0xD800..=0xDFFF) => {
                bytes[at + 2..at + 6].copy_from_slice(b"FFFD");
                replaced = true;
                6
            }
            Some(_) => 6,
            None => 2,
        };
        at = at.min(bytes.len());
    }
    replaced
}

/// The UTF-16 unit that `bytes` begin with as a `\uXXXX` escape.
fn escaped_unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
