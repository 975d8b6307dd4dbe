//! `record load`: arrivals and prompts become a recording, then a report.

use std::borrow::Cow;
use std::cell::Cell as Flag;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tapedeck_live::{PreparedRequest, Stop, StopLevel};
use tapedeck_recording::body_hash;
use tapedeck_recording::manifest::Workload;
use tapedeck_run::dialogue::Sessions;
use tapedeck_run::ending::{Ending, message};
use tapedeck_run::harness::{Harness, Plan, Seeded};
use tapedeck_run::manifest::{Described, rate_shape_json, timeouts_json};
use tapedeck_run::options::{body_json, body_options, check_connections, check_places, timeouts};
use tapedeck_run::output::{self, Outcome, content_hash};
use tapedeck_run::requests::RequestBuilder;
use tapedeck_run::secrets::recorded_dialect;
use tapedeck_run::server::Server;
use tapedeck_run::signals;
use tapedeck_wire::dialect::Placeholder;
use tapedeck_workload::dataset::{self, CountedBy};
use tapedeck_workload::dialogue::{Replies, turns_text};
use tapedeck_workload::{BodyOptions, Prompt};

use crate::arrivals::{LevelArrivals, Sent, warm_up};
use crate::cli::LoadArgs;
use crate::config::{self, Level, TrialOf};
#[cfg(feature = "report")]
use crate::find_max;
use crate::labels;
use crate::local;
use crate::matrix::{self, Cell, FailedCell};
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
    check_connections(args.api, &args.connection)?;
    labels::check(args)?;
    let source = source::source(args)?;
    tell(&source);
    let levels = config::levels(&args.shape, source.default_number)?;
    #[cfg(feature = "report")]
    args.find.check(args)?;
    let runs = Runs {
        source: &source,
        levels: &levels,
        stop: Arc::new(Stop::default()),
        is_watching: false.into(),
    };
    let mut done = Done::default();
    let result = match matrix::plan(args)? {
        None => runs.once(
            args,
            &Cell::default(),
            &output::root(&args.output, COMMAND)?,
            &mut done,
        ),
        Some(cells) => {
            let root = output::shared_root(&args.output, COMMAND)?;
            let is_stopped = || runs.stop.level() != StopLevel::Run;
            done.failed_cells = matrix::each(&root, &cells, is_stopped, |cell, args, dir| {
                runs.once(args, cell, dir, &mut done)
            });
            Ok(())
        }
    };
    runs.stop.finish();
    // Recordings made before an error are whole: they are reported all the same.
    let ending = finish(args, done)?;
    result.map(|()| ending)
}

/// What has come of a load so far.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) recordings: Vec<Outcome>,
    /// Members of the JSON object, one for each search.
    pub(crate) searches: Vec<Value>,
    /// For people to read, after the report.
    pub(crate) tables: String,
    /// Something that is no error and not fine either.
    pub(crate) finding: bool,
    failed_cells: Vec<FailedCell>,
}

/// What all servers are loaded with.
struct Runs<'a> {
    source: &'a Source,
    levels: &'a [Level],
    stop: Arc<Stop>,
    is_watching: Flag<bool>,
}

impl Runs<'_> {
    /// All levels on one server, which is launched if it is to be.
    fn once(&self, args: &LoadArgs, cell: &Cell, root: &Path, done: &mut Done) -> Result<()> {
        local::with_server(args, cell, root, &self.stop, |args, launch| {
            let source = self.source;
            let server = Server::reach(&args.target, args.api)?;
            let (requests, sessions) = requests(args, source, &server)?;
            let load = Load {
                args,
                source,
                options: body_options(&args.body, args.target.model.clone())?,
                prompts: Cow::Borrowed(&source.loaded.prompts),
                requests,
                sessions: Arc::new(sessions),
                launch,
            };
            let seeded = Seeded {
                seed: args.workload.seed,
                tokenizer_path: args.workload.tokenizer_path.as_deref(),
            };
            let sampling = server.sampling(&args.server_metrics, &args.target)?;
            let (connection, output) = (&args.connection, &args.output);
            let stop = self.watched()?;
            let harness = Harness::stopped_by(stop, &server, connection, output, seeded, sampling)?;
            #[cfg(feature = "report")]
            if let Some(what) = args.find.find_max {
                return find_max::run(what, &load, &harness, root, &self.levels[0], done);
            }
            self.sweep(&load, &harness, root, done)
        })
    }

    /// From the first load on signals end loads in good order; before, they end the
    /// program, whatever it waits for.
    fn watched(&self) -> Result<Arc<Stop>> {
        if !self.is_watching.replace(true) {
            signals::watch(Arc::clone(&self.stop))?;
        }
        Ok(Arc::clone(&self.stop))
    }

    fn sweep(
        &self,
        load: &Load<'_>,
        harness: &Harness<'_>,
        root: &Path,
        done: &mut Done,
    ) -> Result<()> {
        for (level, dir) in self.levels.iter().zip(folders(root, self.levels)) {
            if harness.stop.level() != StopLevel::Run {
                break;
            }
            done.recordings.push(load.record(harness, level, &dir)?);
        }
        Ok(())
    }
}

