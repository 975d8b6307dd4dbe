//! What is sent: the recorded body, or a prompt of the recorded shape.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tapedeck_live::PreparedRequest;
use tapedeck_recording::RequestRow;
use tapedeck_run::args::{Content, TargetArgs};
use tapedeck_run::options::timeouts;
use tapedeck_run::requests::RequestBuilder;
use tapedeck_run::server::Server;
use tapedeck_wire::dialect::{Api, Dialect, Placeholder};
use tapedeck_workload::trace::synthesis::{Shape, Synthesis};
use tapedeck_workload::{BodyOptions, Item, Prompt};
use url::Url;

use crate::cli::{Pin, RunArgs};
use crate::import::COUNTED_BY_TRACE;
use crate::salt::salted;
use crate::schedule::Planned;
use crate::source::Plan;

/// Prompts counted before the start, to see that they are what was asked for.
const CHECKED_PROMPTS: usize = 32;

/// Tokens that this may take, about: a few seconds at most.
const CHECKED_TOKENS: u64 = 200_000;

/// Fields of a body that constrain decoding: an output cut or drawn out against
/// them would be another answer.
const CONSTRAINTS: [&str; 17] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
    "grammar",
    "format",
    "output_format",
    "responseSchema",
    "responseJsonSchema",
    "response_schema",
    "response_json_schema",
];

/// Objects in a body that may hold them too (SGLang, TGI, Gemini, Responses,
/// Anthropic).
const CONSTRAINTS_WITHIN: [&str; 6] = [
    "sampling_params",
    "parameters",
    "generationConfig",
    "generation_config",
    "text",
    "output_config",
];

/// Makes the requests of a plan for one server.
#[derive(Debug)]
pub struct Maker {
    /// By API and original path, which may name the model.
    builders: BTreeMap<(Arc<str>, Arc<str>), (Api, RequestBuilder)>,
    model: Option<String>,
    /// Asked for where the source has no bodies.
    made_model: Option<String>,
    pin: Option<Pin>,
    synthesis: Option<Synthesis>,
    blocks_are_tokens: bool,
    /// Whether block ids may be recorded: `lengths` keeps no identity of prompts.
    records_blocks: bool,
    /// Prompts that were counted, and those of them that had the right number.
    checked: Option<(usize, usize)>,
}

impl Maker {
    /// # Errors
    /// When an API of the plan cannot be replayed, the tokenizer cannot be read,
    /// or the server names no model.
    pub fn new(plan: &Plan, server: &Server, args: &RunArgs) -> Result<Self> {
        let apis = apis(plan)?;
        let mut builders = BTreeMap::new();
        for planned in plan.requests() {
            let original = &planned.found.original;
            if let Entry::Vacant(place) = builders.entry(way(original)) {
                let api = apis[&*original.api];
                let target = aimed(&args.target, original, api);
                let url = server.url_for(&target, api)?;
                let builder = RequestBuilder::new(&url, &server.target.host, &target, api)?;
                place.insert((api, builder));
            }
        }
        let mut maker = Self {
            builders,
            model: args.target.model.clone(),
            made_model: None,
            pin: args.synthesis.pin_output,
            synthesis: None,
            blocks_are_tokens: plan.origin.blocks_are_tokens,
            records_blocks: !matches!(args.output.privacy.content, Content::Lengths),
            checked: None,
        };
        if plan.lacks_bodies() {
            maker.prepare_synthesis(plan, server, args)?;
        }
        Ok(maker)
    }

