//! The file format, version 1, and what it is checked for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Table;

use super::error::DialectError;
use super::place::{Counts, Places, Pointer};
use super::template::{Placeholder, Template};
use super::{Api, BUILT_IN, Dialect, VERSION};
use crate::ppl;

/// What is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestPart {
    pub method: String,
    /// With `%m` for the model.
    pub path: String,
    /// For answers that are not streamed, where it is another.
    pub whole_path: Option<String>,
    pub headers: BTreeMap<String, String>,
    /// Only with requests for a stream.
    pub stream_headers: BTreeMap<String, String>,
    pub api_key: AuthHeader,
    pub body: Template,
    /// Values of placeholders that no flag gives, by the placeholder's name; the
    /// model's is `model`.
    pub defaults: Map<String, Value>,
    /// Where settings without a placeholder go, under their own names; `None`
    /// where they have no place.
    pub rest: Option<Pointer>,
    /// Further places of an output limit, in bodies that others wrote.
    pub other_limits: Vec<Pointer>,
    /// Whether a body that does not say so asks for a stream.
    pub streams_unasked: bool,
}

/// The header that carries the API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthHeader {
    pub name: String,
    /// What stands before the key.
    pub prefix: String,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsePart {
    pub interpreter: InterpreterName,
    pub framing: Framing,
    pub text_is: TextIs,
    pub end: EndRule,
    pub text: Places,
    pub reasoning: Places,
    pub tool: Places,
    pub role: Places,
    pub choice: Places,
    /// The list of an answer's choices, where one document has several.
    pub choices: Option<Pointer>,
    pub tokens: Places,
    pub tokens_so_far: Counts,
    pub finish: Places,
    /// Finish reasons that mean there is none yet.
    pub finish_none: Vec<String>,
    pub done: Places,
    pub done_data: Option<String>,
    pub error: Places,
    pub error_message: Places,
    pub input_tokens: Counts,
    pub output_tokens: Counts,
    pub reasoning_tokens: Counts,
    pub cached_tokens: Counts,
}

/// Who reads the payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum InterpreterName {
    /// The places of this file.
    #[default]
    #[serde(rename = "places")]
    Places,
    /// The reader of OpenAI's chat and completions, which is the fastest.
    #[serde(rename = "openai")]
    OpenAi,
    /// Protobuf messages of `ppl.llm.serving`, openppl's protocol.
    #[serde(rename = "ppl-v1")]
    PplV1,
    /// The same, llm.perf's protocol.
    #[serde(rename = "ppl-v2")]
    PplV2,
}

impl InterpreterName {
    /// Which protocol of `ppl.llm.serving` it reads.
    #[must_use]
    pub fn ppl(self) -> Option<ppl::Version> {
        match self {
            Self::PplV1 => Some(ppl::Version::V1),
            Self::PplV2 => Some(ppl::Version::V2),
            Self::Places | Self::OpenAi => None,
        }
    }
}

/// How an answer is cut into chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    #[default]
    Sse,
    /// One JSON document a line.
    Ndjson,
    /// The elements of one JSON list.
    Json,
    /// Messages of a gRPC call, over HTTP/2.
    Grpc,
    /// Never streamed.
    None,
}

/// What the text of a chunk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextIs {
    /// What is new.
    #[default]
    Incremental,
    /// All so far; it bears content when it has grown.
    Cumulative,
}

