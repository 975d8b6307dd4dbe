//! The routes of the simulated server.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use tapedeck_clock::realtime_ns;

use crate::config::{ConfigError, SimConfig};
use crate::engine::{Engine, Histogram, TTFT_BOUNDS_S, Ticket};
use crate::host::{HangUp, HostError, Incoming, Peer, Running, Service, whole_body};
use crate::model::{Ending, Plan};
use crate::reply::{self, Reply};
use crate::request::{ApiError, Ask, Endpoint};
use crate::stream::{Shape, TokenStream};
use crate::timer::Timers;

#[cfg(test)]
mod tests;

/// What a refused client is told to wait, s.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// A server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The embedded server.
#[derive(Debug)]
pub struct Simulator;

impl Simulator {
    /// Listens on `listen` (port 0: any) and serves from a thread of its own
    /// until the returned handle is stopped or dropped.
    ///
    /// # Errors
    /// A setting out of range, an address that cannot be listened on, no thread.
    pub fn start(config: SimConfig, listen: SocketAddr) -> Result<Running, SimError> {
        config.validate()?;
        let start = move |_: &Rc<Timers>| SimService::new(config);
        Ok(Running::start("sim-engine", listen, start)?)
    }
}

type Answer = Response<SimBody>;

/// The body of an answer.
#[derive(Debug)]
pub struct SimBody(Either<TokenStream, Full<Bytes>>);

impl Body for SimBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// What the simulator answers, for a server of its own or within another one.
/// [`Service::run`] must be polled beside it.
#[derive(Debug)]
pub struct SimService {
    config: SimConfig,
    engine: Rc<Engine>,
    next_ordinal: Cell<u64>,
    created_s: i64,
}

impl Service for SimService {
    type Body = SimBody;

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        _peer: Peer,
    ) -> Result<Answer, HangUp> {
        let (head, body) = request.into_parts();
        let body = match whole_body(body).await {
            Ok(body) => body,
            Err(error) => {
                return Ok(failure(&ApiError {
                    status: StatusCode::PAYLOAD_TOO_LARGE,
                    class: "BadRequestError",
                    message: format!("the body could not be read: {error}"),
                }));
            }
        };
        Ok(self.respond(&head.method, head.uri.path(), &body).await)
    }

    async fn run(&self, timers: &Rc<Timers>) {
        self.engine.run(timers).await;
    }
}

impl SimService {
    /// `config` must have been validated.
    #[must_use]
    pub fn new(config: SimConfig) -> Rc<Self> {
        Rc::new(Self {
            engine: Engine::new(config.clone()),
            config,
            next_ordinal: Cell::new(0),
            created_s: wall_clock_s(),
        })
    }

    /// The answer to one request.
    pub async fn respond(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        let get = method == Method::GET;
        let post = method == Method::POST;
        match path {
            "/v1/chat/completions" if post => self.generate(Endpoint::Chat, body).await,
            "/v1/completions" if post => self.generate(Endpoint::Completions, body).await,
            "/v1/models" if get => json(reply::models(&self.config.model, self.created_s)),
            "/health" if get => whole(StatusCode::OK, "text/plain", Bytes::new()),
            "/metrics" if get => whole(StatusCode::OK, "text/plain; version=0.0.4", self.metrics()),
            "/v1/chat/completions" | "/v1/completions" | "/v1/models" | "/health" | "/metrics" => {
                failure(&ApiError {
                    status: StatusCode::METHOD_NOT_ALLOWED,
                    class: "MethodNotAllowed",
                    message: format!("{method} is not allowed here"),
                })
            }
            path => failure(&ApiError {
                status: StatusCode::NOT_FOUND,
                class: "NotFoundError",
                message: format!("no such path: {path}"),
            }),
        }
    }

    async fn generate(&self, endpoint: Endpoint, body: &[u8]) -> Answer {
        match Ask::parse(endpoint, body) {
            Ok(ask) => self.serve(&ask).await,
            Err(error) => failure(&error),
        }
    }

    async fn serve(&self, ask: &Ask) -> Answer {
        let ordinal = self.next_ordinal.get();
        self.next_ordinal.set(ordinal + 1);
        let plan = Plan::draw(&self.config, ordinal, ask.limit);
        if plan.refused {
            return whole(
                StatusCode::INTERNAL_SERVER_ERROR,
                JSON,
                reply::failure_body().into(),
            );
        }
        let shape = Shape {
            choices: ask.choices,
            tokens: plan.tokens,
            ending: plan.ending,
            include_usage: ask.include_usage,
        };
        let model = ask.model.as_deref().unwrap_or(&self.config.model);
        let reply = Reply::new(ask, model, self.config.seed, ordinal, wall_clock_s());
        match self.engine.arrive(ask.prompt_tokens, plan) {
            Err(_) => too_many(),
            Ok(ticket) if ask.stream => stream(TokenStream::new(ticket, reply, shape)),
            Ok(ticket) => answer_whole(&ticket, &reply, &shape).await,
        }
    }

    /// The names are vLLM's, so that a scrape reads both servers alike.
    fn metrics(&self) -> Bytes {
        let (running, waiting) = self.engine.load();
        let totals = &self.engine.totals;
        let mut text = String::new();
        for (kind, name, value) in [
            ("gauge", "vllm:num_requests_running", running as u64),
            ("gauge", "vllm:num_requests_waiting", waiting as u64),
            (
                "counter",
                "vllm:prompt_tokens_total",
                totals.prompt_tokens.get(),
            ),
            (
                "counter",
                "vllm:generation_tokens_total",
                totals.output_tokens.get(),
            ),
            (
                "counter",
                "tapedeck_sim:requests_refused_total",
                totals.refused_requests.get(),
            ),
        ] {
            text.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
        }
        text.push_str(&histogram("vllm:time_to_first_token_seconds", &totals.ttft));
        Bytes::from(text)
    }
}

fn histogram(name: &str, durations: &Histogram) -> String {
    let mut text = format!("# TYPE {name} histogram\n");
    let mut below = 0;
    for (bound_s, count) in TTFT_BOUNDS_S.iter().zip(&durations.counts) {
        below += count.get();
        text.push_str(&format!("{name}_bucket{{le=\"{bound_s}\"}} {below}\n"));
    }
    let (count, sum_s) = (durations.count.get(), durations.sum_s.get());
    text.push_str(&format!(
        "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum_s}\n{name}_count {count}\n"
    ));
    text
}

const JSON: &str = "application/json";

async fn answer_whole(ticket: &Ticket, reply: &Reply, shape: &Shape) -> Answer {
    ticket.done().await;
    if shape.ending == Ending::Failure {
        return whole(
            StatusCode::INTERNAL_SERVER_ERROR,
            JSON,
            reply::failure_body().into(),
        );
    }
    json(reply.whole(shape.choices, shape.tokens, shape.ending))
}

fn stream(tokens: TokenStream) -> Answer {
    let mut answer = Response::new(SimBody(Either::Left(tokens)));
    let sse = HeaderValue::from_static("text/event-stream; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, sse);
    answer
}

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(SimBody(Either::Right(Full::new(body))));
    *answer.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

fn json(body: Bytes) -> Answer {
    whole(StatusCode::OK, JSON, body)
}

fn failure(error: &ApiError) -> Answer {
    whole(error.status, JSON, error.body().into())
}

fn too_many() -> Answer {
    let mut answer = failure(&ApiError {
        status: StatusCode::TOO_MANY_REQUESTS,
        class: "RateLimitError",
        message: "the queue is full".to_owned(),
    });
    answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
    answer
}

fn wall_clock_s() -> i64 {
    realtime_ns() / 1_000_000_000
}