    fn prepare_synthesis(&mut self, plan: &Plan, server: &Server, args: &RunArgs) -> Result<()> {
        self.made_model = Some(match &self.model {
            Some(model) => model.clone(),
            None => {
                let api = apis(plan)?[&*plan.requests()[0].found.original.api];
                server.first_model(&args.target, api, &timeouts(&args.connection))?
            }
        });
        let path = args.synthesis.tokenizer_path.as_deref();
        let mut synthesis = Synthesis::new(path, args.source.from.seed)?;
        let made = || {
            let lacks_body = |p: &&Planned| p.found.original.body.is_none();
            plan.requests().iter().filter(lacks_body)
        };
        let shapes = made().map(|planned| self.shape(planned));
        synthesis.learn_sizes(shapes.collect::<Result<Vec<_>>>()?.into_iter());
        let mut checked = (0, 0);
        let mut tokens = 0;
        for planned in made().take(CHECKED_PROMPTS) {
            let shape = self.shape(planned)?;
            tokens += u64::from(shape.input_tokens);
            if checked.0 > 0 && tokens > CHECKED_TOKENS {
                break;
            }
            if let Some(counted) = synthesis.count(&synthesis.prompt(&shape))? {
                checked.0 += 1;
                checked.1 += usize::from(counted == shape.input_tokens);
            }
        }
        self.checked = (checked.0 > 0).then_some(checked);
        match self.checked {
            None => eprintln!(
                "prompts are made of one common word for each token: lengths are near, not exact\nhint: --tokenizer-path makes them exact"
            ),
            Some((counted, exact)) if exact < counted || !synthesis.is_exact() => eprintln!(
                "{exact} of the first {counted} prompts have the tokens asked for: the tokenizer has too few words that are one token"
            ),
            Some((counted, _)) => eprintln!(
                "prompts are made of words of one token; the first {counted} were counted and are exact"
            ),
        }
        self.synthesis = Some(synthesis);
        Ok(())
    }

    /// How the source's bodies are made up for, for the manifest.
    #[must_use]
    pub fn settings(&self) -> Value {
        let Some(synthesis) = &self.synthesis else {
            return Value::Null;
        };
        json!({
            "tokenizer_hash": synthesis.tokenizer_hash(),
            "one_token_words": synthesis.is_exact(),
            "checked_prompts": self.checked.map(|(counted, _)| counted),
            "exact_prompts": self.checked.map(|(_, exact)| exact),
        })
    }

    /// How output lengths are asked for where bodies are made, or were recorded.
    #[must_use]
    pub fn pin(&self) -> Pin {
        let default = if self.synthesis.is_some() {
            Pin::Exact
        } else {
            Pin::Off
        };
        self.pin.unwrap_or(default)
    }

    /// # Errors
    /// When the source says neither what the request was nor how long.
    pub fn request(&self, planned: &Planned) -> Result<PreparedRequest> {
        match &planned.found.original.body {
            Some(body) => self.recorded(planned, body),
            None => self.made(planned),
        }
    }

