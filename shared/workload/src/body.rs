//! Request bodies, built from the template of a dialect.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tapedeck_wire::dialect::{Api, Dialect, Framing, Placeholder, Template};
use tapedeck_wire::ppl;

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
    /// Settings by the name of their placeholder, which is `OpenAI`'s.
    pub fields: Map<String, Value>,
    /// `--extra-body`: merged into every body, over everything else; objects are
    /// filled up.
    pub extra: Map<String, Value>,
    /// `--query-template`: the body, with `%m` and `%p` to fill in.
    pub template: Option<Template>,
}

/// A body and what the recording says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct BuiltBody {
    pub body: Bytes,
    pub model: Option<String>,
    pub stream: bool,
    pub max_output_tokens: Option<i32>,
}

/// The body of `prompt` for `api`. Fields keep one order, so equal input gives
/// equal bytes. An output limit is the option's, else the data set's.
///
/// A whole body, the data set's or a `--query-template`, keeps what no option names.
#[must_use]
pub fn build(api: Api, prompt: &Prompt, options: &BodyOptions) -> BuiltBody {
    let dialect = api.dialect();
    let (values, body) = document(dialect, prompt, options);
    BuiltBody {
        model: value_at(dialect, &body, Placeholder::Model)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .or_else(|| values.model_outside_the_body()),
        stream: value_at(dialect, &body, Placeholder::Stream)
            .and_then(Value::as_bool)
            .unwrap_or(values.stream),
        max_output_tokens: dialect.limit_of(&body),
        body: encoded(dialect, &body).unwrap_or_else(|_| body.to_string().into()),
    }
}

/// What `build` sends, before it is bytes.
fn document<'a>(
    dialect: &'a Dialect,
    prompt: &'a Prompt,
    options: &'a BodyOptions,
) -> (Values<'a>, Value) {
    let own = own_body(dialect, &prompt.item, options);
    let stream = stream(dialect, own.as_ref(), options);
    let values = Values {
        dialect,
        prompt,
        options,
        stream,
    };
    let mut body = match own {
        Some(own) => values.over(own),
        None => dialect.request.body.fill(&mut |p| values.of(p)),
    };
    values.add_the_rest(&mut body);
    let body = merged(Value::Object(body), &Value::Object(options.extra.clone()));
    (values, body)
}

/// A body as it is sent: JSON, or a message of a protocol. What a data set brought
/// and the protocol does not have goes out as it stands, for the server to refuse.
fn encoded(dialect: &Dialect, body: &Value) -> Result<Bytes, serde_json::Error> {
    Ok(match dialect.response.interpreter.ppl() {
        Some(version) => ppl::encode(version, body)?.into(),
        None => body.to_string().into(),
    })
}

