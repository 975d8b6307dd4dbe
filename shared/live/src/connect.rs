//! Connections: opened with their phases stamped, kept alive between requests.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tap::{Gated, READ_BUFFER_BYTES, Tap, TapContext, TapState};
use crate::target::{Target, Tls};

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// When a connection was opened, ns since the recording started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConnectInstants {
    pub(crate) t_connect_ns: Option<i64>,
    pub(crate) t_connected_ns: Option<i64>,
    pub(crate) t_tls_ns: Option<i64>,
}

/// One HTTP/1.1 connection: hyper's two halves and what the tap sees of it.
///
/// The driver is polled by whoever uses the connection, on the same task, so
/// that a read and what hyper makes of it are one step.
pub(crate) struct Connection {
    pub(crate) conn_id: i64,
    pub(crate) sender: http1::SendRequest<Full<Bytes>>,
    pub(crate) driver: Driver,
    pub(crate) tap: Rc<TapState>,
}

/// Opens connections to one target for one worker.
pub(crate) struct Connector {
    target: Rc<Target>,
    context: Rc<TapContext>,
    buffer: Rc<RefCell<Vec<u8>>>,
    next_conn_id: Cell<i64>,
    conn_id_step: i64,
}

impl Connector {
    /// Connections are numbered from `first_conn_id` in steps of `conn_id_step`, so
    /// that the numbers of different workers interleave and never meet.
    pub(crate) fn new(
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
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Opens a connection, filling `instants` as far as it gets.
    pub(crate) async fn open(&self, instants: &Cell<ConnectInstants>) -> io::Result<Connection> {
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
        let (sender, driver) = match &self.target.tls {
            None => self.handshake(stream, &tap).await?,
            Some(tls) => {
                let stream = tls_handshake(tls, stream).await?;
                seen.t_tls_ns = Some(clock.now_ns());
                instants.set(seen);
                self.handshake(stream, &tap).await?
            }
        };
        let conn_id = self.next_conn_id.get();
        self.next_conn_id.set(conn_id + self.conn_id_step);
        Ok(Connection {
            conn_id,
            sender,
            driver,
            tap,
        })
    }

    async fn handshake<S>(
        &self,
        stream: S,
        tap: &Rc<TapState>,
    ) -> io::Result<(http1::SendRequest<Full<Bytes>>, Driver)>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let io = Gated::new(stream, Rc::clone(tap), Rc::clone(&self.buffer));
        let (sender, driver) = http1::Builder::new()
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        Ok((sender, Box::pin(driver)))
    }
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
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<Connection>>,
}

/// Idle connections a worker keeps; beyond it the server is better served by a
/// close.
const IDLE_CONNECTIONS: usize = 8192;

impl Pool {
    /// An idle connection that the server has not closed as far as is known.
    pub(crate) async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            connection.tap.begin_attempt();
            let closed = poll_fn(|cx| Poll::Ready(connection.driver.as_mut().poll(cx).is_ready()));
            if !closed.await && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    pub(crate) fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }
}