    /// [`Self::request`] of every planned one; equal ones share their bytes.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn requests(&self, plan: &Plan) -> Result<Vec<Arc<PreparedRequest>>> {
        let mut built: HashMap<_, Arc<PreparedRequest>> = HashMap::new();
        let mut requests = Vec::with_capacity(plan.requests().len());
        for planned in plan.requests() {
            let original = &planned.found.original;
            let output_tokens = planned.found.output_tokens;
            let pinned = output_tokens.filter(|_| self.pin() != Pin::Off);
            let salt = planned.salt.clone();
            let key = (way(original), original.body.clone(), pinned, salt);
            if let Some(request) = built.get(&key) {
                requests.push(Arc::clone(request));
                continue;
            }
            let request = Arc::new(self.request(planned)?);
            built.insert(key, Arc::clone(&request));
            requests.push(request);
        }
        Ok(requests)
    }

    fn builder(&self, original: &RequestRow) -> Result<&(Api, RequestBuilder)> {
        self.builders
            .get(&way(original))
            .with_context(|| format!("no endpoint for {}", original.url_path))
    }

    /// The original body byte for byte, unless another model, a salt or a pinned
    /// output is asked for.
    fn recorded(&self, planned: &Planned, body: &Bytes) -> Result<PreparedRequest> {
        let original = &planned.found.original;
        let (api, builder) = self.builder(original)?;
        let (body, model) = match &self.model {
            None => (body.clone(), original.model.as_deref().map(str::to_owned)),
            Some(model) => (
                with_model(*api, original, body, model)?,
                Some(model.clone()),
            ),
        };
        let body = match &planned.salt {
            Some(salt) => salted(*api, original, &body, salt)?,
            None => body,
        };
        let pin = self.pin.unwrap_or(Pin::Off);
        if let Some(length) = planned.found.output_tokens.filter(|_| pin != Pin::Off) {
            let fields = fields_of(original, &body, "--pin-output")?;
            if !is_constrained(&fields) {
                let options = BodyOptions {
                    stream: Some(original.stream),
                    ..pinned(pin, length)
                };
                return Ok(builder.request(&Item::Body(fields).into(), &options));
            }
        }
        let limit = original.max_output_tokens;
        Ok(builder.prepared(body, model, original.stream, limit))
    }

    fn made(&self, planned: &Planned) -> Result<PreparedRequest> {
        let original = &planned.found.original;
        let synthesis = self.synthesis.as_ref().context("no prompts were planned")?;
        let shape = self.shape(planned)?;
        let pin = self.pin();
        let length = planned.found.output_tokens.filter(|_| pin != Pin::Off);
        let options = BodyOptions {
            model: self.made_model.clone(),
            stream: Some(original.stream),
            include_usage: true,
            ..length.map_or_else(BodyOptions::default, |n| pinned(pin, n))
        };
        let prompt: Prompt = Item::Text(synthesis.prompt(&shape)).into();
        let source = if synthesis.is_exact() {
            "tokenizer"
        } else {
            COUNTED_BY_TRACE
        };
        Ok(PreparedRequest {
            input_tokens: i32::try_from(shape.input_tokens).ok(),
            input_tokens_source: Some(source.into()),
            block_size: shape.block_size.and_then(|n| i32::try_from(n).ok()),
            block_runs: self.block_runs(planned),
            ..self.builder(original)?.1.request(&prompt, &options)
        })
    }

    /// Ids of the blocks that a made prompt has, apart from those of other salts.
    fn block_runs(&self, planned: &Planned) -> Option<Arc<[(i64, i32)]>> {
        let runs = planned.found.original.block_runs.as_ref();
        let runs = runs.filter(|_| self.records_blocks)?;
        Some(match planned.first_block {
            0 => Arc::clone(runs),
            first => runs
                .iter()
                .map(|(start, len)| (start.saturating_add(first), *len))
                .collect(),
        })
    }

    fn shape<'a>(&self, planned: &'a Planned) -> Result<Shape<'a>> {
        let original = &planned.found.original;
        let tokens = planned
            .found
            .input_tokens
            .and_then(|n| u32::try_from(n).ok());
        let Some(tokens) = tokens else {
            bail!(
                "request {} was recorded without its body, and nothing says how long it was\nhint: --where \"input_tokens IS NOT NULL\" leaves such requests out",
                original.request_id
            );
        };
        let size = original.block_size.and_then(|n| u32::try_from(n).ok());
        Ok(Shape {
            input_tokens: tokens.max(1),
            block_size: size.filter(|_| self.blocks_are_tokens),
            block_runs: original.block_runs.as_deref().unwrap_or_default(),
            request_id: original.request_id,
            session_id: original.session_id.as_deref(),
            salt: planned.salt.as_deref().unwrap_or_default(),
        })
    }
}

fn is_constrained(fields: &Map<String, Value>) -> bool {
    let constrains = |fields: &Map<String, Value>| {
        let mut values = CONSTRAINTS.iter().filter_map(|name| fields.get(*name));
        // Said to be free: null, or the type `text`.
        let is_free = |value: &Value| value.is_null() || value.get("type") == Some(&json!("text"));
        !values.all(is_free)
    };
    let within = CONSTRAINTS_WITHIN
        .iter()
        .filter_map(|name| fields.get(*name));
    let mut within = within.filter_map(Value::as_object);
    let must_use_tools = fields.get("tool_choice").is_some_and(|choice| {
        let kind = choice.get("type").unwrap_or(choice).as_str();
        kind.is_some_and(|kind| ["required", "function", "tool", "any"].contains(&kind))
    });
    must_use_tools || constrains(fields) || within.any(constrains)
}

/// What makes a server generate so many tokens: up to them, or to them.
fn pinned(pin: Pin, length: i32) -> BodyOptions {
    let length = length.max(1);
    let mut fields = Map::new();
    if pin == Pin::Exact {
        fields.insert("min_tokens".to_owned(), json!(length));
        fields.insert("ignore_eos".to_owned(), json!(true));
    }
    BodyOptions {
        max_tokens: u32::try_from(length).ok(),
        fields,
        ..BodyOptions::default()
    }
}

