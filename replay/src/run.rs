//! `replay run` and `replay plan`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tapedeck_live::{Arrival, PreparedRequest};
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{Phase, RequestRow};
use tapedeck_run::args::TargetArgs;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{self, Harness, Seeded};
use tapedeck_run::manifest::{Described, timeouts_json};
use tapedeck_run::output::{self, content_hash};
use tapedeck_run::requests::RequestBuilder;
use tapedeck_run::server::Server;
use tapedeck_wire::openai::Api;

use crate::cli::{PlanArgs, RunArgs, SourceArgs};
use crate::source::{Plan, Planned, plan};

/// Prints `request_id,offset_s,model,body_bytes` of every planned arrival.
///
/// # Errors
/// When the source cannot be read or stdout cannot be written.
pub fn print_plan(args: &PlanArgs) -> Result<()> {
    let plan = plan(&args.source)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = || -> std::io::Result<()> {
        writeln!(out, "request_id,offset_s,model,body_bytes")?;
        for planned in &plan.requests {
            let original = &planned.original;
            writeln!(
                out,
                "{},{:.9},{},{}",
                original.request_id,
                planned.offset_ns as f64 / 1e9,
                original.model.as_deref().unwrap_or_default(),
                original.body_bytes
            )?;
        }
        out.flush()
    };
    match print() {
        // A reader that has seen enough is no error.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the plan"),
    }
}

/// Name of a recording that was given none.
const COMMAND: &str = "replay";

/// Carries out `replay run`.
///
/// # Errors
/// When the source cannot be replayed, the probe fails, or the disk does.
pub fn run(args: &RunArgs) -> Result<Ending> {
    let plan = plan(&args.source)?;
    let root = output::root(&args.output, COMMAND)?;
    let server = Server::reach(&args.target, api(&plan.requests[0].original)?)?;
    let requests = requests(&plan, &server, &args.target)?;
    let harness = Harness::new(&server, &args.connection, &args.output, Seeded::default())?;
    eprintln!(
        "replaying {} requests of {} over {:.1} s, mode {}",
        plan.requests.len(),
        plan.manifest.name,
        plan.requests
            .last()
            .map_or(0.0, |p| p.offset_ns as f64 / 1e9),
        args.source.mode.as_str()
    );
    let recorded = harness::Plan {
        described: described(args, &plan, &requests, &harness),
        probe: (!args.no_probe).then(|| Arc::clone(&requests[0])),
        parallel: None,
        duration: args.duration,
        number: Some(plan.requests.len() as u64),
    };
    let arrivals = plan.requests.iter().zip(&requests);
    let arrivals = arrivals.map(|(planned, request)| arrival(planned, request));
    let done = harness.record(&root, &recorded, arrivals)?;
    harness.stop.finish();
    output::finish(&args.output, &[done])
}

fn arrival(planned: &Planned, request: &Arc<PreparedRequest>) -> Arrival {
    let original = &planned.original;
    Arrival {
        request: Arc::clone(request),
        offset_ns: Some(planned.offset_ns),
        phase: Phase::Measure,
        session_id: original.session_id.clone(),
        turn: original.turn,
        parent_request_id: None,
        replay_of: Some(original.request_id),
    }
}

/// The planned requests for `server`, one for each distinct body, so that equal
/// bodies share their bytes.
fn requests(
    plan: &Plan,
    server: &Server,
    target: &TargetArgs,
) -> Result<Vec<Arc<PreparedRequest>>> {
    let mut builders: BTreeMap<&'static str, RequestBuilder> = BTreeMap::new();
    let mut built: BTreeMap<(&'static str, Bytes), Arc<PreparedRequest>> = BTreeMap::new();
    let mut requests = Vec::with_capacity(plan.requests.len());
    for planned in &plan.requests {
        let original = &planned.original;
        let body = original.body.clone().with_context(|| {
            format!(
                "request {} was recorded without its body\nhint: only recordings of --content full can be replayed",
                original.request_id
            )
        })?;
        let api = api(original)?;
        let key = (api.as_str(), body.clone());
        if let Some(request) = built.get(&key) {
            requests.push(Arc::clone(request));
            continue;
        }
        if !builders.contains_key(api.as_str()) {
            let url = server.url_for(target, api)?;
            let builder = RequestBuilder::new(&url, &server.target.host, target, api)?;
            builders.insert(api.as_str(), builder);
        }
        let request = Arc::new(prepare(
            &builders[api.as_str()],
            original,
            &body,
            target.model.as_deref(),
        )?);
        built.insert(key, Arc::clone(&request));
        requests.push(request);
    }
    Ok(requests)
}

fn api(original: &RequestRow) -> Result<Api> {
    match Api::from_word(&original.api) {
        Some(api) => Ok(api),
        None => bail!(
            "request {} uses api {}, which cannot be replayed",
            original.request_id,
            original.api
        ),
    }
}

/// The original body byte for byte, unless another model is asked for.
fn prepare(
    builder: &RequestBuilder,
    original: &RequestRow,
    body: &Bytes,
    model: Option<&str>,
) -> Result<PreparedRequest> {
    let (body, model) = match model {
        None => (body.clone(), original.model.as_deref().map(str::to_owned)),
        Some(model) => (with_model(original, body, model)?, Some(model.to_owned())),
    };
    Ok(builder.prepared(body, model, original.stream, original.max_output_tokens))
}

fn with_model(original: &RequestRow, body: &[u8], model: &str) -> Result<Bytes> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).with_context(|| {
        format!(
            "--model cannot be set in request {}, its body is no JSON object",
            original.request_id
        )
    })?;
    fields.insert("model".to_owned(), json!(model));
    Ok(Bytes::from(Value::Object(fields).to_string()))
}

fn described(
    args: &RunArgs,
    plan: &Plan,
    requests: &[Arc<PreparedRequest>],
    harness: &Harness<'_>,
) -> Described {
    Described {
        name: args.output.name_or(COMMAND),
        labels: args.output.labels.iter().cloned().collect(),
        target: harness.server.shown.clone(),
        settings: settings(&args.source, plan, args, harness),
        workload: Workload {
            kind: "recording".to_owned(),
            path: Some(args.source.source.display().to_string()),
            content_hash: Some(content_hash(requests)),
            seed: 0,
        },
    }
}

fn settings(source: &SourceArgs, plan: &Plan, args: &RunArgs, harness: &Harness<'_>) -> Value {
    json!({
        "replay_of_recording_id": plan.manifest.recording_id,
        "mode": source.mode.as_str(),
        "speed": source.speed,
        "where": source.filter,
        "limit": source.limit,
        "model": args.target.model,
        "number": plan.requests.len(),
        "duration_s": args.duration.map(|d| d.as_secs_f64()),
        "probe": !args.no_probe,
        "workers": harness.workers,
        "simulator": harness.server.simulator_settings,
        "warm_connections": harness.warm_connections,
        "timeouts": timeouts_json(&harness.timeouts),
    })
}
