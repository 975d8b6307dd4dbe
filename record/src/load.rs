//! `record load`: arrivals and prompts become a recording, then a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tapedeck_live::{Arrival, PreparedRequest, StopLevel};
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{Phase, body_hash};
use tapedeck_run::dialogue::Sessions;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{Harness, Plan, Seeded};
use tapedeck_run::manifest::{Described, timeouts_json};
use tapedeck_run::output::{self, Outcome, content_hash};
use tapedeck_run::requests::{RequestBuilder, body_json, body_options, check_places, timeouts};
use tapedeck_run::secrets::recorded_dialect;
use tapedeck_run::server::Server;
use tapedeck_wire::dialect::Placeholder;
use tapedeck_workload::dataset::{self, CountedBy};
use tapedeck_workload::dialogue::{Replies, turns_text};
use tapedeck_workload::{BodyOptions, Prompt};

use crate::cli::LoadArgs;
use crate::config::{self, Level};
use crate::source::{self, Source, dataset_json};

/// Name of a recording that was given none.
const COMMAND: &str = "load";

/// Carries out `record load`.
///
/// # Errors
/// When the load cannot be set up, the probe fails, or the disk does.
pub fn run(args: &LoadArgs) -> Result<Ending> {
    if let Some(tokenizer) = &args.workload.tokenizer_path {
        // A large data set takes a core many seconds.
        eprintln!("counting tokens with {}", tokenizer.display());
    }
    check_places(args.api, &body_options(&args.body, None)?)?;
    let source = source::source(args)?;
    tell(&source);
    let levels = config::levels(&args.shape, source.default_number)?;
    let root = output::root(&args.output, COMMAND)?;
    let server = Server::reach(&args.target, args.api)?;
    let (requests, sessions) = requests(args, &source, &server)?;
    let load = Load {
        args,
        source: &source,
        options: body_options(&args.body, args.target.model.clone())?,
        requests,
        sessions: Arc::new(sessions),
    };
    let seeded = Seeded {
        seed: args.workload.seed,
        tokenizer_path: args.workload.tokenizer_path.as_deref(),
    };
    let sampling = server.sampling(&args.server_metrics, &args.target)?;
    let harness = Harness::new(&server, &args.connection, &args.output, seeded, sampling)?;
    let mut done = Vec::new();
    for (level, dir) in levels.iter().zip(folders(&root, &levels)) {
        if harness.stop.level() != StopLevel::Run {
            break;
        }
        let plan = load.plan(level, &harness);
        match harness.record(&dir, &plan, load.arrivals(level)) {
            Ok(outcome) => done.push(outcome),
            Err(error) => {
                // The levels before it are whole: they are reported all the same.
                finish(args, done)?;
                return Err(error);
            }
        }
    }
    harness.stop.finish();
    finish(args, done)
}

/// Repetitions stand beside each other in the report, in whatever order they ran.
fn finish(args: &LoadArgs, mut done: Vec<Outcome>) -> Result<Ending> {
    done.sort_by(|a, b| a.path.cmp(&b.path));
    output::finish(&args.output, &done)
}

/// What to know about the prompts before they are sent.
fn tell(source: &Source) {
    let loaded = &source.loaded;
    if let (Some(lost), Some(origin)) = (&loaded.lost, &source.origin) {
        eprintln!("warning: {origin}: {lost}; the rest is lost");
    }
    if loaded.counted_by == CountedBy::Estimate {
        eprintln!(
            "warning: tokens are estimated from the length of the text (UTF-8 bytes / 4): the length filter and the output limits are approximate\nhint: --tokenizer-path counts as the model does"
        );
    }
    let is_prompt = matches!(source.spec.source, dataset::Source::Prompt(_));
    if let Some(limit) = source.spec.limit
        && limit > loaded.prompts.len()
        && !is_prompt
    {
        let prompts = loaded.prompts.len();
        eprintln!("{prompts} prompts are sent again and again to make {limit} requests");
    }
    if loaded.left_out.total() > 0 {
        let (sent, records) = (loaded.prompts.len(), loaded.records);
        let unused = match loaded.unused {
            0 => String::new(),
            n => format!(", {n} were not needed"),
        };
        eprintln!(
            "{sent} of {records} records are sent{unused}; left out: {}",
            loaded.left_out
        );
    }
}

/// The folder of each level's recording: `root` itself where there is one level.
fn folders(root: &Path, levels: &[Level]) -> Vec<PathBuf> {
    if levels.len() == 1 {
        return vec![root.to_owned()];
    }
    let folder = |level: &Level| root.join(level.folder());
    levels.iter().map(folder).collect()
}

/// Every distinct request of the data set, built before the run. Without
/// `--model`, bodies that name no model of their own get the server's first.
fn requests(
    args: &LoadArgs,
    source: &Source,
    server: &Server,
) -> Result<(Vec<Arc<PreparedRequest>>, Sessions)> {
    let builder = RequestBuilder::new(&server.url, &server.target.host, &args.target, args.api)?;
    let prompts = &source.loaded.prompts;
    let mut options = body_options(&args.body, args.target.model.clone())?;
    let mut requests: Vec<PreparedRequest> = prompts
        .iter()
        .map(|prompt| builder.request(prompt, &options))
        .collect();
    let body = &args.api.dialect().request.body;
    let names_model = body.place_of(Placeholder::Model).is_some();
    if names_model && requests.iter().any(|r| r.model.is_none()) {
        let timeouts = timeouts(&args.connection);
        let found = server.first_model(&args.target, args.api, &timeouts)?;
        options = body_options(&args.body, Some(found))?;
        for (request, prompt) in requests.iter_mut().zip(prompts) {
            if request.model.is_none() {
                *request = builder.request(prompt, &options);
            }
        }
    }
    let sessions = &args.workload.sessions;
    let sessions = Sessions {
        builder,
        // Bodies of a data set keep the model that they name.
        options,
        replies: sessions.multi_turn_replies.into(),
        think: sessions.think_time,
        seed: args.workload.seed,
    };
    Ok((requests.into_iter().map(Arc::new).collect(), sessions))
}

