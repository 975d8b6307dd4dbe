//! A recording becomes answers in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::Value;
use tapedeck_recording::{
    ChunkRow, EventBatch, Outcome, Recording, RequestRow, ResponseRow, Table, body_hash,
};
use tapedeck_wire::dialect::{Api, Dialect, Framing as DialectFraming};
use tapedeck_wire::response::MAX_BODY_BYTES;
use tapedeck_wire::sse::MAX_PAYLOAD_BYTES;

use super::answer::{Answer, answer, is_grpc, since};
use super::matching::{Asked, keys_of};
use super::rebuild::{Framing, Piece, Pieces, Style, Write, rebuild};

/// What an answer needs besides its bytes, about: headers, its places in the indexes.
const ANSWER_BYTES: u64 = 2048;
/// What a chunk needs besides its payload while its answer is put together.
const CHUNK_BYTES: u64 = size_of::<Piece>() as u64;

/// Attempts whose answers cannot be given again, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Recorded without their texts.
    pub(crate) no_content: u64,
    /// Their recorder died before they ended.
    pub(crate) unfinished: u64,
    /// No connection was had.
    pub(crate) never_sent: u64,
    /// Sent again at once, for the server had closed the idle connection.
    pub(crate) stale_connection: u64,
    /// Chunks were dropped, or their copies are cut.
    pub(crate) incomplete: u64,
    /// Calls over HTTP/2, which is not spoken here.
    pub(crate) grpc: u64,
}

impl LeftOut {
    /// Each with its name and in words.
    pub(crate) fn reasons(&self) -> [(&'static str, &'static str, u64); 6] {
        [
            ("no_content", "recorded without content", self.no_content),
            ("unfinished", "unfinished", self.unfinished),
            ("never_sent", "to requests never sent", self.never_sent),
            (
                "stale_connection",
                "on a connection that was stale, and sent again",
                self.stale_connection,
            ),
            ("incomplete", "with parts missing", self.incomplete),
            ("grpc", "to gRPC calls", self.grpc),
        ]
    }
}

/// Everything that can be served.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// In the order in which their requests were sent.
    pub(crate) answers: Vec<(Asked, Answer)>,
    pub(crate) left_out: LeftOut,
    pub(crate) models: BTreeSet<String>,
    /// Texts were replaced before they were written.
    pub(crate) redacted: bool,
    /// Streams, and those of them whose bytes are as many as were recorded.
    pub(crate) streams: u64,
    pub(crate) exact_streams: u64,
    /// Memory the answers take, about.
    pub(crate) size_bytes: u64,
}

/// What to load.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) path: &'a Path,
    pub(crate) filter: Option<&'a str>,
    pub(crate) match_on: &'a [String],
    pub(crate) max_bytes: u64,
}

/// Reads the answers of all recordings in `wanted.path`.
///
/// # Errors
/// When there is none that could be served, or they need too much memory.
pub(crate) fn load(wanted: &Wanted<'_>) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for recording in Recording::open_all(wanted.path)? {
        expect_content(&recording)?;
        loaded.redacted |= recording.manifest.settings.get("redact").is_some();
        Loading::new(wanted, &recording, &mut loaded)?.load(&recording)?;
    }
    if loaded.answers.is_empty() {
        let reasons = loaded.left_out.reasons();
        let reasons = reasons.iter().filter(|(_, _, count)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(_, why, n)| format!("{n} {why}")).collect();
        let why = match reasons.is_empty() {
            true => "it has no requests".to_owned(),
            false => reasons.join(", "),
        };
        bail!(
            "{} has no answer that can be given again: {why}",
            wanted.path.display()
        );
    }
    Ok(loaded)
}

/// What was recorded without texts has nothing to answer with.
fn expect_content(recording: &Recording) -> Result<()> {
    let mode = recording.manifest.settings.get("content");
    match mode.and_then(Value::as_str) {
        Some(mode @ ("hashed" | "lengths")) => bail!(
            "{} was recorded with --content {mode}: it holds no answers\nhint: serve one recorded with --content full",
            recording.dir.display()
        ),
        _ => Ok(()),
    }
}

/// An answer whose chunks are not all there yet.
struct Draft {
    asked: Asked,
    framing: Framing,
    response: ResponseRow,
    pieces: Pieces,
    lacks_content: bool,
}

struct Loading<'a> {
    wanted: &'a Wanted<'a>,
    kept: Option<BTreeSet<i64>>,
    apis: Apis,
    /// By request id and attempt; taken from there when the response is read.
    asked: BTreeMap<(i64, i32), Option<Asked>>,
    drafts: BTreeMap<(i64, i32), Draft>,
    done: Vec<(Asked, Answer)>,
    style: Style,
    loaded: &'a mut Loaded,
}

