//! The run around the pacer: recording, telemetry, probe, progress, seal.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_live::{
    Arrival, Arrivals, AttemptPolicy, Deadline, Failure, Gauges, PreparedRequest, RunSpec, Stop,
    StopLevel, Telemetry, Timeouts, Workers, run as run_arrivals,
};
use tapedeck_recording::{
    EventBatch, MarkRow, Phase, Privacy, Scrubber, SegmentLimits, Sink, Writer, WriterOptions,
};

use crate::args::{ConnectionArgs, OutputArgs};
use crate::debug;
use crate::manifest::{Described, attempts_json, describe};
use crate::options;
use crate::output::{Outcome, failure_text};
use crate::phases::{Phases, WarmUp, as_ns};
use crate::progress::Progress;
use crate::sampling::Sampling;
use crate::server::Server;
use crate::signals;

/// Between setting up and the first arrival, so that the first is not late.
pub(crate) const LEAD_NS: i64 = 20_000_000;

/// What all recordings of one program run share.
#[derive(Debug)]
pub struct Harness<'a> {
    pub server: &'a Server,
    pub timeouts: Timeouts,
    /// Which attempts follow which, and which are broken off.
    pub attempts: AttemptPolicy,
    pub workers: usize,
    /// Opened before the start of each recording's load.
    pub warm_connections: usize,
    pub stop: Arc<Stop>,
    pub writer: WriterOptions,
    /// What is kept of prompts and answers; each recording has its own key.
    pub privacy: Privacy,
    /// Recorded beside the client's own samples.
    pub sampling: Sampling,
    pub log: Log,
}

/// What a run says while it goes on, on stderr.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log {
    /// A progress bar, where stderr is a terminal.
    pub bar: bool,
    /// A line whenever so many more requests have ended.
    pub every: Option<NonZeroU64>,
    /// All rows as they are written.
    pub debug: bool,
}

impl<'a> Harness<'a> {
    /// Settles timeouts and workers, and watches for signals.
    ///
    /// # Errors
    /// When signals cannot be watched, or the system gives no randomness.
    pub fn new(
        server: &'a Server,
        connection: &ConnectionArgs,
        output: &OutputArgs,
        seeded: Seeded<'_>,
        sampling: Sampling,
    ) -> Result<Self> {
        let stop = Arc::new(Stop::default());
        signals::watch(Arc::clone(&stop))?;
        Self::stopped_by(stop, server, connection, output, seeded, sampling)
    }

    /// As [`Self::new`], for a program that watches for signals itself.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn stopped_by(
        stop: Arc<Stop>,
        server: &'a Server,
        connection: &ConnectionArgs,
        output: &OutputArgs,
        seeded: Seeded<'_>,
        sampling: Sampling,
    ) -> Result<Self> {
        raise_open_files_limit();
        Ok(Self {
            server,
            timeouts: options::timeouts(connection),
            attempts: options::attempt_policy(&connection.attempts, seeded.seed),
            workers: options::workers(connection),
            warm_connections: usize::from(connection.warm_connections),
            stop,
            writer: writer_options(output),
            privacy: options::privacy(&output.privacy, seeded.tokenizer_path)?,
            sampling,
            log: Log {
                // Lines that come between would tear it apart.
                bar: !(output.no_progress || output.json || output.debug),
                every: output.log_every_n_query,
                debug: output.debug,
            },
        })
    }
}

/// What a program knows beside the flags that all of them share.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seeded<'a> {
    pub seed: u64,
    /// Cuts prompts into blocks of tokens, for `--content hashed`.
    pub tokenizer_path: Option<&'a Path>,
}

fn writer_options(output: &OutputArgs) -> WriterOptions {
    let limits = SegmentLimits {
        age: output.seal_every,
        ..SegmentLimits::default()
    };
    WriterOptions {
        durability: output.durability,
        ..limits.into()
    }
}

/// A connection is an open file, and so is its other end in the simulator. Where
/// the limit cannot be raised, what it costs is recorded as it happens.
pub fn raise_open_files_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
    }
}

