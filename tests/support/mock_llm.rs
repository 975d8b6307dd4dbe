//! A scripted server over raw sockets that keeps a ledger of when it sent what.
//!
//! The truth a recording is judged by: every write is stamped before and after,
//! and so is the read that completed a request. Instants are absolute
//! `CLOCK_MONOTONIC`, ns. HTTP is written by hand, byte for byte, because what a
//! library would refuse to send is what is to be tested.
//!
//! One thread serves everything, so that a thousand streams cost no context
//! switches and the ledger's order is the order of events. Pauses are absolute
//! deadlines counted from the read that completed the request: a late write
//! shifts no later one.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tapedeck_clock::monotonic_ns;
use tapedeck_simulator::timer::Timers;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

#[path = "mock_llm/http.rs"]
mod http;
#[path = "mock_llm/replies.rs"]
pub mod replies;

pub use http::Received;

/// Connections the kernel keeps for us while the thread is busy.
const BACKLOG: u32 = 8192;
/// Requests the ledger keeps; a script that serves more is refused loudly.
const LEDGER_REQUESTS: usize = 1_000_000;
/// Bytes taken from a socket at once.
const READ_BYTES: usize = 16 * 1024;
/// Wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// One thing the server does.
#[derive(Debug, Clone)]
pub enum Step {
    /// One `write`, exactly these bytes.
    Send(Arc<[u8]>),
    /// Waits until this many ns after the previous deadline; the first deadline
    /// is the read that completed the request.
    Pause(i64),
    /// Cuts the connection with RST.
    Reset,
    /// Cuts the connection with FIN.
    Close,
    /// Holds the connection and says nothing more until the client leaves.
    Stall,
}

impl Step {
    pub fn send(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Send(Arc::from(bytes.into()))
    }

    pub fn pause_ms(ms: i64) -> Self {
        Self::Pause(ms * 1_000_000)
    }
}

/// What the server does about one request. The connection stays open for the
/// next request unless a step ends it. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Reply(pub Arc<[Step]>);

impl From<Vec<Step>> for Reply {
    fn from(steps: Vec<Step>) -> Self {
        Self(steps.into())
    }
}

type Choose = dyn Fn(&Received) -> Reply + Send;

/// Chooses the reply to each request.
pub struct Script(Box<Choose>);

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    pub fn new(choose: impl Fn(&Received) -> Reply + Send + 'static) -> Self {
        Self(Box::new(choose))
    }

    /// The same reply to every request.
    pub fn always(reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        Self::new(move |_| reply.clone())
    }

    /// The n-th reply to the n-th request; the last one repeats.
    pub fn in_order(replies: Vec<Reply>) -> Self {
        assert!(!replies.is_empty(), "a script needs a reply");
        Self::new(move |request| {
            let number = usize::try_from(request.number).unwrap_or(usize::MAX);
            replies[number.min(replies.len() - 1)].clone()
        })
    }

    /// By [`Received::case`]; 404 where no reply has that name.
    pub fn by_case(replies: Vec<(String, Reply)>) -> Self {
        Self::new(move |request| find(&replies, request.case().as_deref()))
    }

    /// By path without query; 404 where no reply has that path.
    pub fn by_path(replies: Vec<(String, Reply)>) -> Self {
        Self::new(move |request| find(&replies, request.path.split('?').next()))
    }
}

fn find(replies: &[(String, Reply)], name: Option<&str>) -> Reply {
    replies
        .iter()
        .find(|(known, _)| Some(known.as_str()) == name)
        .map_or_else(
            || replies::json(404, r#"{"error":"no such case"}"#),
            |(_, reply)| reply.clone(),
        )
}

/// One `write` (or the several it took when the socket was full).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Index of its step in the reply.
    pub step: usize,
    pub t_before_ns: i64,
    pub t_after_ns: i64,
    pub bytes: usize,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It has not.
    Open,
    /// All steps are done and the connection lives.
    Done,
    Closed,
    Reset,
    /// The client left before the last step.
    ClientLeft,
}

/// One request and what was done about it.
#[derive(Debug, Clone)]
pub struct Served {
    pub request: Arc<Received>,
    pub writes: Vec<Write>,
    pub ended: Ended,
}

impl Served {
    /// The write of step `step`.
    pub fn write_of(&self, step: usize) -> Option<&Write> {
        self.writes.iter().find(|write| write.step == step)
    }
}

#[derive(Debug, Default)]
struct Ledger {
    served: Vec<Served>,
    connections: u64,
}

