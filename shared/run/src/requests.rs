//! What the shared flags mean: where requests go, what is in them, how long they
//! may take.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde_json::{Map, Value, json};
use tapedeck_live::headers::recorded_headers;
use tapedeck_live::{AttemptPolicy, Cancellation, PreparedRequest, Timeouts, TlsOptions};
use tapedeck_recording::privacy::{BLOCK_BYTES, BLOCK_TOKENS, TokenizerName};
use tapedeck_recording::{BlockSpec, Privacy, body_hash};
use tapedeck_wire::dialect::{Api, Framing, RequestPart};
use tapedeck_workload::body::{BuiltBody, build, check_fields, unplaced};
use tapedeck_workload::{BodyOptions, Prompt, encoder};
use url::Url;

use crate::args::{AttemptArgs, BodyArgs, ConnectionArgs, Content, PrivacyArgs, TargetArgs};
use crate::secrets::{mask_query, mask_url};

/// Where a request goes: the URL with the API's path settled.
///
/// # Errors
/// When the URL does not parse.
pub fn endpoint(url: &str, target: &TargetArgs, api: Api) -> Result<Url> {
    let mut url = Url::parse(url).with_context(|| {
        format!(
            "--url {} is not a URL\nhint: http://host:port, or sim:",
            mask_url(url)
        )
    })?;
    let own = url.path().trim_end_matches('/').to_owned();
    if let Some(endpoint) = &target.endpoint {
        let (path, query) = match endpoint.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (endpoint.as_str(), url.query()),
        };
        let query = query.map(str::to_owned);
        url.set_path(path);
        url.set_query(query.as_deref());
    } else if own.is_empty() || own.ends_with("/v1") {
        let prefix = own.strip_suffix("/v1").unwrap_or_default();
        let path = api.dialect().path(target.model.as_deref(), true);
        let path = path.with_context(|| {
            format!(
                "the path of {} names the model\nhint: --model",
                api.as_str()
            )
        })?;
        url.set_path(&format!("{prefix}{path}"));
    }
    Ok(url)
}

/// The path of answers that are not streamed, where the API has one of its own and
/// the user named none.
fn whole_path(url: &Url, target: &TargetArgs, api: Api) -> Option<String> {
    let dialect = api.dialect();
    let streamed = dialect.path(target.model.as_deref(), true)?;
    let prefix = url.path().strip_suffix(streamed.as_str());
    let prefix = prefix.filter(|_| target.endpoint.is_none())?;
    let whole = dialect.path(target.model.as_deref(), false)?;
    Some(format!("{prefix}{whole}"))
}

/// What goes into every body besides the prompt.
///
/// # Errors
/// When values cannot be written as JSON.
pub fn body_options(body: &BodyArgs, model: Option<String>) -> Result<BodyOptions> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("min_tokens", json!(body.min_tokens));
    set("temperature", number("--temperature", body.temperature)?);
    set("top_p", number("--top-p", body.top_p)?);
    set("top_k", json!(body.top_k));
    set(
        "frequency_penalty",
        number("--frequency-penalty", body.frequency_penalty)?,
    );
    set(
        "presence_penalty",
        number("--presence-penalty", body.presence_penalty)?,
    );
    set(
        "repetition_penalty",
        number("--repetition-penalty", body.repetition_penalty)?,
    );
    set("n", json!(body.n_choices));
    set("seed", json!(body.sampling_seed));
    set("best_of", json!(body.best_of));
    if body.use_beam_search {
        set("use_beam_search", json!(true));
    }
    if let Some(alternatives) = body.logprobs {
        set("logprobs", alternatives.map_or(json!(true), |n| json!(n)));
    }
    set("top_logprobs", json!(body.top_logprobs));
    if !body.stop_token_ids.is_empty() {
        set("stop_token_ids", json!(body.stop_token_ids));
    }
    if body.ignore_eos {
        set("ignore_eos", json!(true));
    }
    if !body.stop.is_empty() {
        set("stop", json!(body.stop));
    }
    Ok(BodyOptions {
        model,
        stream: match (body.stream, body.no_stream) {
            (_, true) => Some(false),
            (true, _) => Some(true),
            (false, false) => None,
        },
        include_usage: !body.no_usage,
        max_tokens: body.max_tokens,
        ignore_max_tokens: body.ignore_max_tokens,
        fields,
        extra: body.extra_body.clone().unwrap_or_default(),
        template: body.query_template.clone(),
    })
}

