//! A worker: one thread, one runtime, its share of the clients and its own
//! connections upstream.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tapedeck_clock::RunClock;
use tapedeck_live::connect::{Connector, Pool};
use tapedeck_live::tap::{Stream, Tap, TapContext, TapState};
use tapedeck_live::{Gauges, Stop, StopLevel};
use tapedeck_wire::response::End;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsAcceptor;

use crate::book::Book;
use crate::client::{Client, ClientIo};
use crate::exchange::Ended;
use crate::handle::handle;
use crate::metrics::Metrics;
use crate::recorder::Current;
use crate::server::Settings;
use crate::tunnel;
use crate::upload::UploadBody;
use crate::upstream::Upstream;

/// How often stop requests are looked at, and the longest a row waits in its batch.
const TICK: Duration = Duration::from_millis(20);

/// Idle connections upstream are closed after this long, before common servers do
/// it (uvicorn and Node after 5 s): the fewer requests meet a closing connection.
const UPSTREAM_IDLE_NS: i64 = 4_000_000_000;

/// A client that sends no request head for this long is disconnected, longer than
/// clients keep idle connections themselves.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Until a client's TLS handshake is done.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Numbers that all workers share.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next_draw: AtomicU64,
    next_turn: AtomicU64,
}

/// The way of one worker to one server.
pub(crate) struct Leg {
    /// Its place among the upstreams.
    pub(crate) index: usize,
    pub(crate) host: HeaderValue,
    /// For the `worker` column.
    pub(crate) origin: Arc<str>,
    pub(crate) connector: Connector,
    pub(crate) pool: Pool<UploadBody>,
}

/// Settings of a worker thread.
pub(crate) struct WorkerSpec {
    pub(crate) index: usize,
    pub(crate) settings: Arc<Settings>,
    pub(crate) hosts: Arc<[HeaderValue]>,
    pub(crate) listener: StdListener,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) current: Arc<Current>,
}

/// What all exchanges of one thread share.
pub(crate) struct Worker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) clock: RunClock,
    legs: Vec<Rc<Leg>>,
    current: Arc<Current>,
    /// Of recordings that requests in flight began in; the last is that of new ones.
    books: RefCell<Vec<Rc<Book>>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gauges: Arc<Gauges>,
    /// What is given up from now on is given up by us.
    pub(crate) stopping: Cell<bool>,
    context: Rc<TapContext>,
    numbers: Arc<Numbers>,
    /// The first defect of ours that ended a connection.
    defect: RefCell<Option<String>>,
}

impl Worker {
    fn new(spec: &WorkerSpec) -> Rc<Self> {
        let settings = &spec.settings;
        let context = TapContext::new(settings.clock);
        Rc::new(Self {
            settings: Arc::clone(settings),
            clock: settings.clock,
            legs: legs(spec, &context),
            current: Arc::clone(&spec.current),
            books: RefCell::default(),
            metrics: Arc::clone(&spec.metrics),
            gauges: Arc::clone(&spec.gauges),
            stopping: Cell::new(false),
            context,
            numbers: Arc::clone(&spec.numbers),
            defect: RefCell::new(None),
        })
    }

    /// The book of requests that begin now.
    pub(crate) fn book(&self) -> Rc<Book> {
        let mut books = self.books.borrow_mut();
        if books.is_empty() {
            books.push(self.new_book());
        }
        Rc::clone(&books[books.len() - 1])
    }

    fn new_book(&self) -> Rc<Book> {
        let book = Book::new(self.current.get(), Arc::clone(&self.metrics));
        Rc::new(book)
    }

    /// Hands over what is in the books, follows a change of the recording and lets
    /// go of those that no request writes to any more.
    fn turn_books(&self) {
        let mut books = self.books.borrow_mut();
        let current = self.current.get();
        let is_current = |book: &Rc<Book>| Arc::ptr_eq(book.recorder(), &current);
        if !books.last().is_some_and(is_current) {
            books.push(self.new_book());
        }
        books.iter().for_each(|book| book.flush());
        books.retain(|book| is_current(book) || Rc::strong_count(book) > 1);
    }

    /// What stands for the session of a request that has none.
    pub(crate) fn next_draw(&self) -> u64 {
        self.numbers.next_draw.fetch_add(1, Ordering::Relaxed)
    }

