//! Connections: opened with their phases stamped, kept alive between requests.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use http_body_util::Full;
use hyper::client::conn::http1;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http2::Http2;
use crate::tap::{Gated, READ_BUFFER_BYTES, Stream, Tap, TapContext, TapState};
use crate::target::{Target, Tls};

/// The half of a connection that moves bytes. It is given back whole, with what it
/// has read, when a server switches protocols.
pub type Driver<B> = http1::Connection<Gated<Stream>, B>;

/// When a connection was opened, ns since the recording started.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectInstants {
    pub t_connect_ns: Option<i64>,
    pub t_connected_ns: Option<i64>,
    pub t_tls_ns: Option<i64>,
}

/// One HTTP/1.1 connection: hyper's two halves and what the tap sees of it.
///
/// The driver is polled by whoever uses the connection, on the same task, so
/// that a read and what hyper makes of it are one step.
pub struct Connection<B: Body + 'static = Full<Bytes>> {
    pub conn_id: i64,
    pub sender: http1::SendRequest<B>,
    pub driver: Driver<B>,
    pub tap: Rc<TapState>,
    /// The driver's stream, for reading past it.
    stream: Weak<RefCell<Stream>>,
    /// The driver has come to its end.
    ended: bool,
    /// When it was put aside, for [`Pool::evict`].
    idle_since_ns: i64,
}

impl<B: Body + 'static> std::fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("conn_id", &self.conn_id)
            .finish_non_exhaustive()
    }
}

impl<B> Connection<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Polls the connection and `poll` together until neither gets further. At most
    /// one read reaches hyper before `poll` has seen what came of it.
    pub fn poll_step<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&Self, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        loop {
            self.tap.open_gate();
            self.drive(cx);
            if let Poll::Ready(value) = poll(self, cx) {
                return Poll::Ready(value);
            }
            if self.ended || !self.tap.gate_refused() {
                return Poll::Pending;
            }
        }
    }

    /// As [`Self::poll_step`], with what was read before: nothing more is read.
    pub fn poll_buffered<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.tap.close_gate();
        self.drive(cx);
        poll(cx)
    }

    /// Reads from the socket past hyper, which must have been kept from it by
    /// [`TapState::hold_bodies`]. 0 bytes at the end of the stream.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = self.stream.upgrade() else {
            return Poll::Ready(Ok(0));
        };
        let mut read = ReadBuf::new(buffer);
        let polled = Pin::new(&mut *stream.borrow_mut()).poll_read(cx, &mut read);
        polled.map_ok(|()| read.filled().len())
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        // A failed driver tells whoever waits for what it would have read.
        self.ended = self.ended || Pin::new(&mut self.driver).poll(cx).is_ready();
    }

    /// Whether another request may follow. The driver gets the occasion to notice
    /// that the last answer is over.
    pub fn is_reusable(&mut self) -> bool {
        if !self.ended && !self.sender.is_ready() {
            self.tap.close_gate();
            self.drive(&mut Context::from_waker(std::task::Waker::noop()));
        }
        !self.ended && self.sender.is_ready()
    }
}

/// A connection on which nobody speaks yet.
struct Opened {
    conn_id: i64,
    io: Gated<Stream>,
    tap: Rc<TapState>,
}

/// Opens connections to one target for one worker.
#[derive(Debug)]
pub struct Connector {
    target: Rc<Target>,
    context: Rc<TapContext>,
    buffer: Rc<RefCell<Vec<u8>>>,
    next_conn_id: Cell<i64>,
    conn_id_step: i64,
    http: http1::Builder,
}

impl Connector {
    /// Connections are numbered from `first_conn_id` in steps of `conn_id_step`, so
    /// that the numbers of different workers interleave and never meet.
    #[must_use]
    pub fn new(
        target: Rc<Target>,
        context: Rc<TapContext>,
        first_conn_id: i64,
        conn_id_step: i64,
    ) -> Self {
        Self {
            target,
            context,
            buffer: Rc::new(RefCell::new(vec![0; READ_BUFFER_BYTES])),
            next_conn_id: Cell::new(first_conn_id),
            conn_id_step,
            http: lenient_http(),
        }
    }

