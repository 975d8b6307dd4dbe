//! A gRPC server that says a fixture byte for byte: frames by hand, no generated code.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tapedeck_wire::grpc::framed;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::support::dialects::{Case, Fixture};

/// Before every message.
const GAP: Duration = Duration::from_millis(3);

/// When each message of each call was sent, ns of the machine's monotonic clock.
type Ledger = Arc<Mutex<Vec<Vec<i64>>>>;

/// The running server, while it is held.
pub(crate) struct CallServer {
    pub(crate) addr: SocketAddr,
    ledger: Ledger,
    _runtime: Runtime,
}

impl CallServer {
    /// Answers exactly the request of `fixture` with the messages of `case`, and any
    /// other with a status that tells the difference.
    pub(crate) fn start(fixture: &Fixture, case: &Case) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let addr = listener.local_addr().expect("an address");
        let ledger = Ledger::default();
        let said = Arc::new(Said {
            path: fixture.path.clone(),
            request: bytes_of(&fixture.request),
            headers: case.headers.clone().into_iter().collect(),
            messages: case.body.lines().map(bytes_of).collect(),
            ledger: Arc::clone(&ledger),
        });
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let said = Arc::clone(&said);
                let answer = move |request| answer(Arc::clone(&said), request);
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(socket), service_fn(answer)));
            }
        });
        Self {
            addr,
            ledger,
            _runtime: runtime,
        }
    }

    /// When message `index` of call `number` was sent, at the earliest.
    pub(crate) fn sent_ns(&self, number: usize, index: usize) -> i64 {
        self.ledger.lock().expect("no panic")[number][index]
    }
}

/// `0a 14` as bytes; white space counts for nothing.
fn bytes_of(hex: &str) -> Bytes {
    let digits: Vec<u32> = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("hex digits"))
        .collect();
    let pairs = digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8);
    pairs.collect()
}

struct Said {
    path: String,
    request: Bytes,
    headers: Vec<(String, String)>,
    messages: Vec<Bytes>,
    ledger: Ledger,
}

impl Said {
    fn differs(&self, path: &str, headers: &HeaderMap, body: &Bytes) -> Option<String> {
        if path != self.path {
            return Some(format!("{path} is not {}", self.path));
        }
        if *body != self.request {
            return Some(format!("body {body:02x?} is not {:02x?}", self.request));
        }
        let wrong = self
            .headers
            .iter()
            .find(|(name, value)| headers.get(name).is_none_or(|v| v != value));
        wrong.map(|(name, value)| format!("{name} is not {value}: {:?}", headers.get(name)))
    }
}

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(said: Arc<Said>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let difference = said.differs(head.uri.path(), &head.headers, &body);
    let number = {
        let mut calls = said.ledger.lock().expect("no panic");
        calls.push(Vec::new());
        calls.len() - 1
    };
    let messages = match difference {
        None => said.messages.clone(),
        Some(_) => Vec::new(),
    };
    let end = trailers(difference);
    let frames = futures::stream::unfold(0, move |at| {
        let (said, message) = (Arc::clone(&said), messages.get(at).cloned());
        let end = (at == messages.len()).then(|| end.clone());
        async move {
            let frame = match (message, end) {
                (Some(message), _) => {
                    tokio::time::sleep(GAP).await;
                    let now_ns = tapedeck_clock::monotonic_ns();
                    said.ledger.lock().expect("no panic")[number].push(now_ns);
                    Frame::data(framed(&message).expect("a short message").into())
                }
                (None, Some(end)) => Frame::trailers(end),
                (None, None) => return None,
            };
            Some((Ok::<_, Infallible>(frame), at + 1))
        }
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Status 0, or 3 with what is wrong with the request.
fn trailers(difference: Option<String>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = if difference.is_some() { "3" } else { "0" };
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    if let Some(message) = difference {
        let message = HeaderValue::from_str(&message).expect("plain text");
        trailers.insert("grpc-message", message);
    }
    trailers
}
