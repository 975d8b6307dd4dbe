//! The JSON of answers, in vLLM's shape and key order.

use bytes::Bytes;
use serde_json::json;

use crate::model::{Ending, mix};
use crate::request::{Ask, Endpoint};
use crate::text::token;

/// What ends every stream.
pub(crate) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Writes the chunks of one answer.
#[derive(Debug)]
pub(crate) struct Reply {
    endpoint: Endpoint,
    /// Everything of a chunk up to its list of choices.
    head: String,
    /// Everything of a whole answer up to its list of choices.
    whole_head: String,
    text_seed: u64,
    prompt_tokens: u32,
}

impl Reply {
    /// `created_s` is the wall clock in whole seconds.
    pub(crate) fn new(ask: &Ask, model: &str, seed: u64, ordinal: u64, created_s: i64) -> Self {
        let text_seed = mix(seed, ordinal);
        let id = format!("{:016x}{:016x}", mix(text_seed, 1), mix(text_seed, 2));
        let (prefix, object, whole_object) = match ask.endpoint {
            Endpoint::Chat => ("chatcmpl-", "chat.completion.chunk", "chat.completion"),
            Endpoint::Completions => ("cmpl-", "text_completion", "text_completion"),
        };
        let model = json!(model);
        let head = |object| {
            format!(
                r#"{{"id":"{prefix}{id}","object":"{object}","created":{created_s},"model":{model},"choices":["#
            )
        };
        Self {
            endpoint: ask.endpoint,
            head: head(object),
            whole_head: head(whole_object),
            text_seed,
            prompt_tokens: ask.prompt_tokens,
        }
    }

    /// The first chunk of a chat choice: a role and no text. Completions have none.
    pub(crate) fn role(&self, choice: u32) -> Option<Bytes> {
        match self.endpoint {
            Endpoint::Completions => None,
            Endpoint::Chat => Some(self.event(&format!(
                r#"{{"index":{choice},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}"#
            ))),
        }
    }

    /// The chunk of token number `index` (from 0).
    pub(crate) fn token(&self, choice: u32, index: u32) -> Bytes {
        let (space, word) = token(self.text_seed, choice, index);
        self.event(&match self.endpoint {
            Endpoint::Chat => format!(
                r#"{{"index":{choice},"delta":{{"content":"{space}{word}"}},"logprobs":null,"finish_reason":null}}]}}"#
            ),
            Endpoint::Completions => format!(
                r#"{{"index":{choice},"text":"{space}{word}","logprobs":null,"finish_reason":null,"stop_reason":null}}]}}"#
            ),
        })
    }

    /// The chunk that says why a choice ended.
    pub(crate) fn finish(&self, choice: u32, ending: Ending) -> Bytes {
        let reason = finish_reason(ending);
        self.event(&match self.endpoint {
            Endpoint::Chat => format!(
                r#"{{"index":{choice},"delta":{{"content":""}},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}]}}"#
            ),
            Endpoint::Completions => format!(
                r#"{{"index":{choice},"text":"","logprobs":null,"finish_reason":"{reason}","stop_reason":null}}]}}"#
            ),
        })
    }

    /// The chunk without choices that `include_usage` asks for.
    pub(crate) fn usage(&self, completion_tokens: u64) -> Bytes {
        self.event(&format!(
            r#"],"usage":{}}}"#,
            self.usage_object(completion_tokens)
        ))
    }

    /// A failure inside a stream, after HTTP 200 went out.
    pub(crate) fn failure() -> Bytes {
        let mut event = b"data: ".to_vec();
        event.extend_from_slice(&failure_body());
        event.extend_from_slice(b"\n\n");
        Bytes::from(event)
    }

    /// The body of a whole answer.
    pub(crate) fn whole(&self, choices: u32, tokens: u32, ending: Ending) -> Bytes {
        let mut body = self.whole_head.clone();
        let reason = finish_reason(ending);
        for choice in 0..choices {
            let comma = if choice == 0 { "" } else { "," };
            let (open, close) = match self.endpoint {
                Endpoint::Chat => (r#""message":{"role":"assistant","content":""#, "\"}"),
                Endpoint::Completions => (r#""text":""#, "\""),
            };
            body.push_str(&format!(r#"{comma}{{"index":{choice},{open}"#));
            for index in 0..tokens {
                let (space, word) = token(self.text_seed, choice, index);
                body.push_str(space);
                body.push_str(word);
            }
            body.push_str(&format!(
                r#"{close},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}"#
            ));
        }
        let usage = self.usage_object(u64::from(choices) * u64::from(tokens));
        body.push_str(&format!(r#"],"usage":{usage}}}"#));
        Bytes::from(body)
    }

    fn usage_object(&self, completion_tokens: u64) -> String {
        let prompt_tokens = u64::from(self.prompt_tokens);
        let total_tokens = prompt_tokens + completion_tokens;
        format!(
            r#"{{"prompt_tokens":{prompt_tokens},"total_tokens":{total_tokens},"completion_tokens":{completion_tokens},"prompt_tokens_details":null}}"#
        )
    }

    fn event(&self, tail: &str) -> Bytes {
        let mut event = Vec::with_capacity(self.head.len() + tail.len() + 8);
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(self.head.as_bytes());
        event.extend_from_slice(tail.as_bytes());
        event.extend_from_slice(b"\n\n");
        Bytes::from(event)
    }
}

/// The error object of a drawn failure, in a stream or as the body of a 500.
pub(crate) fn failure_body() -> Vec<u8> {
    json!({"error": {
        "message": "the simulator was asked to fail some requests",
        "type": "InternalServerError",
        "param": null,
        "code": 500,
    }})
    .to_string()
    .into_bytes()
}

fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "stop",
        Ending::Length => "length",
        Ending::Failure => "error",
    }
}

/// `/v1/models`.
pub(crate) fn models(model: &str, created_s: i64) -> Bytes {
    let list = json!({"object": "list", "data": [{
        "id": model,
        "object": "model",
        "created": created_s,
        "owned_by": "tapedeck",
        "max_model_len": crate::config::MAX_OUTPUT_TOKENS,
    }]});
    Bytes::from(list.to_string())
}