/// Why bodies with these options cannot be sent to `api`: a field that its protocol
/// does not have, or has of another type. JSON takes any.
///
/// # Errors
/// In words.
pub fn check_fields(api: Api, options: &BodyOptions) -> Result<(), String> {
    let prompt = Prompt::from(Item::Text("x".to_owned()));
    let dialect = api.dialect();
    let (_, body) = document(dialect, &prompt, options);
    encoded(dialect, &body)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Settings that bodies of `api` have no place for.
#[must_use]
pub fn unplaced(api: Api, options: &BodyOptions) -> Vec<&str> {
    let request = &api.dialect().request;
    if request.rest.is_some() {
        return Vec::new();
    }
    let has_place = |name: &str| {
        Placeholder::from_word(name).is_some_and(|p| request.body.place_of(p).is_some())
    };
    let limit = options.max_tokens.map(|_| "max_tokens");
    let names = options.fields.keys().map(String::as_str).chain(limit);
    names.filter(|name| !has_place(name)).collect()
}

fn own_body(dialect: &Dialect, item: &Item, options: &BodyOptions) -> Option<Map<String, Value>> {
    let own = match (&options.template, item) {
        (_, Item::Body(own)) => own.clone(),
        (Some(template), item) => template.fill(&mut |placeholder| match placeholder {
            Placeholder::Model => options.model.as_ref().map(|model| json!(model)),
            placeholder => content(item, placeholder),
        }),
        (None, _) => return None,
    };
    let mut body = Map::new();
    // The model first, as clients write it.
    if let Some([key]) = dialect.request.body.place_of(Placeholder::Model).as_deref() {
        body.insert(key.clone(), Value::Null);
    }
    body.extend(own);
    Some(body)
}

fn stream(dialect: &Dialect, own: Option<&Map<String, Value>>, options: &BodyOptions) -> bool {
    match dialect.response.framing {
        Framing::None => return false,
        Framing::Grpc => return true,
        Framing::Sse | Framing::Ndjson | Framing::Json => {}
    }
    let own = || {
        let keys = dialect.request.body.place_of(Placeholder::Stream)?;
        let (first, below) = keys.split_first()?;
        let value = below
            .iter()
            .try_fold(own?.get(first)?, |at, key| at.get(key));
        value?.as_bool()
    };
    options.stream.or_else(own).unwrap_or(true)
}

/// What placeholders of one body stand for.
struct Values<'a> {
    dialect: &'a Dialect,
    prompt: &'a Prompt,
    options: &'a BodyOptions,
    stream: bool,
}

impl Values<'_> {
    /// A flag's value, the prompt's, else the dialect's default.
    fn of(&self, placeholder: Placeholder) -> Option<Value> {
        if placeholder.is_content() {
            return content(&self.prompt.item, placeholder);
        }
        let defaults = &self.dialect.request.defaults;
        let default = match placeholder {
            Placeholder::Model => defaults.get("model"),
            Placeholder::MaxTokens if self.options.ignore_max_tokens => None,
            placeholder => defaults.get(placeholder.as_str()),
        };
        self.set(placeholder).or_else(|| default.cloned())
    }

    /// What was asked for on the command line, or by the prompt.
    fn set(&self, placeholder: Placeholder) -> Option<Value> {
        let options = self.options;
        match placeholder {
            Placeholder::Model => options.model.as_ref().map(|model| json!(model)),
            Placeholder::Stream => Some(json!(self.stream)),
            Placeholder::IncludeUsage => {
                (self.stream && options.include_usage).then(|| json!(true))
            }
            Placeholder::MaxTokens => {
                let own = self
                    .prompt
                    .max_tokens
                    .filter(|_| !options.ignore_max_tokens);
                options.max_tokens.or(own).map(|limit| json!(limit))
            }
            placeholder => options.fields.get(placeholder.as_str()).cloned(),
        }
    }

    /// `own` with what was asked for in its places.
    fn over(&self, own: Map<String, Value>) -> Map<String, Value> {
        let mut body = own;
        for (keys, placeholder) in self.dialect.request.body.places() {
            if placeholder.is_content() {
                continue;
            }
            let value = self.set(placeholder);
            let limited = value.is_some() || self.options.ignore_max_tokens;
            match placeholder {
                Placeholder::MaxTokens if limited => self.remove_limits(&mut body, &keys),
                // Servers refuse options of a stream that is none.
                Placeholder::IncludeUsage if !self.stream => {
                    let parent = keys.len().saturating_sub(1).max(1);
                    remove(&mut body, &keys[..parent]);
                }
                _ => {}
            }
            if let Some(value) = value {
                insert(&mut body, &keys, value);
            }
        }
        if let Some([key]) = self
            .dialect
            .request
            .body
            .place_of(Placeholder::Model)
            .as_deref()
            && body.get(key).is_some_and(Value::is_null)
        {
            body.shift_remove(key);
        }
        body
    }

    fn remove_limits(&self, body: &mut Map<String, Value>, keys: &[String]) {
        remove(body, keys);
        for other in &self.dialect.request.other_limits {
            let keys = other.keys().unwrap_or_default();
            remove(body, &keys);
        }
    }

    /// Settings without a placeholder, where the dialect wants them.
    fn add_the_rest(&self, body: &mut Map<String, Value>) {
        let request = &self.dialect.request;
        let Some(rest) = request.rest.as_ref().and_then(|rest| rest.keys()) else {
            return;
        };
        for (name, value) in &self.options.fields {
            let placed = Placeholder::from_word(name)
                .is_some_and(|placeholder| request.body.place_of(placeholder).is_some());
            if !placed {
                let keys: Vec<&str> = rest.iter().copied().chain([name.as_str()]).collect();
                insert(body, &keys, value.clone());
            }
        }
    }

    /// The model where only the path names it, or nothing but the recording does.
    fn model_outside_the_body(&self) -> Option<String> {
        let in_path = self.dialect.request.path.contains("%m");
        let default = self.dialect.request.defaults.get("model");
        let default = default.filter(|_| in_path).and_then(Value::as_str);
        let model = self.options.model.as_deref();
        let in_body = self.dialect.request.body.place_of(Placeholder::Model);
        model
            .or(default)
            .filter(|_| in_body.is_none())
            .map(str::to_owned)
    }
}

