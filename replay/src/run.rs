//! `replay run` and `replay plan`.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tapedeck_live::PreparedRequest;
use tapedeck_recording::manifest::Workload;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{self, Harness, Seeded};
use tapedeck_run::manifest::{Described, rate_shape_json, timeouts_json};
use tapedeck_run::options::check_connections;
use tapedeck_run::output::{self, content_hash};
use tapedeck_run::server::Server;

use crate::ahead::reserve;
use crate::bodies::{Maker, aimed, apis};
use crate::cli::{Mode, PlanArgs, Rounds, RunArgs, Salt, SourceArgs};
use crate::courses::{Bodies, Courses, TurnMaker, cancelled};
use crate::schedule::Planned;
use crate::source::{Plan, plan};

/// Columns of a printed plan.
const COLUMNS: &str = "request_id,offset_s,model,body_bytes,input_tokens,output_tokens,session_id,turn,after,think_s,cancel_after_s,copy,round";

/// Prints the planned arrivals as CSV, [`COLUMNS`]; what is not known is empty.
/// `after` is the line, from 0, of the request whose end a later turn waits for.
///
/// # Errors
/// When the source cannot be read or stdout cannot be written.
pub fn print_plan(args: &PlanArgs) -> Result<()> {
    let plan = plan(&args.source)?;
    announce("planned", &plan);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = || -> std::io::Result<()> {
        writeln!(out, "{COLUMNS}")?;
        for planned in plan.requests() {
            writeln!(out, "{}", line(planned, plan.schedule.mode))?;
        }
        out.flush()
    };
    match print() {
        // A reader that has seen enough is no error.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the plan"),
    }
}

fn line(planned: &Planned, mode: Mode) -> String {
    let found = &planned.found;
    let original = &found.original;
    let number = |n: Option<i32>| n.map(|n| n.to_string()).unwrap_or_default();
    let seconds = |d: Option<Duration>| d.map(|d| format!("{:.9}", d.as_secs_f64()));
    let think = planned.after.filter(|_| mode == Mode::Closed);
    let cells = [
        original.request_id.to_string(),
        format!("{:.9}", planned.offset_ns as f64 / 1e9),
        cell(original.model.as_deref()),
        original.body_bytes.to_string(),
        number(found.input_tokens),
        number(found.output_tokens),
        cell(planned.session_id.as_deref()),
        number(original.turn),
        planned.after.map(|n| n.to_string()).unwrap_or_default(),
        seconds(think.map(|_| planned.think)).unwrap_or_default(),
        seconds(found.cancel_after).unwrap_or_default(),
        planned.copy.to_string(),
        planned.round.to_string(),
    ];
    cells.join(",")
}