/// # Errors
/// When a flag sets something that bodies of `api` have no place for: what was
/// asked for would silently not be done.
pub fn check_places(api: Api, options: &BodyOptions) -> Result<()> {
    let name = api.as_str();
    let unplaced = unplaced(api, options);
    if !unplaced.is_empty() {
        bail!(
            "bodies of {name} have no place for {}\nhint: --extra-body sends any field as it is",
            unplaced.join(", ")
        )
    }
    let grpc = api.dialect().response.framing == Framing::Grpc;
    if grpc && options.stream == Some(false) {
        bail!("--no-stream: every answer of {name} is a stream\nhint: leave it out");
    }
    check_fields(api, options).map_err(|problem| {
        anyhow::anyhow!("a body of {name} cannot be made: {problem}\nhint: `record apis {name}` prints its fields")
    })
}

/// # Errors
/// When connections are to be opened beforehand that `api` could not use.
pub fn check_connections(api: Api, connection: &ConnectionArgs) -> Result<()> {
    let grpc = api.dialect().response.framing == Framing::Grpc;
    if grpc && connection.warm_connections > 0 {
        bail!(
            "--warm-connections opens connections for HTTP/1.1, and {} needs HTTP/2\n\
             hint: leave it out; a call that finds no connection opens one",
            api.as_str()
        );
    }
    Ok(())
}

/// Body options as they stand in the settings of a manifest.
#[must_use]
pub fn body_json(options: &BodyOptions) -> Value {
    json!({
        "stream": options.stream,
        "include_usage": options.include_usage,
        "max_tokens": options.max_tokens,
        "ignore_max_tokens": options.ignore_max_tokens,
        "fields": options.fields,
        "extra": options.extra,
    })
}

fn number(flag: &str, value: Option<f64>) -> Result<Value> {
    match value {
        Some(x) if !x.is_finite() => bail!("{flag} {x} is not a number that JSON can carry"),
        value => Ok(json!(value)),
    }
}

/// Timeouts with every default settled.
#[must_use]
pub fn timeouts(connection: &ConnectionArgs) -> Timeouts {
    Timeouts {
        connect: connection.connect_timeout,
        first_byte: connection
            .first_byte_timeout
            .unwrap_or(connection.read_timeout),
        read: connection.read_timeout,
        total: connection.total_timeout,
    }
}

#[must_use]
pub fn tls_options(target: &TargetArgs) -> TlsOptions {
    TlsOptions {
        cacert: target.cacert.clone(),
        insecure: target.insecure,
    }
}

/// How attempts are treated; `seed` decides about jitter and cancellation.
#[must_use]
pub fn attempt_policy(attempts: &AttemptArgs, seed: u64) -> AttemptPolicy {
    AttemptPolicy {
        retries: attempts.retries,
        obey_retry_after: attempts.obey_retry_after,
        cancel: attempts.cancel_rate.map(|rate| Cancellation {
            rate,
            after: attempts.cancel_after,
        }),
        max_lateness: None,
        seed,
    }
}

/// What is kept of prompts and answers. Blocks are tokens of `tokenizer` where
/// there is one.
///
/// # Errors
/// When the tokenizer cannot be used, or the system gives no randomness.
pub fn privacy(args: &PrivacyArgs, tokenizer: Option<&Path>) -> Result<Privacy> {
    // A dear thing to load for nothing.
    let hashes = matches!(args.content, Content::Hashed);
    let encoder = match tokenizer.filter(|_| hashes) {
        Some(path) => encoder(path)?,
        None => None,
    };
    let default_size = match encoder {
        Some(_) => BLOCK_TOKENS,
        None => BLOCK_BYTES,
    };
    Ok(Privacy::new(args.content.into())
        .context("cannot read a key for --content")?
        .redacting(args.redact.clone().into())
        .with_blocks(BlockSpec {
            size: args.block_size.unwrap_or(default_size),
            tokenizer: encoder.as_ref().map(|e| TokenizerName {
                path: e.path.clone(),
                content_hash: e.content_hash.clone(),
            }),
            encode: encoder.map(|e| e.encode),
        }))
}

