//! `ppl.llm.serving` over real gRPC: tonic services for each of its two protocols,
//! generated from their `.proto` files.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tapedeck_recording::event::TimestampSource;
use tapedeck_recording::{EventBatch, Recording};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;
use tonic::{Request, Response, Status};

use crate::support::nobody::Nobody;
use crate::support::programs::{Ran, run, run_line};
use crate::support::recording::events;

#[allow(
    clippy::all,
    unreachable_pub,
    missing_debug_implementations,
    reason = "generated"
)]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/v1/ppl.llm.proto.rs"));
}
#[allow(
    clippy::all,
    unreachable_pub,
    missing_debug_implementations,
    reason = "generated"
)]
mod v2 {
    include!(concat!(env!("OUT_DIR"), "/v2/ppl.llm.proto.rs"));
}

/// Before every message.
const GAP: Duration = Duration::from_millis(3);

/// How a call is answered after its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// The last token says FINISHED.
    Finished,
    /// Status 0 alone.
    Silence,
    /// A message that says FAILED.
    Failed,
    /// A status that is not 0.
    Exhausted,
    /// FINISHED, and then that status.
    FinishedInVain,
    /// The status instead of an answer.
    Refused,
    /// The connection ends.
    Cut,
}

/// Number of tokens, and what follows them.
type Script = (u32, End);

/// One call as the server saw it.
#[derive(Debug)]
struct Call {
    /// The request in the words of its protocol.
    request: String,
    /// Before each message, ns of the machine's monotonic clock.
    t_before_ns: Vec<i64>,
}

type Ledger = Mutex<Vec<Call>>;

#[derive(Debug, Clone)]
struct Server {
    /// By number of the call; the last one for all further.
    scripts: Arc<Vec<Script>>,
    ledger: Arc<Ledger>,
    /// Ends the connection, which is the only one.
    cut: Arc<Notify>,
}

impl Server {
    /// The number of a new call, and how to answer it.
    fn begin(&self, request: String) -> (usize, Script) {
        let mut calls = self.ledger.lock().unwrap();
        let number = calls.len();
        calls.push(Call {
            request,
            t_before_ns: Vec::new(),
        });
        (number, self.scripts[number.min(self.scripts.len() - 1)])
    }

    fn note(&self, number: usize) {
        let now_ns = tapedeck_clock::monotonic_ns();
        self.ledger.lock().unwrap()[number].t_before_ns.push(now_ns);
    }
}

fn exhausted() -> Status {
    Status::resource_exhausted("no room in the cache")
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The messages of a script; `message` makes one of a token's number (0 for none) and
/// a status.
fn answers<T: Send + 'static>(
    server: Server,
    (number, (tokens, end)): (usize, Script),
    message: fn(u32, i32) -> T,
) -> Answers<T> {
    Box::pin(futures::stream::unfold(1, move |n| {
        let server = server.clone();
        async move {
            tokio::time::sleep(GAP).await;
            let is_last = n == tokens && matches!(end, End::Finished | End::FinishedInVain);
            let item = if n <= tokens {
                Ok(message(n, i32::from(is_last)))
            } else if n > tokens + 1 {
                return None;
            } else {
                match end {
                    End::Failed => Ok(message(0, 2)),
                    End::Exhausted | End::FinishedInVain => Err(exhausted()),
                    End::Cut => {
                        server.cut.notify_one();
                        std::future::pending().await
                    }
                    End::Finished | End::Silence | End::Refused => return None,
                }
            };
            server.note(number);
            Some((item, n + 1))
        }
    }))
}

/// A service of one of the protocols.
macro_rules! serve {
    ($proto:ident, $message:expr) => {
        #[tonic::async_trait]
        impl $proto::llm_service_server::LlmService for Server {
            type GenerationStream = Answers<$proto::BatchedResponse>;

            async fn generation(
                &self,
                request: Request<$proto::BatchedRequest>,
            ) -> Result<Response<Self::GenerationStream>, Status> {
                let call = self.begin(format!("{:?}", request.into_inner().req));
                if matches!(call.1, (_, End::Refused)) {
                    return Err(exhausted());
                }
                Ok(Response::new(answers(self.clone(), call, $message)))
            }
        }
    };
}

fn text(n: u32) -> String {
    match n {
        0 => String::new(),
        n => format!(" w{n}"),
    }
}

