//! One request: sent, its answer read, and both recorded.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tapedeck_recording::event::TimestampSource;
use tapedeck_recording::{
    ChunkKind, ChunkRow, EventBatch, MarkRow, Outcome, Pairs, RequestRow, ResponseRow,
};
use tapedeck_wire::dialect::Framing;
use tapedeck_wire::response::{Chunk, End, ResponseEnd, ResponseReader, ResponseSpec};

use crate::arrival::PreparedRequest;
use crate::chunked::{Chunked, Fed};
use crate::connect::{ConnectInstants, Connection};
use crate::engine::Failure;
use crate::headers::{recorded_headers, redirect_target};
use crate::http2::Http2;
use crate::policy::{CancelAfter, Ended};
use crate::secrets::Secrets;
use crate::session::next_turn;
use crate::tap::ReadStamp;
use crate::worker::{Assignment, EndOnDrop, Kill, Stage, Watch, Worker, as_ns};

mod grpc;

/// After the end marker (`[DONE]`) the body should end at once; a server that
/// keeps it open longer loses the connection, not the request.
const DRAIN_NS: i64 = 1_000_000_000;

/// Sends the assigned request and records how it ended, attempt by attempt. A pooled
/// connection that the server had closed is replaced once, by a fresh one; what else
/// is sent again is the policy's to say. Returns the next turn of its session, when
/// it is due.
pub(crate) async fn exchange(worker: &Rc<Worker>, assignment: Assignment) -> Option<Assignment> {
    let mut ready = Ready::default();
    if let Some(due_ns) = assignment.arrival.offset_ns {
        worker.alarm.sleep_until_nearly(due_ns).await;
        // So that on the deadline little is left but to write.
        ready = Ready::take(worker, &assignment.arrival.request).await;
        worker.alarm.spin_until(due_ns).await;
    }
    let t_dispatched_ns = worker.clock.now_ns();
    if is_too_late(worker, &assignment, t_dispatched_ns) {
        ready.put_back(worker, t_dispatched_ns);
        drop_late(worker, &assignment, t_dispatched_ns);
        return next_turn(worker, assignment).await;
    }
    let lag_ns = t_dispatched_ns - assignment.t_ready_ns;
    worker.gauges.dispatch_lag.observe(lag_ns);
    worker.gauges.started();
    let (mut source, mut retried) = (Source::Pool, 0);
    let mut number = 0;
    let failure = loop {
        let mut attempt = Attempt::new(worker, &assignment, t_dispatched_ns, number);
        attempt.retried = retried;
        attempt.ready.set(std::mem::take(&mut ready));
        match attempt.run(source).await {
            Ending::Final => break attempt.failure.take(),
            Ending::Stale => source = Source::Fresh,
            Ending::Again(wait) => {
                if !worker.pause(wait).await {
                    break attempt.failure.take();
                }
                (source, retried) = (Source::Pool, retried + 1);
            }
        }
        number += 1;
    };
    let phase = assignment.arrival.phase;
    worker.gauges.ended_in(phase, failure);
    // Only now may the next request start: this one is recorded and counted.
    next_turn(worker, assignment).await
}

fn is_too_late(worker: &Worker, assignment: &Assignment, now_ns: i64) -> bool {
    let late_ns = now_ns - assignment.t_planned_ns;
    let most = worker.policy.max_lateness;
    most.is_some_and(|most| late_ns > as_ns(most))
}

/// Leaves a request out; the turns behind it go on as if it had ended now.
fn drop_late(worker: &Worker, assignment: &Assignment, now_ns: i64) {
    worker.gauges.dropped();
    let arrival = &assignment.arrival;
    let detail = json!({
        "request_id": assignment.request_id,
        "replay_of": arrival.replay_of,
        "late_s": (now_ns - assignment.t_planned_ns) as f64 / 1e9,
    });
    let mark = MarkRow {
        t_ns: now_ns,
        name: "late_dropped".into(),
        detail: detail.to_string().into(),
    };
    worker.record(0, |batch| batch.marks.push(mark));
    if let Some(heard) = &assignment.heard {
        heard.borrow_mut().end(false, None, now_ns);
    }
}

/// Where an attempt takes its connection from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Pool,
    Fresh,
}

