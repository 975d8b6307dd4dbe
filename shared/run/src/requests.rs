//! Where requests go and what heads them.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use tapedeck_live::PreparedRequest;
use tapedeck_live::headers::recorded_headers;
use tapedeck_recording::body_hash;
use tapedeck_wire::dialect::{Api, RequestPart};
use tapedeck_workload::body::{BuiltBody, build};
use tapedeck_workload::{BodyOptions, Prompt};
use url::Url;

use crate::args::TargetArgs;
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
