//! Request bodies of the OpenAI APIs.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tapedeck_wire::openai::Api;

use crate::prompts::{Item, Prompt, joined};

/// What goes into a body besides the prompt. `None` leaves the field to the
/// server, or to the body that the data set brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BodyOptions {
    pub model: Option<String>,
    pub stream: Option<bool>,
    /// `stream_options.include_usage` on streamed requests.
    pub include_usage: bool,
    pub max_tokens: Option<u32>,
    /// Removes an output limit that a data set's body brings.
    pub ignore_max_tokens: bool,
    /// Other fields, as they are: sampling parameters, `--extra-body`.
    pub fields: Map<String, Value>,
}

/// A body and what the recording says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct BuiltBody {
    pub body: Bytes,
    pub model: Option<String>,
    pub stream: bool,
    pub max_output_tokens: Option<i32>,
}

const LIMIT_FIELDS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// The body of `prompt` for `api`. Fields keep one order, so equal input gives
/// equal bytes. An output limit is the option's, else the data set's.
#[must_use]
pub fn build(api: Api, prompt: &Prompt, options: &BodyOptions) -> BuiltBody {
    let mut body = start(api, &prompt.item);
    if let Some(model) = &options.model {
        body.insert("model".into(), json!(model));
    }
    if options.ignore_max_tokens {
        for field in LIMIT_FIELDS {
            body.shift_remove(field);
        }
    }
    let own_limit = prompt.max_tokens.filter(|_| !options.ignore_max_tokens);
    if let Some(limit) = options.max_tokens.or(own_limit) {
        for field in LIMIT_FIELDS {
            body.shift_remove(field);
        }
        body.insert("max_tokens".into(), json!(limit));
    }
    let stream = options
        .stream
        .or_else(|| body.get("stream").and_then(Value::as_bool))
        .unwrap_or(true);
    body.insert("stream".into(), json!(stream));
    if !stream {
        body.shift_remove("stream_options");
    } else if options.include_usage {
        let entry = body.entry("stream_options").or_insert_with(|| json!({}));
        if let Value::Object(stream_options) = entry {
            stream_options.insert("include_usage".into(), json!(true));
        }
    }
    for (name, value) in &options.fields {
        body.insert(name.clone(), value.clone());
    }
    finish(body)
}

fn start(api: Api, item: &Item) -> Map<String, Value> {
    let mut body = Map::new();
    // `model` first, as clients write it.
    body.insert("model".into(), Value::Null);
    match (item, api) {
        (Item::Body(own), _) => {
            body.extend(own.clone());
        }
        (Item::Text(text), Api::OpenAiChat) => {
            body.insert(
                "messages".into(),
                json!([{"role": "user", "content": text}]),
            );
        }
        (Item::Text(text), Api::OpenAiCompletions) => {
            body.insert("prompt".into(), json!(text));
        }
        (Item::Messages(messages), Api::OpenAiChat) => {
            body.insert("messages".into(), Value::Array(messages.clone()));
        }
        (Item::Messages(messages), Api::OpenAiCompletions) => {
            body.insert("prompt".into(), json!(joined(messages)));
        }
    }
    body
}

fn finish(mut body: Map<String, Value>) -> BuiltBody {
    if body.get("model").is_some_and(Value::is_null) {
        body.shift_remove("model");
    }
    let limit = LIMIT_FIELDS
        .iter()
        .find_map(|field| body.get(*field)?.as_i64());
    BuiltBody {
        model: body.get("model").and_then(Value::as_str).map(str::to_owned),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
        max_output_tokens: limit.and_then(|n| i32::try_from(n).ok()),
        body: Bytes::from(Value::Object(body).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(item: &Item, options: &BodyOptions) -> Value {
        let built = build(Api::OpenAiChat, &item.clone().into(), options);
        serde_json::from_slice(&built.body).unwrap()
    }

    #[test]
    fn a_streamed_chat_body_asks_for_usage() {
        let options = BodyOptions {
            model: Some("m".into()),
            include_usage: true,
            max_tokens: Some(5),
            ..BodyOptions::default()
        };
        let body = build(Api::OpenAiChat, &Item::Text("hi".into()).into(), &options);
        assert_eq!(
            body.body,
            r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}"#
        );
        assert_eq!(body.max_output_tokens, Some(5));
    }

    #[test]
    fn a_body_of_the_data_set_keeps_what_no_flag_names() {
        let own = json!({"model":"theirs","prompt":"p","stream":false,"max_tokens":9,"user":"u"});
        let Value::Object(own) = own else {
            unreachable!()
        };
        let item = Item::Body(own);
        let kept = built(
            &item,
            &BodyOptions {
                include_usage: true,
                ..BodyOptions::default()
            },
        );
        assert_eq!(kept["model"], "theirs");
        assert_eq!(kept["stream"], false);
        assert_eq!(kept["max_tokens"], 9);
        assert!(kept.get("stream_options").is_none());
        let changed = BodyOptions {
            model: Some("ours".into()),
            stream: Some(true),
            ignore_max_tokens: true,
            ..BodyOptions::default()
        };
        let changed = built(&item, &changed);
        assert_eq!(changed["model"], "ours");
        assert_eq!(changed["stream"], true);
        assert!(changed.get("max_tokens").is_none());
        assert_eq!(changed["user"], "u");
    }

    #[test]
    fn a_conversation_becomes_one_prompt_for_completions() {
        let messages = vec![
            json!({"role":"system","content":"be brief"}),
            json!({"role":"user","content":"hi"}),
        ];
        let body = build(
            Api::OpenAiCompletions,
            &Item::Messages(messages).into(),
            &BodyOptions::default(),
        );
        let body: Value = serde_json::from_slice(&body.body).unwrap();
        assert_eq!(body["prompt"], "be brief\nhi");
    }

    #[test]
    fn the_limit_is_the_flags_else_the_data_sets() {
        let prompt = Prompt {
            max_tokens: Some(7),
            ..Item::Text("hi".into()).into()
        };
        let limit = |options: &BodyOptions| {
            let built = build(Api::OpenAiChat, &prompt, options);
            let body: Value = serde_json::from_slice(&built.body).unwrap();
            assert_eq!(
                built.max_output_tokens.map(i64::from),
                body.get("max_tokens").and_then(Value::as_i64)
            );
            built.max_output_tokens
        };
        assert_eq!(limit(&BodyOptions::default()), Some(7));
        let flag = BodyOptions {
            max_tokens: Some(3),
            ..BodyOptions::default()
        };
        assert_eq!(limit(&flag), Some(3));
        let ignored = BodyOptions {
            ignore_max_tokens: true,
            ..BodyOptions::default()
        };
        assert_eq!(limit(&ignored), None);
    }
}