/// Repetitions stand beside each other in the report, in whatever order they ran.
fn finish(args: &LoadArgs, mut done: Done) -> Result<Ending> {
    done.recordings.sort_by(|a, b| a.path.cmp(&b.path));
    let is_matrix = !args.launch.matrix.is_empty();
    let mut further = serde_json::Map::new();
    if is_matrix {
        let failed = done.failed_cells.iter();
        let failed = failed
            .map(|failed| json!({"cell": failed.cell.json(), "error": message(&failed.error)}));
        further.insert("failed_cells".to_owned(), failed.collect());
        further.insert("find_max".to_owned(), json!(done.searches));
    } else if let Some(search) = done.searches.pop() {
        further.insert("find_max".to_owned(), search);
    }
    let ending = output::finish_with(&args.output, &done.recordings, further)?;
    if !args.output.json && !args.output.no_report {
        output::print(&done.tables)?;
    }
    Ok(match done.finding || !done.failed_cells.is_empty() {
        true => Ending::Finding,
        false => ending,
    })
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

fn trial_json(trial: &TrialOf) -> Value {
    json!({
        "number": trial.number,
        "repeat": trial.repeat,
        "salt": trial.salt,
        "salted_prompts": trial.salted_prompts,
    })
}

/// What all levels of a load share.
#[derive(Clone)]
pub(crate) struct Load<'a> {
    pub(crate) args: &'a LoadArgs,
    pub(crate) source: &'a Source,
    options: BodyOptions,
    /// Those of the source, or what a trial makes of them.
    prompts: Cow<'a, [Prompt]>,
    /// One a prompt.
    requests: Vec<Arc<PreparedRequest>>,
    sessions: Arc<Sessions>,
    /// What the settings say of the server's launch.
    launch: Option<Value>,
}

impl<'a> Load<'a> {
    /// The same load under other flags, of `prompts` where there are other ones.
    #[cfg(feature = "report")]
    pub(crate) fn of_trial<'b>(&self, args: &'b LoadArgs, prompts: Option<Vec<Prompt>>) -> Load<'b>
    where
        'a: 'b,
    {
        let mut load = Load {
            args,
            ..self.clone()
        };
        if let Some(prompts) = prompts {
            let Sessions {
                builder, options, ..
            } = &*self.sessions;
            let requests = prompts.iter().map(|p| builder.request(p, options));
            load.requests = requests.map(Arc::new).collect();
            load.prompts = Cow::Owned(prompts);
        }
        load
    }

    pub(crate) fn record(
        &self,
        harness: &Harness<'_>,
        level: &Level,
        dir: &Path,
    ) -> Result<Outcome> {
        let plan = self.plan(level, harness);
        let sent = self.sent(level);
        let warmup = warm_up(sent, &self.args.shape.warmup);
        harness.record_warm(dir, &plan, warmup, LevelArrivals::new(sent))
    }

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
                    path: self.origin(),
                    content_hash: Some(workload_hash(
                        &self.requests,
                        &self.prompts,
                        self.sessions.replies,
                    )),
                    seed: self.args.workload.seed,
                },
            },
            probe: probe.then(|| Arc::clone(&self.requests[0])),
            parallel: level.parallel,
            duration: self.args.shape.duration,
            number: self.expected(level),
        }
    }

    /// Where prompts come from. A command may hold what it prints: where texts are
    /// hidden it stands in the command line only, as its hash.
    fn origin(&self) -> Option<String> {
        let args = self.args;
        let hides_text = args.output.privacy.hides_text();
        let is_command = args.workload.dataset_command.is_some();
        let origin = self.source.origin.clone();
        origin.filter(|_| !(is_command && hides_text))
    }

    /// About how many requests there will be, where it can be known.
    fn expected(&self, level: &Level) -> Option<u64> {
        let whole = level
            .rate_shape
            .as_ref()
            .map(|s| s.expected().round() as u64);
        let number = [level.number, whole].into_iter().flatten().min()?;
        let warmup = &self.args.shape.warmup;
        match (warmup.warmup_requests, warmup.warmup_duration) {
            (_, Some(_)) => None,
            (count, None) => Some(self.turns_of(number).saturating_add(count.unwrap_or(0))),
        }
    }

    /// Requests of the first `number` arrivals, when no session ends early.
    fn turns_of(&self, number: u64) -> u64 {
        let prompts = &*self.prompts;
        let count = prompts.len() as u64;
        let turns = |prompts: &[Prompt]| prompts.iter().map(|p| 1 + p.turns.len() as u64).sum();
        let whole: u64 = turns(prompts);
        let rest: u64 = turns(&prompts[..(number % count) as usize]);
        whole.saturating_mul(number / count).saturating_add(rest)
    }

    /// Labels of the user's, and which repetition or trial it is: none of theirs.
    fn labels(&self, level: &Level) -> BTreeMap<String, String> {
        let mut labels = self.args.output.all_labels();
        labels.extend(labels::of_level(level));
        labels
    }

    fn sent<'s>(&'s self, level: &'s Level) -> Sent<'s> {
        Sent {
            level,
            requests: &self.requests,
            prompts: &self.prompts,
            sessions: &self.sessions,
            in_sessions: self.args.workload.sessions.num_turns > 1,
            client_sequences: self.args.shape.clients.client_sequences,
            seed: level.schedule_seed(self.args.workload.seed),
        }
    }

    fn settings(&self, level: &Level, harness: &Harness<'_>) -> Value {
        let rate = level.rate_per_s;
        let burstiness = level.burstiness;
        let shape = &self.args.shape;
        let seconds = |duration: Option<Duration>| duration.map(|d| d.as_secs_f64());
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
            "rate_shape": level.rate_shape.as_ref().map(rate_shape_json),
            "ramp_up_s": level.clients().ramp_up.as_secs_f64(),
            "client_duration_s": seconds(level.client_duration),
            "client_sequences": shape.clients.client_sequences,
            "number": level.number,
            "duration_s": seconds(shape.duration),
            "warmup_requests": shape.warmup.warmup_requests,
            "warmup_duration_s": seconds(shape.warmup.warmup_duration),
            "seed": self.args.workload.seed,
            "schedule_seed": level.schedule_seed(self.args.workload.seed),
            "trial": level.trial.as_ref().map(trial_json),
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
            "launch": self.launch,
        })
    }
}