/// Half the cores: the server, the writer and the pacer want theirs too.
#[must_use]
pub fn workers(connection: &ConnectionArgs) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    connection.workers.map_or((cores / 2).max(1), usize::from)
}

/// `input_tokens_source` of a prompt that a tokenizer of ours counted.
const COUNTED_BY_TOKENIZER: &str = "tokenizer";

/// Builds requests for one endpoint.
#[derive(Debug)]
pub struct RequestBuilder {
    api: Api,
    method: Method,
    streamed: Head,
    whole: Head,
    query: Option<Arc<str>>,
}

/// What differs between requests for a stream and for a whole answer.
#[derive(Debug)]
struct Head {
    uri: Uri,
    url_path: Arc<str>,
    headers: HeaderMap,
}

impl Head {
    fn new(url: &Url, headers: HeaderMap) -> Result<Self> {
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(Self {
            uri: path
                .parse()
                .with_context(|| format!("path {} cannot be sent", url.path()))?,
            url_path: url.path().into(),
            headers,
        })
    }
}

impl RequestBuilder {
    /// # Errors
    /// When a header or the path cannot be sent.
    pub fn new(url: &Url, host: &str, target: &TargetArgs, api: Api) -> Result<Self> {
        let request = &api.dialect().request;
        let mut whole_url = url.clone();
        if let Some(path) = whole_path(url, target, api) {
            whole_url.set_path(&path);
        }
        Ok(Self {
            api,
            method: request
                .method
                .parse()
                .with_context(|| format!("{} is no HTTP method", request.method))?,
            streamed: Head::new(url, headers(host, target, request, true)?)?,
            whole: Head::new(&whole_url, headers(host, target, request, false)?)?,
            query: url.query().map(|q| mask_query(q).into()),
        })
    }

    /// The request for `prompt`, ready to be written. Its input tokens are those
    /// of the prompt's text alone, without what a chat template adds.
    #[must_use]
    pub fn request(&self, prompt: &Prompt, options: &BodyOptions) -> PreparedRequest {
        let BuiltBody {
            body,
            model,
            stream,
            max_output_tokens,
        } = build(self.api, prompt, options);
        let counted = prompt.input_tokens;
        PreparedRequest {
            input_tokens: counted.and_then(|n| i32::try_from(n).ok()),
            input_tokens_source: counted.map(|_| COUNTED_BY_TOKENIZER.into()),
            ..self.prepared(body, model, stream, max_output_tokens)
        }
    }

    /// A body that is sent as it is.
    #[must_use]
    pub fn prepared(
        &self,
        body: Bytes,
        model: Option<String>,
        stream: bool,
        max_output_tokens: Option<i32>,
    ) -> PreparedRequest {
        let head = if stream { &self.streamed } else { &self.whole };
        PreparedRequest {
            api: self.api,
            method: self.method.clone(),
            uri: head.uri.clone(),
            url_path: Arc::clone(&head.url_path),
            query: self.query.clone(),
            recorded_headers: Some(recorded_headers(&head.headers)),
            headers: head.headers.clone(),
            body_hash: Some(body_hash(&body).into()),
            body,
            model: model.map(Into::into),
            stream,
            input_tokens: None,
            input_tokens_source: None,
            max_output_tokens,
            block_size: None,
            block_runs: None,
        }
    }
}

fn headers(
    host: &str,
    target: &TargetArgs,
    request: &RequestPart,
    stream: bool,
) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_str(host)?);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("tapedeck/", env!("CARGO_PKG_VERSION"))),
    );
    let own = request.headers.iter();
    for (name, value) in own.chain(request.stream_headers.iter().filter(|_| stream)) {
        let header = name.parse().ok().zip(HeaderValue::from_str(value).ok());
        let (name, value): (HeaderName, _) =
            header.with_context(|| format!("the API's header {name:?} cannot be sent"))?;
        headers.insert(name, value);
    }
    if let Some((name, value)) = key_header(target, request)? {
        headers.insert(name, value);
    }
    headers.extend(further_headers(target)?);
    Ok(headers)
}