/// What a prompt fills a placeholder with.
fn content(item: &Item, placeholder: Placeholder) -> Option<Value> {
    match placeholder {
        Placeholder::Prompt => Some(json!(item.text())),
        Placeholder::Messages => Some(Value::Array(messages(item))),
        Placeholder::System => {
            let mut system = messages(item);
            system.retain(is_system);
            (!system.is_empty()).then(|| json!(joined(&system)))
        }
        Placeholder::Turns => {
            let mut turns = messages(item);
            turns.retain(|message| !is_system(message));
            Some(Value::Array(turns))
        }
        Placeholder::Query => Some(json!(item.text().lines().next().unwrap_or_default())),
        Placeholder::Documents => {
            let text = item.text();
            let documents = text.lines().skip(1).filter(|line| !line.trim().is_empty());
            Some(documents.map(|line| json!(line)).collect())
        }
        _ => None,
    }
}

fn messages(item: &Item) -> Vec<Value> {
    match item {
        Item::Messages(messages) => messages.clone(),
        item => vec![json!({"role": "user", "content": item.text()})],
    }
}

fn is_system(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("system")
}

fn value_at<'v>(dialect: &Dialect, body: &'v Value, placeholder: Placeholder) -> Option<&'v Value> {
    let keys = dialect.request.body.place_of(placeholder)?;
    keys.iter().try_fold(body, |at, key| at.get(key))
}

/// Puts `value` below `keys`; what stands in the way makes room.
fn insert(body: &mut Map<String, Value>, keys: &[impl AsRef<str>], value: Value) {
    let Some((key, below)) = keys.split_first() else {
        return;
    };
    if below.is_empty() {
        body.insert(key.as_ref().to_owned(), value);
        return;
    }
    let entry = body.entry(key.as_ref()).or_insert(Value::Null);
    if !entry.is_object() {
        *entry = json!({});
    }
    if let Value::Object(fields) = entry {
        insert(fields, below, value);
    }
}

fn remove(body: &mut Map<String, Value>, keys: &[impl AsRef<str>]) {
    match keys {
        [] => {}
        [key] => drop(body.shift_remove(key.as_ref())),
        [key, below @ ..] => {
            if let Some(Value::Object(fields)) = body.get_mut(key.as_ref()) {
                remove(fields, below);
            }
        }
    }
}