/// Identity of what is sent: the bodies, and what later turns add to them.
fn workload_hash(
    requests: &[Arc<PreparedRequest>],
    prompts: &[Prompt],
    replies: Replies,
) -> String {
    let own = content_hash(requests);
    let turns: String = prompts.iter().map(turns_text).collect();
    if turns.is_empty() {
        return own;
    }
    body_hash(format!("{own} {} {turns}", replies.as_str()).as_bytes())
}

/// What all levels of a load share.
struct Load<'a> {
    args: &'a LoadArgs,
    source: &'a Source,
    options: BodyOptions,
    requests: Vec<Arc<PreparedRequest>>,
    sessions: Arc<Sessions>,
}

impl Load<'_> {
    fn plan(&self, level: &Level, harness: &Harness<'_>) -> Plan {
        let probe = !self.args.shape.no_probe;
        Plan {
            described: Described {
                name: self.args.output.name_or(COMMAND),
                labels: self.labels(level),
                target: harness.server.shown.clone(),
                settings: self.settings(level, harness),
                workload: Workload {
                    kind: self.source.kind.to_owned(),
                    path: self.source.origin.clone(),
                    content_hash: Some(workload_hash(
                        &self.requests,
                        &self.source.loaded.prompts,
                        self.sessions.replies,
                    )),
                    seed: self.args.workload.seed,
                },
            },
            probe: probe.then(|| Arc::clone(&self.requests[0])),
            parallel: level.parallel,
            duration: self.args.shape.duration,
            number: level.number.map(|n| self.turns_of(n)),
        }
    }

    /// Requests of the first `number` arrivals, when no session ends early.
    fn turns_of(&self, number: u64) -> u64 {
        let prompts = &self.source.loaded.prompts;
        let count = prompts.len() as u64;
        let turns = |prompts: &[Prompt]| prompts.iter().map(|p| 1 + p.turns.len() as u64).sum();
        let whole: u64 = turns(prompts);
        let rest: u64 = turns(&prompts[..(number % count) as usize]);
        whole.saturating_mul(number / count).saturating_add(rest)
    }

    /// Labels of the user's, and which repetition it is unless they say so.
    fn labels(&self, level: &Level) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<_, _> = self.args.output.labels.iter().cloned().collect();
        if let Some(repeat) = level.repeat {
            let label = labels.entry("repeat".to_owned());
            label.or_insert_with(|| repeat.to_string());
        }
        labels
    }

    /// The arrivals of `level`: the data set over and over, in its order.
    fn arrivals(&self, level: &Level) -> impl Iterator<Item = Arrival> {
        let mut offsets = level
            .process()
            .map(|process| process.offsets_ns(self.args.workload.seed));
        let number = level.number.unwrap_or(u64::MAX);
        let count = self.requests.len() as u64;
        (0..number).map(move |index| {
            let place = (index % count) as usize;
            let prompt = &self.source.loaded.prompts[place];
            let conversation = self.sessions.begin(prompt, index);
            Arrival {
                request: Arc::clone(&self.requests[place]),
                offset_ns: offsets.as_mut().and_then(Iterator::next),
                phase: Phase::Measure,
                session_id: self.session_id(prompt, index, index / count),
                turn: (self.args.workload.sessions.num_turns > 1).then_some(0),
                parent_request_id: None,
                replay_of: None,
                cancel_after: None,
                conversation,
            }
        })
    }

    /// As the data set names it, with the round behind it when it is sent again;
    /// else by its number. Lone requests of no session have none.
    fn session_id(&self, prompt: &Prompt, index: u64, round: u64) -> Option<Arc<str>> {
        match &prompt.session_id {
            Some(id) if round == 0 => Some(id.as_str().into()),
            Some(id) => Some(format!("{id}#{round}").into()),
            None if self.args.workload.sessions.num_turns > 1 => {
                Some(format!("session-{index}").into())
            }
            None => None,
        }
    }

    fn settings(&self, level: &Level, harness: &Harness<'_>) -> Value {
        let rate = level.rate_per_s;
        let burstiness = level.burstiness;
        json!({
            "api": self.args.api.as_str(),
            "dialect": recorded_dialect(self.args.api),
            "url_path": &*self.requests[0].url_path,
            "model": self.requests[0].model.as_deref(),
            "body": body_json(&self.options),
            "parallel": level.parallel,
            "rate_per_s": rate.filter(|r| r.is_finite()),
            "all_at_once": rate.is_some_and(f64::is_infinite),
            // JSON has no infinity.
            "burstiness": if burstiness.is_finite() { json!(burstiness) } else { json!("inf") },
            "number": level.number,
            "duration_s": self.args.shape.duration.map(|d| d.as_secs_f64()),
            "seed": self.args.workload.seed,
            "probe": !self.args.shape.no_probe,
            "workers": harness.workers,
            "warm_connections": harness.warm_connections,
            "timeouts": timeouts_json(&harness.timeouts),
            "insecure": self.args.target.insecure,
            "cacert": self.args.target.cacert,
            "simulator": harness.server.simulator_settings,
            "repeat": level.repeat,
            "repeats": self.args.shape.repeat,
            "dataset": dataset_json(self.source, &self.args.workload),
        })
    }
}
