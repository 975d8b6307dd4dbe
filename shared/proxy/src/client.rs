//! The client's side of a connection: what of an answer has really left.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use hyper_util::rt::TokioIo;
use tapedeck_live::connect::Connection;
use tapedeck_live::tap::{Stream, TapState};

use crate::exchange::Exchange;
use crate::upload::UploadBody;

/// What the exchanges of one client connection share with its socket.
pub(crate) struct Client {
    tap: Rc<TapState>,
    /// Several answers share an h2 connection, and a flush belongs to none.
    pub(crate) is_h2: bool,
    /// The answer that is being written, HTTP/1 only.
    current: RefCell<Option<Rc<Exchange>>>,
    /// Bytes were handed to hyper that the socket does not have yet.
    owes: Cell<bool>,
    /// Who waits for them to be written.
    parked: RefCell<Option<Waker>>,
    /// The other end of a connection that has switched protocols.
    pub(crate) tunnel: RefCell<Option<Connection<UploadBody>>>,
}

impl Client {
    pub(crate) fn new(tap: Rc<TapState>, is_h2: bool) -> Self {
        Self {
            tap,
            is_h2,
            current: RefCell::new(None),
            owes: Cell::new(false),
            parked: RefCell::new(None),
            tunnel: RefCell::new(None),
        }
    }

    /// When the bytes read last had arrived.
    pub(crate) fn t_read_ns(&self) -> Option<i64> {
        self.tap.last_read().map(|read| read.t_ns)
    }

    /// Makes `exchange` the one that flushes are about.
    pub(crate) fn begin(&self, exchange: &Rc<Exchange>) {
        if !self.is_h2 {
            self.current.replace(Some(Rc::clone(exchange)));
        }
    }

    /// Notes that hyper has bytes which the next flush will write. False where no
    /// flush will tell.
    pub(crate) fn owe(&self) -> bool {
        self.owes.set(!self.is_h2);
        !self.is_h2
    }

    pub(crate) fn owes(&self) -> bool {
        self.owes.get()
    }

    /// Wakes the task of `cx` at the next flush.
    pub(crate) fn park(&self, cx: &Context<'_>) {
        self.parked.replace(Some(cx.waker().clone()));
    }

    fn flushed(&self) {
        if !self.owes.replace(false) {
            return;
        }
        let current = self.current.borrow().clone();
        if let Some(exchange) = current {
            exchange.flushed(self.tap.last_write_ns());
        }
        if let Some(waker) = self.parked.take() {
            waker.wake();
        }
    }

    /// The connection is over: what was answered but not written is recorded as it
    /// stands.
    pub(crate) fn end(&self) {
        if let Some(exchange) = self.current.take() {
            exchange.flushed(None);
        }
    }
}

/// The socket as hyper's server sees it.
pub(crate) struct ClientIo {
    io: TokioIo<Stream>,
    client: Rc<Client>,
}

impl ClientIo {
    pub(crate) fn new(stream: Stream, client: Rc<Client>) -> Self {
        Self {
            io: TokioIo::new(stream),
            client,
        }
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.io.into_inner()
    }
}

impl hyper::rt::Read for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, out)
    }
}

impl hyper::rt::Write for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        hyper::rt::Write::is_write_vectored(&self.io)
    }

    /// hyper flushes when its own buffer is empty: everything handed to it before
    /// is then in the socket.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        this.client.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