/// `over` laid over `base`; objects are filled up, all else is replaced.
fn merged(base: Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let own = base.get_mut(key).map(Value::take);
                let value = own.map_or_else(|| value.clone(), |own| merged(own, value));
                base.insert(key.clone(), value);
            }
            Value::Object(base)
        }
        (_, over) => over.clone(),
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

    fn api(name: &str) -> Api {
        Api::from_word(name).unwrap()
    }

    fn text_of(api: Api, item: Item, options: &BodyOptions) -> String {
        let built = build(api, &item.into(), options);
        String::from_utf8(built.body.to_vec()).unwrap()
    }

    #[test]
    fn settings_go_where_the_dialect_has_them() {
        let fields = json!({"temperature": 0.5, "seed": 7, "best_of": 2});
        let options = BodyOptions {
            max_tokens: Some(5),
            fields: fields.as_object().cloned().unwrap(),
            ..BodyOptions::default()
        };
        assert_eq!(
            text_of(api("tgi"), Item::Text("hi".into()), &options),
            r#"{"inputs":"hi","parameters":{"best_of":2,"max_new_tokens":5,"do_sample":true,"temperature":0.5,"top_p":0.99,"seed":7,"details":true}}"#
        );
        assert_eq!(unplaced(api("tgi"), &options), Vec::<&str>::new());
        assert_eq!(unplaced(api("ollama"), &options), ["best_of"]);
        assert_eq!(unplaced(api("openai-chat"), &options), Vec::<&str>::new());
        assert_eq!(unplaced(api("openai-embeddings"), &options).len(), 4);
        let built = build(
            api("tensorrt-llm"),
            &Item::Text("hi".into()).into(),
            &options,
        );
        assert_eq!(built.model.as_deref(), Some("ensemble"));
    }

    #[test]
    fn extra_fields_fill_objects_up_and_replace_all_else() {
        let extra = json!({"parameters": {"watermark": true, "top_p": null}, "inputs": "x"});
        let options = BodyOptions {
            extra: extra.as_object().cloned().unwrap(),
            ..BodyOptions::default()
        };
        assert_eq!(
            text_of(api("tgi"), Item::Text("hi".into()), &options),
            r#"{"inputs":"x","parameters":{"do_sample":true,"temperature":0.01,"top_p":null,"details":true,"watermark":true}}"#
        );
    }

    #[test]
    fn a_query_template_is_a_body_with_model_and_prompt_filled_in() {
        let template = r#"{"model":"%m","messages":[{"role":"user","content":"Q: %p"}],"stream":false,"top_k":3}"#;
        let mut options = BodyOptions {
            model: Some("m".into()),
            include_usage: true,
            template: Some(template.parse().unwrap()),
            ..BodyOptions::default()
        };
        let item = Item::Text("why?".into());
        assert_eq!(
            text_of(Api::OpenAiChat, item.clone(), &options),
            r#"{"model":"m","messages":[{"role":"user","content":"Q: why?"}],"stream":false,"top_k":3}"#
        );
        options.stream = Some(true);
        options.max_tokens = Some(9);
        assert_eq!(
            text_of(Api::OpenAiChat, item, &options),
            r#"{"model":"m","messages":[{"role":"user","content":"Q: why?"}],"stream":true,"top_k":3,"max_tokens":9,"stream_options":{"include_usage":true}}"#
        );
    }

    #[test]
    fn a_system_message_is_a_field_of_its_own_where_the_api_wants_it() {
        let messages = vec![
            json!({"role":"system","content":"be brief"}),
            json!({"role":"user","content":"hi"}),
        ];
        assert_eq!(
            text_of(
                api("anthropic-messages"),
                Item::Messages(messages),
                &BodyOptions::default()
            ),
            r#"{"system":"be brief","messages":[{"role":"user","content":"hi"}],"max_tokens":1024,"stream":true}"#
        );
    }

    #[test]
    fn a_query_and_its_documents_are_lines() {
        assert_eq!(
            text_of(
                api("rerank"),
                Item::Text("q\nd 1\n\nd 2\n".into()),
                &BodyOptions::default()
            ),
            r#"{"query":"q","documents":["d 1","d 2"]}"#
        );
    }
}