    /// Where reads of all connections of the worker go, one at a time.
    pub(crate) fn buffer(&self) -> &RefCell<Vec<u8>> {
        &self.buffer
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Keeps the case of header names, for those who pass answers on.
    #[must_use]
    pub fn preserving_header_case(mut self) -> Self {
        self.http.preserve_header_case(true);
        self
    }

    /// Opens a connection, filling `instants` as far as it gets.
    ///
    /// # Errors
    /// When no address accepts it or the TLS handshake fails.
    pub async fn open<B>(&self, instants: &Cell<ConnectInstants>) -> io::Result<Connection<B>>
    where
        B: Body + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let opened = self.open_stream(instants, self.target.tls.as_ref()).await?;
        let Opened { conn_id, io, tap } = opened;
        let stream = io.stream();
        let (sender, driver) = self.http.handshake(io).await.map_err(io::Error::other)?;
        Ok(Connection {
            conn_id,
            sender,
            driver,
            tap,
            stream,
            ended: false,
            idle_since_ns: 0,
        })
    }

    /// As [`Self::open`], for HTTP/2.
    pub(crate) async fn open_http2(&self, instants: &Cell<ConnectInstants>) -> io::Result<Http2> {
        let tls = self.target.tls.as_ref().map(Tls::for_http2);
        let Opened { conn_id, io, tap } = self.open_stream(instants, tls.as_ref()).await?;
        Http2::handshake(conn_id, io, tap)
            .await
            .map_err(io::Error::other)
    }

    async fn open_stream(
        &self,
        instants: &Cell<ConnectInstants>,
        tls: Option<&Tls>,
    ) -> io::Result<Opened> {
        let clock = self.context.clock;
        let mut seen = ConnectInstants {
            t_connect_ns: Some(clock.now_ns()),
            ..ConnectInstants::default()
        };
        instants.set(seen);
        let stream = connect_any(&self.target.addrs).await?;
        stream.set_nodelay(true)?;
        seen.t_connected_ns = Some(clock.now_ns());
        instants.set(seen);
        let tap = Rc::new(TapState::default());
        let stream = Tap::new(stream, Rc::clone(&self.context), Rc::clone(&tap));
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let stream = tls_handshake(tls, stream).await?;
                seen.t_tls_ns = Some(clock.now_ns());
                instants.set(seen);
                Stream::Tls(Box::new(stream.into()))
            }
        };
        let io = Gated::new(stream, Rc::clone(&tap), Rc::clone(&self.buffer));
        let conn_id = self.next_conn_id.get();
        self.next_conn_id.set(conn_id + self.conn_id_step);
        Ok(Opened { conn_id, io, tap })
    }
}

/// Takes what servers send in place of HTTP, as far as its meaning is clear.
fn lenient_http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    http
}

async fn connect_any(addrs: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for addr in addrs {
        match TcpStream::connect(addr).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last_error = e,
        }
    }
    Err(last_error)
}

async fn tls_handshake(tls: &Tls, stream: Tap) -> io::Result<tokio_rustls::client::TlsStream<Tap>> {
    TlsConnector::from(std::sync::Arc::clone(&tls.config))
        .connect(tls.server_name.clone(), stream)
        .await
}

/// Idle connections of one worker, newest first: the one used last is the one
/// least likely to have been closed.
#[derive(Debug)]
pub struct Pool<B: Body + 'static = Full<Bytes>> {
    idle: RefCell<Vec<Connection<B>>>,
}

impl<B: Body + 'static> Default for Pool<B> {
    fn default() -> Self {
        Self {
            idle: RefCell::default(),
        }
    }
}

/// Idle connections a worker keeps; beyond it the server is better served by a
/// close.
pub(crate) const IDLE_CONNECTIONS: usize = 8192;

impl<B> Pool<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// An idle connection that the server has not closed as far as is known.
    pub async fn take(&self) -> Option<Connection<B>> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            connection.tap.begin_attempt();
            poll_fn(|cx| {
                connection.drive(cx);
                Poll::Ready(())
            })
            .await;
            if !connection.ended && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose answer is over, for the next request.
    pub fn put(&self, mut connection: Connection<B>, now_ns: i64) {
        connection.idle_since_ns = now_ns;
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    /// Closes what has been idle since before `t_ns`.
    pub fn evict(&self, t_ns: i64) {
        self.idle
            .borrow_mut()
            .retain(|connection| connection.idle_since_ns >= t_ns);
    }
}
