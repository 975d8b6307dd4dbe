//! What the shared flags mean: what is in every body, how long and how often is
//! tried, what is kept.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tapedeck_live::{AttemptPolicy, Cancellation, Timeouts, TlsOptions};
use tapedeck_recording::privacy::{BLOCK_BYTES, BLOCK_TOKENS, TokenizerName};
use tapedeck_recording::{BlockSpec, Privacy};
use tapedeck_wire::dialect::{Api, Framing};
use tapedeck_workload::body::{check_fields, unplaced};
use tapedeck_workload::{BodyOptions, encoder};

use crate::args::{AttemptArgs, BodyArgs, ConnectionArgs, Content, PrivacyArgs, TargetArgs};

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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
}
