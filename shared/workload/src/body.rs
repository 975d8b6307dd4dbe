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
mod tests;
