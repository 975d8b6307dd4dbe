//! What is recorded of one exchange: from a request and the instants of its way
//! to rows.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts as RequestParts;
use http::response::Parts as ResponseParts;
use http::{HeaderMap, header};
use tapedeck_live::connect::ConnectInstants;
use tapedeck_live::exchange::{Answer, header_str, response_row};
use tapedeck_live::headers::recorded_headers;
use tapedeck_live::secrets::Secrets;
use tapedeck_live::tap::ReadStamp;
use tapedeck_recording::{
    ChunkKind, ChunkRow, Content, MarkRow, Outcome, Pairs, Phase, Privacy, RequestRow, body_hash,
};
use tapedeck_wire::decode::Decoder;
use tapedeck_wire::dialect::{Api, request_facts};
use tapedeck_wire::response::{Chunk, End, MAX_BODY_BYTES, ResponseReader, ResponseSpec};

use crate::book::Book;
use crate::exchange::Ended;
use crate::upload::Upload;
use crate::worker::Worker;

/// Whether a request is recorded, settled when all that decides it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    Yes,
    SampledOut,
}

/// Stamp of what a chunk came in and left with.
#[derive(Debug, Clone, Copy)]
struct Tag {
    read: ReadStamp,
    t_forwarded_ns: Option<i64>,
}

pub(crate) struct Journal {
    worker: Rc<Worker>,
    /// Of the recording that the request began in.
    book: Rc<Book>,
    upload: Rc<Upload>,
    api: Api,
    privacy: Privacy,
    headers: HeaderMap,
    /// As it came, secrets included.
    query: Option<Box<str>>,
    row: RequestRow,
    opened: Option<Opened>,
    /// The row of this attempt is recorded.
    written: bool,
    reader: Option<ResponseReader<Tag>>,
    answer: Answer,
}

