//! `replay run` and `replay plan`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
use tapedeck_wire::dialect::{Api, Dialect, Placeholder};
use url::Url;

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
    let first = &plan.requests[0].original;
    let first_api = apis(&plan)?[&*first.api];
    let server = Server::reach(&aimed(&args.target, first, first_api), first_api)?;
    let requests = requests(&plan, &server, &args.target)?;
    let sampling = server.sampling(&args.server_metrics, &args.target)?;
    let seeded = Seeded::default();
    let harness = Harness::new(&server, &args.connection, &args.output, seeded, sampling)?;
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
        conversation: None,
    }
}

/// The planned requests for `server`, one for each distinct body, so that equal
/// bodies share their bytes.
fn requests(
    plan: &Plan,
    server: &Server,
    target: &TargetArgs,
) -> Result<Vec<Arc<PreparedRequest>>> {
    let apis = apis(plan)?;
    // By API and original path, which may name the model.
    let mut builders: BTreeMap<(&str, &str), RequestBuilder> = BTreeMap::new();
    let mut built: BTreeMap<(&str, &str, Bytes), Arc<PreparedRequest>> = BTreeMap::new();
    let mut requests = Vec::with_capacity(plan.requests.len());
    for planned in &plan.requests {
        let original = &planned.original;
        let body = original.body.clone().with_context(|| {
            format!(
                "request {} was recorded without its body\nhint: only recordings of --content full can be replayed",
                original.request_id
            )
        })?;
        let api = apis[&*original.api];
        let way = (&*original.api, &*original.url_path);
        let key = (way.0, way.1, body.clone());
        if let Some(request) = built.get(&key) {
            requests.push(Arc::clone(request));
            continue;
        }
        let builder = match builders.entry(way) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let target = aimed(target, original, api);
                let url = server.url_for(&target, api)?;
                let host = &server.target.host;
                place.insert(RequestBuilder::new(&url, host, &target, api)?)
            }
        };
        let request = Arc::new(prepare(
            api,
            builder,
            original,
            &body,
            target.model.as_deref(),
        )?);
        built.insert(key, Arc::clone(&request));
        requests.push(request);
    }
    Ok(requests)
}

/// The APIs of all requests: the one that the recording brings its dialect of, and
/// those that are built in.
fn apis(plan: &Plan) -> Result<BTreeMap<&str, Api>> {
    let recorded = plan.manifest.settings.get("dialect");
    let recorded = match recorded.filter(|dialect| !dialect.is_null()) {
        Some(recorded) => Some(Api::of(Dialect::from_recorded(recorded)?)),
        None => None,
    };
    let mut apis = BTreeMap::new();
    for planned in &plan.requests {
        let original = &planned.original;
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
fn aimed(target: &TargetArgs, original: &RequestRow, api: Api) -> TargetArgs {
    let mut aimed = target.clone();
    let bare = Url::parse(&target.url).is_ok_and(|url| url.path() == "/");
    if bare && aimed.endpoint.is_none() && !api.dialect().serves(&original.url_path) {
        aimed.endpoint = Some(original.url_path.to_string());
    }
    aimed.model = aimed.model.or(original.model.as_deref().map(str::to_owned));
    aimed
}

/// The original body byte for byte, unless another model is asked for.
fn prepare(
    api: Api,
    builder: &RequestBuilder,
    original: &RequestRow,
    body: &Bytes,
    model: Option<&str>,
) -> Result<PreparedRequest> {
    let (body, model) = match model {
        None => (body.clone(), original.model.as_deref().map(str::to_owned)),
        Some(model) => (
            with_model(api, original, body, model)?,
            Some(model.to_owned()),
        ),
    };
    Ok(builder.prepared(body, model, original.stream, original.max_output_tokens))
}

/// `body` for another model, where bodies of `api` name theirs.
fn with_model(api: Api, original: &RequestRow, body: &Bytes, model: &str) -> Result<Bytes> {
    let Some(keys) = api.dialect().request.body.place_of(Placeholder::Model) else {
        return Ok(body.clone());
    };
    let mut fields: Map<String, Value> = serde_json::from_slice(body).with_context(|| {
        format!(
            "--model cannot be set in request {}, its body is no JSON object",
            original.request_id
        )
    })?;
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
        "dialect": plan.manifest.settings.get("dialect"),
        "number": plan.requests.len(),
        "duration_s": args.duration.map(|d| d.as_secs_f64()),
        "probe": !args.no_probe,
        "workers": harness.workers,
        "simulator": harness.server.simulator_settings,
        "warm_connections": harness.warm_connections,
        "timeouts": timeouts_json(&harness.timeouts),
    })
}
