//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tapedeck_live::connect::Connection;
use tapedeck_live::exchange::broken;
use tapedeck_live::headers::recorded_headers;
use tapedeck_wire::response::End;

use crate::client::Client;
use crate::exchange::{Ended, Guard};
use crate::upload::UploadBody;
use crate::worker::{Leg, Worker};

/// An answer's body as hyper's server takes it. A new read is taken from upstream
/// only when everything before it has been flushed to the client.
pub(crate) enum Download {
    /// A few words of our own.
    Own(Option<Bytes>),
    Upstream(Box<Passing>),
}

pub(crate) struct Passing {
    pub(crate) worker: Rc<Worker>,
    pub(crate) leg: Rc<Leg>,
    pub(crate) client: Rc<Client>,
    pub(crate) guard: Guard,
    /// `None` once the answer is over.
    pub(crate) connection: Option<Connection<UploadBody>>,
    pub(crate) body: Incoming,
    /// The answer itself tells where its body ends.
    pub(crate) delimited: bool,
}

type Next = Option<Result<Frame<Bytes>, hyper::Error>>;

impl Passing {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        let (body, guard) = (&mut self.body, &self.guard);
        let next = if self.client.owes() {
            connection.poll_buffered(cx, |cx| Pin::new(&mut *body).poll_frame(cx))
        } else {
            connection.poll_step(cx, |connection, cx| {
                guard.0.note_sent(connection);
                Pin::new(&mut *body).poll_frame(cx)
            })
        };
        if next.is_pending() && self.client.owes() {
            self.client.park(cx);
        }
        next
    }

    fn take(&mut self, next: &Next) {
        match next {
            Some(Ok(frame)) => self.take_frame(frame),
            Some(Err(error)) => self.end(broken(error)),
            None => self.end(End::Clean),
        }
    }

    fn take_frame(&self, frame: &Frame<Bytes>) {
        let connection = self.connection.as_ref();
        let Some(read) = connection.and_then(|connection| connection.tap.last_read()) else {
            return;
        };
        if let Some(data) = frame.data_ref() {
            let flush_tells = self.client.owe();
            self.guard.0.frame(read, data, flush_tells);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.guard.0.trailers(recorded_headers(trailers));
        }
    }

    fn end(&mut self, end: End) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let clean = end == End::Clean;
        let now_ns = self.worker.clock.now_ns();
        let ended = Ended {
            end,
            delimited: self.delimited,
            last_read: connection.tap.last_read(),
            now_ns,
        };
        // An answer that breaks off is not flushed to its end.
        let flush_tells = clean && self.client.owe();
        self.guard.0.end(ended, flush_tells);
        if clean && connection.is_reusable() {
            self.leg.pool.put(connection, now_ns);
        }
    }
}

impl Drop for Passing {
    /// hyper drops a body of known length with its last byte, without asking for
    /// its end.
    fn drop(&mut self) {
        if self.connection.is_some() && self.body.is_end_stream() {
            self.end(End::Clean);
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(passing) => {
                let next = passing.poll_next(cx);
                if let Poll::Ready(next) = &next {
                    passing.take(next);
                }
                next
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Upstream(passing) => passing.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Upstream(passing) => passing.body.size_hint(),
        }
    }
}