/// A connection that was taken from its pool before the deadline, if there was one:
/// of the kind that the request needs.
#[derive(Default)]
struct Ready {
    http1: Option<Connection>,
    /// Boxed, so that all others do not carry its state.
    http2: Option<Box<Http2>>,
}

impl Ready {
    async fn take(worker: &Worker, request: &PreparedRequest) -> Self {
        if is_call(request) {
            let taken = Box::pin(worker.http2_pool.take()).await;
            return Self {
                http2: taken.map(Box::new),
                ..Self::default()
            };
        }
        Self {
            http1: worker.pool.take().await,
            ..Self::default()
        }
    }

    fn put_back(self, worker: &Worker, now_ns: i64) {
        if let Some(connection) = self.http1 {
            worker.pool.put(connection, now_ns);
        }
        if let Some(connection) = self.http2 {
            worker.http2_pool.put(*connection);
        }
    }
}

/// Whether `request` is a call over gRPC.
fn is_call(request: &PreparedRequest) -> bool {
    request.api.dialect().response.framing == Framing::Grpc
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Final,
    /// A kept-alive connection ended before anything of the answer came.
    Stale,
    /// Another attempt is to follow after so long.
    Again(Duration),
}

struct Attempt<'a> {
    worker: &'a Rc<Worker>,
    assignment: &'a Assignment,
    request: &'a PreparedRequest,
    attempt: i32,
    watch: Rc<Watch>,
    /// When the client gives it up, if it does.
    cancel: Option<CancelAfter>,
    /// What wakes the attempt for that.
    to_give_up: Cell<Option<EndOnDrop>>,
    content_chunks: Cell<u32>,
    ready: Cell<Ready>,
    /// Until the request row is recorded.
    row: Cell<Option<RequestRow>>,
    failure: Cell<Option<Failure>>,
    /// Attempts before this one that the policy asked for.
    retried: u32,
    /// Wait before the next attempt, if there is to be one.
    again: Cell<Option<Duration>>,
}

/// What is known of the answer when it ends.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: Option<i32>,
    pub headers: Option<Pairs>,
    pub trailers: Option<Pairs>,
    pub t_headers_ns: Option<i64>,
    pub t_end_ns: Option<i64>,
    /// Every read so far had a kernel stamp.
    pub all_from_kernel: bool,
    /// Where a 3xx points, without what may be a secret.
    pub redirected_to: Option<String>,
}

impl Answer {
    /// What its head tells, which ended with `head_read`.
    #[must_use]
    pub fn begun(status: StatusCode, headers: &HeaderMap, head_read: Option<ReadStamp>) -> Self {
        Self {
            status: Some(i32::from(status.as_u16())),
            headers: Some(recorded_headers(headers)),
            t_headers_ns: head_read.map(|r| r.t_ns),
            all_from_kernel: head_read.is_some_and(|r| r.from_kernel),
            ..Self::default()
        }
    }
}

impl<'a> Attempt<'a> {
    fn new(
        worker: &'a Rc<Worker>,
        assignment: &'a Assignment,
        t_dispatched_ns: i64,
        attempt: i32,
    ) -> Self {
        let request = &*assignment.arrival.request;
        if let Some(heard) = &assignment.heard {
            heard.borrow_mut().begin();
        }
        Self {
            worker,
            assignment,
            request,
            attempt,
            watch: worker.watch(),
            row: Cell::new(Some(request_row(
                worker,
                assignment,
                t_dispatched_ns,
                attempt,
            ))),
            cancel: match assignment.arrival.cancel_after {
                Some(after) => Some(CancelAfter::Time(after)),
                None => worker.policy.cancels(assignment.request_id),
            },
            to_give_up: Cell::new(None),
            content_chunks: Cell::new(0),
            ready: Cell::default(),
            failure: Cell::new(None),
            retried: 0,
            again: Cell::new(None),
        }
    }

    async fn run(&self, source: Source) -> Ending {
        let ending = self.send(source).await;
        match self.again.take() {
            Some(wait) if ending == Ending::Final => Ending::Again(wait),
            _ => ending,
        }
    }

