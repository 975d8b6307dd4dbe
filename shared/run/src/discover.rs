//! Asks a server for its model. Not measured, so it goes through reqwest.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tapedeck_live::Timeouts;
use tapedeck_live::headers::redirect_target;
use tapedeck_wire::dialect::Api;
use url::Url;

use crate::args::TargetArgs;
use crate::http_client;
use crate::options::tls_options;
use crate::requests::{further_headers, key_header};

/// The first model that `<origin>/v1/models` lists.
///
/// # Errors
/// When the server does not answer or lists none.
pub(crate) fn first_model(
    url: &Url,
    target: &TargetArgs,
    api: Api,
    timeouts: &Timeouts,
) -> Result<String> {
    let mut models = url.clone();
    let prefix = url
        .path()
        .split_once("/v1")
        .map_or("", |(prefix, _)| prefix);
    models.set_path(&format!("{prefix}/v1/models"));
    models.set_query(None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime
        .block_on(ask(&models, target, api, timeouts))
        .with_context(|| format!("cannot find out the model from {}", models.path()))
        .map_err(|e| anyhow!("{e:#}\nhint: name it with --model"))
}

async fn ask(models: &Url, target: &TargetArgs, api: Api, timeouts: &Timeouts) -> Result<String> {
    let whole = timeouts.connect.max(timeouts.first_byte);
    let client = http_client::build(&tls_options(target), timeouts.connect, whole)?;
    let mut request = client.get(models.clone());
    let dialect = api.dialect();
    if let Some((name, value)) = key_header(target, &dialect.request)? {
        request = request.header(name, value);
    }
    for (name, value) in &dialect.request.headers {
        request = request.header(name, value);
    }
    request = request.headers(further_headers(target)?);
    // A URL in an error would show its query, and so its secrets.
    let response = request.send().await.map_err(reqwest::Error::without_url)?;
    let status = response.status();
    if status.is_redirection()
        && let Some(to) = redirect_target(models, response.headers())
    {
        bail!("HTTP {status}, redirected to {to}, not followed");
    }
    if !status.is_success() {
        bail!("HTTP {status}");
    }
    let body: Value = response.json().await.map_err(reqwest::Error::without_url)?;
    body.pointer("/data/0/id")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .context("the server lists no model")
}
