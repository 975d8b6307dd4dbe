//! `replay run` and `replay plan`.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tapedeck_live::{Arrival, PreparedRequest};
use tapedeck_recording::Phase;
use tapedeck_recording::manifest::Workload;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{self, Harness, Seeded};
use tapedeck_run::manifest::{Described, timeouts_json};
use tapedeck_run::output::{self, content_hash};
use tapedeck_run::requests::check_connections;
use tapedeck_run::server::Server;

use crate::bodies::{Maker, aimed, apis};
use crate::cli::{Pin, PlanArgs, RunArgs, SourceArgs};
use crate::source::{Plan, Planned, plan};

/// Prints `request_id,offset_s,model,body_bytes,input_tokens,output_tokens` of every
/// planned arrival; what is not known is empty.
///
/// # Errors
/// When the source cannot be read or stdout cannot be written.
pub fn print_plan(args: &PlanArgs) -> Result<()> {
    let plan = plan(&args.source, false)?;
    let number = |n: Option<i32>| n.map(|n| n.to_string()).unwrap_or_default();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = || -> std::io::Result<()> {
        writeln!(
            out,
            "request_id,offset_s,model,body_bytes,input_tokens,output_tokens"
        )?;
        for planned in &plan.requests {
            let original = &planned.original;
            writeln!(
                out,
                "{},{:.9},{},{},{},{}",
                original.request_id,
                planned.offset_ns as f64 / 1e9,
                original.model.as_deref().unwrap_or_default(),
                original.body_bytes,
                number(planned.input_tokens),
                number(planned.output_tokens),
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

/// Requests made ahead of the pacer: a trace's prompts need not all lie in memory,
/// and some hundred are more than it sends while one is made.
const AHEAD: usize = 128;

/// Carries out `replay run`.
///
/// # Errors
/// When the source cannot be replayed, the probe fails, or the disk does.
pub fn run(args: &RunArgs) -> Result<Ending> {
    let pins = args.synthesis.pin_output.is_some_and(|pin| pin != Pin::Off);
    let plan = plan(&args.source, pins)?;
    let root = output::root(&args.output, COMMAND)?;
    let first = &plan.requests[0].original;
    let first_api = apis(&plan)?[&*first.api];
    check_connections(first_api, &args.connection)?;
    let server = Server::reach(&aimed(&args.target, first, first_api), first_api)?;
    let maker = Maker::new(&plan, &server, args)?;
    let sampling = server.sampling(&args.server_metrics, &args.target)?;
    let seeded = Seeded {
        seed: args.source.from.seed,
        tokenizer_path: args.synthesis.tokenizer_path.as_deref(),
    };
    let harness = Harness::new(&server, &args.connection, &args.output, seeded, sampling)?;
    eprintln!(
        "replaying {} requests of {} over {:.1} s, mode {}",
        plan.requests.len(),
        plan.origin.name,
        plan.requests
            .last()
            .map_or(0.0, |p| p.offset_ns as f64 / 1e9),
        args.source.mode.as_str()
    );
    // Recorded bodies lie in memory already; prompts are made as they are due.
    let done = if plan.lacks_bodies() {
        let hash = plan.origin.workload.content_hash.clone();
        let first = Arc::new(maker.request(&plan.requests[0])?);
        let recorded = harness_plan(args, &plan, &maker, &harness, first, hash);
        send_made(&harness, &root, &recorded, &plan, &maker)?
    } else {
        let requests = maker.requests(&plan)?;
        let hash = Some(content_hash(&requests));
        let first = Arc::clone(&requests[0]);
        let recorded = harness_plan(args, &plan, &maker, &harness, first, hash);
        let ids = ReplayIds::new(&plan, &recorded);
        let arrivals = plan.requests.iter().zip(requests);
        let arrivals = arrivals.map(|(planned, request)| ids.arrival(planned, request));
        harness.record(&root, &recorded, arrivals)?
    };
    harness.stop.finish();
    output::finish(&args.output, &[done])
}

/// Records the plan while a thread of its own makes its requests.
fn send_made(
    harness: &Harness<'_>,
    root: &Path,
    recorded: &harness::Plan,
    plan: &Plan,
    maker: &Maker,
) -> Result<output::Outcome> {
    let ids = ReplayIds::new(plan, recorded);
    let (give, take) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let make = move || -> Result<()> {
            for planned in &plan.requests {
                let request = Arc::new(maker.request(planned)?);
                // The run has ended: it was stopped, or says why itself.
                if give.send(ids.arrival(planned, request)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let made = std::thread::Builder::new()
            .name("tapedeck-bodies".into())
            .spawn_scoped(scope, make)
            .context("cannot start a thread")?;
        let done = harness.record(root, recorded, take.into_iter());
        let made = match made.join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let done = done?;
        made.map(|()| done)
    })
}

fn harness_plan(
    args: &RunArgs,
    plan: &Plan,
    maker: &Maker,
    harness: &Harness<'_>,
    first: Arc<PreparedRequest>,
    content_hash: Option<String>,
) -> harness::Plan {
    harness::Plan {
        described: Described {
            name: args.output.name_or(COMMAND),
            labels: args.output.all_labels(),
            target: harness.server.shown.clone(),
            settings: settings(&args.source, plan, args, maker, harness),
            workload: Workload {
                content_hash,
                ..plan.origin.workload.clone()
            },
        },
        probe: (!args.no_probe).then_some(first),
        parallel: None,
        duration: args.duration,
        number: Some(plan.requests.len() as u64),
    }
}

/// The ids that requests of the source get in the replay.
struct ReplayIds(HashMap<i64, i64>);

impl ReplayIds {
    fn new(plan: &Plan, recorded: &harness::Plan) -> Self {
        // The probe has the first.
        let first = i64::from(recorded.probe.is_some());
        let originals = plan.requests.iter().map(|p| p.original.request_id);
        Self(originals.zip(first..).collect())
    }

    fn arrival(&self, planned: &Planned, request: Arc<PreparedRequest>) -> Arrival {
        let original = &planned.original;
        let parent = original.parent_request_id;
        Arrival {
            request,
            offset_ns: Some(planned.offset_ns),
            phase: Phase::Measure,
            session_id: original.session_id.clone(),
            turn: original.turn,
            parent_request_id: parent.and_then(|id| self.0.get(&id).copied()),
            replay_of: Some(original.request_id),
            conversation: None,
        }
    }
}

fn settings(
    source: &SourceArgs,
    plan: &Plan,
    args: &RunArgs,
    maker: &Maker,
    harness: &Harness<'_>,
) -> Value {
    json!({
        "replay_of_recording_id": plan.origin.recording_id,
        "trace": plan.origin.trace,
        "synthesis": maker.settings(),
        "dialect": plan.origin.dialect,
        "pin_output": maker.pin().as_str(),
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
