//! A server of one thread: it accepts, speaks HTTP/1.1 and wakes on absolute
//! deadlines. What is answered is a [`Service`]'s.

use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;

pub use hyper::body::Incoming;

use crate::connection::Connection;
use crate::timer::Timers;

/// Connections served at once; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections the kernel keeps for us: a burst beyond it would see its packets
/// dropped and retry a second later.
const BACKLOG: u32 = 4096;
/// The largest request body.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// Wait after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// Answers the requests of one server, all on its one thread.
pub trait Service: 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + 'static;

    /// The answer to `request`; [`HangUp`] ends the connection without one. The
    /// future is dropped when the client leaves.
    fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<Response<Self::Body>, HangUp>>;

    /// What goes on beside the answers; polled for as long as the server runs, it
    /// must not end before.
    fn run(&self, timers: &Rc<Timers>) -> impl Future<Output = ()>;
}

/// The connection is to be closed instead of answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub struct HangUp;

/// The connection that a request came on.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    reset: Rc<Cell<bool>>,
}

impl Peer {
    /// When the connection closes, the client gets RST rather than FIN.
    pub fn reset_at_close(&self) {
        self.reset.set(true);
    }

    pub(crate) fn is_reset_at_close(&self) -> bool {
        self.reset.get()
    }
}

/// The whole of a request's body.
///
/// # Errors
/// When it is larger than 64 MiB, or the client leaves within it.
pub async fn whole_body(body: Incoming) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    let collected = Limited::new(body, MAX_BODY_BYTES).collect().await?;
    Ok(collected.to_bytes())
}

/// A server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot start thread {name}")]
    Thread {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {listen}: {cause}\nhint: port 0 takes any free port")]
    Listen {
        listen: SocketAddr,
        cause: io::Error,
    },
    #[error("thread {0} ended before it listened")]
    Ended(&'static str),
}

/// A server that is up. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Listens on `listen` (port 0: any) and serves from a thread called `name`
    /// until it is stopped or dropped. `make` is called there.
    ///
    /// # Errors
    /// An address that cannot be listened on, no thread.
    pub fn start<S: Service>(
        name: &'static str,
        listen: SocketAddr,
        make: impl FnOnce(&Rc<Timers>) -> Rc<S> + Send + 'static,
    ) -> Result<Self, HostError> {
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve_thread(make, listen, &ready, stopped))
            .map_err(|source| HostError::Thread { name, source })?;
        let mut running = Self {
            addr: listen,
            stop: Some(stop),
            thread: Some(thread),
        };
        match listening.recv() {
            Ok(Ok(addr)) => {
                running.addr = addr;
                Ok(running)
            }
            Ok(Err(cause)) => Err(HostError::Listen { listen, cause }),
            Err(_) => Err(HostError::Ended(name)),
        }
    }

    /// Where it listens, with the port it got.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether its thread lives: it ends before it is stopped only by a defect.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
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

fn serve_thread<S: Service>(
    make: impl FnOnce(&Rc<Timers>) -> Rc<S>,
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
        let service = make(&timers);
        drop(ready.send(Ok(addr)));
        tokio::select! {
            _ = stopped => {}
            _ = timers.run() => {}
            () = service.run(&timers) => {}
            () = accept(&service, &listener) => {}
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

async fn accept<S: Service>(service: &Rc<S>, listener: &TcpListener) {
    let places = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let service = Rc::clone(service);
                tokio::task::spawn_local(async move {
                    serve_connection(service, socket).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn serve_connection<S: Service>(service: Rc<S>, socket: TcpStream) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let peer = Peer::default();
    let connection = Connection::new(socket, peer.clone());
    let answering = service_fn(move |request| Rc::clone(&service).answer(request, peer.clone()));
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(connection, answering);
    // A connection that breaks is the client's affair, or was meant to.
    drop(serving.await);
}
