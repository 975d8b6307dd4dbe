//! A recording or a trace becomes arrivals.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tapedeck_clock::realtime_ns;
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{Outcome, Phase, Recording, RequestRow, ResponseRow, Table, body_hash};

use crate::cli::{From, SourceArgs};
use crate::import::Imported;
use crate::schedule::{Found, Planned, Schedule, Seen, chosen, schedule};

/// What the requests were taken from.
#[derive(Debug)]
pub struct Origin {
    pub name: String,
    /// `None` for a trace.
    pub recording_id: Option<String>,
    /// Hash and seed of the source; those of the replay's bodies may replace them.
    pub workload: Workload,
    /// How a trace was read; null for a recording.
    pub trace: Value,
    /// The dialect that a recording brings; null where it is a built-in one.
    pub dialect: Value,
    /// Whether block sizes are tokens.
    pub blocks_are_tokens: bool,
}

/// What is to be replayed.
#[derive(Debug)]
pub struct Plan {
    pub origin: Origin,
    pub schedule: Schedule,
}

impl Plan {
    #[must_use]
    pub fn requests(&self) -> &[Planned] {
        &self.schedule.requests
    }

    /// Whether a body is to be made.
    #[must_use]
    pub fn lacks_bodies(&self) -> bool {
        let mut originals = self.requests().iter().map(|p| &p.found.original);
        originals.any(|original| original.body.is_none())
    }

    /// Offset of the last arrival, s.
    #[must_use]
    pub fn span_s(&self) -> f64 {
        let last = self.requests().last();
        last.map_or(0.0, |planned| planned.offset_ns as f64 / 1e9)
    }
}

/// Reads the source and settles what is sent when.
///
/// # Errors
/// When the source is no single recording and no trace, the filter does not hold
/// up as SQL, or nothing is left to send.
pub fn plan(args: &SourceArgs) -> Result<Plan> {
    let (origin, found) = if is_recording(args) {
        of_recording(args)?
    } else {
        of_trace(args)?
    };
    if found.is_empty() {
        bail!("{} has no request to replay", args.source.display());
    }
    let seed = args.from.seed;
    let fresh = body_hash(format!("{} {}", realtime_ns(), std::process::id()).as_bytes());
    Ok(Plan {
        schedule: schedule(found, &args.shape, seed, &fresh)?,
        origin,
    })
}

fn is_recording(args: &SourceArgs) -> bool {
    match args.from.from {
        Some(from) => from == From::Recording,
        None => !args.source.exists() || Recording::folders(&args.source).is_ok(),
    }
}

fn of_recording(args: &SourceArgs) -> Result<(Origin, Vec<Found>)> {
    let mut recordings = Recording::open_all(&args.source)?;
    if recordings.len() != 1 {
        bail!(
            "{} holds {} recordings\nhint: name one of them",
            args.source.display(),
            recordings.len()
        );
    }
    let recording = recordings.remove(0);
    let kept = kept(args, &args.source)?;
    let requests = recording.rows(Table::Requests)?.requests;
    let endings = endings(&requests, recording.rows(Table::Responses)?.responses);
    let mut unknown = 0_usize;
    let mut due: Vec<(i64, Option<RequestRow>)> = requests
        .into_iter()
        .filter(|row| row.attempt == 0 && row.phase != Phase::Probe)
        .filter_map(|row| {
            let t_ns = arrived_ns(&row);
            unknown += usize::from(t_ns.is_none());
            Some((t_ns?, Some(row)))
        })
        .collect();
    if unknown > 0 {
        eprintln!(
            "left out: {unknown} requests that were never sent, and nothing says when they came"
        );
    }
    due.sort_by_key(|(t_ns, row)| (*t_ns, row.as_ref().map(|row| row.request_id)));
    let first_ns = due.first().map_or(0, |(t_ns, _)| *t_ns);
    let seen: Vec<Seen> = due
        .iter()
        .filter_map(|(t_ns, row)| Some(seen(t_ns - first_ns, row.as_ref()?)))
        .collect();
    let places = chosen(&seen, kept.as_ref(), &args.shape, args.from.seed);
    let found = places.into_iter().filter_map(|place| {
        let original = due[place].1.take()?;
        let ending = endings.get(&original.request_id);
        Some(Found {
            t_ns: seen[place].t_ns,
            t_end_ns: ending.and_then(|e| Some(e.t_end_ns? - first_ns)),
            cancel_after: ending.and_then(|e| e.cancel_after),
            input_tokens: original
                .input_tokens
                .or_else(|| ending.and_then(|e| e.input_tokens)),
            output_tokens: ending.and_then(|e| e.output_tokens),
            original,
        })
    });
    let found = found.collect();
    Ok((origin_of(args, recording), found))
}