/// The running server; dropping it cuts all connections and ends its thread.
#[derive(Debug)]
pub struct MockLlm {
    addr: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockLlm {
    /// Serves `script` on a free port of the loopback interface.
    ///
    /// # Panics
    /// When there is no port or no thread to be had.
    pub fn start(script: Script) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = sync_channel(1);
        let book = Arc::clone(&ledger);
        let thread = std::thread::Builder::new()
            .name("mock-llm".to_owned())
            .spawn(move || serve_thread(script, book, &ready, stopped))
            .expect("a thread for the mock server");
        let addr = listening
            .recv()
            .expect("the mock server's thread lives")
            .expect("the mock server listens");
        Self {
            addr,
            ledger,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://address`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Everything so far, in order of arrival.
    pub fn ledger(&self) -> Vec<Served> {
        lock(&self.ledger).served.clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        lock(&self.ledger).connections
    }
}

impl Drop for MockLlm {
    fn drop(&mut self) {
        // Dropping the sender is the signal.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no panic while the ledger was held")
}

fn serve_thread(
    script: Script,
    ledger: Arc<Mutex<Ledger>>,
    ready: &SyncSender<io::Result<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the mock server");
    LocalSet::new().block_on(&runtime, async {
        let (listener, timers) = match listen() {
            Ok(opened) => opened,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(listener.local_addr()));
        let server = Rc::new(Server {
            script,
            ledger,
            timers: Rc::clone(&timers),
        });
        tokio::select! {
            _ = stopped => {}
            _ = timers.run() => {}
            () = accept(&server, &listener) => {}
        }
    });
}

fn listen() -> io::Result<(TcpListener, Rc<Timers>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok((socket.listen(BACKLOG)?, Timers::new()?))
}

async fn accept(server: &Rc<Server>, listener: &TcpListener) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let t_accepted_ns = monotonic_ns();
        let number = {
            let mut ledger = lock(&server.ledger);
            ledger.connections += 1;
            ledger.connections - 1
        };
        let connection = Connection {
            server: Rc::clone(server),
            socket,
            number,
            t_accepted_ns,
            unread: Vec::new(),
            t_read_ns: t_accepted_ns,
        };
        // What breaks a connection is in the ledger or the client's affair.
        tokio::task::spawn_local(async move { drop(connection.serve().await) });
    }
}

struct Server {
    script: Script,
    ledger: Arc<Mutex<Ledger>>,
    timers: Rc<Timers>,
}

struct Connection {
    server: Rc<Server>,
    socket: TcpStream,
    number: u64,
    t_accepted_ns: i64,
    /// Bytes of the next request; at most one read beyond `http::MAX_REQUEST_BYTES`.
    unread: Vec<u8>,
    /// Right after the last read.
    t_read_ns: i64,
}

impl Connection {
    async fn serve(mut self) -> io::Result<()> {
        self.socket.set_nodelay(true)?;
        while let Some(request) = self.receive().await? {
            let (entry, request) = self.enter(request);
            let reply = (self.server.script.0)(&request);
            let ended = self.perform(&reply, entry, request.t_read_ns).await;
            let ended = ended.unwrap_or(Ended::ClientLeft);
            lock(&self.server.ledger).served[entry].ended = ended;
            match ended {
                Ended::Done if !request.wants_close() => {}
                Ended::Done | Ended::Closed => return self.finish().await,
                Ended::Reset => return self.socket.set_zero_linger(),
                Ended::Open | Ended::ClientLeft => return Ok(()),
            }
        }
        Ok(())
    }

    /// The next request, or `None` when the client has no more.
    async fn receive(&mut self) -> io::Result<Option<Received>> {
        let mut continued = false;
        loop {
            if let Some(parsed) = http::parse(&self.unread)? {
                if let Some((body, length)) = parsed.body {
                    self.unread.drain(..length);
                    return Ok(Some(Received {
                        number: 0,
                        connection: self.number,
                        method: parsed.method,
                        path: parsed.path,
                        headers: parsed.headers,
                        body,
                        t_accepted_ns: self.t_accepted_ns,
                        t_read_ns: self.t_read_ns,
                    }));
                }
                if !continued && http::expects_continue(&parsed.headers) {
                    continued = true;
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Appends what the socket has; 0 at its end.
    async fn read(&mut self) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            let mut space = [0; READ_BYTES];
            match self.socket.try_read(&mut space) {
                Ok(length) => {
                    self.t_read_ns = monotonic_ns();
                    self.unread.extend_from_slice(&space[..length]);
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn enter(&self, mut request: Received) -> (usize, Arc<Received>) {
        let mut ledger = lock(&self.server.ledger);
        let entry = ledger.served.len();
        assert!(
            entry < LEDGER_REQUESTS,
            "the ledger holds {LEDGER_REQUESTS} requests"
        );
        request.number = entry as u64;
        let request = Arc::new(request);
        ledger.served.push(Served {
            request: Arc::clone(&request),
            writes: Vec::new(),
            ended: Ended::Open,
        });
        (entry, request)
    }

    async fn perform(&mut self, reply: &Reply, entry: usize, t_read_ns: i64) -> io::Result<Ended> {
        let mut deadline_ns = t_read_ns;
        for (step, action) in reply.0.iter().enumerate() {
            match action {
                Step::Send(bytes) => {
                    let t_before_ns = monotonic_ns();
                    self.write(bytes).await?;
                    let write = Write {
                        step,
                        t_before_ns,
                        t_after_ns: monotonic_ns(),
                        bytes: bytes.len(),
                    };
                    lock(&self.server.ledger).served[entry].writes.push(write);
                }
                Step::Pause(ns) => {
                    deadline_ns += ns;
                    self.wait(Some(deadline_ns)).await?;
                }
                Step::Reset => return Ok(Ended::Reset),
                Step::Close => return Ok(Ended::Closed),
                Step::Stall => self.wait(None).await?,
            }
        }
        Ok(Ended::Done)
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for the deadline, for ever without one; an error when the client
    /// leaves meanwhile.
    async fn wait(&mut self, deadline_ns: Option<i64>) -> io::Result<()> {
        let timers = Rc::clone(&self.server.timers);
        let Some(deadline_ns) = deadline_ns else {
            return self.until_client_leaves().await;
        };
        tokio::select! {
            biased;
            () = timers.sleep_until(deadline_ns) => Ok(()),
            left = self.until_client_leaves() => left,
        }
    }

    async fn until_client_leaves(&mut self) -> io::Result<()> {
        while self.unread.len() < http::MAX_REQUEST_BYTES {
            if self.read().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        std::future::pending().await
    }

    /// FIN, then reads to the client's own end: closing over unread bytes would
    /// send RST instead.
    async fn finish(mut self) -> io::Result<()> {
        self.socket.shutdown().await?;
        while self.read().await? > 0 {
            self.unread.clear();
        }
        Ok(())
    }
}