serve!(v1, |n, status| v1::BatchedResponse {
    rsp: vec![v1::Response {
        status,
        id: 0,
        generated: text(n),
        tokens: (n > 0).then(|| v1::Tokens { ids: vec![n] }),
    }],
});
serve!(v2, |n, status| v2::BatchedResponse {
    rsp: vec![v2::Response {
        status,
        id: 0,
        generated: text(n),
        tokens: (n > 0).then(|| v2::Tokens { ids: vec![n] }),
        detail: Some(v2::Detail {
            logprobs: -0.5,
            is_special: false,
            finish_reason: v2::FinishReason::Eos as i32,
        }),
    }],
});

/// A service of tonic's, for hyper to serve.
trait Grpc:
    Service<
        http::Request<hyper::body::Incoming>,
        Response = http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Grpc for S where
    S: Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

async fn serve_on(io: impl AsyncRead + AsyncWrite + Unpin, service: impl Grpc, cut: &Notify) {
    let service = hyper::service::service_fn(move |request| {
        let mut service = service.clone();
        async move { service.call(request).await }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::select! {
        served = http.serve_connection(TokioIo::new(io), service) => drop(served),
        () = cut.notified() => {}
    }
}

/// Accepts connections for `service` until the runtime is dropped.
async fn accept(
    listener: TcpListener,
    service: impl Grpc,
    cut: Arc<Notify>,
    tls: Option<TlsAcceptor>,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (service, cut, tls) = (service.clone(), Arc::clone(&cut), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve_on(socket, service, &cut).await,
                Some(tls) => {
                    // A client that goes away instead is its own affair.
                    if let Ok(stream) = tls.accept(socket).await {
                        serve_on(stream, service, &cut).await;
                    }
                }
            }
        });
    }
}

/// A server, while it is held.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    ledger: Arc<Ledger>,
    _runtime: Runtime,
}

/// A server that answers calls of `api` by `scripts`.
pub(crate) fn start(api: &str, scripts: &[Script], tls: Option<TlsAcceptor>) -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let ledger = Arc::<Ledger>::default();
    let server = Server {
        scripts: Arc::new(scripts.to_vec()),
        ledger: Arc::clone(&ledger),
        cut: Arc::default(),
    };
    let cut = Arc::clone(&server.cut);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let addr = listener.local_addr().unwrap();
    match api {
        "ppl-v1" => {
            let service = v1::llm_service_server::LlmServiceServer::new(server);
            runtime.spawn(accept(listener, service, cut, tls));
        }
        _ => {
            let service = v2::llm_service_server::LlmServiceServer::new(server);
            runtime.spawn(accept(listener, service, cut, tls));
        }
    }
    Running {
        addr,
        ledger,
        _runtime: runtime,
    }
}

fn load(api: &str, url: &str, further: &str, out: &Path) -> Ran {
    let line = format!(
        "load --url {url} --api {api} --prompt hello --max-tokens 4 --ignore-eos --workers 1 \
         --no-report --json --out {} {further}",
        out.display()
    );
    run_line("record", &line)
}

fn recorded(path: &Path) -> (EventBatch, i64) {
    let recording = Recording::open(path).unwrap();
    (events(&recording), recording.manifest.monotonic_start_ns)
}

/// Chunks of a request in the words `content 1`, and their arrivals, ns.
fn chunks_of(events: &EventBatch, request_id: i64) -> (Vec<String>, Vec<i64>) {
    let rows = events.chunks.rows.iter();
    rows.filter(|c| c.request_id == request_id)
        .map(|c| {
            let tokens = c.tokens.map_or(String::new(), |n| format!(" {n}"));
            (format!("{}{tokens}", c.kind.as_str()), c.t_ns)
        })
        .unzip()
}

const V1: &str = r#"[Request { id: 0, temperature: 0.0, prompt: "hello", tokens: None, stopping_parameters: Some(StoppingCriteriaParameters { max_new_tokens: 4, stop_tokens: None, ignore_eos_token: true }) }]"#;
const V2: &str = r#"[Request { id: 0, prompt: "hello", tokens: None, choosing_parameters: Some(NextTokenChooserParameters { temperature: 0.0, top_k: 1, top_p: 0.0, typical_p: 0.0, do_sample: false, seed: 0, repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, watermark: false }), stopping_parameters: Some(StoppingCriteriaParameters { max_new_tokens: 4, stop_tokens: None, ignore_eos_token: true }) }]"#;