    /// The server that a request for `path` goes to.
    pub(crate) fn leg(&self, path: &str) -> Option<Rc<Leg>> {
        let turn = || self.numbers.next_turn.fetch_add(1, Ordering::Relaxed);
        let chosen = self.settings.upstreams.choose(path, turn)?;
        self.legs.get(chosen).cloned()
    }

    /// Whether requests that are to be recorded are to be refused.
    pub(crate) fn refuses(&self) -> bool {
        self.settings.strict && self.book().is_losing()
    }

    /// An end that is now and comes with no read.
    pub(crate) fn ended(&self, end: End) -> Ended {
        Ended {
            end,
            delimited: false,
            last_read: None,
            now_ns: self.clock.now_ns(),
        }
    }
}

fn legs(spec: &WorkerSpec, context: &Rc<TapContext>) -> Vec<Rc<Leg>> {
    let settings = &spec.settings;
    let upstreams = settings.upstreams.all();
    let connectors = upstreams.len() * settings.workers.max(1);
    let leg = |(index, (upstream, host)): (usize, (&Upstream, &HeaderValue))| {
        // Numbers of connections never meet, whoever opens them.
        let first_conn_id = spec.index * upstreams.len() + index;
        let connector = Connector::new(
            Rc::new(upstream.target.clone()),
            Rc::clone(context),
            first_conn_id as i64,
            connectors as i64,
        );
        Rc::new(Leg {
            index,
            host: host.clone(),
            origin: upstream.origin.as_str().into(),
            connector: connector.preserving_header_case(),
            pool: Pool::default(),
        })
    };
    let each = upstreams.iter().zip(&*spec.hosts).enumerate();
    each.map(leg).collect()
}

/// Runs a worker until it is stopped and its clients are gone.
pub(crate) fn run_worker(spec: WorkerSpec) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let local = LocalSet::new();
    let worker = Worker::new(&spec);
    let (level, levels) = watch::channel(StopLevel::Run);
    let result = local.block_on(&runtime, async {
        let ticker = tokio::task::spawn_local(tick(Rc::clone(&worker), spec.stop, level));
        let listener = TcpListener::from_std(spec.listener)?;
        let clients = accept(&worker, listener, levels.clone()).await;
        drain(&worker, clients, levels).await;
        ticker.abort();
        Ok(())
    });
    // What is still there is given up, and recorded as such.
    worker.stopping.set(true);
    drop(local);
    worker.books.take().iter().for_each(|book| book.close());
    match worker.defect.take() {
        Some(defect) => Err(io::Error::other(defect)),
        None => result,
    }
}

async fn tick(worker: Rc<Worker>, stop: Arc<Stop>, level: watch::Sender<StopLevel>) {
    loop {
        tokio::time::sleep(TICK).await;
        worker.turn_books();
        let idle_since_ns = worker.clock.now_ns() - UPSTREAM_IDLE_NS;
        worker
            .legs
            .iter()
            .for_each(|leg| leg.pool.evict(idle_since_ns));
        level.send_if_modified(|known| {
            let now = stop.level();
            std::mem::replace(known, now) != now
        });
    }
}

/// Serves clients until the first stop request.
async fn accept(
    worker: &Rc<Worker>,
    listener: TcpListener,
    mut levels: watch::Receiver<StopLevel>,
) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    let serving = levels.clone();
    loop {
        tokio::select! {
            _ = levels.changed() => return clients,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    clients.spawn_local(serve(Rc::clone(worker), stream, serving.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
        }
        while let Some(ended) = clients.try_join_next() {
            note_defect(worker, ended);
        }
    }
}

/// Waits for the clients' requests to end, until there is no more patience.
async fn drain(worker: &Worker, mut clients: JoinSet<()>, mut levels: watch::Receiver<StopLevel>) {
    let all_gone = async {
        while let Some(ended) = clients.join_next().await {
            note_defect(worker, ended);
        }
    };
    tokio::select! {
        () = all_gone => {}
        _ = levels.wait_for(|level| *level == StopLevel::Now) => {}
        () = tokio::time::sleep(worker.settings.drain) => {}
    }
}

/// A defect of ours costs one client its connection, not all of them; the program
/// says so in the end.
fn note_defect(worker: &Worker, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        worker
            .defect
            .borrow_mut()
            .get_or_insert_with(|| error.to_string());
    }
}

