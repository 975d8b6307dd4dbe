//! One request: what happened when, and its numbers under every definition.
//!
//! Nothing is computed here but distances on the time line. The numbers are cells
//! of `request_latency`, `chunk_gap` and `peer_metric`, over a database that
//! holds this one attempt.

mod draw;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tapedeck_recording::Recording;

pub use draw::Style;

use crate::peer::Profile;
use crate::session::{self, Session};

/// Version of the JSON form.
pub const EXPLAIN_VERSION: u32 = 1;

/// Why a request cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Session(#[from] session::Error),
    #[error("{} holds {count} recordings\nhint: name one of them", path.display())]
    Several { path: PathBuf, count: usize },
    #[error("{} has no request\nhint: `analyze report` says what is in it", path.display())]
    Empty { path: PathBuf },
    #[error(
        "{} has no request {request_id}\nhint: its requests are {first} to {last}",
        path.display()
    )]
    NoRequest {
        path: PathBuf,
        request_id: i64,
        first: i64,
        last: i64,
    },
    #[error("request {request_id} has no attempt {attempt}\nhint: its last one is {last}")]
    NoAttempt {
        request_id: i64,
        attempt: i32,
        last: i32,
    },
}

/// One attempt of a request, as recorded and as counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub explain_version: u32,
    pub recording_id: String,
    pub name: String,
    pub path: PathBuf,
    pub request: Request,
    /// How many times it was sent.
    pub attempts: i64,
    /// Instants beside the reads, in order.
    pub events: Vec<Event>,
    pub reads: Vec<Read>,
    pub metrics: Vec<Metric>,
    pub profiles: Vec<ProfileLine>,
}

/// What was asked and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub request_id: i64,
    pub attempt: i32,
    pub phase: String,
    pub api: String,
    pub model: Option<String>,
    pub stream: bool,
    /// `unfinished` where the recorder saw no end.
    pub outcome: String,
    pub status: Option<i32>,
    pub finish_reason: Option<String>,
    pub error: Option<String>,
    pub timestamp_source: Option<String>,
    pub conn_id: Option<i64>,
    pub conn_reused: Option<bool>,
    pub body_bytes: i64,
    pub answer_bytes: Option<i64>,
}

/// An instant of the request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    pub event: &'static str,
    /// Since the recording started.
    pub t_ns: i64,
}

/// Chunks that one read brought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Read {
    pub read_index: i32,
    /// Arrival.
    pub t_ns: i64,
    pub chunks: Vec<Chunk>,
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    pub chunk_index: i32,
    #[serde(skip_serializing)]
    read_index: i32,
    pub choice_index: Option<i32>,
    pub t_ns: i64,
    pub kind: String,
    pub tokens: Option<i32>,
    pub bytes: i64,
    /// The beginning of what it says; `None` where it says nothing or was not kept.
    pub text: Option<String>,
}

impl Chunk {
    fn is_content_bearing(&self) -> bool {
        matches!(self.kind.as_str(), "content" | "reasoning" | "tool")
    }
}

impl Read {
    fn is_content_bearing(&self) -> bool {
        self.chunks.iter().any(Chunk::is_content_bearing)
    }
}

/// One metric under every definition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    pub metric: String,
    pub unit: String,
    /// Ours.
    pub tapedeck: Option<f64>,
    pub profiles: Vec<Number>,
}

/// One metric under one profile's definition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Number {
    pub profile: &'static str,
    pub value: Option<f64>,
    /// Why there is no value.
    pub reason: Option<String>,
}

/// A column of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProfileLine {
    pub profile: &'static str,
    pub tool: &'static str,
    pub differs: &'static str,
}