fn way(original: &RequestRow) -> (Arc<str>, Arc<str>) {
    (Arc::clone(&original.api), Arc::clone(&original.url_path))
}

/// The APIs of all requests: the one that the recording brings its dialect of, and
/// those that are built in.
///
/// # Errors
/// When one of them is neither.
pub fn apis(plan: &Plan) -> Result<BTreeMap<&str, Api>> {
    let recorded = Some(&plan.origin.dialect);
    let recorded = match recorded.filter(|dialect| !dialect.is_null()) {
        Some(recorded) => Some(Api::of(Dialect::from_recorded(recorded)?)),
        None => None,
    };
    let mut apis = BTreeMap::new();
    for planned in plan.requests() {
        let original = &planned.found.original;
        let name = &*original.api;
        let own = recorded.filter(|api| api.as_str() == name);
        let Some(api) = own.or_else(|| Api::from_word(name)) else {
            bail!(
                "request {} uses api {name}, which cannot be replayed",
                original.request_id
            );
        };
        apis.insert(name, api);
    }
    Ok(apis)
}

/// Where `original` is sent to: where the user says, else to its own path if that is
/// not the API's, and for its own model if the path names that.
#[must_use]
pub fn aimed(target: &TargetArgs, original: &RequestRow, api: Api) -> TargetArgs {
    let mut aimed = target.clone();
    let bare = Url::parse(&target.address()).is_ok_and(|url| url.path() == "/");
    if bare && aimed.endpoint.is_none() && !api.dialect().serves(&original.url_path) {
        aimed.endpoint = Some(original.url_path.to_string());
    }
    aimed.model = aimed.model.or(original.model.as_deref().map(str::to_owned));
    aimed
}

pub(crate) fn fields_of(
    original: &RequestRow,
    body: &[u8],
    flag: &str,
) -> Result<Map<String, Value>> {
    serde_json::from_slice(body).with_context(|| {
        format!(
            "{flag} cannot be set in request {}, its body is no JSON object",
            original.request_id
        )
    })
}

/// `body` for another model, where bodies of `api` name theirs.
fn with_model(api: Api, original: &RequestRow, body: &Bytes, model: &str) -> Result<Bytes> {
    let Some(keys) = api.dialect().request.body.place_of(Placeholder::Model) else {
        return Ok(body.clone());
    };
    let mut fields = fields_of(original, body, "--model")?;
    let mut at = &mut fields;
    for key in &keys[..keys.len() - 1] {
        let below = at.get_mut(key).and_then(Value::as_object_mut);
        at = below.with_context(|| {
            format!(
                "--model cannot be set in request {}, its body has no {key}",
                original.request_id
            )
        })?;
    }
    if let Some(key) = keys.last() {
        at.insert(key.clone(), json!(model));
    }
    Ok(Bytes::from(Value::Object(fields).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_known_wherever_they_stand() {
        for (body, constrained) in [
            (json!({"messages": []}), false),
            (json!({"response_format": {"type": "json_object"}}), true),
            (json!({"response_format": {"type": "text"}}), false),
            (json!({"response_format": null}), false),
            (json!({"guided_choice": ["a", "b"]}), true),
            (json!({"grammar": "root ::= \"a\""}), true),
            (json!({"format": "json"}), true),
            (json!({"sampling_params": {"regex": "a+"}}), true),
            (json!({"sampling_params": {"temperature": 0}}), false),
            (
                json!({"generationConfig": {"responseSchema": {"type": "OBJECT"}}}),
                true,
            ),
            (json!({"text": {"format": {"type": "text"}}}), false),
            (json!({"text": {"format": {"type": "json_schema"}}}), true),
            (json!({"text": "a prompt"}), false),
            (json!({"audio": {"format": "wav"}}), false),
            (json!({"tool_choice": "auto"}), false),
            (json!({"tool_choice": "required"}), true),
            (json!({"tool_choice": {"type": "auto"}}), false),
            (json!({"tool_choice": {"type": "function"}}), true),
        ] {
            let fields = body.as_object().unwrap();
            assert_eq!(is_constrained(fields), constrained, "{body}");
        }
    }
}