impl<'a> Loading<'a> {
    fn new(wanted: &'a Wanted<'a>, recording: &Recording, loaded: &'a mut Loaded) -> Result<Self> {
        let kept = wanted
            .filter
            .map(|sql| crate::source::matching(&recording.dir, sql));
        Ok(Self {
            wanted,
            kept: kept.transpose()?,
            apis: Apis::of(recording)?,
            asked: BTreeMap::new(),
            drafts: BTreeMap::new(),
            done: Vec::new(),
            style: Style::default(),
            loaded,
        })
    }

    fn load(mut self, recording: &Recording) -> Result<()> {
        recording.for_each_batch(Table::Requests, |batch| {
            batch
                .requests
                .into_iter()
                .for_each(|row| self.request(&row));
            anyhow::Ok(())
        })?;
        recording.for_each_batch(Table::Responses, |batch| {
            batch
                .responses
                .into_iter()
                .try_for_each(|row| self.response(row))
        })?;
        recording.for_each_batch(Table::Chunks, |batch| {
            self.chunks(&batch);
            anyhow::Ok(())
        })?;
        let unanswered = self.asked.values().flatten().count();
        self.loaded.left_out.unfinished += unanswered as u64;
        for draft in self.drafts.values() {
            let reasons = &mut self.loaded.left_out;
            match draft.lacks_content {
                true => reasons.no_content += 1,
                false => reasons.incomplete += 1,
            }
        }
        // By their requests: responses come in the order of their ends.
        self.done
            .sort_by_key(|(asked, answer)| (asked.t_sent_ns, answer.request_id, answer.attempt));
        self.loaded.answers.append(&mut self.done);
        Ok(())
    }

    fn request(&mut self, row: &RequestRow) {
        if self
            .kept
            .as_ref()
            .is_some_and(|kept| !kept.contains(&row.request_id))
        {
            return;
        }
        let Some(t_sent_ns) = row.t_sent_ns else {
            self.loaded.left_out.never_sent += 1;
            return;
        };
        self.loaded
            .models
            .extend(row.model.as_deref().map(str::to_owned));
        // The recorded hash of a body that was redacted is keyed: what is left of
        // the body is all there is to compare.
        let hash = match &row.body {
            Some(body) => Some(body_hash(body)),
            None => row.body_hash.as_deref().map(str::to_owned),
        };
        let body = row
            .body
            .as_deref()
            .filter(|_| !self.wanted.match_on.is_empty());
        let asked = Asked {
            t_sent_ns,
            body_hash: hash.filter(|_| row.body_bytes > 0),
            keys: body.and_then(|body| keys_of(body, self.wanted.match_on)),
            method: Arc::clone(&row.method),
            path: Arc::clone(&row.url_path),
            stream: row.stream,
            api: self.apis.find(&row.api),
            on_reused_connection: row.conn_reused == Some(true),
        };
        self.asked
            .insert((row.request_id, row.attempt), Some(asked));
    }

    fn response(&mut self, row: ResponseRow) -> Result<()> {
        let key = (row.request_id, row.attempt);
        let sent_again = self.asked.contains_key(&(row.request_id, row.attempt + 1));
        let Some(asked) = self.asked.get_mut(&key).and_then(Option::take) else {
            return Ok(());
        };
        let reasons = &mut self.loaded.left_out;
        let silent = row.status.is_none() && row.chunk_count == 0;
        if silent
            && row.outcome == Outcome::ConnectionError
            && asked.on_reused_connection
            && sent_again
        {
            reasons.stale_connection += 1;
            return Ok(());
        }
        if is_grpc(row.headers.as_ref()) {
            reasons.grpc += 1;
            return Ok(());
        }
        let body_len = row.body.as_ref().map_or(0, Bytes::len);
        let has_body = body_len > 0 || row.body_bytes == 0 || row.chunk_count > 0;
        if row.outcome == Outcome::Imported || !has_body {
            reasons.no_content += 1;
            return Ok(());
        }
        if row.chunk_count == 0 && is_cut(body_len, row.body_bytes, MAX_BODY_BYTES) {
            reasons.incomplete += 1;
            return Ok(());
        }
        self.expect_room(&row)?;
        let framing = match asked.api.dialect().response.framing {
            DialectFraming::Ndjson => Framing::Ndjson,
            _ => Framing::Sse,
        };
        let draft = Draft {
            asked,
            framing,
            response: row,
            pieces: Pieces::default(),
            lacks_content: false,
        };
        match draft.response.chunk_count {
            0 => self.finish(draft),
            _ => drop(self.drafts.insert(key, draft)),
        }
        Ok(())
    }

