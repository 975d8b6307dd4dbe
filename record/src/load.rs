//! `record load`: arrivals and prompts become a recording, then a report.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_live::{
    Arrival, Gauges, PreparedRequest, RunSpec, Stop, StopLevel, Target, Telemetry, Timeouts,
    run as run_arrivals,
};
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{EventBatch, MarkRow, Phase, SegmentLimits, Sink, Writer};
use tapedeck_simulator::{Running, SimConfig, Simulator};
use url::Url;

use crate::Ending;
use crate::cli::LoadArgs;
use crate::config::{self, Level, RequestBuilder, Source};
use crate::discover::first_model;
use crate::manifest::{Described, describe};
use crate::output::{self, Outcome};
use crate::progress::Progress;
use crate::secrets::mask_url;
use crate::signals;

/// Between setting up and the first arrival, so that the first is not late.
const LEAD_NS: i64 = 5_000_000;

/// Carries out `record load`.
///
/// # Errors
/// When the load cannot be set up, the probe fails, or the disk does.
pub fn run(args: &LoadArgs) -> Result<Ending> {
    let source = config::source(args)?;
    if source.skipped_lines > 0 {
        eprintln!("left out {} lines that cannot be used", source.skipped_lines);
    }
    let levels = config::levels(&args.shape, source.default_number)?;
    let out = output::folders(&args.output, &levels)?;
    let timeouts = config::timeouts(&args.connection);
    let server = Server::reach(args, &timeouts)?;
    let requests = requests(args, &source, &server)?;
    let stop = Arc::new(Stop::default());
    signals::watch(Arc::clone(&stop))?;
    let load = Load {
        args,
        source: &source,
        server: &server,
        requests: &requests,
        timeouts,
        stop,
    };
    let mut done = Vec::new();
    for (level, dir) in levels.iter().zip(&out) {
        if load.stop.level() != StopLevel::Run {
            break;
        }
        done.push(load.record(level, dir)?);
    }
    output::finish(args, &done)
}

/// The server of a load, and the simulator that is it where there is one.
struct Server {
    url: Url,
    target: Target,
    model: Option<String>,
    /// As recorded: no secrets, and `sim:…` rather than an address.
    shown: String,
    _simulator: Option<Running>,
}

impl Server {
    fn reach(args: &LoadArgs, timeouts: &Timeouts) -> Result<Self> {
        let asked = &args.target.url;
        let simulator = match asked.strip_prefix("sim:") {
            Some(_) => {
                let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                Some(Simulator::start(SimConfig::from_url(asked)?, any)?)
            }
            None => None,
        };
        let url = match &simulator {
            Some(simulator) => format!("http://{}", simulator.addr()),
            None => asked.clone(),
        };
        let url = config::endpoint(&url, &args.target)?;
        let target = Target::resolve(&url, &config::tls_options(&args.target))?;
        let model = model(args, &url, timeouts)?;
        Ok(Self {
            shown: match &simulator {
                Some(_) => asked.clone(),
                None => mask_url(url.as_str()),
            },
            url,
            target,
            model,
            _simulator: simulator,
        })
    }
}

/// The model to ask for. A data set whose lines are whole bodies may name its
/// own, so there the server is not asked.
fn model(args: &LoadArgs, url: &Url, timeouts: &Timeouts) -> Result<Option<String>> {
    match &args.target.model {
        Some(model) => Ok(Some(model.clone())),
        None if args.workload.prompt.is_none() => Ok(None),
        None => first_model(url, &args.target, timeouts).map(Some),
    }
}

