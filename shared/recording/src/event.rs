//! The rows of a recording as they leave the socket side.
//!
//! Field names, units and NULL rules are those of [`crate::schema`].

use std::sync::Arc;

use bytes::Bytes;
use tapedeck_wire::word_enum;
pub use tapedeck_wire::words::{ChunkKind, Outcome};

/// A list of header or label pairs, in wire order.
pub type Pairs = Arc<[(String, String)]>;

word_enum! {
    /// Which part of a run a request belongs to.
    Phase { Probe = "probe", Warmup = "warmup", Measure = "measure" }
}

word_enum! {
    /// Where arrival instants come from.
    TimestampSource { Kernel = "kernel", Process = "process" }
}

/// One attempt, as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRow {
    pub request_id: i64,
    pub attempt: i32,
    pub phase: Phase,
    pub session_id: Option<Arc<str>>,
    pub turn: Option<i32>,
    pub parent_request_id: Option<i64>,
    pub replay_of: Option<i64>,
    pub worker: Option<Arc<str>>,
    pub api: Arc<str>,
    pub method: Arc<str>,
    pub url_path: Arc<str>,
    pub query: Option<Arc<str>>,
    pub model: Option<Arc<str>>,
    pub stream: bool,
    pub t_scheduled_ns: Option<i64>,
    pub t_dispatched_ns: Option<i64>,
    pub t_received_ns: Option<i64>,
    pub t_connect_ns: Option<i64>,
    pub t_connected_ns: Option<i64>,
    pub t_tls_ns: Option<i64>,
    pub t_sent_ns: Option<i64>,
    pub conn_id: Option<i64>,
    pub conn_reused: Option<bool>,
    pub headers: Option<Pairs>,
    pub body: Option<Bytes>,
    pub body_bytes: i64,
    pub body_hash: Option<Arc<str>>,
    pub input_tokens: Option<i32>,
    pub input_tokens_source: Option<Arc<str>>,
    pub max_output_tokens: Option<i32>,
    pub block_size: Option<i32>,
    /// `(start, len)` runs of prefix-block ids.
    pub block_runs: Option<Arc<[(i64, i32)]>>,
}

impl RequestRow {
    /// The first attempt of a streamed chat request in the measured phase, with no
    /// body and every nullable column NULL: what importers and made-up recordings
    /// fill in. Rows that come off a socket name every column instead, so that a
    /// new one cannot be forgotten there.
    #[must_use]
    pub fn blank(request_id: i64) -> Self {
        Self {
            request_id,
            attempt: 0,
            phase: Phase::Measure,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
            worker: None,
            api: "openai-chat".into(),
            method: "POST".into(),
            url_path: "/v1/chat/completions".into(),
            query: None,
            model: None,
            stream: true,
            t_scheduled_ns: None,
            t_dispatched_ns: None,
            t_received_ns: None,
            t_connect_ns: None,
            t_connected_ns: None,
            t_tls_ns: None,
            t_sent_ns: None,
            conn_id: None,
            conn_reused: None,
            headers: None,
            body: None,
            body_bytes: 0,
            body_hash: None,
            input_tokens: None,
            input_tokens_source: None,
            max_output_tokens: None,
            block_size: None,
            block_runs: None,
        }
    }
}

/// One stream event. Its payload lies in [`ChunkRows::payloads`].
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkRow {
    pub request_id: i64,
    pub attempt: i32,
    pub chunk_index: i32,
    pub read_index: i32,
    pub choice_index: Option<i32>,
    pub t_ns: i64,
    pub t_seen_ns: i64,
    pub t_forwarded_ns: Option<i64>,
    pub kind: ChunkKind,
    pub event: Option<Arc<str>>,
    pub event_id: Option<Arc<str>>,
    pub tokens: Option<i32>,
    /// True length of the payload, also where the copy was cut.
    pub bytes: i64,
    /// `(offset, length)` of the payload copy; `None` where none is kept.
    pub payload: Option<(u32, u32)>,
}