    /// Answers are held whole: what does not fit is refused before chunks are read.
    fn expect_room(&mut self, row: &ResponseRow) -> Result<()> {
        let of_answer = u64::try_from(row.body_bytes).unwrap_or(0);
        let of_chunks = u64::try_from(row.chunk_count).unwrap_or(0) * CHUNK_BYTES;
        self.loaded.size_bytes += of_answer + of_chunks + ANSWER_BYTES;
        if self.loaded.size_bytes > self.wanted.max_bytes {
            bail!(
                "the answers of {} need more than --memory-mib {}\nhint: raise it, or choose some with --where",
                self.wanted.path.display(),
                self.wanted.max_bytes >> 20
            );
        }
        Ok(())
    }

    fn chunks(&mut self, batch: &EventBatch) {
        for row in &batch.chunks.rows {
            let key = (row.request_id, row.attempt);
            let Some(draft) = self.drafts.get_mut(&key) else {
                continue;
            };
            draft.add(row, batch.chunks.payload(row));
            let count = usize::try_from(draft.response.chunk_count).unwrap_or(0);
            if draft.pieces.rows.len() == count
                && !draft.lacks_content
                && let Some(draft) = self.drafts.remove(&key)
            {
                self.finish(draft);
            }
        }
    }

    fn finish(&mut self, mut draft: Draft) {
        let (bytes, writes) = match draft.response.body.take() {
            Some(body) if draft.pieces.rows.is_empty() => {
                let due_ns = since(draft.asked.t_sent_ns, draft.response.t_end_ns).unwrap_or(0);
                let end = body.len();
                (body, vec![Write { due_ns, end }])
            }
            _ => {
                let (bytes, writes) = self.stream(&mut draft);
                (bytes.into(), writes)
            }
        };
        let answer = answer(&draft.response, draft.asked.t_sent_ns, bytes, writes);
        self.done.push((draft.asked, answer));
    }

    fn stream(&mut self, draft: &mut Draft) -> (Vec<u8>, Vec<Write>) {
        if draft.pieces.rows.is_empty() {
            return (Vec::new(), Vec::new());
        }
        // Rows of a log come in no particular order.
        draft.pieces.rows.sort_by_key(|piece| piece.chunk_index);
        let body_bytes = draft.response.body_bytes;
        let rebuilt = rebuild(draft.framing, &draft.pieces, body_bytes, &mut self.style);
        self.loaded.streams += 1;
        self.loaded.exact_streams += u64::from(rebuilt.exact);
        (rebuilt.bytes, rebuilt.writes)
    }
}

impl Draft {
    fn add(&mut self, row: &ChunkRow, payload: Option<&[u8]>) {
        let Some(payload) = payload else {
            self.lacks_content = true;
            return;
        };
        if is_cut(payload.len(), row.bytes, MAX_PAYLOAD_BYTES) {
            // Never complete: one row short.
            return;
        }
        let start = self.pieces.payloads.len();
        self.pieces.payloads.extend_from_slice(payload);
        self.pieces.rows.push(Piece {
            chunk_index: row.chunk_index,
            read_index: row.read_index,
            due_ns: since(self.asked.t_sent_ns, Some(row.t_ns)).unwrap_or(0),
            kind: row.kind,
            event: row.event.clone(),
            event_id: row.event_id.clone(),
            data: start..self.pieces.payloads.len(),
        });
    }
}

/// Whether a copy of `kept` bytes is the beginning of something longer. A redacted
/// one is shorter or longer than what it stands for, but not as long as copies get.
fn is_cut(kept: usize, true_len: i64, max_bytes: usize) -> bool {
    kept >= max_bytes && usize::try_from(true_len).is_ok_and(|len| len > kept)
}

/// The APIs of a recording by name: the one it brings the dialect of, and those
/// built in. Others are taken for OpenAI's, whose framing is everybody's.
#[derive(Debug)]
struct Apis {
    own: Option<Api>,
}

impl Apis {
    fn of(recording: &Recording) -> Result<Self> {
        let dialect = recording.manifest.settings.get("dialect");
        let dialect = dialect.filter(|dialect| !dialect.is_null());
        let own = dialect.map(Dialect::from_recorded).transpose();
        let own = own.with_context(|| format!("dialect of {}", recording.dir.display()))?;
        Ok(Self {
            own: own.map(Api::of),
        })
    }

    fn find(&self, name: &str) -> Api {
        let own = self.own.filter(|api| api.as_str() == name);
        own.or_else(|| Api::from_word(name))
            .unwrap_or(Api::OpenAiChat)
    }
}