#[test]
fn both_protocols_are_spoken_measured_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    for (api, expected, finish) in [("ppl-v1", V1, None), ("ppl-v2", V2, Some("eos"))] {
        let server = start(api, &[(4, End::Finished)], None);
        let url = format!("http://{}", server.addr);
        let out = dir.path().join(api);
        load(api, &url, "--number 6 --parallel 3", &out).expect(0);
        let (events, start_ns) = recorded(&out);
        assert_eq!(events.requests.len(), 7, "a probe and six");
        for (request, response) in events.requests.iter().zip(&events.responses) {
            assert_eq!(&*request.url_path, "/ppl.llm.proto.LLMService/Generation");
            assert_eq!(request.max_output_tokens, Some(4));
            // The phases of a connection are those of the call that opened it.
            let is_fresh = request.conn_reused == Some(false);
            let opened = [request.t_connect_ns, request.t_connected_ns];
            assert!(opened.iter().all(|t_ns| t_ns.is_some() == is_fresh));
            assert_eq!(response.outcome.as_str(), "ok", "{:?}", response.error);
            assert_eq!(response.finish_reason.as_deref(), finish);
            assert_eq!(response.timestamp_source, TimestampSource::Kernel);
            let trailers = response.trailers.as_deref().unwrap_or_default();
            assert_eq!(trailers, [("grpc-status".to_owned(), "0".to_owned())]);
            let (kinds, arrivals) = chunks_of(&events, request.request_id);
            assert_eq!(kinds, ["content 1"; 4]);
            let sent = request.t_sent_ns.unwrap();
            let end = response.t_end_ns.unwrap();
            let order: Vec<i64> = [sent].into_iter().chain(arrivals).chain([end]).collect();
            assert!(order.is_sorted(), "{order:?}");
        }
        // No message arrived before the server began to send it: nor did the n-th of
        // all before the n-th was begun, whichever call it is of.
        let calls = server.ledger.lock().unwrap();
        let ids = events.requests.iter().map(|r| r.request_id);
        let mut arrived: Vec<i64> = ids.flat_map(|id| chunks_of(&events, id).1).collect();
        let mut begun: Vec<i64> = calls.iter().flat_map(|c| c.t_before_ns.clone()).collect();
        arrived.sort_unstable();
        begun.sort_unstable();
        assert_eq!(arrived.len(), begun.len());
        let mut pairs = arrived.iter().zip(&begun);
        assert!(pairs.all(|(t_ns, before_ns)| t_ns + start_ns >= *before_ns));
        assert!(
            calls.iter().all(|call| call.request == expected),
            "{calls:?}"
        );
        drop(calls);
        let fresh = events
            .requests
            .iter()
            .filter(|r| r.conn_reused == Some(false));
        assert!(
            fresh.count() <= 4,
            "connections are kept: the probe's, and three"
        );

        let path = out.to_str().unwrap();
        let sql =
            "SELECT count(ttft_ms) AS ttft, sum(output_tokens) AS tokens FROM request_latency";
        let shown = run("analyze", ["query", path, sql, "--format", "csv"]).expect(0);
        assert_eq!(shown.stdout.lines().last(), Some("6,24"));
        run("analyze", ["check", path]).expect(0);
        let again = dir.path().join(format!("{api}-again"));
        let line = format!(
            "run {path} --url {url} --no-probe --json --out {}",
            again.display()
        );
        run_line("replay", &line).expect(0);
        let calls = server.ledger.lock().unwrap();
        assert_eq!(calls.len(), 13);
        assert!(calls.iter().all(|call| call.request == expected));
    }
}

