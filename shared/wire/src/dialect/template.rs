//! Request bodies with places for what differs from request to request.

use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::{Map, Value};

use crate::word_enum;

word_enum! {
    /// What a body has a place for: `"%p"`, `"%max_tokens"`.
    Placeholder {
        Model = "m",
        Prompt = "p",
        Messages = "messages",
        System = "system",
        Turns = "turns",
        Query = "query",
        Documents = "documents",
        Stream = "stream",
        IncludeUsage = "include_usage",
        MaxTokens = "max_tokens",
        MinTokens = "min_tokens",
        Temperature = "temperature",
        TopP = "top_p",
        TopK = "top_k",
        FrequencyPenalty = "frequency_penalty",
        PresencePenalty = "presence_penalty",
        RepetitionPenalty = "repetition_penalty",
        Choices = "n",
        Seed = "seed",
        Stop = "stop",
        StopTokenIds = "stop_token_ids",
        IgnoreEos = "ignore_eos",
        BestOf = "best_of",
        UseBeamSearch = "use_beam_search",
        Logprobs = "logprobs",
        TopLogprobs = "top_logprobs",
    }
}

impl Placeholder {
    /// Whether the prompt fills it, rather than a flag.
    #[must_use]
    pub fn is_content(self) -> bool {
        matches!(
            self,
            Self::Prompt
                | Self::Messages
                | Self::System
                | Self::Turns
                | Self::Query
                | Self::Documents
        )
    }
}

/// A JSON object whose strings may be placeholders. A placeholder that is a whole
/// string becomes a value of its own type, and its key is left out where there is
/// none; so is an object that is left empty by that. `%m` and `%p` are also filled
/// in within longer strings. `%%` is a percent sign.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template(Vec<(String, Node)>);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Literal(Value),
    Place(Placeholder),
    Text(Vec<Piece>),
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Literal(String),
    Place(Placeholder),
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self(object(fields)?)),
            Ok(_) => Err("is no JSON object".to_owned()),
            Err(error) => Err(format!("is no JSON object: {error}")),
        }
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        let text = String::deserialize(text)?;
        text.parse()
            .map_err(|problem: String| D::Error::custom(format!("the body {problem}")))
    }
}

impl Template {
    /// The body. `value` gives what a placeholder stands for, if anything.
    pub fn fill(&self, value: &mut impl FnMut(Placeholder) -> Option<Value>) -> Map<String, Value> {
        let mut body = Map::new();
        for (key, node) in &self.0 {
            if let Some(value) = node.fill(value) {
                body.insert(key.clone(), value);
            }
        }
        body
    }

    /// Every placeholder that stands alone, with the keys that lead to it.
    #[must_use]
    pub fn places(&self) -> Vec<(Vec<String>, Placeholder)> {
        let mut found = Vec::new();
        let mut path = Vec::new();
        find_places(&self.0, &mut path, &mut found);
        found
    }

    /// Keys that lead to `placeholder` where it stands alone.
    #[must_use]
    pub fn place_of(&self, placeholder: Placeholder) -> Option<Vec<String>> {
        let mut places = self.places().into_iter();
        places.find_map(|(path, found)| (found == placeholder).then_some(path))
    }
}

impl Node {
    fn of(value: Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => text_node(text)?,
            Value::Object(fields) if !fields.is_empty() => Self::Object(object(fields)?),
            Value::Array(list) if !list.is_empty() => {
                let nodes: Result<Vec<Self>, String> = list.into_iter().map(Self::of).collect();
                Self::List(nodes?)
            }
            value => Self::Literal(value),
        })
    }

    fn fill(&self, value: &mut impl FnMut(Placeholder) -> Option<Value>) -> Option<Value> {
        match self {
            Self::Literal(literal) => Some(literal.clone()),
            Self::Place(placeholder) => value(*placeholder),
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => text.push_str(literal),
                        Piece::Place(placeholder) => match value(*placeholder)? {
                            Value::String(filled) => text.push_str(&filled),
                            other => text.push_str(&other.to_string()),
                        },
                    }
                }
                Some(Value::String(text))
            }
            Self::Object(fields) => {
                let mut filled = Map::new();
                for (key, node) in fields {
                    if let Some(value) = node.fill(value) {
                        filled.insert(key.clone(), value);
                    }
                }
                (!filled.is_empty()).then_some(Value::Object(filled))
            }
            Self::List(nodes) => {
                let filled = nodes.iter().filter_map(|node| node.fill(value));
                Some(Value::Array(filled.collect()))
            }
        }
    }
}