/// The header that carries `--api-key`.
///
/// # Errors
/// When it cannot be sent.
pub(crate) fn key_header(
    target: &TargetArgs,
    request: &RequestPart,
) -> Result<Option<(HeaderName, HeaderValue)>> {
    let Some(key) = &target.api_key else {
        return Ok(None);
    };
    let auth = &request.api_key;
    let name = auth.name.parse().with_context(|| {
        format!(
            "the API's header {:?} for the key cannot be sent",
            auth.name
        )
    })?;
    // The value itself stays out of the message: it is a secret.
    let mut value = HeaderValue::from_str(&format!("{}{key}", auth.prefix))
        .map_err(|_| anyhow::anyhow!("--api-key holds characters that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

/// The headers of `--header`. No message shows a value, or what may be one.
///
/// # Errors
/// When one is no `K=V` or cannot be sent.
pub(crate) fn further_headers(target: &TargetArgs) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (number, header) in (1..).zip(&target.headers) {
        // What comes first separates: values hold `=`, names hold neither.
        let at = header.find(['=', ':']);
        let Some((name, value)) = at.map(|at| (&header[..at], header[at + 1..].trim())) else {
            bail!("--header number {number} is not KEY=VALUE");
        };
        let name: HeaderName = name.trim().parse().map_err(|_| {
            anyhow::anyhow!("--header number {number} has a name that cannot be sent")
        })?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| anyhow::anyhow!("--header {name}=… has a value that cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn target(line: &str) -> TargetArgs {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().target
    }

    #[test]
    fn a_server_is_a_url_or_a_host_and_a_port() {
        for (line, address) in [
            ("--url sim:", "sim:"),
            ("--server-url http://h:1/x", "http://h:1/x"),
            ("--host h", "http://h:8000"),
            ("--port 9", "http://localhost:9"),
            ("--host ::1 --port 9", "http://[::1]:9"),
        ] {
            assert_eq!(target(line).address(), address);
        }
        for line in ["", "--url u --host h"] {
            let words = std::iter::once("x").chain(line.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn log_probabilities_are_a_flag_or_a_number() {
        #[derive(Parser)]
        struct Bodies {
            #[command(flatten)]
            body: BodyArgs,
        }
        for (line, logprobs, top) in [
            ("", Value::Null, Value::Null),
            ("--logprobs", json!(true), Value::Null),
            ("--logprobs 5", json!(5), Value::Null),
            ("--logprobs --top-logprobs 2", json!(true), json!(2)),
        ] {
            let words = std::iter::once("x").chain(line.split_whitespace());
            let args = Bodies::try_parse_from(words).unwrap().body;
            let fields = body_options(&args, None).unwrap().fields;
            let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
            assert_eq!((field("logprobs"), field("top_logprobs")), (logprobs, top));
        }
    }

    #[test]
    fn the_apis_path_is_appended_where_the_url_has_none() {
        for (url, path) in [
            ("http://h", "/v1/chat/completions"),
            ("http://h/", "/v1/chat/completions"),
            ("http://h/v1", "/v1/chat/completions"),
            ("http://h/proxy/v1/", "/proxy/v1/chat/completions"),
            ("http://h/own/path", "/own/path"),
        ] {
            let args = target(&format!("--url {url}"));
            assert_eq!(endpoint(url, &args, Api::OpenAiChat).unwrap().path(), path);
        }
        let api = |name| Api::from_word(name).unwrap();
        for (line, name, streamed, whole) in [
            ("--url http://h/v1", "tgi", "/generate_stream", "/generate"),
            (
                "--url http://h/gate/v1/ --model m",
                "triton",
                "/gate/v2/models/m/generate_stream",
                "/gate/v2/models/m/generate",
            ),
            ("--url http://h/own", "tgi", "/own", "/own"),
        ] {
            let args = target(line);
            let url = endpoint(&args.address(), &args, api(name)).unwrap();
            let builder = RequestBuilder::new(&url, "h", &args, api(name)).unwrap();
            let path = |stream| builder.prepared(Bytes::new(), None, stream, None).url_path;
            assert_eq!((&*path(true), &*path(false)), (streamed, whole), "{line}");
        }
        let args = target("--url http://h/v1 --endpoint /x/y?api-version=1&key=s");
        let url = endpoint("http://h/v1", &args, Api::OpenAiChat).unwrap();
        assert_eq!(
            (url.path(), url.query()),
            ("/x/y", Some("api-version=1&key=s"))
        );
    }
}
