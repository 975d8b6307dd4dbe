//! Requests in, recorded answers out.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::pending;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use serde_json::json;
use tapedeck_clock::monotonic_ns;
use tapedeck_simulator::host::{HangUp, Incoming, Peer, Service, whole_body};
use tapedeck_simulator::timer::Timers;
use tapedeck_simulator::{SimBody, SimConfig, SimService};

use super::answer::{Answer, End};
use super::matching::{Book, Rule};
use super::paced::{Pace, Paced};
use super::tally::{InFlight, Tally};
use super::upstream::Upstream;

/// Says which answer it is and why it was chosen: `12.0 body` is attempt 0 of
/// request 12, found by its body.
const ANSWER_HEADER: HeaderName = HeaderName::from_static("x-tapedeck-answer");

/// What becomes of a request that nothing was recorded for.
#[derive(Debug, Clone)]
pub(crate) enum Miss {
    NotFound,
    Simulate(SimConfig),
    Proxy(Upstream),
}

/// Everything a server of recorded answers needs to begin.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) answers: Vec<Answer>,
    pub(crate) book: Book,
    pub(crate) models: BTreeSet<String>,
    pub(crate) speed: f64,
    pub(crate) miss: Miss,
    pub(crate) tally: Arc<Tally>,
    /// Raised when no further request is to be taken.
    pub(crate) closing: Arc<AtomicBool>,
}

/// The server; it lives on its thread.
#[derive(Debug)]
pub(crate) struct Recorded {
    answers: Vec<Rc<Answer>>,
    book: RefCell<Book>,
    models: BTreeSet<String>,
    speed: f64,
    miss: MissService,
    tally: Arc<Tally>,
    closing: Arc<AtomicBool>,
    timers: Rc<Timers>,
}

#[derive(Debug)]
enum MissService {
    NotFound,
    Simulate(Rc<SimService>),
    Proxy(Upstream),
}

impl Recorded {
    pub(crate) fn new(spec: Spec, timers: &Rc<Timers>) -> Rc<Self> {
        Rc::new(Self {
            answers: spec.answers.into_iter().map(Rc::new).collect(),
            book: RefCell::new(spec.book),
            models: spec.models,
            speed: spec.speed,
            miss: match spec.miss {
                Miss::NotFound => MissService::NotFound,
                Miss::Simulate(config) => MissService::Simulate(SimService::new(config)),
                Miss::Proxy(upstream) => MissService::Proxy(upstream),
            },
            tally: spec.tally,
            closing: spec.closing,
            timers: Rc::clone(timers),
        })
    }
}

impl Service for Recorded {
    type Body = ServedBody;

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Served, HangUp> {
        let (head, body) = request.into_parts();
        let Ok(body) = whole_body(body).await else {
            return Ok(error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body could not be read",
            ));
        };
        let pace = Pace {
            t_received_ns: monotonic_ns(),
            speed: self.speed,
        };
        if self.closing.load(Ordering::Relaxed) {
            return Err(HangUp);
        }
        if let Some(page) = self.own_page(&head) {
            return Ok(page);
        }
        let in_flight = self.tally.begin();
        let (method, path) = (head.method.as_str(), head.uri.path());
        let found = self.book.borrow_mut().find(method, path, &body);
        let Some(found) = found else {
            return Ok(self.missed(&head, body, in_flight).await);
        };
        self.tally.matched(found.rule, found.first_time);
        let answer = Rc::clone(&self.answers[found.index]);
        self.recorded(answer, found.rule, pace, (peer, in_flight))
            .await
    }

    async fn run(&self, timers: &Rc<Timers>) {
        match &self.miss {
            MissService::Simulate(simulator) => simulator.run(timers).await,
            MissService::NotFound | MissService::Proxy(_) => pending().await,
        }
    }
}

type Served = Response<ServedBody>;

impl Recorded {
    /// What clients ask beside their requests, and no recording has.
    fn own_page(&self, head: &Parts) -> Option<Served> {
        if head.method != Method::GET {
            return None;
        }
        let proxied = matches!(self.miss, MissService::Proxy(_));
        match head.uri.path() {
            "/metrics" => {
                let text = self.tally.counts().metrics(self.answers.len());
                Some(whole(StatusCode::OK, "text/plain; version=0.0.4", text))
            }
            "/v1/models" if !proxied => {
                let model =
                    |id: &String| json!({"id": id, "object": "model", "owned_by": "tapedeck"});
                let models: Vec<_> = self.models.iter().map(model).collect();
                let list = json!({"object": "list", "data": models});
                Some(whole(StatusCode::OK, JSON, list.to_string()))
            }
            "/health" if !proxied => Some(whole(StatusCode::OK, "text/plain", String::new())),
            _ => None,
        }
    }

