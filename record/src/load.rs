//! `record load`: arrivals and prompts become a recording, then a report.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tapedeck_live::{Arrival, PreparedRequest, StopLevel};
use tapedeck_recording::Phase;
use tapedeck_recording::manifest::Workload;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::{Harness, Plan};
use tapedeck_run::manifest::{Described, timeouts_json};
use tapedeck_run::output::{self, content_hash};
use tapedeck_run::requests::{RequestBuilder, body_json, body_options, timeouts};
use tapedeck_run::server::Server;
use tapedeck_workload::BodyOptions;

use crate::cli::LoadArgs;
use crate::config::{self, Level, Source};

/// Name of a recording that was given none.
const COMMAND: &str = "load";

/// Carries out `record load`.
///
/// # Errors
/// When the load cannot be set up, the probe fails, or the disk does.
pub fn run(args: &LoadArgs) -> Result<Ending> {
    let source = config::source(args)?;
    if source.skipped_lines > 0 {
        eprintln!(
            "left out {} lines that cannot be used",
            source.skipped_lines
        );
    }
    let levels = config::levels(&args.shape, source.default_number)?;
    let root = output::root(&args.output, COMMAND)?;
    let server = Server::reach(&args.target, args.api)?;
    let load = Load {
        args,
        source: &source,
        options: body_options(&args.body, args.target.model.clone())?,
        requests: requests(args, &source, &server)?,
    };
    let harness = Harness::new(&server, &args.connection, &args.output)?;
    let mut done = Vec::new();
    for (level, dir) in levels.iter().zip(folders(root, &levels)) {
        if harness.stop.level() != StopLevel::Run {
            break;
        }
        let plan = load.plan(level, &harness);
        match harness.record(&dir, &plan, load.arrivals(level)) {
            Ok(outcome) => done.push(outcome),
            Err(error) => {
                // The levels before it are whole: they are reported all the same.
                output::finish(&args.output, &done)?;
                return Err(error);
            }
        }
    }
    harness.stop.finish();
    output::finish(&args.output, &done)
}

/// The folder of each level's recording: `root` itself where there is one level.
fn folders(root: PathBuf, levels: &[Level]) -> Vec<PathBuf> {
    if levels.len() == 1 {
        return vec![root];
    }
    let numbered = levels.iter().enumerate();
    numbered
        .map(|(index, level)| root.join(format!("{index:03}-{}", level.folder())))
        .collect()
}

/// Every distinct request of the data set, built before the run. Without
/// `--model`, bodies that name no model of their own get the server's first.
fn requests(
    args: &LoadArgs,
    source: &Source,
    server: &Server,
) -> Result<Vec<Arc<PreparedRequest>>> {
    let builder = RequestBuilder::new(&server.url, &server.target.host, &args.target, args.api)?;
    let build_all = |model: Option<String>| -> Result<Vec<PreparedRequest>> {
        let options = body_options(&args.body, model)?;
        let items = source.items.iter();
        Ok(items.map(|item| builder.request(item, &options)).collect())
    };
    let mut requests = build_all(args.target.model.clone())?;
    if requests.iter().any(|r| r.model.is_none()) {
        let found = server.first_model(&args.target, &timeouts(&args.connection))?;
        for (request, named) in requests.iter_mut().zip(build_all(Some(found))?) {
            if request.model.is_none() {
                *request = named;
            }
        }
    }
    Ok(requests.into_iter().map(Arc::new).collect())
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
                labels: self.args.output.labels.iter().cloned().collect(),
                target: harness.server.shown.clone(),
                settings: self.settings(level, harness),
                workload: Workload {
                    kind: self.source.kind.to_owned(),
                    path: self.source.path.as_ref().map(|p| p.display().to_string()),
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
            "timeouts": timeouts_json(&harness.timeouts),
            "insecure": self.args.target.insecure,
            "cacert": self.args.target.cacert,
            "simulator": harness.server.simulator_settings,
            "skipped_lines": self.source.skipped_lines,
        })
    }
}
