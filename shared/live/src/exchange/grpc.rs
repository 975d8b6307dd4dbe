//! One request over gRPC: a call whose answer is a stream of messages.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, header};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tapedeck_wire::grpc::{self, framed};
use tapedeck_wire::response::{End, ResponseReader, ResponseSpec};

use super::{Answer, Attempt, Ending, Source, broken, unanswered};
use crate::http2::Http2;
use crate::worker::{Kill, Stage};

/// Of one HTTP/2 frame of a request.
const FRAME_HEADER_BYTES: u64 = 9;
const FRAME_BYTES: u64 = 16_384;

impl Attempt<'_> {
    pub(super) async fn send_grpc(&self, source: Source) -> Ending {
        let pooled = match source {
            Source::Pool => match self.ready.take().http2 {
                None => self.worker.http2_pool.take().await,
                ready => ready.map(|connection| *connection),
            },
            Source::Fresh => None,
        };
        let reused = pooled.is_some();
        let connection = match pooled {
            Some(connection) => Ok(connection),
            None => {
                let connector = &self.worker.connector;
                self.connect(async |instants| connector.open_http2(instants).await)
                    .await
            }
        };
        match connection {
            Ok(connection) => {
                self.note_connection(connection.conn_id, reused);
                self.call(connection, reused).await
            }
            Err(end) => {
                self.close_unanswered(end);
                Ending::Final
            }
        }
    }

    async fn call(&self, mut connection: Http2, reused: bool) -> Ending {
        let request = match self.grpc_request() {
            Ok(request) => request,
            Err(error) => {
                self.close_unanswered(End::Broken { error });
                return Ending::Final;
            }
        };
        connection.tap.begin_attempt();
        connection.tap.expect_request(least_bytes(&request));
        self.enter(Stage::FirstByte);
        self.give_up_in_time();
        let response = connection.sender.send_request(request);
        let mut response = pin!(response);
        let head = self
            .step_http2(&mut connection, |cx| response.as_mut().poll(cx))
            .await;
        let end = match head {
            Ok(Ok(response)) => {
                self.read_call(connection, response).await;
                return Ending::Final;
            }
            Ok(Err(e)) => broken(&e),
            Err(kill) => self.killed(kill),
        };
        self.end_without_head(end, reused && !connection.tap.answered())
    }

    async fn read_call(&self, mut connection: Http2, response: Response<Incoming>) {
        let mut answer = Answer::begun(
            response.status(),
            response.headers(),
            connection.tap.last_read(),
        );
        let mut reader = ResponseReader::new(ResponseSpec {
            status: response.status().as_u16(),
            ..unanswered(self.request)
        });
        // An answer without messages has its status among the headers.
        let mut status = status_of(response.headers());
        let mut body = response.into_body();
        let end = loop {
            self.enter(if reader.end_marker_seen() {
                Stage::Drain
            } else {
                Stage::Read
            });
            let frame = self
                .step_http2(&mut connection, |cx| Pin::new(&mut body).poll_frame(cx))
                .await;
            match frame {
                Ok(Some(Ok(frame))) => {
                    status = frame.trailers_ref().and_then(status_of).or(status);
                    let read = connection.tap.last_read();
                    self.take_frame(frame, read, &mut reader, &mut answer);
                    if self.has_enough() && !reader.end_marker_seen() {
                        break self.killed(Kill::GivenUp);
                    }
                }
                Ok(Some(Err(e))) => break broken(&e),
                Ok(None) => break status.unwrap_or_else(no_status),
                Err(kill) => break self.killed(kill),
            }
        };
        let whole = matches!(end, End::Clean | End::Failed { .. });
        answer.t_end_ns = Some(match connection.tap.last_read() {
            Some(read) if whole || reader.end_marker_seen() => read.t_ns,
            _ => self.worker.clock.now_ns(),
        });
        drop(body);
        self.close(reader, answer, end);
        if whole {
            self.worker.http2_pool.put(connection);
        }
    }

    /// As [`Self::step`], on HTTP/2.
    async fn step_http2<T>(
        &self,
        connection: &mut Http2,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Kill> {
        self.watched(|cx| {
            connection.poll_step(cx, |connection, cx| {
                self.record_request_sent_at(connection.tap.request_sent_ns());
                poll(cx)
            })
        })
        .await
    }

    fn grpc_request(&self) -> Result<Request<Full<Bytes>>, String> {
        let message = framed(&self.request.body).ok_or("the message is longer than 4 GiB")?;
        let target = self.worker.connector.target();
        let scheme = if target.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let uri: Uri = format!("{scheme}://{}{}", target.host, self.request.uri)
            .parse()
            .map_err(|e| format!("the address cannot be sent: {e}"))?;
        let mut request = Request::new(Full::new(message.into()));
        *request.method_mut() = self.request.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.request.headers.clone();
        // HTTP/2 has it in the address.
        request.headers_mut().remove(header::HOST);
        Ok(request)
    }
}

/// As many bytes as the frames of `request` have at least. They are at most a few
/// hundred more, by what the headers come to: a body that is written in several goes is
/// held for sent when less than that of it is left.
fn least_bytes(request: &Request<Full<Bytes>>) -> u64 {
    let body_bytes = request.body().size_hint().lower();
    let frames = 1 + body_bytes.div_ceil(FRAME_BYTES);
    frames * FRAME_HEADER_BYTES + body_bytes
}

fn no_status() -> End {
    End::Broken {
        error: "the answer ended without a grpc-status".to_owned(),
    }
}

/// How the server says the call ended.
fn status_of(headers: &HeaderMap) -> Option<End> {
    let code = headers.get("grpc-status")?.as_bytes().escape_ascii();
    let message = headers.get("grpc-message").map(|value| value.as_bytes());
    Some(match grpc::status(&code.to_string(), message) {
        Ok(()) => End::Clean,
        Err(error) => End::Failed { error },
    })
}