fn origin_of(args: &SourceArgs, recording: Recording) -> Origin {
    let manifest = recording.manifest;
    let unit = manifest.settings.pointer("/blocks/unit");
    Origin {
        name: manifest.name,
        recording_id: Some(manifest.recording_id),
        workload: Workload {
            kind: "recording".to_owned(),
            path: Some(args.source.display().to_string()),
            content_hash: manifest.workload.and_then(|w| w.content_hash),
            seed: args.from.seed,
        },
        trace: Value::Null,
        dialect: manifest
            .settings
            .get("dialect")
            .cloned()
            .unwrap_or_default(),
        blocks_are_tokens: unit.is_none_or(|unit| unit == &json!("tokens")),
    }
}

fn seen(t_ns: i64, row: &RequestRow) -> Seen {
    Seen {
        request_id: row.request_id,
        t_ns,
        session_id: row.session_id.clone(),
        parent_request_id: row.parent_request_id,
    }
}

/// How the last attempt of a request ended: the one that counts.
struct Ended {
    attempt: i32,
    t_end_ns: Option<i64>,
    cancel_after: Option<Duration>,
    input_tokens: Option<i32>,
    output_tokens: Option<i32>,
}

fn endings(requests: &[RequestRow], responses: Vec<ResponseRow>) -> HashMap<i64, Ended> {
    let sent = |row: &RequestRow| {
        let t_ns = row.t_sent_ns.or(row.t_dispatched_ns).or(row.t_received_ns);
        Some(((row.request_id, row.attempt), t_ns?))
    };
    let sent: HashMap<(i64, i32), i64> = requests.iter().filter_map(sent).collect();
    let mut last: HashMap<i64, Ended> = HashMap::new();
    for row in responses {
        let known = last.get(&row.request_id).map(|ended| ended.attempt);
        if known.is_some_and(|attempt| attempt > row.attempt) {
            continue;
        }
        let given_up = row.t_end_ns.filter(|_| row.outcome == Outcome::Cancelled);
        let after_ns = given_up
            .zip(sent.get(&(row.request_id, row.attempt)))
            .map(|(t_end_ns, t_sent_ns)| u64::try_from(t_end_ns - t_sent_ns).unwrap_or(0));
        last.insert(
            row.request_id,
            Ended {
                attempt: row.attempt,
                t_end_ns: row.t_client_end_ns.or(row.t_end_ns),
                cancel_after: after_ns.map(Duration::from_nanos),
                input_tokens: row.input_tokens,
                output_tokens: row.output_tokens,
            },
        );
    }
    last
}

fn of_trace(args: &SourceArgs) -> Result<(Origin, Vec<Found>)> {
    let imported = Imported::load(&args.source, &args.from)?;
    let kept = match &args.filter {
        Some(_) => {
            let dir = tempfile::tempdir().context("cannot make a folder for --where")?;
            let path = dir.path().join("trace");
            imported.write_for_sql(&path)?;
            kept(args, &path)?
        }
        None => None,
    };
    // Rows are in order of arrival, and what is not chosen is not even built.
    let rows = &imported.trace.rows;
    let seen: Vec<Seen> = rows
        .iter()
        .zip(0..)
        .map(|(row, request_id)| Seen {
            request_id,
            t_ns: imported.offset_ns(row.t_ns),
            session_id: row.session.clone(),
            parent_request_id: row.parent.map(|parent| parent as i64),
        })
        .collect();
    let places = chosen(&seen, kept.as_ref(), &args.shape, args.from.seed);
    let found = places.into_iter().map(|place| {
        let original = imported.request(place);
        let row = &rows[place];
        let count = |n: u32| i32::try_from(n).ok();
        Found {
            t_ns: seen[place].t_ns,
            t_end_ns: row.t_end_ns.map(|t_ns| imported.offset_ns(t_ns)),
            cancel_after: row.t_end_ns.filter(|_| row.cancelled).map(|t_end_ns| {
                Duration::from_nanos(u64::try_from(t_end_ns - row.t_ns).unwrap_or(0))
            }),
            input_tokens: original.input_tokens,
            output_tokens: row.output_tokens.and_then(count),
            original,
        }
    });
    let found = found.collect();
    let origin = Origin {
        name: imported.name(),
        recording_id: None,
        workload: imported.workload(),
        trace: imported.settings(),
        dialect: imported.dialect(),
        blocks_are_tokens: true,
    };
    Ok((origin, found))
}

/// Ids of the requests that `--where` keeps of the recording in `path`; `None` for
/// all.
fn kept(args: &SourceArgs, path: &Path) -> Result<Option<BTreeSet<i64>>> {
    let filter = args.filter.as_deref();
    filter.map(|filter| matching(path, filter)).transpose()
}

/// Ids of the requests of the recording in `path` for which `filter` holds.
///
/// # Errors
/// When it does not hold up as SQL.
pub(crate) fn matching(path: &Path, filter: &str) -> Result<BTreeSet<i64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let paths = [path.to_owned()];
    runtime
        .block_on(tapedeck_analyze::matching_requests(&paths, filter))
        .with_context(|| format!("--where {filter}"))
}

/// When the original came: at the proxy, by its schedule, or when it was sent.
fn arrived_ns(row: &RequestRow) -> Option<i64> {
    row.t_received_ns.or(row.t_scheduled_ns).or(row.t_sent_ns)
}
