//! `record load`: arrivals and prompts become a recording, then a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tapedeck_live::{Arrival, PreparedRequest, StopLevel};
use tapedeck_recording::Phase;
use tapedeck_recording::manifest::Workload;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{Harness, Plan, Seeded};
use tapedeck_run::manifest::{Described, timeouts_json};
use tapedeck_run::output::{self, Outcome, content_hash};
use tapedeck_run::requests::{RequestBuilder, body_json, body_options, timeouts};
use tapedeck_run::server::Server;
use tapedeck_workload::BodyOptions;
use tapedeck_workload::dataset::{self, CountedBy};

use crate::cli::LoadArgs;
use crate::config::{self, Level, Source};

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
    let source = config::source(args)?;
    tell(&source);
    let levels = config::levels(&args.shape, source.default_number)?;
    let root = output::root(&args.output, COMMAND)?;
    let server = Server::reach(&args.target, args.api)?;
    let load = Load {
        args,
        source: &source,
        options: body_options(&args.body, args.target.model.clone())?,
        requests: requests(args, &source, &server)?,
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
    if let (Some(lost), Some(path)) = (&loaded.lost, source.spec.source.path()) {
        eprintln!("warning: {}: {lost}; the rest is lost", path.display());
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
) -> Result<Vec<Arc<PreparedRequest>>> {
    let builder = RequestBuilder::new(&server.url, &server.target.host, &args.target, args.api)?;
    let prompts = &source.loaded.prompts;
    let options = body_options(&args.body, args.target.model.clone())?;
    let mut requests: Vec<PreparedRequest> = prompts
        .iter()
        .map(|prompt| builder.request(prompt, &options))
        .collect();
    if requests.iter().any(|r| r.model.is_none()) {
        let found = server.first_model(&args.target, &timeouts(&args.connection))?;
        let options = body_options(&args.body, Some(found))?;
        for (request, prompt) in requests.iter_mut().zip(prompts) {
            if request.model.is_none() {
                *request = builder.request(prompt, &options);
            }
        }
    }
    Ok(requests.into_iter().map(Arc::new).collect())
}

/// What the settings say about the data set.
fn dataset_json(source: &Source) -> Value {
    let loaded = &source.loaded;
    let left_out = loaded.left_out.iter();
    let left_out: Map<String, Value> = left_out
        .map(|(reason, n)| (reason.as_str().to_owned(), json!(n)))
        .collect();
    let (counted_by, tokenizer) = match &loaded.counted_by {
        CountedBy::Nobody => (None, None),
        CountedBy::Estimate => (Some("estimate"), None),
        CountedBy::Tokenizer { path, content_hash } => (
            Some("tokenizer"),
            Some(json!({"path": path, "content_hash": content_hash})),
        ),
    };
    let lengths = &source.spec.lengths;
    let random = match &source.spec.source {
        dataset::Source::Random(random) => json!({
            "input_tokens": random.input_tokens,
            "output_tokens": random.output_tokens,
            "range_ratio": random.range_ratio,
            "prefix_tokens": random.prefix_tokens,
        }),
        _ => Value::Null,
    };
    let column = match &source.spec.source {
        dataset::Source::Column { column, .. } => Some(column),
        _ => None,
    };
    json!({
        "source_hash": loaded.source_hash,
        "records": loaded.records,
        "prompts": loaded.prompts.len(),
        "left_out": left_out,
        "unused": loaded.unused,
        "lost": loaded.lost,
        "tokens_counted_by": counted_by,
        "tokenizer": tokenizer,
        "prompt_column": column,
        "min_prompt_chars": lengths.min_chars,
        "max_prompt_chars": lengths.max_chars,
        "min_prompt_tokens": lengths.min_tokens,
        "max_prompt_tokens": lengths.max_tokens,
        "random": random,
    })
}

/// What all levels of a load share.
struct Load<'a> {
    args: &'a LoadArgs,
    source: &'a Source,
    options: BodyOptions,
    requests: Vec<Arc<PreparedRequest>>,
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
                    path: (self.source.spec.source.path()).map(|p| p.display().to_string()),
                    content_hash: Some(content_hash(&self.requests)),
                    seed: self.args.workload.seed,
                },
            },
            probe: probe.then(|| Arc::clone(&self.requests[0])),
            parallel: level.parallel,
            duration: self.args.shape.duration,
            number: level.number,
        }
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
        (0..number).map(move |index| Arrival {
            request: Arc::clone(&self.requests[(index % count) as usize]),
            offset_ns: offsets.as_mut().and_then(Iterator::next),
            phase: Phase::Measure,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
        })
    }

    fn settings(&self, level: &Level, harness: &Harness<'_>) -> Value {
        let rate = level.rate_per_s;
        let burstiness = level.burstiness;
        json!({
            "api": self.args.api.as_str(),
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
            "dataset": dataset_json(self.source),
        })
    }
}