impl Journal {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        origin: &Arc<str>,
        upload: &Rc<Upload>,
        head: &RequestParts,
        (api, content): (Api, Content),
        t_dispatched_ns: i64,
    ) -> Box<Self> {
        worker.gauges.started();
        let book = worker.book();
        let privacy = book.recorder().privacy.at_least(content);
        let query = head.uri.query();
        let row = RequestRow {
            request_id: 0,
            attempt: 0,
            phase: Phase::Measure,
            session_id: None,
            turn: None,
            parent_request_id: None,
            replay_of: None,
            worker: Some(Arc::clone(origin)),
            api: api.as_str().into(),
            method: head.method.as_str().into(),
            url_path: head.uri.path().into(),
            query: query.map(|query| (worker.settings.mask_query)(query).into()),
            model: None,
            stream: false,
            t_scheduled_ns: None,
            t_dispatched_ns: Some(t_dispatched_ns),
            t_received_ns: None,
            t_connect_ns: None,
            t_connected_ns: None,
            t_tls_ns: None,
            t_sent_ns: None,
            conn_id: None,
            conn_reused: None,
            headers: Some(recorded_headers(&head.headers)),
            body: None,
            body_bytes: 0,
            body_hash: None,
            input_tokens: None,
            input_tokens_source: None,
            max_output_tokens: None,
            block_size: None,
            block_runs: None,
        };
        Box::new(Self {
            worker: Rc::clone(worker),
            book,
            upload: Rc::clone(upload),
            api,
            privacy,
            headers: head.headers.clone(),
            query: query.map(Into::into),
            row,
            opened: None,
            written: false,
            reader: None,
            answer: Answer::default(),
        })
    }

    pub(crate) fn connecting(&mut self, instants: ConnectInstants) {
        self.row.t_connect_ns = instants.t_connect_ns;
        self.row.t_connected_ns = instants.t_connected_ns;
        self.row.t_tls_ns = instants.t_tls_ns;
    }

    pub(crate) fn connected(&mut self, conn_id: i64, reused: bool) {
        self.row.conn_id = Some(conn_id);
        self.row.conn_reused = Some(reused);
    }

    /// Reads the request's body, or what came of it. The request gets its number
    /// here, so that requests that are not recorded leave no gaps.
    pub(crate) fn open(&mut self) -> Opened {
        if let Some(opened) = self.opened {
            return opened;
        }
        let (body, whole) = self.upload.take_copy();
        let came = self.upload.bytes();
        let encoding = header_str(&self.headers, &header::CONTENT_ENCODING);
        let (body, whole) = decoded(encoding, body, whole);
        let rules = &self.worker.settings.rules;
        let session = rules.session(&self.headers, &body);
        let opened = if rules.samples(session.as_deref(), self.worker.next_draw()) {
            Opened::Yes
        } else {
            Opened::SampledOut
        };
        self.opened = Some(opened);
        if opened == Opened::SampledOut {
            return opened;
        }
        let facts = request_facts(self.api, &self.row.url_path, &body);
        let row = &mut self.row;
        row.request_id = self.book.recorder().next_request_id();
        row.session_id = session.map(Into::into);
        row.model = facts.model.map(Into::into);
        row.stream = facts.stream;
        row.max_output_tokens = facts.max_output_tokens;
        row.t_received_ns = self.upload.t_received_ns();
        // Where the copy is cut, only the length of what came is known.
        row.body_bytes = match whole {
            true => body.len() as i64,
            false => i64::try_from(came).unwrap_or(i64::MAX),
        };
        let unkeyed = self.privacy.content() == Content::Full && whole;
        row.body_hash = unkeyed.then(|| body_hash(&body).into());
        row.body = (!body.is_empty()).then_some(body);
        if !whole {
            let bytes = row.body_bytes;
            self.mark_truncated("request body", bytes);
            // A hash of a part would pass for that of the whole.
            if self.privacy.content() != Content::Full {
                self.row.body = None;
            }
        }
        opened
    }

    pub(crate) fn sent(&mut self, t_sent_ns: i64) {
        self.row.t_sent_ns = Some(t_sent_ns);
        self.write_request();
    }

    pub(crate) fn answered(&mut self, head: &ResponseParts, read: Option<ReadStamp>) {
        self.answer = Answer::begun(head.status, &head.headers, read);
        self.reader = Some(ResponseReader::new(ResponseSpec {
            api: self.api,
            stream_requested: self.row.stream,
            status: head.status.as_u16(),
            content_type: header_str(&head.headers, &header::CONTENT_TYPE),
            content_encoding: header_str(&head.headers, &header::CONTENT_ENCODING),
        }));
    }

    pub(crate) fn frame(&mut self, read: ReadStamp, data: &[u8], t_forwarded_ns: Option<i64>) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        self.answer.all_from_kernel &= read.from_kernel;
        let tag = Tag {
            read,
            t_forwarded_ns,
        };
        reader.feed(tag, data, &mut |chunk| self.write_chunk(&chunk));
        self.reader = Some(reader);
    }

    pub(crate) fn trailers(&mut self, trailers: Pairs) {
        self.answer.trailers = Some(trailers);
    }

    /// Closes this attempt, which got no answer, and begins the next.
    pub(crate) fn next_attempt(&mut self, end: End) {
        let ended = self.worker.ended(end);
        self.finish(ended, None);
        self.row.attempt += 1;
        self.row.t_sent_ns = None;
        self.row.conn_id = None;
        self.row.conn_reused = None;
        self.connecting(ConnectInstants::default());
        self.written = false;
        self.answer = Answer::default();
    }

    pub(crate) fn close(mut self: Box<Self>, ended: Ended, t_client_end_ns: Option<i64>) {
        self.finish(ended, t_client_end_ns);
    }

    fn finish(&mut self, ended: Ended, t_client_end_ns: Option<i64>) {
        let reader = self.reader.take();
        let reader = reader.unwrap_or_else(|| ResponseReader::new(unanswered(self.api)));
        let t_end_ns = match (&ended.end, ended.last_read) {
            // What ended the body lay in the last read, unless only the end of the
            // connection tells.
            (End::Clean, Some(read)) if ended.delimited => read.t_ns,
            (_, Some(read)) if reader.done_seen() => read.t_ns,
            _ => ended.now_ns,
        };
        let mut end = reader.finish(ended.end, &mut |chunk| self.write_chunk(&chunk));
        if end.outcome != Outcome::Ok {
            self.secrets().mask_end(&mut end);
        }
        self.write_request();
        if end.truncated_body {
            self.mark_truncated("body", end.body_bytes);
        }
        self.worker.metrics.outcome(end.outcome);
        let answer = std::mem::take(&mut self.answer);
        let (request_id, attempt) = (self.row.request_id, self.row.attempt);
        let mut row = response_row(request_id, attempt, answer, end, t_end_ns);
        row.t_client_end_ns = t_client_end_ns;
        self.privacy.response(&mut row);
        let body_bytes = row.body.as_ref().map_or(0, Bytes::len);
        self.book
            .record(body_bytes, |batch| batch.responses.push(row));
    }

    /// Records the request row; the second call has nothing left to record.
    fn write_request(&mut self) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        let mut row = self.row.clone();
        let hidden = self.privacy.request(&mut row);
        let body_bytes = row.body.as_ref().or(hidden.as_ref()).map_or(0, Bytes::len);
        self.book
            .record(body_bytes, |batch| batch.push_request(row, hidden));
    }

    fn write_chunk(&self, chunk: &Chunk<'_, Tag>) {
        if chunk.truncated {
            self.mark_truncated("chunk", chunk.bytes);
        }
        let mut row = ChunkRow {
            request_id: self.row.request_id,
            attempt: self.row.attempt,
            chunk_index: chunk.index,
            read_index: chunk.tag.read.read_index,
            choice_index: chunk.choice_index,
            t_ns: chunk.tag.read.t_ns,
            t_seen_ns: chunk.tag.read.t_seen_ns,
            t_forwarded_ns: chunk.tag.t_forwarded_ns,
            kind: chunk.kind,
            event: chunk.event.map(Arc::from),
            event_id: chunk.event_id.map(Arc::from),
            tokens: chunk.tokens,
            bytes: chunk.bytes,
            payload: None,
        };
        let masked = match chunk.kind {
            ChunkKind::Error => self.secrets().masked(chunk.data),
            _ => None,
        };
        let data = masked.as_deref().unwrap_or(chunk.data);
        let data = self.privacy.chunk(&mut row).then_some(data);
        self.worker.metrics.chunk();
        self.worker.gauges.chunk();
        self.book.record(0, |batch| batch.chunks.push(row, data));
    }

    /// What the client told the server and nobody else may know.
    fn secrets(&self) -> Secrets {
        Secrets::of(
            &self.headers,
            self.query.as_deref(),
            self.row.query.as_deref(),
        )
    }

    fn mark_truncated(&self, what: &str, bytes: i64) {
        let detail = format!(
            r#"{{"what":"{what}","request_id":{},"attempt":{},"bytes":{bytes}}}"#,
            self.row.request_id, self.row.attempt
        );
        let mark = MarkRow {
            t_ns: self.worker.clock.now_ns(),
            name: "truncated_event".into(),
            detail: detail.into(),
        };
        self.book.record(0, |batch| batch.marks.push(mark));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.worker.gauges.ended(None);
    }
}

/// The answer of a request that got none: its end alone decides the outcome.
fn unanswered(api: Api) -> ResponseSpec<'static> {
    ResponseSpec {
        api,
        stream_requested: true,
        status: 200,
        content_type: None,
        content_encoding: None,
    }
}

/// The body without its content-coding, and whether it is all of it. Where it
/// cannot be decoded it stays as it came.
fn decoded(encoding: Option<&str>, body: Bytes, whole: bool) -> (Bytes, bool) {
    let Ok(mut decoder) = Decoder::new(encoding) else {
        return (body, whole);
    };
    if decoder.is_identity() {
        return (body, whole);
    }
    let (mut plain, mut len) = (Vec::new(), 0);
    let fed = decoder.feed(&body, &mut |piece| {
        len += piece.len();
        let room = MAX_BODY_BYTES - plain.len();
        plain.extend_from_slice(&piece[..piece.len().min(room)]);
    });
    match fed {
        Ok(()) => {
            let whole = whole && len == plain.len();
            (plain.into(), whole)
        }
        Err(_) => (body, whole),
    }
}