    async fn send(&self, source: Source) -> Ending {
        if is_call(self.request) {
            // Boxed, so that all others do not carry its state.
            return Box::pin(self.send_grpc(source)).await;
        }
        let pooled = match source {
            Source::Pool => match self.ready.take().http1 {
                None => self.worker.pool.take().await,
                ready => ready,
            },
            Source::Fresh => None,
        };
        let reused = pooled.is_some();
        let connection = match pooled {
            Some(connection) => Ok(connection),
            None => {
                let connector = &self.worker.connector;
                self.connect(async |instants| connector.open(instants).await)
                    .await
            }
        };
        match connection {
            Ok(connection) => {
                self.note_connection(connection.conn_id, reused);
                self.converse(connection, reused).await
            }
            Err(end) => {
                self.close_unanswered(end);
                Ending::Final
            }
        }
    }

    fn note_connection(&self, conn_id: i64, reused: bool) {
        self.update_row(|row| {
            row.conn_id = Some(conn_id);
            row.conn_reused = Some(reused);
        });
    }

    async fn connect<C>(
        &self,
        open: impl AsyncFnOnce(&Cell<ConnectInstants>) -> std::io::Result<C>,
    ) -> Result<C, End> {
        self.enter(Stage::Connect);
        let instants = Cell::new(ConnectInstants::default());
        let opened = self.watch.guard(open(&instants)).await;
        let instants = instants.get();
        self.update_row(|row| {
            row.t_connect_ns = instants.t_connect_ns;
            row.t_connected_ns = instants.t_connected_ns;
            row.t_tls_ns = instants.t_tls_ns;
        });
        match opened {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(e)) => Err(End::Broken {
                error: format!("connect: {e}"),
            }),
            Err(kill) => Err(self.killed(kill)),
        }
    }

    /// Writes the request on `connection` and reads its answer to the end.
    async fn converse(&self, mut connection: Connection, reused: bool) -> Ending {
        connection.tap.begin_attempt();
        connection.tap.hold_bodies();
        self.enter(Stage::FirstByte);
        self.give_up_in_time();
        let response = connection.sender.send_request(self.http_request());
        let mut response = pin!(response);
        let head = self
            .step(&mut connection, |cx| response.as_mut().poll(cx))
            .await;
        let end = match head {
            Ok(Ok(response)) => {
                self.read_answer(connection, response).await;
                return Ending::Final;
            }
            Ok(Err(e)) => broken(&e),
            Err(kill) => self.killed(kill),
        };
        self.end_without_head(end, reused && !connection.tap.answered())
    }

    /// An attempt on a connection that brought no head; `untouched` where it had
    /// been kept and brought nothing at all, which may be the connection's fault.
    fn end_without_head(&self, end: End, untouched: bool) -> Ending {
        let stale = untouched && matches!(end, End::Broken { .. });
        self.close_unanswered(end);
        if stale { Ending::Stale } else { Ending::Final }
    }

    async fn read_answer(&self, mut connection: Connection, response: Response<Incoming>) {
        let mut answer = Answer {
            redirected_to: self.redirected_to(&response),
            ..Answer::begun(
                response.status(),
                response.headers(),
                connection.tap.last_read(),
            )
        };
        let mut reader = ResponseReader::new(ResponseSpec {
            api: self.request.api,
            stream_requested: self.request.stream,
            status: response.status().as_u16(),
            content_type: header_str(response.headers(), &header::CONTENT_TYPE),
            content_encoding: header_str(response.headers(), &header::CONTENT_ENCODING),
        });
        let delimited = is_delimited(response.headers());
        let plain_chunks = self.row_is_recorded() && is_in_chunks(&self.request.method, &response);
        let mut body = response.into_body();
        let ended = if plain_chunks {
            self.read_chunked(&connection, &mut reader, &mut answer)
                .await
        } else {
            connection.tap.give_back(&[]);
            None
        };
        let end = match ended {
            Some(end) => end,
            None => {
                self.read_body(&mut connection, &mut body, &mut reader, &mut answer)
                    .await
            }
        };
        answer.t_end_ns = Some(match (&end, connection.tap.last_read()) {
            // What ended the body lay in the last read, unless only the end of
            // the connection tells: then nothing arrived but that.
            (End::Clean, Some(read)) if delimited => read.t_ns,
            // Nothing of interest came after the end marker, however long the
            // server kept the body open.
            (_, Some(read)) if reader.done_seen() => read.t_ns,
            _ => self.worker.clock.now_ns(),
        });
        let clean = matches!(end, End::Clean);
        drop(body);
        self.close(reader, answer, end);
        if clean && connection.sender.is_ready() {
            let now_ns = self.worker.clock.now_ns();
            self.worker.pool.put(connection, now_ns);
        }
    }

    /// Reads a body in HTTP chunks past hyper. `None` where hyper is to go on.
    async fn read_chunked(
        &self,
        connection: &Connection,
        reader: &mut ResponseReader<ReadStamp>,
        answer: &mut Answer,
    ) -> Option<End> {
        let mut chunked = Chunked::new();
        let mut take = |bytes: &[u8]| {
            let read = connection.tap.last_read()?;
            answer.all_from_kernel &= read.from_kernel;
            let fed = chunked.feed(bytes, &mut |data| {
                reader.feed(read, data, &mut |chunk| self.record_chunk(&chunk));
            });
            let stage = if reader.done_seen() {
                Stage::Drain
            } else {
                Stage::Read
            };
            self.enter_at(stage, read.t_seen_ns);
            if self.has_enough() && !reader.done_seen() {
                return Some(Some(self.killed(Kill::GivenUp)));
            }
            match fed {
                Fed::All => return None,
                Fed::Broken => return Some(Some(broken_chunk())),
                Fed::Rest(at) => {
                    let for_hyper = [chunked.unfinished(), &bytes[at..]].concat();
                    connection.tap.give_back(&for_hyper);
                }
            }
            Some(None)
        };
        if let Some(ended) = take(&connection.tap.take_held()) {
            return ended;
        }
        let buffer = self.worker.connector.buffer();
        let ended = self.watch.guard(poll_fn(|cx| {
            let buffer = &mut *buffer.borrow_mut();
            loop {
                let ended = match ready!(connection.poll_read(cx, buffer)) {
                    Ok(0) => {
                        // hyper finds it again, and knows what it means.
                        connection.tap.give_back(&[]);
                        Some(None)
                    }
                    Ok(length) => take(&buffer[..length]),
                    Err(e) => Some(Some(broken_read(&e))),
                };
                if let Some(ended) = ended {
                    return Poll::Ready(ended);
                }
            }
        }));
        match ended.await {
            Ok(ended) => ended,
            Err(kill) => Some(self.killed(kill)),
        }
    }

    async fn read_body(
        &self,
        connection: &mut Connection,
        body: &mut Incoming,
        reader: &mut ResponseReader<ReadStamp>,
        answer: &mut Answer,
    ) -> End {
        let mut draining = false;
        loop {
            if !draining {
                draining = reader.done_seen();
                self.enter(if draining { Stage::Drain } else { Stage::Read });
            }
            let frame = self
                .step(connection, |cx| Pin::new(&mut *body).poll_frame(cx))
                .await;
            // The gate lets one read through a step, so the last read is the one
            // that this frame came with.
            let read = connection.tap.last_read();
            match frame {
                Ok(Some(Ok(frame))) => {
                    self.take_frame(frame, read, reader, answer);
                    if self.has_enough() && !reader.done_seen() {
                        return self.killed(Kill::GivenUp);
                    }
                }
                Ok(Some(Err(e))) => return broken(&e),
                Ok(None) => return End::Clean,
                Err(kill) => return self.killed(kill),
            }
        }
    }

    fn take_frame(
        &self,
        frame: Frame<Bytes>,
        read: Option<ReadStamp>,
        reader: &mut ResponseReader<ReadStamp>,
        answer: &mut Answer,
    ) {
        let Some(read) = read else { return };
        answer.all_from_kernel &= read.from_kernel;
        match frame.into_data() {
            Ok(data) => reader.feed(read, &data, &mut |chunk| self.record_chunk(&chunk)),
            Err(frame) => answer.trailers = frame.trailers_ref().map(recorded_headers),
        }
    }

    fn give_up_in_time(&self) {
        if let Some(CancelAfter::Time(after)) = self.cancel {
            let now_ns = self.worker.clock.now_ns();
            self.watch.give_up_at(now_ns.saturating_add(as_ns(after)));
            let waking = self.worker.wake_to_give_up(&self.watch);
            self.to_give_up.set(Some(waking));
        }
    }

    /// The time until then counts from here: writing took its own.
    fn put_off_giving_up(&self, t_sent_ns: i64) {
        if let Some(CancelAfter::Time(after)) = self.cancel
            && self.watch.will_give_up()
        {
            self.watch
                .give_up_at(t_sent_ns.saturating_add(as_ns(after)));
        }
    }

    /// The client gives the answer up here.
    fn has_enough(&self) -> bool {
        matches!(self.cancel, Some(CancelAfter::Chunks(n)) if self.content_chunks.get() >= n)
    }

    /// Polls the connection and `poll` together until `poll` is ready or the
    /// watch ends the attempt.
    async fn step<T>(
        &self,
        connection: &mut Connection,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Kill> {
        let body_bytes = self.request.body.len() as u64;
        self.watched(|cx| {
            connection.poll_step(cx, |connection, cx| {
                self.record_request_sent_at(connection.tap.sent_ns(body_bytes));
                poll(cx)
            })
        })
        .await
    }

    /// Polls until there is a result or the watch ends the attempt.
    async fn watched<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Kill> {
        poll_fn(|cx| {
            if let Poll::Ready(value) = poll(cx) {
                return Poll::Ready(Ok(value));
            }
            self.watch.register(cx);
            self.watch
                .kill()
                .map_or(Poll::Pending, |kill| Poll::Ready(Err(kill)))
        })
        .await
    }

    /// Redirects are not followed: each would hide a round trip in the latency of
    /// every request. Their target is kept for the message.
    fn redirected_to(&self, response: &Response<Incoming>) -> Option<String> {
        if !response.status().is_redirection() {
            return None;
        }
        let url = self.worker.connector.target().url_of(&self.request.uri)?;
        redirect_target(&url, response.headers())
    }

    fn http_request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.request.body.clone()));
        *request.method_mut() = self.request.method.clone();
        *request.uri_mut() = self.request.uri.clone();
        *request.headers_mut() = self.request.headers.clone();
        request
    }

    fn enter(&self, stage: Stage) {
        self.enter_at(stage, self.worker.clock.now_ns());
    }

    fn enter_at(&self, stage: Stage, now_ns: i64) {
        let timeouts = &self.worker.timeouts;
        let longest_ns = match stage {
            Stage::Connect => as_ns(timeouts.connect),
            Stage::FirstByte => as_ns(timeouts.first_byte),
            Stage::Read => as_ns(timeouts.read),
            Stage::Drain => DRAIN_NS.min(as_ns(timeouts.read)),
        };
        self.watch.enter(stage, now_ns.saturating_add(longest_ns));
    }

    fn killed(&self, kill: Kill) -> End {
        let timeouts = &self.worker.timeouts;
        let error = match kill {
            Kill::Timeout(Stage::Connect) => format!("no connection within {:?}", timeouts.connect),
            Kill::Timeout(Stage::FirstByte) => {
                format!("no byte of an answer within {:?}", timeouts.first_byte)
            }
            Kill::Timeout(Stage::Read) => format!("silent for {:?}", timeouts.read),
            Kill::Timeout(Stage::Drain) => "open after the end marker".to_owned(),
            Kill::TotalTimeout => format!(
                "not finished within {:?}",
                timeouts.total.unwrap_or_default()
            ),
            Kill::Cancelled => {
                return End::Cancelled {
                    error: "the run was stopped".to_owned(),
                };
            }
            Kill::GivenUp => {
                let after = match self.cancel {
                    Some(CancelAfter::Time(after)) => format!("{after:?}"),
                    _ => format!("{} content-bearing chunks", self.content_chunks.get()),
                };
                let why = match self.assignment.arrival.cancel_after {
                    Some(_) => "as the original was",
                    None => "as --cancel-rate asks",
                };
                let error = format!("given up after {after}, {why}");
                return End::Cancelled { error };
            }
        };
        End::Timeout { error }
    }

    /// True once the request is written and its row is on its way.
    fn row_is_recorded(&self) -> bool {
        let row = self.row.take();
        let recorded = row.is_none();
        self.row.set(row);
        recorded
    }

    fn update_row(&self, update: impl FnOnce(&mut RequestRow)) {
        if let Some(mut row) = self.row.take() {
            update(&mut row);
            self.row.set(Some(row));
        }
    }

    /// Records the request row once it is known when the request was sent.
    fn record_request_sent_at(&self, t_sent_ns: Option<i64>) {
        let Some(t_sent_ns) = t_sent_ns else {
            return;
        };
        if self.row_is_recorded() {
            return;
        }
        self.update_row(|row| row.t_sent_ns = Some(t_sent_ns));
        self.put_off_giving_up(t_sent_ns);
        self.record_request();
    }

    /// Records the request row; the second call has nothing left to record.
    fn record_request(&self) {
        if let Some(row) = self.row.take() {
            let body_bytes = row.body.as_ref().map_or(0, Bytes::len);
            self.worker
                .record(body_bytes, |batch| batch.requests.push(row));
        }
    }

    fn record_chunk(&self, chunk: &Chunk<'_, ReadStamp>) {
        let request_id = self.assignment.request_id;
        if chunk.truncated {
            self.mark_truncated("chunk", chunk.bytes);
        }
        let row = ChunkRow {
            request_id,
            attempt: self.attempt,
            chunk_index: chunk.index,
            read_index: chunk.tag.read_index,
            choice_index: chunk.choice_index,
            t_ns: chunk.tag.t_ns,
            t_seen_ns: chunk.tag.t_seen_ns,
            t_forwarded_ns: None,
            kind: chunk.kind,
            event: chunk.event.map(Arc::from),
            event_id: chunk.event_id.map(Arc::from),
            tokens: chunk.tokens,
            bytes: chunk.bytes,
            payload: None,
        };
        self.worker.gauges.chunk();
        if let Some(heard) = &self.assignment.heard {
            heard
                .borrow_mut()
                .chunk(chunk.kind, chunk.choice_index, chunk.data);
        }
        if chunk.kind == ChunkKind::Error
            && let Some(masked) = self.secrets().masked(chunk.data)
        {
            let add = |batch: &mut EventBatch| batch.chunks.push(row, Some(&masked));
            return self.worker.record(0, add);
        }
        if matches!(
            chunk.kind,
            ChunkKind::Content | ChunkKind::Tool | ChunkKind::Reasoning
        ) {
            self.content_chunks.set(self.content_chunks.get() + 1);
        }
        self.worker
            .record(0, |batch| batch.chunks.push(row, Some(chunk.data)));
    }

    /// What the server was told and nobody else may know: some quote it.
    fn secrets(&self) -> Secrets {
        let sent = self.request.uri.query();
        Secrets::of(&self.request.headers, sent, self.request.query.as_deref())
    }

    fn mark_truncated(&self, what: &str, bytes: i64) {
        let detail = format!(
            r#"{{"what":"{what}","request_id":{},"attempt":{},"bytes":{bytes}}}"#,
            self.assignment.request_id, self.attempt
        );
        let mark = MarkRow {
            t_ns: self.worker.clock.now_ns(),
            name: "truncated_event".into(),
            detail: detail.into(),
        };
        self.worker.record(0, |batch| batch.marks.push(mark));
    }

    /// Records the end of an attempt that got no answer.
    fn close_unanswered(&self, end: End) {
        let reader = ResponseReader::new(unanswered(self.request));
        self.close(reader, Answer::default(), end);
    }

    /// Records the response, and the request if it was never fully written.
    fn close(&self, reader: ResponseReader<ReadStamp>, answer: Answer, end: End) {
        let t_end_ns = answer
            .t_end_ns
            .unwrap_or_else(|| self.worker.clock.now_ns());
        let mut end = reader.finish(end, &mut |chunk| self.record_chunk(&chunk));
        if let Some(url) = &answer.redirected_to {
            end.error = Some(format!("redirected to {url}, not followed"));
        }
        self.record_request();
        if end.truncated_body {
            self.mark_truncated("body", end.body_bytes);
        }
        let ok = end.outcome == Outcome::Ok;
        if let Some(heard) = &self.assignment.heard {
            heard.borrow_mut().end(ok, end.body.as_deref(), t_end_ns);
        }
        if !ok {
            self.secrets().mask_end(&mut end);
            let ended = Ended {
                outcome: end.outcome,
                status: answer.status,
                chunk_count: end.chunk_count,
                headers: answer.headers.as_ref(),
            };
            let (policy, id) = (&self.worker.policy, self.assignment.request_id);
            self.again.set(policy.wait(ended, id, self.retried));
        }
        self.failure.set((!ok).then(|| Failure {
            request_id: self.assignment.request_id,
            outcome: end.outcome,
            status: answer.status,
            error: end.error.clone(),
        }));
        let row = response_row(
            self.assignment.request_id,
            self.attempt,
            answer,
            end,
            t_end_ns,
        );
        let body_bytes = row.body.as_ref().map_or(0, Bytes::len);
        self.worker
            .record(body_bytes, |batch| batch.responses.push(row));
    }
}