/// What tells that a stream is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndRule {
    /// A finish reason or an end marker.
    #[default]
    Marker,
    /// Its clean end, for APIs that have neither.
    Close,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    // Read before all else, by itself.
    #[serde(rename = "version")]
    _version: u32,
    name: Option<String>,
    about: Option<String>,
    // Filled in by then.
    #[serde(rename = "extends")]
    _extends: Option<String>,
    #[serde(default)]
    request: RequestFile,
    #[serde(default)]
    response: ResponseFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequestFile {
    method: Option<String>,
    path: Option<String>,
    whole_path: Option<String>,
    headers: BTreeMap<String, String>,
    stream_headers: BTreeMap<String, String>,
    api_key: Option<String>,
    body: Option<Template>,
    defaults: Map<String, Value>,
    rest: Option<Pointer>,
    other_limits: Vec<Pointer>,
    streams_unasked: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResponseFile {
    interpreter: InterpreterName,
    framing: Framing,
    text_is: TextIs,
    end: EndRule,
    text: Places,
    reasoning: Places,
    tool: Places,
    role: Places,
    choice: Places,
    choices: Option<Pointer>,
    tokens: Places,
    tokens_so_far: Counts,
    finish: Places,
    finish_none: Vec<String>,
    done: Places,
    done_data: Option<String>,
    error: Places,
    error_message: Places,
    usage: UsageFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UsageFile {
    input_tokens: Counts,
    output_tokens: Counts,
    reasoning_tokens: Counts,
    cached_tokens: Counts,
}

pub(super) fn parse(text: &str, origin: &str, stem: &str) -> Result<Dialect, DialectError> {
    let mut table = merged(text, origin)?;
    table.remove("extends");
    table
        .entry("name")
        .or_insert_with(|| stem.to_owned().into());
    let recorded = serde_json::to_value(&table).map_err(|e| syntax(origin, &e.to_string()))?;
    from_checked(recorded, origin)
}

pub(super) fn from_recorded(recorded: &Value) -> Result<Dialect, DialectError> {
    let origin = "the recording's dialect";
    check_version(recorded.get("version").and_then(Value::as_i64), origin)?;
    from_checked(recorded.clone(), origin)
}

fn from_checked(recorded: Value, origin: &str) -> Result<Dialect, DialectError> {
    let file = File::deserialize(&recorded).map_err(|e| syntax(origin, &e.to_string()))?;
    Dialect::checked(file, recorded, origin)
}

fn syntax(origin: &str, problem: &str) -> DialectError {
    DialectError::Syntax {
        origin: origin.to_owned(),
        problem: problem.trim_end().to_owned(),
    }
}

fn check_version(found: Option<i64>, origin: &str) -> Result<(), DialectError> {
    match found {
        Some(found) if (1..=i64::from(VERSION)).contains(&found) => Ok(()),
        Some(found) => Err(DialectError::Version {
            origin: origin.to_owned(),
            found,
            known: VERSION,
        }),
        None => Err(DialectError::key(
            origin,
            "version",
            "is missing",
            "write version = 1 at the top",
        )),
    }
}

/// The file's table over that of what it extends.
fn merged(text: &str, origin: &str) -> Result<Table, DialectError> {
    let own: Table = toml::from_str(text).map_err(|e| syntax(origin, &e.to_string()))?;
    check_version(own.get("version").and_then(toml::Value::as_integer), origin)?;
    // For its messages, which show the line.
    toml::from_str::<File>(text).map_err(|e| syntax(origin, &e.to_string()))?;
    let Some(base) = own.get("extends").and_then(toml::Value::as_str) else {
        return Ok(own);
    };
    let Some(base) = BUILT_IN.iter().find(|row| row.answers_to(base)) else {
        let names: Vec<&str> = Api::built_in().map(|row| row.name).collect();
        return Err(DialectError::key(
            origin,
            "extends",
            &format!("names {base:?}, which is not built in"),
            &format!("known: {}", names.join(", ")),
        ));
    };
    let mut table = merged(base.text, base.name)?;
    // They describe the other one.
    table.remove("name");
    table.remove("about");
    merge(&mut table, own);
    Ok(table)
}

/// Tables that are filled up rather than replaced.
const FILLED_UP: [&str; 6] = [
    "request",
    "response",
    "headers",
    "stream_headers",
    "defaults",
    "usage",
];

fn merge(base: &mut Table, own: Table) {
    for (key, value) in own {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(own))
                if FILLED_UP.contains(&key.as_str()) =>
            {
                merge(base, own);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

impl Dialect {
    fn checked(file: File, recorded: Value, origin: &str) -> Result<Self, DialectError> {
        let request = RequestPart::checked(file.request, origin)?;
        let response = ResponsePart::checked(file.response, origin)?;
        let name = file.name.unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(DialectError::key(
                origin,
                "name",
                "is no word",
                "it stands in every row of a recording; use letters, digits and dashes",
            ));
        }
        Ok(Self {
            name,
            about: file.about.unwrap_or_default(),
            request,
            response,
            recorded,
        })
    }
}

impl RequestPart {
    fn checked(file: RequestFile, origin: &str) -> Result<Self, DialectError> {
        let missing = |key: &str, hint: &str| DialectError::key(origin, key, "is missing", hint);
        let path = file
            .path
            .ok_or_else(|| missing("request.path", "for instance path = \"/generate\""))?;
        let paths = [
            ("request.path", Some(&path)),
            ("request.whole_path", file.whole_path.as_ref()),
        ];
        for (key, path) in paths {
            if path.is_some_and(|path| !path.starts_with('/')) {
                let hint = "a path begins with `/`; the server's address is --url";
                return Err(DialectError::key(origin, key, "is no path", hint));
            }
        }
        for key in file.defaults.keys() {
            let known = Placeholder::from_word(key).filter(|p| !p.is_content());
            if key != "model" && known.is_none() {
                return Err(DialectError::key(
                    origin,
                    &format!("request.defaults.{key}"),
                    "is no placeholder that a flag fills",
                    "a value that never changes stands in request.body itself",
                ));
            }
        }
        if file.rest.as_ref().is_some_and(|rest| rest.keys().is_none()) {
            let hint = "for instance rest = \"/parameters\"";
            return Err(DialectError::key(
                origin,
                "request.rest",
                "is no one place",
                hint,
            ));
        }
        Ok(Self {
            method: file.method.unwrap_or_else(|| "POST".to_owned()),
            path,
            whole_path: file.whole_path,
            headers: file.headers,
            stream_headers: file.stream_headers,
            api_key: AuthHeader::checked(file.api_key.as_deref(), origin)?,
            body: file.body.ok_or_else(|| {
                missing("request.body", "for instance body = '{\"prompt\": \"%p\"}'")
            })?,
            defaults: file.defaults,
            rest: file.rest,
            other_limits: file.other_limits,
            streams_unasked: file.streams_unasked,
        })
    }
}

impl AuthHeader {
    fn checked(text: Option<&str>, origin: &str) -> Result<Self, DialectError> {
        let text = text.unwrap_or("Authorization: Bearer %k");
        let header = text.split_once(':').and_then(|(name, value)| {
            let prefix = value.trim_start().strip_suffix("%k")?;
            Some(Self {
                name: name.trim().to_owned(),
                prefix: prefix.to_owned(),
            })
        });
        header.ok_or_else(|| {
            let hint = "for instance api_key = \"Authorization: Bearer %k\"";
            DialectError::key(
                origin,
                "request.api_key",
                "is no header that ends in %k",
                hint,
            )
        })
    }
}

impl ResponsePart {
    fn checked(file: ResponseFile, origin: &str) -> Result<Self, DialectError> {
        let none = Places::default();
        let bears = [&file.text, &file.reasoning, &file.tool];
        let ends = file.finish != none || file.done != none || file.done_data.is_some();
        let streamed = file.framing != Framing::None;
        let grpc = file.framing == Framing::Grpc;
        let problem = match file.interpreter {
            interpreter if grpc != interpreter.ppl().is_some() => Some((
                "response.framing",
                "and the interpreter do not go together",
                "framing = \"grpc\" needs interpreter = \"ppl-v1\" or \"ppl-v2\", and they need it",
            )),
            InterpreterName::OpenAi if bears != [&none; 3] || ends => Some((
                "response.interpreter",
                "= \"openai\" knows its own places",
                "leave out text, finish and the like, or the interpreter",
            )),
            InterpreterName::OpenAi if file.framing != Framing::Sse => Some((
                "response.framing",
                "is not SSE",
                "interpreter = \"openai\" reads SSE only",
            )),
            InterpreterName::Places if streamed && bears == [&none; 3] => Some((
                "response.text",
                "is missing",
                "where in an event the text sits, for instance text = \"/choices/0/text\"",
            )),
            InterpreterName::Places if streamed && file.end == EndRule::Marker && !ends => Some((
                "response.finish",
                "is missing",
                "where the finish reason sits, or done, or done_data, or end = \"close\" where the stream just ends",
            )),
            _ => None,
        };
        let is_one = |choices: &Pointer| choices.keys().is_some();
        let many = file.choices.as_ref().is_some_and(|c| !is_one(c));
        let problem = problem.or(many.then_some((
            "response.choices",
            "is no one place",
            "the list itself, for instance choices = \"/output/choices\"",
        )));
        if let Some((key, problem, hint)) = problem {
            return Err(DialectError::key(origin, key, problem, hint));
        }
        Ok(Self {
            interpreter: file.interpreter,
            framing: file.framing,
            text_is: file.text_is,
            end: file.end,
            text: file.text,
            reasoning: file.reasoning,
            tool: file.tool,
            role: file.role,
            choice: file.choice,
            choices: file.choices,
            tokens: file.tokens,
            tokens_so_far: file.tokens_so_far,
            finish: file.finish,
            finish_none: file.finish_none,
            done: file.done,
            done_data: file.done_data,
            error: file.error,
            error_message: file.error_message,
            input_tokens: file.usage.input_tokens,
            output_tokens: file.usage.output_tokens,
            reasoning_tokens: file.usage.reasoning_tokens,
            cached_tokens: file.usage.cached_tokens,
        })
    }
}