/// Serves one client until it leaves or the proxy is stopped.
async fn serve(worker: Rc<Worker>, stream: TcpStream, levels: watch::Receiver<StopLevel>) {
    worker.metrics.connected();
    let metrics = Arc::clone(&worker.metrics);
    let _counted = OnDrop(move || metrics.disconnected());
    // What breaks a client's connection is the client's affair.
    serve_stream(worker, stream, levels).await.ok();
}

async fn serve_stream(
    worker: Rc<Worker>,
    stream: TcpStream,
    levels: watch::Receiver<StopLevel>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let tap = Rc::new(TapState::default());
    let mut is_h2 = worker.settings.tls.is_none() && begins_as_h2(&stream).await?;
    let tapped = Tap::new(stream, Rc::clone(&worker.context), Rc::clone(&tap));
    let stream = match &worker.settings.tls {
        None => Stream::Plain(tapped),
        Some(config) => {
            let accepting = TlsAcceptor::from(Arc::clone(config)).accept(tapped);
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await??;
            is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Stream::Tls(Box::new(stream.into()))
        }
    };
    let client = Rc::new(Client::new(tap, is_h2));
    let ending = Rc::clone(&client);
    let _ended = OnDrop(move || ending.end());
    if is_h2 {
        serve_h2(worker, stream, client, levels).await
    } else {
        serve_h1(worker, stream, client, levels).await
    }
}

async fn serve_h1(
    worker: Rc<Worker>,
    stream: Stream,
    client: Rc<Client>,
    levels: watch::Receiver<StopLevel>,
) -> io::Result<()> {
    let mut stopped = levels.clone();
    let io = ClientIo::new(stream, Rc::clone(&client));
    let shared = Rc::clone(&client);
    let service =
        service_fn(move |request| handle(Rc::clone(&worker), Rc::clone(&shared), request));
    let mut connection = http1::Builder::new()
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(HEAD_TIMEOUT)
        .timer(TokioTimer::new())
        .serve_connection(io, service);
    until_done(levels, &mut connection, |c| c.graceful_shutdown()).await?;
    let tunnel = client.tunnel.take();
    if let Some(upstream) = tunnel {
        let parts = connection.into_parts();
        let carried = tunnel::carry(parts.io.into_stream(), parts.read_buf, upstream);
        // A tunnel has no end of its own that could be waited for.
        tokio::select! {
            carried = carried => carried?,
            _ = stopped.wait_for(|level| *level != StopLevel::Run) => {}
        }
    }
    Ok(())
}

async fn serve_h2(
    worker: Rc<Worker>,
    stream: Stream,
    client: Rc<Client>,
    levels: watch::Receiver<StopLevel>,
) -> io::Result<()> {
    let service =
        service_fn(move |request| handle(Rc::clone(&worker), Rc::clone(&client), request));
    let mut connection = http2::Builder::new(LocalExecutor)
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    until_done(levels, &mut connection, |c| c.graceful_shutdown()).await
}

/// Polls `connection` to its end; at the first stop request it is told to take no
/// more requests.
async fn until_done<C>(
    mut levels: watch::Receiver<StopLevel>,
    connection: &mut C,
    shut_down: impl Fn(Pin<&mut C>),
) -> io::Result<()>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    let done = tokio::select! {
        done = poll_fn(|cx| Pin::new(&mut *connection).poll(cx)) => Some(done),
        _ = levels.changed() => None,
    };
    let done = match done {
        Some(done) => done,
        None => {
            shut_down(Pin::new(&mut *connection));
            poll_fn(|cx| Pin::new(&mut *connection).poll(cx)).await
        }
    };
    done.map_err(io::Error::other)
}

/// The first bytes of an HTTP/2 connection. No method of HTTP/1 begins so.
const H2_BEGINNING: &[u8] = b"PRI ";

/// Looks at the first bytes without taking them.
async fn begins_as_h2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; H2_BEGINNING.len()];
    loop {
        let n = stream.peek(&mut first).await?;
        if n == 0 || first[..n] != H2_BEGINNING[..n] {
            return Ok(false);
        }
        if n == first.len() {
            return Ok(true);
        }
        // A part of the word is there, and stays there until the rest has come.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs hyper's h2 streams beside the connection, on the same thread.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