fn object(fields: Map<String, Value>) -> Result<Vec<(String, Node)>, String> {
    let node = |(key, value): (String, Value)| Ok((key, Node::of(value)?));
    fields.into_iter().map(node).collect()
}

fn find_places(
    fields: &[(String, Node)],
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, Placeholder)>,
) {
    for (key, node) in fields {
        path.push(key.clone());
        match node {
            Node::Place(placeholder) => found.push((path.clone(), *placeholder)),
            Node::Object(fields) => find_places(fields, path, found),
            _ => {}
        }
        path.pop();
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

fn text_node(text: String) -> Result<Node, String> {
    if let Some(word) = text.strip_prefix('%').filter(|word| is_word(word)) {
        return match Placeholder::from_word(word) {
            Some(placeholder) => Ok(Node::Place(placeholder)),
            None => Err(format!(
                "has the placeholder %{word}, which is none of {} (write %%{word} for the text)",
                known()
            )),
        };
    }
    let pieces = pieces(&text);
    Ok(match <[Piece; 1]>::try_from(pieces) {
        Ok([Piece::Literal(text)]) => Node::Literal(Value::String(text)),
        Ok([place]) => Node::Text(vec![place]),
        Err(pieces) if pieces.is_empty() => Node::Literal(Value::String(text)),
        Err(pieces) => Node::Text(pieces),
    })
}

fn known() -> String {
    let words = Placeholder::ALL.iter().map(|p| format!("%{}", p.as_str()));
    words.collect::<Vec<_>>().join(" ")
}

/// `%m` and `%p` where no letter follows, and `%%`.
fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        let mut after = rest[at + 1..].chars();
        let (first, second) = (after.next(), after.next());
        let ends = !second.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let placeholder = match first {
            Some('m') if ends => Some(Placeholder::Model),
            Some('p') if ends => Some(Placeholder::Prompt),
            _ => None,
        };
        if let Some(placeholder) = placeholder {
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Place(placeholder));
            rest = &rest[at + 2..];
        } else {
            literal.push('%');
            let escaped = first == Some('%');
            rest = &rest[at + 1 + usize::from(escaped)..];
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> String {
        let template: Template = template.parse().unwrap();
        let body = template.fill(&mut |placeholder| match placeholder {
            Placeholder::Model => Some(json!("mo\"del")),
            Placeholder::Prompt => Some(json!("say %m\n")),
            Placeholder::MaxTokens => Some(json!(5)),
            _ => None,
        });
        Value::Object(body).to_string()
    }

    #[test]
    fn a_placeholder_without_a_value_takes_its_key_along() {
        assert_eq!(
            filled(
                r#"{"b":"%p","a":{"n":"%max_tokens","t":"%temperature"},"o":{"t":"%top_p"},"e":{},"l":["%m","%seed"]}"#
            ),
            r#"{"b":"say %m\n","a":{"n":5},"e":{},"l":["mo\"del"]}"#
        );
    }

    #[test]
    fn model_and_prompt_are_filled_in_within_text() {
        assert_eq!(
            filled(r#"{"a":"<%m> %p!","b":"%%p","c":"100% %more %percent","d":"%p%m","e":"5 %"}"#),
            r#"{"a":"<mo\"del> say %m\n!","b":"%p","c":"100% %more %percent","d":"say %m\nmo\"del","e":"5 %"}"#
        );
    }

    #[test]
    fn an_unknown_placeholder_is_named_with_those_that_are_known() {
        let problem = r#"{"a":{"b":"%max_token"}}"#.parse::<Template>().unwrap_err();
        assert!(problem.contains("%max_token,") && problem.contains("%max_tokens "));
        assert!(
            "[1]"
                .parse::<Template>()
                .unwrap_err()
                .contains("no JSON object")
        );
    }

    #[test]
    fn places_are_found_with_their_keys() {
        let template: Template = r#"{"a":{"b":"%stream"},"c":"%m"}"#.parse().unwrap();
        let keys = |keys: &[&str]| keys.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            template.places(),
            [
                (keys(&["a", "b"]), Placeholder::Stream),
                (keys(&["c"]), Placeholder::Model)
            ]
        );
    }
}