/// The answer of a request that got none: its end alone decides the outcome.
fn unanswered(request: &PreparedRequest) -> ResponseSpec<'static> {
    ResponseSpec {
        api: request.api,
        stream_requested: request.stream,
        status: 200,
        content_type: None,
        content_encoding: None,
    }
}

/// The end of an answer that `error` cut off, with all its causes.
#[must_use]
pub fn broken(error: &hyper::Error) -> End {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    End::Broken { error: text }
}

/// In the words that hyper has for it.
fn broken_read(error: &std::io::Error) -> End {
    End::Broken {
        error: format!("error reading a body from connection: {error}"),
    }
}

fn broken_chunk() -> End {
    End::Broken {
        error: "error reading a body from connection: an HTTP chunk is longer than its length"
            .to_owned(),
    }
}

/// Whether the body of an answer to `method` comes in HTTP chunks and nothing else
/// is done to it.
fn is_in_chunks(method: &Method, response: &Response<Incoming>) -> bool {
    let has_body = !matches!(response.status().as_u16(), 100..=199 | 204 | 304)
        && !matches!(*method, Method::HEAD | Method::CONNECT);
    let mut codings = response.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings
        .next()
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    has_body && response.version() == Version::HTTP_11 && chunked && codings.next().is_none()
}