impl ChunkRow {
    /// An empty chunk of content, alone in its read and seen as it arrived at `t_ns`.
    #[must_use]
    pub fn blank(request_id: i64, chunk_index: i32, t_ns: i64) -> Self {
        Self {
            request_id,
            attempt: 0,
            chunk_index,
            read_index: chunk_index,
            choice_index: None,
            t_ns,
            t_seen_ns: t_ns,
            t_forwarded_ns: None,
            kind: ChunkKind::Content,
            event: None,
            event_id: None,
            tokens: None,
            bytes: 0,
            payload: None,
        }
    }
}

/// Chunk rows and one arena for their payloads, so that a chunk costs a copy
/// and no allocation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkRows {
    pub rows: Vec<ChunkRow>,
    pub payloads: Vec<u8>,
}

impl ChunkRows {
    /// Appends a row whose payload is `data`.
    pub fn push(&mut self, mut row: ChunkRow, data: Option<&[u8]>) {
        row.payload = data.map(|data| {
            let offset = self.payloads.len() as u32;
            self.payloads.extend_from_slice(data);
            (offset, data.len() as u32)
        });
        self.rows.push(row);
    }

    #[must_use]
    pub fn payload(&self, row: &ChunkRow) -> Option<&[u8]> {
        row.payload
            .map(|(offset, len)| &self.payloads[offset as usize..(offset + len) as usize])
    }

    /// Makes room for as much as `other` holds and a little more, so that a batch like
    /// it is not copied each time it grows.
    pub fn reserve_for(&mut self, other: &Self) {
        let bytes = other.payloads.len();
        self.rows.reserve(other.rows.len());
        self.payloads.reserve(bytes + bytes / 8);
    }

    /// Moves all rows of `other` behind those of `self`.
    pub fn append(&mut self, other: &mut Self) {
        let shift = self.payloads.len() as u32;
        self.payloads.append(&mut other.payloads);
        self.rows.extend(other.rows.drain(..).map(|mut row| {
            row.payload = row.payload.map(|(offset, len)| (offset + shift, len));
            row
        }));
    }
}

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseRow {
    pub request_id: i64,
    pub attempt: i32,
    pub outcome: Outcome,
    pub status: Option<i32>,
    pub headers: Option<Pairs>,
    pub trailers: Option<Pairs>,
    pub t_headers_ns: Option<i64>,
    pub t_end_ns: Option<i64>,
    pub t_client_end_ns: Option<i64>,
    pub timestamp_source: TimestampSource,
    pub finish_reason: Option<Arc<str>>,
    pub input_tokens: Option<i32>,
    pub output_tokens: Option<i32>,
    pub reasoning_tokens: Option<i32>,
    pub cached_tokens: Option<i32>,
    pub usage_source: Option<Arc<str>>,
    pub error: Option<Arc<str>>,
    pub body: Option<Bytes>,
    pub body_bytes: i64,
    pub chunk_count: i32,
    pub malformed_chunks: i32,
}

impl ResponseRow {
    /// The end of a first attempt of which nothing is known but its `outcome`.
    #[must_use]
    pub fn blank(request_id: i64, outcome: Outcome) -> Self {
        Self {
            request_id,
            attempt: 0,
            outcome,
            status: None,
            headers: None,
            trailers: None,
            t_headers_ns: None,
            t_end_ns: None,
            t_client_end_ns: None,
            timestamp_source: TimestampSource::Process,
            finish_reason: None,
            input_tokens: None,
            output_tokens: None,
            reasoning_tokens: None,
            cached_tokens: None,
            usage_source: None,
            error: None,
            body: None,
            body_bytes: 0,
            chunk_count: 0,
            malformed_chunks: 0,
        }
    }
}

/// One value of a time series.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRow {
    pub t_ns: i64,
    pub source: Arc<str>,
    pub name: Arc<str>,
    /// Empty where the series needs none.
    pub labels: Pairs,
    pub value: f64,
}

/// Something that happened to the run itself.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkRow {
    pub t_ns: i64,
    pub name: Arc<str>,
    /// A JSON object.
    pub detail: Arc<str>,
}