/// One recording to be made.
#[derive(Debug)]
pub struct Plan {
    pub described: Described,
    /// Sent once before the rest, as phase `probe`.
    pub probe: Option<Arc<PreparedRequest>>,
    /// Requests in flight at most.
    pub parallel: Option<usize>,
    /// Nothing is sent later than this after the start of the measured phase.
    pub duration: Option<Duration>,
    /// Arrivals, where their number is known, for the progress bar.
    pub number: Option<u64>,
}

/// The probe did not get an answer that a load could be measured against.
#[derive(Debug, thiserror::Error)]
#[error("{message}\nhint: {hint}")]
struct ProbeFailed {
    message: String,
    hint: &'static str,
}

fn probe_hint(failure: &Failure) -> &'static str {
    match failure.status {
        Some(300..400) => {
            "name the address itself with --url; a redirect would be part of every latency"
        }
        _ => "--no-probe sends the load all the same",
    }
}

impl Harness<'_> {
    /// Records `arrivals` into `dir`. Their offsets count from the start of the
    /// load, which is a little after the start of the recording.
    ///
    /// # Errors
    /// When the recording cannot be written, the probe fails, or threads do.
    pub fn record(&self, dir: &Path, plan: &Plan, arrivals: impl Arrivals) -> Result<Outcome> {
        self.record_warm(dir, plan, None, arrivals)
    }

    /// As [`Self::record`], after a warm-up; offsets count from its end.
    ///
    /// # Errors
    /// As there.
    pub fn record_warm(
        &self,
        dir: &Path,
        plan: &Plan,
        warmup: Option<WarmUp<'_>>,
        arrivals: impl Arrivals,
    ) -> Result<Outcome> {
        let clock = RunClock::start();
        let privacy = self.privacy.with_new_key();
        let run = Run {
            harness: self,
            clock,
            privacy: privacy.context("cannot read a key for --content")?,
            gauges: Arc::new(Gauges::default()),
        };
        let mut manifest = describe(clock, &plan.described, &run.privacy);
        if let Some(settings) = manifest.settings.as_object_mut() {
            let durability = self.writer.durability.as_str();
            settings.insert("durability".into(), durability.into());
            settings.insert("attempts".into(), attempts_json(&self.attempts));
        }
        self.sampling.describe(&mut manifest.settings);
        let mut scrubber = Scrubber::new(&run.privacy);
        if self.log.debug {
            scrubber = scrubber.watched(debug::print);
        }
        let writer = Writer::create_scrubbed(dir, manifest, self.writer, scrubber)?;
        let result = run.drive(plan, &writer.sink(), warmup, arrivals);
        let sealed = writer.finish();
        // The disk's error explains the run's, not the other way round.
        sealed.with_context(|| {
            format!(
                "the recording {0} is not complete\nhint: what it has can be read; `record repair {0}` finishes it",
                dir.display()
            )
        })?;
        if let Err(error) = result {
            if error.is::<ProbeFailed>() {
                // Nothing but the probe is in it, and the message says how that
                // ended; the next try may use the same --out.
                std::fs::remove_dir_all(dir).ok();
            }
            return Err(error);
        }
        let (requests, failed) = run.gauges.measured_requests();
        let late_dropped = run.gauges.dropped_requests();
        if late_dropped > 0 {
            eprintln!("{late_dropped} requests were too late to be sent and were dropped");
        }
        Ok(Outcome {
            path: dir.to_owned(),
            requests,
            failed,
            failures: run.gauges.first_failures(),
            late_dropped,
        })
    }
}

pub(crate) struct Run<'a> {
    pub(crate) harness: &'a Harness<'a>,
    pub(crate) clock: RunClock,
    privacy: Privacy,
    pub(crate) gauges: Arc<Gauges>,
}