/// Explains one request of the recording at `path`: its last attempt, or `attempt`.
///
/// # Errors
/// When `path` is not one recording that can be read, or has no such request.
pub async fn explain(
    path: &Path,
    request_id: i64,
    attempt: Option<i32>,
) -> Result<Explanation, Error> {
    let mut found = session::open_all(&[path.to_owned()])?;
    let (Some(recording), true) = (found.pop(), found.is_empty()) else {
        return Err(Error::Several {
            path: path.to_owned(),
            count: found.len() + 1,
        });
    };
    let attempts = attempts(&recording, request_id).await?;
    let last = attempts.last;
    let attempt = attempt.unwrap_or(last);
    let key = (request_id, attempt);
    let session = Session::open_attempt(recording.clone(), key, &GOALS).await?;
    let facts: Vec<Facts> = session.rows(FACTS).await?;
    let Some(facts) = facts.into_iter().next() else {
        return Err(Error::NoAttempt {
            request_id,
            attempt,
            last,
        });
    };
    let chunks: Vec<Chunk> = session.rows(CHUNKS).await?;
    Ok(Explanation {
        explain_version: EXPLAIN_VERSION,
        recording_id: recording.manifest.recording_id,
        name: recording.manifest.name,
        path: recording.dir,
        events: facts.instants.events(),
        // In the database of one attempt every phase is the measured one.
        request: Request {
            phase: attempts.phase,
            ..facts.request
        },
        attempts: attempts.count,
        reads: reads(chunks),
        metrics: metrics(&session).await?,
        profiles: Profile::all().map(ProfileLine::of).collect(),
    })
}

impl ProfileLine {
    fn of(profile: Profile) -> Self {
        Self {
            profile: profile.name(),
            tool: profile.tool(),
            differs: profile.differs(),
        }
    }
}

struct Attempts {
    count: i64,
    last: i32,
    phase: String,
}

/// The attempts of a request that is there.
async fn attempts(recording: &Recording, request_id: i64) -> Result<Attempts, Error> {
    #[derive(Deserialize)]
    struct Row {
        request_id: i64,
        count: i64,
        last: i32,
        phase: String,
    }
    let path = recording.dir.clone();
    let session = Session::open_tables(vec![recording.clone()], &Default::default())?;
    let rows: Vec<Row> = session.rows(ATTEMPTS).await?;
    if let Some(row) = rows.iter().find(|row| row.request_id == request_id) {
        return Ok(Attempts {
            count: row.count,
            last: row.last,
            phase: row.phase.clone(),
        });
    }
    Err(match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => Error::NoRequest {
            path,
            request_id,
            first: first.request_id,
            last: last.request_id,
        },
        _ => Error::Empty { path },
    })
}

const ATTEMPTS: &str = "
SELECT
  request_id, count(*) AS count, max(attempt) AS last, max(phase) AS phase
FROM requests
GROUP BY request_id
ORDER BY request_id";

/// No header and no body: an explanation is made to be pasted.
const FACTS: &str = "
SELECT
  r.request_id, r.attempt, r.phase, r.api, r.model, r.stream,
  r.t_scheduled_ns, r.t_dispatched_ns, r.t_received_ns,
  r.t_connect_ns, r.t_connected_ns, r.t_tls_ns, r.t_sent_ns,
  r.conn_id, r.conn_reused, r.body_bytes,
  coalesce(p.outcome, 'unfinished') AS outcome,
  p.status, p.finish_reason, p.error, p.timestamp_source,
  p.t_headers_ns, p.t_end_ns, p.t_client_end_ns,
  p.body_bytes AS answer_bytes
FROM requests AS r
LEFT JOIN responses AS p ON TRUE";

/// The pointers are those of the OpenAI APIs; what another API wrote is read as that has
/// it. Of text that has all so far, what is new is shown.
const CHUNKS: &str = "
SELECT
  chunk_index, read_index, choice_index, t_ns, kind, tokens, bytes,
  CASE WHEN kind IN ('content', 'reasoning', 'tool', 'error') THEN
    left(coalesce(
      nullif(json_extract_string(data, '/choices/0/delta/content'), ''),
      nullif(json_extract_string(data, '/choices/0/delta/reasoning_content'), ''),
      nullif(json_extract_string(data, '/choices/0/delta/reasoning'), ''),
      json_extract_string(data, '/choices/0/delta/tool_calls/0/function'),
      nullif(json_extract_string(data, '/choices/0/text'), ''),
      CASE WHEN kind <> 'error' THEN
        CASE WHEN text_is(api) = 'cumulative'
          THEN substr(text, 1 + coalesce(max(length(text)) OVER so_far, 0))
          ELSE text END
      END,
      json_extract_string(data, '/error/message')
    ), 200)
  END AS text