/// A header's value where it is text.
#[must_use]
pub fn header_str<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// True when the answer itself tells where its body ends.
#[must_use]
pub fn is_delimited(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
}

fn request_row(
    worker: &Worker,
    assignment: &Assignment,
    t_dispatched_ns: i64,
    attempt: i32,
) -> RequestRow {
    let arrival = &assignment.arrival;
    let request = &arrival.request;
    RequestRow {
        request_id: assignment.request_id,
        attempt,
        phase: arrival.phase,
        session_id: arrival.session_id.clone(),
        turn: arrival.turn,
        parent_request_id: arrival.parent_request_id,
        replay_of: arrival.replay_of,
        worker: Some(Arc::clone(&worker.label)),
        api: request.api.as_str().into(),
        method: request.method.as_str().into(),
        url_path: Arc::clone(&request.url_path),
        query: request.query.clone(),
        model: request.model.clone(),
        stream: request.stream,
        t_scheduled_ns: Some(assignment.t_scheduled_ns),
        t_dispatched_ns: Some(t_dispatched_ns),
        t_received_ns: None,
        t_connect_ns: None,
        t_connected_ns: None,
        t_tls_ns: None,
        t_sent_ns: None,
        conn_id: None,
        conn_reused: None,
        headers: request.recorded_headers.clone(),
        body: Some(request.body.clone()),
        body_bytes: request.body.len() as i64,
        body_hash: request.body_hash.clone(),
        input_tokens: request.input_tokens,
        input_tokens_source: request.input_tokens_source.clone(),
        max_output_tokens: request.max_output_tokens,
        block_size: request.block_size,
        block_runs: request.block_runs.clone(),
    }
}

/// The row of an answer that ended at `t_end_ns`.
#[must_use]
pub fn response_row(
    request_id: i64,
    attempt: i32,
    answer: Answer,
    end: ResponseEnd,
    t_end_ns: i64,
) -> ResponseRow {
    let usage = end.usage.unwrap_or_default();
    ResponseRow {
        request_id,
        attempt,
        outcome: end.outcome,
        status: answer.status,
        headers: answer.headers,
        trailers: answer.trailers,
        t_headers_ns: answer.t_headers_ns,
        t_end_ns: Some(t_end_ns),
        t_client_end_ns: None,
        timestamp_source: if answer.all_from_kernel {
            TimestampSource::Kernel
        } else {
            TimestampSource::Process
        },
        finish_reason: end.finish_reason.map(Into::into),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        cached_tokens: usage.cached_tokens,
        usage_source: end.usage.map(|_| "usage".into()),
        error: end.error.map(Into::into),
        body: end.body,
        body_bytes: end.body_bytes,
        chunk_count: end.chunk_count,
        malformed_chunks: end.malformed_chunks,
    }
}
