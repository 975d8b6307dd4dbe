//! A request's body, as far as the server heeds it.

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::model::OutputLimit;
use crate::text::tokens_in;

/// The most choices of one request (`n` times prompts), as `OpenAI`'s API allows.
const MAX_CHOICES: usize = 128;
/// What a chat template adds around one message, about.
const TOKENS_PER_MESSAGE: u32 = 4;

/// Which of the two generating endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

/// What one request asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) endpoint: Endpoint,
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) prompt_tokens: u32,
    pub(crate) choices: u32,
    pub(crate) limit: OutputLimit,
}

/// An answer other than 200.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) class: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            class: "BadRequestError",
            message: message.into(),
        }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let error = json!({"error": {
            "message": self.message,
            "type": self.class,
            "param": null,
            "code": self.status.as_u16(),
        }});
        error.to_string().into_bytes()
    }
}

#[derive(Deserialize)]
struct Fields {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    prompt: Option<Prompt>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<i64>,
    ignore_eos: Option<bool>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

impl Ask {
    /// Reads the body of a request to `endpoint`.
    pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let fields: Fields = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))?;
        let (prompts, prompt_tokens) = match endpoint {
            Endpoint::Chat => (1, chat_tokens(fields.messages.as_deref())?),
            Endpoint::Completions => prompt_size(fields.prompt.as_ref())?,
        };
        let max_tokens = fields.max_completion_tokens.or(fields.max_tokens);
        Ok(Self {
            endpoint,
            model: fields.model,
            stream: fields.stream.unwrap_or(false),
            include_usage: fields
                .stream_options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
            prompt_tokens,
            choices: choices(prompts, fields.n)?,
            limit: OutputLimit {
                max_tokens: max_tokens.map(output_cap).transpose()?,
                ignore_eos: fields.ignore_eos.unwrap_or(false),
            },
        })
    }
}

fn chat_tokens(messages: Option<&[Message]>) -> Result<u32, ApiError> {
    let messages = messages
        .filter(|messages| !messages.is_empty())
        .ok_or_else(|| ApiError::bad_request("`messages` is missing or empty"))?;
    let total = messages.iter().fold(0u32, |sum, message| {
        let bytes = match &message.content {
            Some(Content::Text(text)) => text.len(),
            Some(Content::Parts(parts)) => parts
                .iter()
                .filter_map(|part| part.text.as_ref())
                .map(String::len)
                .sum(),
            None => 0,
        };
        sum.saturating_add(tokens_in(bytes))
            .saturating_add(TOKENS_PER_MESSAGE)
    });
    Ok(total)
}

/// How many prompts there are, and their tokens together.
fn prompt_size(prompt: Option<&Prompt>) -> Result<(usize, u32), ApiError> {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    match prompt {
        None => Err(ApiError::bad_request("`prompt` is missing")),
        Some(Prompt::Text(text)) => Ok((1, tokens_in(text.len()))),
        Some(Prompt::Ids(ids)) => Ok((1, count(ids.len()))),
        Some(Prompt::Texts(texts)) => Ok((
            texts.len(),
            texts
                .iter()
                .fold(0, |sum, text| sum.saturating_add(tokens_in(text.len()))),
        )),
        Some(Prompt::IdLists(lists)) => Ok((
            lists.len(),
            lists
                .iter()
                .fold(0, |sum, ids| sum.saturating_add(count(ids.len()))),
        )),
    }
}

fn choices(prompts: usize, n: Option<i64>) -> Result<u32, ApiError> {
    let n = usize::try_from(n.unwrap_or(1)).unwrap_or(0);
    match prompts.saturating_mul(n) {
        choices @ 1..=MAX_CHOICES => Ok(choices as u32),
        _ => Err(ApiError::bad_request(format!(
            "`n` times the number of prompts must be from 1 to {MAX_CHOICES}"
        ))),
    }
}

fn output_cap(max_tokens: i64) -> Result<u32, ApiError> {
    if max_tokens < 1 {
        return Err(ApiError::bad_request(format!(
            "`max_tokens` must be at least 1, got {max_tokens}"
        )));
    }
    Ok(u32::try_from(max_tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Result<Ask, ApiError> {
        Ask::parse(Endpoint::Chat, body.as_bytes())
    }

    fn completion(body: &str) -> Result<Ask, ApiError> {
        Ask::parse(Endpoint::Completions, body.as_bytes())
    }

    #[test]
    fn a_chat_request_is_read_with_fields_it_does_not_know() {
        let ask = chat(
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"temperature":0,
                "max_tokens":7,"max_completion_tokens":9,"ignore_eos":true,"n":2,
                "messages":[{"role":"system","content":"12345"},
                            {"role":"user","content":[{"type":"text","text":"1234"},{"type":"image_url"}]},
                            {"role":"assistant","content":null,"tool_calls":[]}]}"#,
        )
        .unwrap();
        assert_eq!(ask.prompt_tokens, 2 + 1 + 3 * TOKENS_PER_MESSAGE);
        assert_eq!(
            (ask.choices, ask.stream, ask.include_usage),
            (2, true, true)
        );
        assert_eq!(
            ask.limit,
            OutputLimit {
                max_tokens: Some(9),
                ignore_eos: true
            }
        );
    }

    #[test]
    fn a_prompt_may_be_text_ids_or_a_list_of_either() {
        let size = |prompt: &str| {
            let ask = completion(&format!(r#"{{"prompt":{prompt}}}"#)).unwrap();
            (ask.choices, ask.prompt_tokens)
        };
        assert_eq!(size(r#""12345678""#), (1, 2));
        assert_eq!(size("[5,6,7]"), (1, 3));
        assert_eq!(size(r#"["1234","12345"]"#), (2, 3));
        assert_eq!(size("[[1,2],[3]]"), (2, 3));
    }

    #[test]
    fn what_cannot_be_served_is_a_bad_request_that_says_why() {
        let message = |result: Result<Ask, ApiError>| {
            let error = result.unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            error.message
        };
        assert!(message(chat("{")).contains("invalid request body"));
        assert!(message(chat("[]")).contains("invalid request body"));
        assert!(message(chat("{}")).contains("`messages`"));
        assert!(message(chat(r#"{"messages":[]}"#)).contains("`messages`"));
        assert!(message(completion("{}")).contains("`prompt`"));
        assert!(message(chat(r#"{"messages":[{}],"max_tokens":0}"#)).contains("`max_tokens`"));
        assert!(message(chat(r#"{"messages":[{}],"n":0}"#)).contains("`n`"));
        assert!(message(chat(r#"{"messages":[{}],"n":-1}"#)).contains("`n`"));
        assert!(message(chat(r#"{"messages":[{}],"n":129}"#)).contains("`n`"));
        assert!(message(completion(r#"{"prompt":{}}"#)).contains("invalid request body"));
    }
}
