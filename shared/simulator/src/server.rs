//! The socket side: one thread that accepts, routes and answers.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tapedeck_clock::realtime_ns;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;

use crate::config::{ConfigError, SimConfig};
use crate::connection::Connection;
use crate::engine::{Engine, Histogram, TTFT_BOUNDS_S, Ticket};
use crate::model::{Ending, Plan};
use crate::reply::{self, Reply};
use crate::request::{ApiError, Ask, Endpoint};
use crate::stream::{Shape, TokenStream};
use crate::timer::Timers;

#[cfg(test)]
mod tests;

/// Connections served at once; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections the kernel keeps for us: a burst beyond it would see its packets
/// dropped and retry a second later.
const BACKLOG: u32 = 4096;
/// The largest request body.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// Wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(10);
/// What a refused client is told to wait, s.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// A server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start the simulator's thread")]
    Thread(#[source] io::Error),
    #[error("the simulator cannot listen on {listen}: {cause}\nhint: port 0 takes any free port")]
    Listen {
        listen: SocketAddr,
        cause: io::Error,
    },
    #[error("the simulator's thread ended before it listened")]
    Ended,
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
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("sim-engine".to_owned())
            .spawn(move || serve_thread(config, listen, &ready, stopped))
            .map_err(SimError::Thread)?;
        let mut running = Running {
            addr: listen,
            stop: Some(stop),
            thread: Some(thread),
        };
        match listening.recv() {
            Ok(Ok(addr)) => {
                running.addr = addr;
                Ok(running)
            }
            Ok(Err(cause)) => Err(SimError::Listen { listen, cause }),
            Err(_) => Err(SimError::Ended),
        }
    }
}

/// A server that is up. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Where it listens, with the port it got.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts all connections and returns when the server's thread has ended.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Dropping the sender is the signal.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in there has already been printed by its own thread.
            drop(thread.join());
        }
    }
}

fn serve_thread(
    config: SimConfig,
    listen: SocketAddr,
    ready: &SyncSender<io::Result<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let (timers, listener, addr) = match open(listen) {
            Ok(opened) => opened,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let server = Server::new(config);
        drop(ready.send(Ok(addr)));
        tokio::select! {
            _ = stopped => {}
            _ = timers.run() => {}
            () = server.engine.run(&timers) => {}
            () = accept(&server, &listener) => {}
        }
    });
}

fn open(listen: SocketAddr) -> io::Result<(Rc<Timers>, TcpListener, SocketAddr)> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?;
    let addr = listener.local_addr()?;
    Ok((Timers::new()?, listener, addr))
}

async fn accept(server: &Rc<Server>, listener: &TcpListener) {
    let places = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let server = Rc::clone(server);
                tokio::task::spawn_local(async move {
                    serve_connection(server, socket).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn serve_connection(server: Rc<Server>, socket: TcpStream) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(move |request| {
        let server = Rc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(Connection(socket), service);
    // A connection that breaks is the client's affair: its slot is free.
    drop(serving.await);
}

type Answer = Response<Either<TokenStream, Full<Bytes>>>;

#[derive(Debug)]
struct Server {
    config: SimConfig,
    engine: Rc<Engine>,
    next_ordinal: Cell<u64>,
    created_s: i64,
}

impl Server {
    fn new(config: SimConfig) -> Rc<Self> {
        Rc::new(Self {
            engine: Engine::new(config.clone()),
            config,
            next_ordinal: Cell::new(0),
            created_s: wall_clock_s(),
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let get = request.method() == Method::GET;
        let post = request.method() == Method::POST;
        match request.uri().path() {
            "/v1/chat/completions" if post => self.generate(Endpoint::Chat, request).await,
            "/v1/completions" if post => self.generate(Endpoint::Completions, request).await,
            "/v1/models" if get => json(reply::models(&self.config.model, self.created_s)),
            "/health" if get => whole(StatusCode::OK, "text/plain", Bytes::new()),
            "/metrics" if get => whole(StatusCode::OK, "text/plain; version=0.0.4", self.metrics()),
            "/v1/chat/completions" | "/v1/completions" | "/v1/models" | "/health" | "/metrics" => {
                failure(&ApiError {
                    status: StatusCode::METHOD_NOT_ALLOWED,
                    class: "MethodNotAllowed",
                    message: format!("{} is not allowed here", request.method()),
                })
            }
            path => failure(&ApiError {
                status: StatusCode::NOT_FOUND,
                class: "NotFoundError",
                message: format!("no such path: {path}"),
            }),
        }
    }

    async fn generate(&self, endpoint: Endpoint, request: Request<Incoming>) -> Answer {
        let body = match Limited::new(request.into_body(), MAX_BODY_BYTES)
            .collect()
            .await
        {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return failure(&ApiError {
                    status: StatusCode::PAYLOAD_TOO_LARGE,
                    class: "BadRequestError",
                    message: format!("the body could not be read: {error}"),
                });
            }
        };
        match Ask::parse(endpoint, &body) {
            Ok(ask) => self.run(&ask).await,
            Err(error) => failure(&error),
        }
    }

    async fn run(&self, ask: &Ask) -> Answer {
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
    let mut answer = Response::new(Either::Left(tokens));
    let sse = HeaderValue::from_static("text/event-stream; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, sse);
    answer
}

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(body)));
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