/// Every distinct request of the data set, built before the run.
fn requests(
    args: &LoadArgs,
    source: &Source,
    server: &Server,
) -> Result<Vec<Arc<PreparedRequest>>> {
    let builder = RequestBuilder::new(&server.url, &server.target.host, &args.target)?;
    let options = config::body_options(&args.body, server.model.clone())?;
    let mut requests: Vec<_> = source
        .items
        .iter()
        .map(|item| builder.request(item, &options))
        .collect();
    // Lines without a model of their own get the server's first.
    if requests.iter().any(|r| r.model.is_none()) {
        let timeouts = config::timeouts(&args.connection);
        let found = first_model(&server.url, &args.target, &timeouts)?;
        let named = config::body_options(&args.body, Some(found))?;
        for (request, item) in requests.iter_mut().zip(&source.items) {
            if request.model.is_none() {
                *request = builder.request(item, &named);
            }
        }
    }
    Ok(requests.into_iter().map(Arc::new).collect())
}

/// BLAKE3 over the hashes of the bodies, in the order of the data set.
fn content_hash(requests: &[Arc<PreparedRequest>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for request in requests {
        hasher.update(request.body_hash.as_deref().unwrap_or_default().as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// What all levels of a load share.
struct Load<'a> {
    args: &'a LoadArgs,
    source: &'a Source,
    server: &'a Server,
    requests: &'a [Arc<PreparedRequest>],
    timeouts: Timeouts,
    stop: Arc<Stop>,
}

impl Load<'_> {
    /// Records one level into `dir`.
    fn record(&self, level: &Level, dir: &Path) -> Result<Outcome> {
        let clock = RunClock::start();
        let manifest = describe(clock, self.described(level));
        let writer = Writer::create(dir, manifest, SegmentLimits::default())?;
        let gauges = Arc::new(Gauges::default());
        let result = self.drive(level, clock, &writer.sink(), &gauges);
        let sealed = writer.finish();
        // The disk's error explains the run's, not the other way round.
        sealed.with_context(|| format!("the recording {} is not complete", dir.display()))?;
        if let Err(error) = result {
            if error.is::<ProbeFailed>() {
                // Nothing but the probe is in it, and the message says how that
                // ended; the next try may use the same --out.
                std::fs::remove_dir_all(dir).ok();
            }
            return Err(error);
        }
        Ok(Outcome {
            path: dir.to_owned(),
            requests: gauges.ended_requests(),
            failed: gauges.failed_requests(),
            failures: gauges.first_failures(),
        })
    }

    fn drive(
        &self,
        level: &Level,
        clock: RunClock,
        sink: &Sink,
        gauges: &Arc<Gauges>,
    ) -> Result<()> {
        let telemetry = Telemetry::start(clock, Arc::clone(gauges), sink.clone())
            .context("cannot start the telemetry thread")?;
        let mut first_request_id = 0;
        if !self.args.shape.no_probe {
            self.probe(clock, sink)?;
            first_request_id = 1;
        }
        mark(clock, sink, "phase_begin", &json!({"phase": "measure"}));
        let quiet = self.args.output.no_progress || self.args.output.json;
        let progress = Progress::start(Arc::clone(gauges), level.number, quiet);
        let start_ns = clock.now_ns() + LEAD_NS;
        let spec = self.spec(level, clock, sink, gauges, start_ns, first_request_id);
        let arrivals = self.arrivals(level, start_ns);
        let sent = run_arrivals(&spec, arrivals);
        drop(progress);
        mark(clock, sink, "phase_end", &json!({"phase": "measure"}));
        telemetry.finish();
        sent?;
        Ok(())
    }

    /// One request before the load, so that a wrong URL, key or model is one
    /// message and not a recording full of failures.
    fn probe(&self, clock: RunClock, sink: &Sink) -> Result<()> {
        let gauges = Arc::new(Gauges::default());
        let level = Level {
            parallel: Some(1),
            rate_per_s: None,
            burstiness: 1.0,
            number: Some(1),
        };
        let mut spec = self.spec(&level, clock, sink, &gauges, clock.now_ns(), 0);
        // The probe has no part in the duration of the load.
        spec.until_ns = None;
        spec.workers = 1;
        let arrival = self.arrival(0, None, Phase::Probe);
        run_arrivals(&spec, std::iter::once(arrival))?;
        match gauges.first_failures().first() {
            None => Ok(()),
            Some(failure) => Err(ProbeFailed(format!(
                "the probe request to {} failed: {}",
                self.server.shown,
                output::failure_text(failure)
            ))
            .into()),
        }
    }

    fn spec(
        &self,
        level: &Level,
        clock: RunClock,
        sink: &Sink,
        gauges: &Arc<Gauges>,
        start_ns: i64,
        first_request_id: i64,
    ) -> RunSpec {
        let duration = self.args.shape.duration;
        let duration_ns = duration.map(|d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
        RunSpec {
            clock,
            target: self.server.target.clone(),
            timeouts: self.timeouts,
            workers: config::workers(&self.args.connection),
            parallel: level.parallel,
            start_ns,
            until_ns: duration_ns.map(|ns| start_ns.saturating_add(ns)),
            first_request_id,
            label: None,
            sink: sink.clone(),
            stop: Arc::clone(&self.stop),
            gauges: Arc::clone(gauges),
        }
    }

    /// The arrivals of `level`: the data set over and over, in its order.
    fn arrivals(&self, level: &Level, start_ns: i64) -> impl Iterator<Item = Arrival> {
        let mut offsets = level
            .process()
            .map(|process| process.offsets_ns(self.args.workload.seed));
        let number = level.number.unwrap_or(u64::MAX);
        (0..number).map(move |index| {
            let offset = offsets.as_mut().and_then(Iterator::next);
            self.arrival(index, offset.map(|ns| start_ns + ns), Phase::Measure)
        })
    }

    fn arrival(&self, index: u64, offset_ns: Option<i64>, phase: Phase) -> Arrival {
        let request = index as usize % self.requests.len();
        Arrival {
            request: Arc::clone(&self.requests[request]),
            offset_ns,
            phase,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
        }
    }

    fn described(&self, level: &Level) -> Described {
        let output = &self.args.output;
        Described {
            name: output.name.clone(),
            labels: output.labels.iter().cloned().collect(),
            target: self.server.shown.clone(),
            settings: self.settings(level),
            workload: Workload {
                kind: self.source.kind.to_owned(),
                path: self.source.path.as_ref().map(|p| p.display().to_string()),
                content_hash: Some(content_hash(self.requests)),
                seed: self.args.workload.seed,
            },
        }
    }

    fn settings(&self, level: &Level) -> Value {
        let timeouts = &self.timeouts;
        json!({
            "api": self.args.target.api.as_str(),
            "model": self.server.model,
            "parallel": level.parallel,
            "rate_per_s": level.rate_per_s.map(|r| if r.is_finite() { json!(r) } else { json!("all at once") }),
            "burstiness": level.burstiness,
            "number": level.number,
            "duration_s": self.args.shape.duration.map(|d| d.as_secs_f64()),
            "seed": self.args.workload.seed,
            "probe": !self.args.shape.no_probe,
            "content": "full",
            "workers": config::workers(&self.args.connection),
            "connect_timeout_s": timeouts.connect.as_secs_f64(),
            "first_byte_timeout_s": timeouts.first_byte.as_secs_f64(),
            "read_timeout_s": timeouts.read.as_secs_f64(),
            "total_timeout_s": timeouts.total.map(|d| d.as_secs_f64()),
            "skipped_lines": self.source.skipped_lines,
        })
    }
}

/// The probe did not get an answer that a load could be measured against.
#[derive(Debug, thiserror::Error)]
#[error("{0}\nhint: --no-probe sends the load all the same")]
struct ProbeFailed(String);

fn mark(clock: RunClock, sink: &Sink, name: &str, detail: &Value) {
    let batch = EventBatch {
        marks: vec![MarkRow {
            t_ns: clock.now_ns(),
            name: name.into(),
            detail: Some(detail.to_string().into()),
        }],
        ..EventBatch::default()
    };
    // A writer that has stopped reports its own error at the end.
    sink.push(batch).ok();
}