/// Rows on their way to the writer. Within a batch requests come before their
/// chunks and chunks before their response, so a log cut between two tables
/// never holds an end without what it ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventBatch {
    pub requests: Vec<RequestRow>,
    pub chunks: ChunkRows,
    pub responses: Vec<ResponseRow>,
    pub samples: Vec<SampleRow>,
    pub marks: Vec<MarkRow>,
    /// What the writer hashes and never writes.
    pub prompts: Vec<HiddenPrompt>,
}

/// The body of a request whose row has none: the writer puts its hashes there.
#[derive(Debug, Clone, PartialEq)]
pub struct HiddenPrompt {
    /// Index of the row in [`EventBatch::requests`].
    pub request: usize,
    pub body: Bytes,
}

impl EventBatch {
    /// Adds a request with the body that is hidden from its row, if there is one.
    pub fn push_request(&mut self, row: RequestRow, hidden: Option<Bytes>) {
        let request = self.requests.len();
        self.prompts
            .extend(hidden.map(|body| HiddenPrompt { request, body }));
        self.requests.push(row);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
            + self.chunks.rows.len()
            + self.responses.len()
            + self.samples.len()
            + self.marks.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all rows; the room of their vectors stays.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.chunks.rows.clear();
        self.chunks.payloads.clear();
        self.responses.clear();
        self.samples.clear();
        self.marks.clear();
    }

    /// Memory that an empty batch holds on to.
    #[must_use]
    pub fn spare_bytes(&self) -> usize {
        self.chunks.payloads.capacity()
            + self.chunks.rows.capacity() * size_of::<ChunkRow>()
            + self.requests.capacity() * size_of::<RequestRow>()
            + self.responses.capacity() * size_of::<ResponseRow>()
            + self.samples.capacity() * size_of::<SampleRow>()
            + self.marks.capacity() * size_of::<MarkRow>()
    }

    /// Rough memory of the batch, for the bounds on queues and segments.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let bodies: usize = self
            .requests
            .iter()
            .map(|r| r.body.as_ref().map_or(0, Bytes::len))
            .chain(
                self.responses
                    .iter()
                    .map(|r| r.body.as_ref().map_or(0, Bytes::len)),
            )
            .sum();
        let hidden: usize = self.prompts.iter().map(|p| p.body.len()).sum();
        bodies
            + hidden
            + self.chunks.payloads.len()
            + self.chunks.rows.len() * size_of::<ChunkRow>()
            + self.requests.len() * size_of::<RequestRow>()
            + self.responses.len() * size_of::<ResponseRow>()
            + self.samples.len() * size_of::<SampleRow>()
    }

    /// Adds `by_ns` to every instant, for rows whose t = 0 lay elsewhere.
    pub fn shift(&mut self, by_ns: i64) {
        if by_ns == 0 {
            return;
        }
        for row in &mut self.requests {
            let instants = [
                &mut row.t_scheduled_ns,
                &mut row.t_dispatched_ns,
                &mut row.t_received_ns,
                &mut row.t_connect_ns,
                &mut row.t_connected_ns,
                &mut row.t_tls_ns,
                &mut row.t_sent_ns,
            ];
            instants.into_iter().flatten().for_each(|t| *t += by_ns);
        }
        for row in &mut self.chunks.rows {
            row.t_ns += by_ns;
            row.t_seen_ns += by_ns;
            row.t_forwarded_ns.iter_mut().for_each(|t| *t += by_ns);
        }
        for row in &mut self.responses {
            let instants = [
                &mut row.t_headers_ns,
                &mut row.t_end_ns,
                &mut row.t_client_end_ns,
            ];
            instants.into_iter().flatten().for_each(|t| *t += by_ns);
        }
        self.samples.iter_mut().for_each(|s| s.t_ns += by_ns);
        self.marks.iter_mut().for_each(|m| m.t_ns += by_ns);
    }

    /// Moves all rows of `other` behind those of `self`.
    pub fn append(&mut self, other: &mut Self) {
        let shift = self.requests.len();
        let moved = other.prompts.drain(..).map(|mut prompt| {
            prompt.request += shift;
            prompt
        });
        self.prompts.extend(moved);
        self.requests.append(&mut other.requests);
        self.chunks.append(&mut other.chunks);
        self.responses.append(&mut other.responses);
        self.samples.append(&mut other.samples);
        self.marks.append(&mut other.marks);
    }
}
