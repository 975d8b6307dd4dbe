//! Where in a document things sit.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A JSON pointer (RFC 6901) in which `*` stands for every element of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pointer(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Every,
}

impl Step {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(key),
            Self::Every => None,
        }
    }
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let Some(steps) = text.strip_prefix('/') else {
            return Err(format!(
                "{text:?} is no JSON pointer: it begins with `/`, as in /choices/0/text"
            ));
        };
        let step = |step: &str| match step {
            "*" => Step::Every,
            key => Step::Key(key.replace("~1", "/").replace("~0", "~")),
        };
        Ok(Self(steps.split('/').map(step).collect()))
    }
}

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        let text = String::deserialize(text)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Pointer {
    /// Of these keys, one below the other.
    #[must_use]
    pub(super) fn of_keys(keys: &[String]) -> Self {
        Self(keys.iter().cloned().map(Step::Key).collect())
    }

    /// Hands out every value there that is not null.
    pub fn visit<'v>(&self, document: &'v Value, out: &mut impl FnMut(&'v Value)) {
        visit(&self.0, document, out);
    }

    /// The first value there.
    #[must_use]
    pub fn first<'v>(&self, document: &'v Value) -> Option<&'v Value> {
        let mut first = None;
        self.visit(document, &mut |value| first = first.or(Some(value)));
        first
    }

    /// The value there, for a pointer that names one place in objects.
    #[must_use]
    pub fn one_mut<'v>(&self, document: &'v mut Value) -> Option<&'v mut Value> {
        let mut steps = self.0.iter();
        steps.try_fold(document, |at, step| at.get_mut(step.key()?))
    }

    /// Keys of a pointer that names one place in objects.
    #[must_use]
    pub fn keys(&self) -> Option<Vec<&str>> {
        self.0.iter().map(Step::key).collect()
    }
}

fn visit<'v>(steps: &[Step], value: &'v Value, out: &mut impl FnMut(&'v Value)) {
    let Some((step, below)) = steps.split_first() else {
        if !value.is_null() {
            out(value);
        }
        return;
    };
    match (step, value) {
        (Step::Key(key), Value::Object(fields)) => {
            if let Some(value) = fields.get(key) {
                visit(below, value, out);
            }
        }
        (Step::Key(key), Value::Array(list)) => {
            let value = key.parse().ok().and_then(|index: usize| list.get(index));
            if let Some(value) = value {
                visit(below, value, out);
            }
        }
        (Step::Every, Value::Array(list)) => {
            for value in list {
                visit(below, value, out);
            }
        }
        _ => {}
    }
}

/// A pointer and when it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    at: Pointer,
    when: Option<Pointer>,
    /// Values that `when` must have; any that is true, where there are none.
    is: Vec<Value>,
    unless: Option<Pointer>,
}

impl Place {
    fn counts(&self, document: &Value) -> bool {
        let holds = |pointer: &Pointer| pointer.first(document).is_some_and(is_true);
        let when = self.when.as_ref().is_none_or(|when| {
            if self.is.is_empty() {
                return holds(when);
            }
            when.first(document).is_some_and(|v| self.is.contains(v))
        });
        when && !self.unless.as_ref().is_some_and(holds)
    }
}

/// Everything but null, false, zero and what is empty.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Places of one thing, best first: a pointer, a table, or a list of both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places(Vec<Place>);

impl Places {
    /// Hands out every value at every place that counts.
    pub fn visit<'v>(&self, document: &'v Value, out: &mut impl FnMut(&'v Value)) {
        for place in self.0.iter().filter(|place| place.counts(document)) {
            place.at.visit(document, out);
        }
    }

    /// The values of the first place that has any.
    pub fn visit_first<'v>(&self, document: &'v Value, out: &mut impl FnMut(&'v Value)) {
        for place in self.0.iter().filter(|place| place.counts(document)) {
            let mut found = false;
            place.at.visit(document, &mut |value| {
                found = true;
                out(value);
            });
            if found {
                return;
            }
        }
    }

    /// Whether there is something other than emptiness.
    #[must_use]
    pub fn hold(&self, document: &Value) -> bool {
        let mut found = false;
        self.visit(document, &mut |value| found |= is_true(value));
        found
    }

    /// Whether something to read is there: text, or a list or object that is not
    /// empty.
    #[must_use]
    pub fn bear(&self, document: &Value) -> bool {
        let mut found = false;
        self.visit(document, &mut |value| {
            found |= !matches!(value, Value::Bool(_) | Value::Number(_)) && is_true(value);
        });
        found
    }
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        value.deserialize_any(PlacesVisitor)
    }
}

struct PlacesVisitor;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceTable {
    at: Option<Pointer>,
    when: Option<Pointer>,
    #[serde(default)]
    is: OneOrMany,
    unless: Option<Pointer>,
}

#[derive(Default, serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    Many(Vec<Value>),
    One(Value),
}

impl<'de> Visitor<'de> for PlacesVisitor {
    type Value = Places;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON pointer, a table { at, when, is, unless }, or a list of both")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Places, E> {
        Ok(Places(vec![Place {
            at: text.parse().map_err(E::custom)?,
            when: None,
            is: Vec::new(),
            unless: None,
        }]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Places, A::Error> {
        let mut places = Vec::new();
        while let Some(more) = list.next_element::<Places>()? {
            places.extend(more.0);
        }
        Ok(Places(places))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Places, A::Error> {
        let table = PlaceTable::deserialize(MapAccessDeserializer::new(map))?;
        // `{ when = "/done" }` asks for nothing but its condition.
        let at = table.at.or_else(|| table.when.clone());
        Ok(Places(vec![Place {
            at: at.ok_or_else(|| A::Error::custom("a place needs `at` or `when`"))?,
            when: table.when,
            is: match table.is {
                OneOrMany::None => Vec::new(),
                OneOrMany::One(value) => vec![value],
                OneOrMany::Many(values) => values,
            },
            unless: table.unless,
        }]))
    }
}

/// Where a count sits, best first. Each is one pointer, or several joined by
/// ` + ` whose numbers are added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts(Vec<Vec<Pointer>>);

impl Counts {
    /// The first count that is there.
    #[must_use]
    pub fn read(&self, document: &Value) -> Option<i32> {
        self.0.iter().find_map(|terms| sum(terms, document))
    }
}

/// The sum of the numbers that are there; the first term must be.
fn sum(terms: &[Pointer], document: &Value) -> Option<i32> {
    let (first, others) = terms.split_first()?;
    let mut total = count(first.first(document)?)?;
    for term in others {
        if let Some(more) = term.first(document).and_then(count) {
            total = total.saturating_add(more);
        }
    }
    Some(total)
}

/// A whole number that is not negative.
pub(crate) fn count(value: &Value) -> Option<i32> {
    let number = match value.as_i64() {
        Some(number) => number,
        None => value.as_f64().filter(|x| x.fract() == 0.0)? as i64,
    };
    i32::try_from(number).ok().filter(|number| *number >= 0)
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(
            untagged,
            expecting = "a JSON pointer, several joined by ` + `, or a list of such"
        )]
        enum Raw {
            One(String),
            Many(Vec<String>),
        }
        let texts = match Raw::deserialize(value)? {
            Raw::One(text) => vec![text],
            Raw::Many(texts) => texts,
        };
        let terms = |text: &String| text.split('+').map(|term| term.trim().parse()).collect();
        let counts: Result<Vec<Vec<Pointer>>, String> = texts.iter().map(terms).collect();
        counts.map(Self).map_err(D::Error::custom)
    }
}