/// Quoted as CSV has it where it must be.
fn cell(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Says on stderr what is about to be done.
fn announce(what: &str, plan: &Plan) {
    let requests = plan.requests();
    let waiting = requests.iter().filter(|p| p.after.is_some()).count();
    eprintln!(
        "{what} {} requests of {} over {:.1} s, mode {}",
        requests.len(),
        plan.origin.name,
        plan.span_s(),
        plan.schedule.mode.as_str()
    );
    if waiting > 0 {
        eprintln!("{waiting} of them are later turns, each sent when the one before is done");
    }
    let after_rates = plan.schedule.after_rates;
    if after_rates > 0 {
        eprintln!("{after_rates} more would come after the end of --rate-series and are left out");
    }
    let from_start = plan.schedule.think_from_start;
    if from_start > 0 {
        eprintln!(
            "{from_start} think times count from the start of the turn before: the source does not say when that ended"
        );
    }
    let cancelled = cancelled(plan);
    if cancelled > 0 {
        eprintln!("{cancelled} were cancelled and are cancelled again");
    }
}

/// Name of a recording that was given none.
const COMMAND: &str = "replay";

/// Carries out `replay run`.
///
/// # Errors
/// When the source cannot be replayed, the probe fails, or the disk does.
pub fn run(args: &RunArgs) -> Result<Ending> {
    let plan = Arc::new(plan(&args.source)?);
    let root = output::root(&args.output, COMMAND)?;
    let first = &plan.requests()[0].found.original;
    let first_api = apis(&plan)?[&*first.api];
    check_connections(first_api, &args.connection)?;
    let server = Server::reach(&aimed(&args.target, first, first_api), first_api)?;
    let maker = Arc::new(Maker::new(&plan, &server, args)?);
    let sampling = server.sampling(&args.server_metrics, &args.target)?;
    let seeded = Seeded {
        seed: args.source.from.seed,
        tokenizer_path: args.synthesis.tokenizer_path.as_deref(),
    };
    let mut harness = Harness::new(&server, &args.connection, &args.output, seeded, sampling)?;
    harness.attempts.max_lateness = args.max_lateness;
    announce("replaying", &plan);
    // The probe has the first id.
    let first_id = i64::from(!args.no_probe);
    // Recorded bodies lie in memory already; prompts are made a little before they are due.
    let done = if plan.lacks_bodies() {
        let hash = plan.origin.workload.content_hash.clone();
        let first = Arc::new(maker.request(&plan.requests()[0])?);
        let recorded = harness_plan(args, &plan, &maker, &harness, first, hash);
        let (turns, orders) = TurnMaker::start(&plan, &maker)?;
        let courses = Courses::new(Arc::clone(&plan), Bodies::Made(orders), first_id);
        let done = send_made(&harness, &root, &recorded, courses, &plan, &maker);
        // Nobody orders any more: the maker ends.
        turns.finish()?;
        done?
    } else {
        let requests = maker.requests(&plan)?;
        let hash = Some(content_hash(&requests));
        let first = Arc::clone(&requests[0]);
        let recorded = harness_plan(args, &plan, &maker, &harness, first, hash);
        let courses = Courses::new(Arc::clone(&plan), Bodies::Ready(requests.clone()), first_id);
        let arrivals = courses.roots();
        let arrivals = arrivals.map(|place| courses.arrival(place, Arc::clone(&requests[place])));
        harness.record(&root, &recorded, arrivals)?
    };
    harness.stop.finish();
    let late_dropped = ("late_dropped".to_owned(), json!(done.late_dropped));
    output::finish_with(
        &args.output,
        &[done],
        std::iter::once(late_dropped).collect(),
    )
}

/// Records the plan while a thread of its own makes the requests that nothing has to
/// end before.
fn send_made(
    harness: &Harness<'_>,
    root: &Path,
    recorded: &harness::Plan,
    courses: Arc<Courses>,
    plan: &Plan,
    maker: &Maker,
) -> Result<output::Outcome> {
    let (mut made, reserve) = reserve();
    std::thread::scope(|scope| {
        let make = move || -> Result<()> {
            for place in courses.roots() {
                let request = Arc::new(maker.request(&plan.requests()[place])?);
                let kept_bytes = courses.kept_bytes(place, request.body.len());
                // The run has ended: it was stopped, or says why itself.
                if !made.give(courses.arrival(place, request), kept_bytes) {
                    break;
                }
            }
            Ok(())
        };
        let making = std::thread::Builder::new()
            .name("tapedeck-bodies".into())
            .spawn_scoped(scope, make)
            .context("cannot start a thread")?;
        reserve.wait_filled();
        let done = harness.record(root, recorded, reserve);
        let made = match making.join() {
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
        number: Some(plan.requests().len() as u64),
    }
}

/// How a trace was read, and its hash, by which an import of it is found. Where texts
/// are not kept, theirs is not either: of a short one it could be guessed.
fn traced(plan: &Plan, args: &RunArgs) -> Value {
    let mut trace = plan.origin.trace.clone();
    let is_open = !args.output.privacy.hides_text();
    let has_texts = plan
        .requests()
        .iter()
        .any(|p| p.found.original.body.is_some());
    if let Some(trace) = trace.as_object_mut()
        && (is_open || !has_texts)
    {
        trace.insert(
            "content_hash".into(),
            json!(plan.origin.workload.content_hash),
        );
    }
    trace
}

fn settings(
    source: &SourceArgs,
    plan: &Plan,
    args: &RunArgs,
    maker: &Maker,
    harness: &Harness<'_>,
) -> Value {
    let shape = &source.shape;
    let seconds = |d: Option<Duration>| d.map(|d| d.as_secs_f64());
    let ns = |ns: i64| (ns < i64::MAX).then_some(ns as f64 / 1e9);
    json!({
        "replay_of_recording_id": plan.origin.recording_id,
        "trace": traced(plan, args),
        "synthesis": maker.settings(),
        "dialect": plan.origin.dialect,
        "pin_output": maker.pin().as_str(),
        "mode": plan.schedule.mode.as_str(),
        "speed": shape.speed,
        // Not rate_per_s, which says that a load has a schedule: closed ones have none.
        "remapped_per_s": shape.rate,
        "remapped_to": shape.rate_series.as_ref().map(rate_shape_json),
        "left_out_after_rates": Some(plan.schedule.after_rates).filter(|n| *n > 0),
        "where": source.filter,
        "limit": shape.limit,
        "window_s": shape.window.map(|w| [ns(w.from_ns), ns(w.until_ns)]),
        "sample_sessions": shape.sample_sessions,
        "idle_cap_s": seconds(shape.idle_cap),
        "copies": shape.copies,
        "loop_times": match shape.rounds {
            Rounds::Times(times) => Some(times),
            Rounds::For(_) => None,
        },
        "loop_s": match shape.rounds {
            Rounds::Times(_) => None,
            Rounds::For(long_ns) => ns(long_ns),
        },
        "salt": shape.salt.map(Salt::as_str),
        "think_from_start": plan.schedule.think_from_start,
        "cancelled_again": cancelled(plan),
        "max_lateness_s": seconds(args.max_lateness),
        "seed": source.from.seed,
        "model": args.target.model,
        "number": plan.requests().len(),
        "duration_s": seconds(args.duration),
        "probe": !args.no_probe,
        "workers": harness.workers,
        "simulator": harness.server.simulator_settings,
        "warm_connections": harness.warm_connections,
        "timeouts": timeouts_json(&harness.timeouts),
    })
}