FROM (
  SELECT c.*, r.api, output_text(c.data, r.api) AS text
  FROM chunks AS c JOIN requests AS r ON TRUE
)
WINDOW so_far AS (
  PARTITION BY choice_index ORDER BY chunk_index
  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
)
ORDER BY chunk_index";

#[derive(Deserialize)]
struct Facts {
    #[serde(flatten)]
    request: Request,
    #[serde(flatten)]
    instants: Instants,
}

#[derive(Deserialize)]
struct Instants {
    t_scheduled_ns: Option<i64>,
    t_dispatched_ns: Option<i64>,
    t_received_ns: Option<i64>,
    t_connect_ns: Option<i64>,
    t_connected_ns: Option<i64>,
    t_tls_ns: Option<i64>,
    t_sent_ns: Option<i64>,
    t_headers_ns: Option<i64>,
    t_end_ns: Option<i64>,
    t_client_end_ns: Option<i64>,
}

impl Instants {
    /// Those that happened, in the order in which they did.
    fn events(&self) -> Vec<Event> {
        let all = [
            ("scheduled", self.t_scheduled_ns),
            ("dispatched", self.t_dispatched_ns),
            ("received", self.t_received_ns),
            ("connecting", self.t_connect_ns),
            ("connected", self.t_connected_ns),
            ("TLS done", self.t_tls_ns),
            ("sent", self.t_sent_ns),
            ("headers", self.t_headers_ns),
            ("end", self.t_end_ns),
            ("forwarded", self.t_client_end_ns),
        ];
        let event = |(event, t_ns): (_, Option<i64>)| t_ns.map(|t_ns| Event { event, t_ns });
        let mut events: Vec<Event> = all.into_iter().filter_map(event).collect();
        events.sort_by_key(|event| event.t_ns);
        events
    }
}

/// Chunks by the read that brought them.
fn reads(chunks: Vec<Chunk>) -> Vec<Read> {
    let mut reads: Vec<Read> = Vec::new();
    for chunk in chunks {
        match reads.last_mut() {
            Some(read) if read.read_index == chunk.read_index => read.chunks.push(chunk),
            _ => reads.push(Read {
                read_index: chunk.read_index,
                t_ns: chunk.t_ns,
                chunks: vec![chunk],
            }),
        }
    }
    reads
}

/// The views that the questions below are asked of.
const GOALS: [&str; 3] = ["request_latency", "chunk_gap", "peer_metric"];

/// Ours in the names of `peer_metric`.
const OURS: &str = "
SELECT
  l.ttft_ms, l.tpot_ms, g.itl_ms, l.e2el_ms,
  l.input_tokens, l.output_tokens, l.output_tokens_per_s
FROM request_latency AS l
CROSS JOIN (SELECT avg(itl_ms) AS itl_ms FROM chunk_gap) AS g";

const THEIRS: &str = "
SELECT profile, metric, unit, value, reason
FROM peer_metric
ORDER BY metric_index";

async fn metrics(session: &Session) -> Result<Vec<Metric>, Error> {
    #[derive(Deserialize)]
    struct Row {
        profile: String,
        metric: String,
        unit: String,
        value: Option<f64>,
        reason: Option<String>,
    }
    let ours: Vec<serde_json::Map<String, serde_json::Value>> = session.rows(OURS).await?;
    let ours = ours.into_iter().next().unwrap_or_default();
    let mut metrics: Vec<Metric> = Vec::new();
    for row in session.rows::<Row>(THEIRS).await? {
        let Some(profile) = Profile::all().find(|p| p.name() == row.profile) else {
            continue;
        };
        let number = Number {
            profile: profile.name(),
            value: row.value,
            reason: row.reason,
        };
        match metrics.iter_mut().find(|m| m.metric == row.metric) {
            Some(metric) => metric.profiles.push(number),
            None => metrics.push(Metric {
                tapedeck: ours.get(&row.metric).and_then(serde_json::Value::as_f64),
                metric: row.metric,
                unit: row.unit,
                profiles: vec![number],
            }),
        }
    }
    let place = |name: &str| Profile::all().position(|p| p.name() == name);
    for metric in &mut metrics {
        metric.profiles.sort_by_key(|number| place(number.profile));
    }
    Ok(metrics)
}