impl Run<'_> {
    fn drive(
        &self,
        plan: &Plan,
        sink: &Sink,
        warmup: Option<WarmUp<'_>>,
        arrivals: impl Arrivals,
    ) -> Result<()> {
        let telemetry = Telemetry::start(self.clock, Arc::clone(&self.gauges), sink.clone())
            .context("cannot start the telemetry thread")?;
        let samplers = self.harness.sampling.start(self.clock, sink)?;
        let mut first_id = 0;
        if let Some(request) = &plan.probe {
            self.mark(sink, "phase_begin", &json!({"phase": "probe"}));
            self.probe(request, sink)?;
            self.mark(sink, "phase_end", &json!({"phase": "probe"}));
            first_id = 1;
        }
        let mut spec = self.spec(sink, 0, first_id);
        spec.parallel = plan.parallel;
        let workers = self.warm_workers(&spec)?;
        telemetry.sample_now();
        let progress = Progress::start(Arc::clone(&self.gauges), plan.number, self.harness.log);
        let start_ns = self.clock.now_ns() + LEAD_NS;
        spec.start_ns = start_ns;
        let phase = Cell::new(Phase::Measure);
        let phases = Phases {
            run: self,
            sink,
            warmup,
            measured: arrivals,
            start_ns,
            duration_ns: plan.duration.map(as_ns),
            until: spec.until.clone(),
            handed_out: 0,
            phase: &phase,
        };
        let sent = workers.run(&spec, phases.begin());
        drop(progress);
        self.mark(sink, "phase_end", &json!({"phase": phase.get().as_str()}));
        telemetry.finish();
        samplers.finish();
        sent?;
        Ok(())
    }

    fn warm_workers(&self, spec: &RunSpec) -> Result<Workers> {
        let asked = self.harness.warm_connections;
        let workers = Workers::start(spec, asked)?;
        if asked > 0 {
            let opened = workers.warm_connections();
            let detail = json!({"asked": asked, "opened": opened});
            self.mark(&spec.sink, "connections_warmed", &detail);
            if opened < asked {
                eprintln!("opened {opened} of {asked} connections before the start");
            }
        }
        Ok(workers)
    }

    /// One request before the load, so that a wrong URL, key or model is one
    /// message and not a recording full of failures.
    fn probe(&self, request: &Arc<PreparedRequest>, sink: &Sink) -> Result<()> {
        let mut spec = self.spec(sink, self.clock.now_ns(), 0);
        spec.gauges = Arc::new(Gauges::default());
        spec.workers = 1;
        spec.policy.cancel = None;
        let arrival = Arrival {
            request: Arc::clone(request),
            offset_ns: None,
            phase: Phase::Probe,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
            cancel_after: None,
            conversation: None,
        };
        run_arrivals(&spec, std::iter::once(arrival))?;
        match spec.gauges.first_failures().first() {
            None => Ok(()),
            // Stopped by the user: the recording is sealed as it is.
            Some(_) if self.harness.stop.level() != StopLevel::Run => Ok(()),
            Some(failure) => Err(ProbeFailed {
                message: format!(
                    "the probe request to {} failed: {}",
                    self.harness.server.shown,
                    failure_text(failure)
                ),
                hint: probe_hint(failure),
            }
            .into()),
        }
    }

    /// Requests and connections are numbered from `first_id`: the probe has 0.
    fn spec(&self, sink: &Sink, start_ns: i64, first_id: i64) -> RunSpec {
        RunSpec {
            clock: self.clock,
            target: self.harness.server.target.clone(),
            timeouts: self.harness.timeouts,
            policy: self.harness.attempts,
            workers: self.harness.workers,
            parallel: Some(1),
            start_ns,
            until: Deadline::default(),
            first_request_id: first_id,
            first_conn_id: first_id,
            sink: sink.clone(),
            privacy: self.privacy.clone(),
            stop: Arc::clone(&self.harness.stop),
            gauges: Arc::clone(&self.gauges),
        }
    }

    pub(crate) fn mark(&self, sink: &Sink, name: &str, detail: &Value) {
        self.mark_at(self.clock.now_ns(), sink, name, detail);
    }

    pub(crate) fn mark_at(&self, t_ns: i64, sink: &Sink, name: &str, detail: &Value) {
        let batch = EventBatch {
            marks: vec![MarkRow {
                t_ns,
                name: name.into(),
                detail: detail.to_string().into(),
            }],
            ..EventBatch::default()
        };
        // A writer that has stopped reports its own error at the end.
        sink.push(batch).ok();
    }
}