#[test]
fn every_end_of_a_call_has_its_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let exhausted = Some("grpc-status 8 RESOURCE_EXHAUSTED: no room in the cache");
    let expected = [
        ((2, End::Finished), "ok", None, &["content 1"; 2][..]),
        ((1, End::Silence), "ok", None, &["content 1"]),
        (
            (0, End::Silence),
            "truncated",
            Some("stream ended without a finish reason or [DONE]"),
            &[],
        ),
        (
            (1, End::Failed),
            "stream_error",
            Some("the server says FAILED of request 0"),
            &["content 1", "error"],
        ),
        (
            (1, End::Exhausted),
            "stream_error",
            exhausted,
            &["content 1"],
        ),
        (
            (1, End::FinishedInVain),
            "stream_error",
            exhausted,
            &["content 1"],
        ),
        ((0, End::Refused), "stream_error", exhausted, &[]),
        ((1, End::Cut), "connection_error", None, &["content 1"]),
        ((1, End::Finished), "ok", None, &["content 1"]),
    ];
    let scripts: Vec<Script> = expected.iter().map(|(script, ..)| *script).collect();
    let server = start("ppl-v2", &scripts, None);
    let out = dir.path().join("r");
    let url = format!("http://{}", server.addr);
    load("ppl-v2", &url, "--number 9 --no-probe", &out).expect(0);
    let (events, _) = recorded(&out);
    assert_eq!(events.responses.len(), expected.len());
    for (response, (script, outcome, error, kinds)) in events.responses.iter().zip(expected) {
        let found = response.error.as_deref();
        assert_eq!(response.outcome.as_str(), outcome, "{script:?}: {found:?}");
        assert_eq!(response.status, Some(200), "{script:?}");
        if error.is_some() {
            assert_eq!(found, error, "{script:?}");
        }
        assert_eq!(
            chunks_of(&events, response.request_id).0,
            kinds,
            "{script:?}"
        );
    }

    // A client that has enough, and a server that is not there.
    let server = start("ppl-v2", &[(1000, End::Finished)], None);
    let out = dir.path().join("enough");
    let url = format!("http://{}", server.addr);
    let flags = "--number 2 --no-probe --cancel-rate 1 --cancel-after 3chunks";
    load("ppl-v2", &url, flags, &out);
    let (events, _) = recorded(&out);
    for response in &events.responses {
        assert_eq!(response.outcome.as_str(), "cancelled");
        let (kinds, _) = chunks_of(&events, response.request_id);
        assert!((3..1000).contains(&kinds.len()) && kinds[..3] == ["content 1"; 3]);
    }
    let (nobody, out) = (Nobody::take(), dir.path().join("nobody"));
    let ran = load("ppl-v1", &nobody.url(), "--number 1", &out).expect(2);
    assert!(ran.stderr.contains("refused"), "{}", ran.stderr);
}

#[test]
fn calls_go_over_tls_too_and_what_grpc_cannot_do_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, mut config) = crate::tls::authority(dir.path());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server = start(
        "ppl-v1",
        &[(2, End::Finished)],
        Some(TlsAcceptor::from(Arc::new(config))),
    );
    let out = dir.path().join("r");
    let url = format!("https://localhost:{}", server.addr.port());
    let flags = format!("--number 2 --cacert {}", ca.display());
    load("ppl-v1", &url, &flags, &out).expect(0);
    let (events, _) = recorded(&out);
    for (request, response) in events.requests.iter().zip(&events.responses) {
        assert_eq!(response.outcome.as_str(), "ok");
        assert_eq!(response.timestamp_source, TimestampSource::Kernel);
        let fresh = request.conn_reused == Some(false);
        assert_eq!(request.t_tls_ns.is_some(), fresh);
    }
    // In an open loop a call takes its connection before it is due: kept ones too.
    let out = dir.path().join("open");
    let flags = format!("{flags} --no-probe --number 3 --rate 5 --burstiness inf");
    load("ppl-v1", &url, &flags.replace("--number 2", ""), &out).expect(0);
    let (events, _) = recorded(&out);
    let outcomes = events.responses.iter().map(|r| r.outcome.as_str());
    assert_eq!(outcomes.collect::<Vec<_>>(), ["ok"; 3]);
    let kept = events
        .requests
        .iter()
        .filter(|r| r.conn_reused == Some(true));
    assert!(kept.count() > 0, "one of two followed on a connection");
    for (flags, message) in [
        ("--no-stream", "every answer of ppl-v1 is a stream"),
        ("--warm-connections 2", "needs HTTP/2"),
        ("--best-of 2", "no place for best_of"),
        (
            r#"--extra-body {"watermark":true}"#,
            "unknown field `watermark`",
        ),
    ] {
        let ran = load("ppl-v1", &url, flags, &dir.path().join("no")).expect(2);
        assert!(ran.stderr.contains(message), "{flags}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint:"), "{}", ran.stderr);
    }
    let line = "proxy --listen 127.0.0.1:0 --upstream http://127.0.0.1:9 --api ppl-v1";
    let ran = run_line("record", line).expect(2);
    assert!(ran.stderr.contains("gRPC needs HTTP/2"), "{}", ran.stderr);
}