    async fn recorded(
        &self,
        answer: Rc<Answer>,
        rule: Rule,
        pace: Pace,
        (peer, in_flight): (Peer, InFlight),
    ) -> Result<Served, HangUp> {
        let Some(head) = &answer.head else {
            return self.hung_up(&answer, pace, &peer, in_flight).await;
        };
        // Made first, so that a client that leaves before is counted too.
        let counted = (Arc::clone(&self.tally), in_flight);
        let timers = Rc::clone(&self.timers);
        let body = Paced::new(Rc::clone(&answer), pace, timers, peer, counted);
        let mut served = Response::new(ServedBody::Recorded(body));
        *served.status_mut() = StatusCode::from_u16(head.status).map_err(|_| HangUp)?;
        *served.headers_mut() = head.headers.clone();
        let (request_id, attempt) = (answer.request_id, answer.attempt);
        let name = format!("{request_id}.{attempt} {}", rule.as_str());
        if let Ok(name) = HeaderValue::from_str(&name) {
            served.headers_mut().insert(ANSWER_HEADER, name);
        }
        self.timers.sleep_until(pace.at(head.due_ns)).await;
        Ok(served)
    }

    /// An answer of which nothing came.
    async fn hung_up(
        &self,
        answer: &Answer,
        pace: Pace,
        peer: &Peer,
        in_flight: InFlight,
    ) -> Result<Served, HangUp> {
        match answer.end {
            End::Silence | End::ClientLeft => {
                drop(in_flight);
                pending().await
            }
            End::BrokenOff { .. } | End::Whole => {
                self.timers.sleep_until(pace.at(answer.end_due_ns)).await;
                if answer.end == (End::BrokenOff { reset: true }) {
                    peer.reset_at_close();
                }
                Err(HangUp)
            }
        }
    }

    async fn missed(&self, head: &Parts, body: Bytes, in_flight: InFlight) -> Served {
        self.tally.missed();
        let (parts, body) = match &self.miss {
            MissService::NotFound => {
                error(StatusCode::NOT_FOUND, "no recorded answer to this request").into_parts()
            }
            MissService::Simulate(simulator) => {
                let answer = simulator
                    .respond(&head.method, head.uri.path(), &body)
                    .await;
                answer.map(ServedBody::Simulated).into_parts()
            }
            MissService::Proxy(upstream) => match upstream.ask(head, body).await {
                Ok(answer) => answer.map(ServedBody::Proxied).into_parts(),
                Err(text) => error(StatusCode::BAD_GATEWAY, &text).into_parts(),
            },
        };
        Response::from_parts(parts, ServedBody::Missed(Box::new(body), in_flight))
    }
}

const JSON: &str = "application/json";

fn whole(status: StatusCode, content_type: &'static str, text: String) -> Served {
    let mut served = Response::new(ServedBody::Whole(Full::new(text.into())));
    *served.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    served.headers_mut().insert(CONTENT_TYPE, content_type);
    served
}

fn error(status: StatusCode, message: &str) -> Served {
    let body = json!({"error": {
        "message": message,
        "type": "tapedeck_replay",
        "code": status.as_u16(),
    }});
    whole(status, JSON, body.to_string())
}

/// The body of an answer, whoever gives it.
#[derive(Debug)]
pub(crate) enum ServedBody {
    Recorded(Paced),
    Whole(Full<Bytes>),
    Simulated(SimBody),
    Proxied(reqwest::Body),
    /// Any of these, counted while it lasts.
    Missed(
        Box<Self>,
        #[expect(dead_code, reason = "counts until it is dropped")] InFlight,
    ),
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body for ServedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Recorded(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Simulated(body) => Pin::new(body).poll_frame(cx),
            Self::Proxied(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Missed(body, _) => Pin::new(body).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Recorded(body) => body.size_hint(),
            Self::Whole(body) => body.size_hint(),
            Self::Simulated(body) => body.size_hint(),
            Self::Proxied(body) => body.size_hint(),
            Self::Missed(body, _) => body.size_hint(),
        }
    }
}
