//! The admin address: `/health` and `/metrics`.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::Metrics;
use crate::recorder::Current;

/// A caller of the admin address has this long to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the admin address tells about.
#[derive(Debug)]
pub struct Watched {
    pub metrics: Arc<Metrics>,
    pub current: Arc<Current>,
    /// Traffic is refused where recording fails.
    pub strict: bool,
}

impl Watched {
    /// A proxy that no longer records still serves, unless it is strict.
    fn health(&self) -> (StatusCode, &'static str, String) {
        let sink = &self.current.get().sink;
        let text = match (sink.failed(), sink.disk_refuses()) {
            (true, _) => "recording has failed\n",
            (false, true) => "the disk refuses the recording\n",
            (false, false) => "ok\n",
        };
        let status = match sink.failed() && self.strict {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        (status, "text/plain", text.to_owned())
    }
}

/// Answers on the admin address until the process ends.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
}

impl Admin {
    /// Starts to answer on `listener`, from a thread of its own.
    ///
    /// # Errors
    /// When the listener cannot be used or the thread cannot be started.
    pub fn start(listener: StdListener, watched: Watched) -> std::io::Result<Self> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("tapedeck-admin".into())
            .spawn(move || runtime.block_on(serve(listener, watched)))?;
        Ok(Self { addr })
    }

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// One caller at a time, each for [`PATIENCE`] at most: what this may cost is
/// bounded, whoever calls.
async fn serve(listener: StdListener, watched: Watched) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answered = answer(stream, &watched);
                // What a caller does wrong is its own affair.
                tokio::time::timeout(PATIENCE, answered).await.ok();
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn answer(stream: TcpStream, watched: &Watched) {
    let service = service_fn(|request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(page(&request, watched)))
    });
    http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

fn page(request: &Request<Incoming>, watched: &Watched) -> Response<Full<Bytes>> {
    let (status, kind, text) = match request.uri().path() {
        "/health" => watched.health(),
        "/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            let text = watched.metrics.text(&watched.current.get().sink);
            (StatusCode::OK, kind, text)
        }
        _ => {
            let text = "there are /health and /metrics\n".to_owned();
            (StatusCode::NOT_FOUND, "text/plain", text)
        }
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
