//! The birthplace of every instant: a TCP stream that stamps what it reads and
//! writes, and the gate that ties a stamp to what hyper makes of the read.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, TimestampingFlag, Timestamps, recvmsg, setsockopt, sockopt,
};
use tapedeck_clock::{RunClock, StampConverter};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// One batch of bytes that the socket handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStamp {
    /// From 0 within an attempt.
    pub read_index: i32,
    /// Arrival: when the kernel took the last of these bytes from the network.
    pub t_ns: i64,
    /// When this process got to them.
    pub t_seen_ns: i64,
    /// False where the kernel gave no stamp and `t_ns` is `t_seen_ns`.
    pub from_kernel: bool,
}

/// Bytes of control messages one receive may carry: one `SCM_TIMESTAMPING`.
const CONTROL_BYTES: usize = 256;

/// What all taps of one worker share; a worker is one thread.
#[derive(Debug)]
pub struct TapContext {
    pub clock: RunClock,
    converter: RefCell<StampConverter>,
    control: RefCell<Vec<u8>>,
}

impl TapContext {
    #[must_use]
    pub fn new(clock: RunClock) -> Rc<Self> {
        let mut control: Vec<u8> = cmsg_space!(Timestamps);
        control.resize(CONTROL_BYTES.max(control.capacity()), 0);
        Rc::new(Self {
            clock,
            converter: RefCell::new(StampConverter::new(clock)),
            control: RefCell::new(control),
        })
    }
}

/// What a connection did during the current attempt; shared by the tap, which
/// writes it, and the exchange, which reads it.
#[derive(Debug, Default)]
pub struct TapState {
    last_read: Cell<Option<ReadStamp>>,
    reads: Cell<i32>,
    /// Stamp after the last write before the first read of the answer.
    last_write_ns: Cell<Option<i64>>,
    written_bytes: Cell<u64>,
    write_pending: Cell<bool>,
    /// Bytes of an answer have reached hyper. Under TLS not every read is one:
    /// session tickets and alerts are not.
    answered: Cell<bool>,
    /// Where both sides write at any time (HTTP/2), the bytes of which it takes at
    /// least as many for the request to be sent.
    request_bytes: Cell<Option<u64>>,
    /// So many were written.
    request_sent: Cell<bool>,
    gate: Cell<Gate>,
    held: RefCell<Held>,
}

/// What of the reads hyper has not been given.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// hyper gets heads alone: the body is read past it.
    heads_only: bool,
    head: HeadEnd,
}

/// Follows the lines of a head up to its blank one.
#[derive(Debug, Default)]
struct HeadEnd {
    /// Bytes of the line so far but a CR at its start.
    line_bytes: usize,
}

impl HeadEnd {
    /// Index behind the blank line, if it ends in `bytes`, which follow those of
    /// the call before.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            at += line.len();
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            self.line_bytes += text.iter().filter(|b| **b != b'\r').count();
            if text.len() < line.len() && std::mem::take(&mut self.line_bytes) == 0 {
                return Some(at);
            }
        }
        None
    }
}

impl Held {
    /// Gives hyper what it may have of `bytes`, which are not empty; returns how many.
    fn hand_out(&mut self, bytes: &[u8], out: &mut hyper::rt::ReadBufCursor<'_>) -> usize {
        let bytes = &bytes[..bytes.len().min(out.remaining())];
        let len = match self.heads_only {
            true => self.head.find(bytes).unwrap_or(bytes.len()),
            false => bytes.len(),
        };
        out.put_slice(&bytes[..len]);
        len
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Gate {
    #[default]
    Open,
    /// A read was handed over since the gate was opened.
    Used,
    /// Somebody asked for more behind a used gate.
    Refused,
}

impl TapState {
    /// Forgets the previous attempt on this connection.
    pub fn begin_attempt(&self) {
        self.last_read.set(None);
        self.reads.set(0);
        self.last_write_ns.set(None);
        self.written_bytes.set(0);
        self.write_pending.set(false);
        self.answered.set(false);
        self.request_bytes.set(None);
        self.request_sent.set(false);
        self.gate.set(Gate::Open);
    }

    /// The request is sent once `bytes` were written, whatever is read before and
    /// written after: HTTP/2 has settings and windows to speak of.
    pub(crate) fn expect_request(&self, bytes: u64) {
        self.request_bytes.set(Some(bytes));
    }

    /// When the last byte of the request that [`Self::expect_request`] told of was
    /// written.
    pub(crate) fn request_sent_ns(&self) -> Option<i64> {
        self.last_write_ns.get().filter(|_| self.request_sent.get())
    }

    /// Keeps all but heads of answers from hyper, until [`Self::give_back`].
    pub fn hold_bodies(&self) {
        let mut held = self.held.borrow_mut();
        held.heads_only = true;
        held.head = HeadEnd::default();
    }

    /// The bytes that came with a head and are not of it.
    #[must_use]
    pub fn take_held(&self) -> Vec<u8> {
        std::mem::take(&mut self.held.borrow_mut().bytes)
    }

    /// Lets hyper read `bytes`, then what else was held, then the socket.
    pub fn give_back(&self, bytes: &[u8]) {
        let mut held = self.held.borrow_mut();
        held.heads_only = false;
        held.bytes.splice(..0, bytes.iter().copied());
    }

    /// True once a byte of the answer has come.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.answered.get()
    }

    /// The read that delivered what hyper hands out now.
    #[must_use]
    pub fn last_read(&self) -> Option<ReadStamp> {
        self.last_read.get()
    }

    /// When the last byte of a request of at least `body_bytes` was written, or
    /// `None` while bytes are still to be written. An answer shows that the
    /// request had been sent before it arrived, however late this thread came to
    /// stamp its write.
    #[must_use]
    pub fn sent_ns(&self, body_bytes: u64) -> Option<i64> {
        let complete = self.written_bytes.get() > body_bytes && !self.write_pending.get();
        self.last_write_ns.get().filter(|_| complete)
    }

    /// When the last bytes were written, `None` before the first.
    #[must_use]
    pub fn last_write_ns(&self) -> Option<i64> {
        self.last_write_ns.get()
    }

    /// True while nothing of the current attempt was written.
    #[must_use]
    pub fn untouched(&self) -> bool {
        self.written_bytes.get() == 0
    }

    /// Lets nothing more through until [`Self::open_gate`].
    pub fn close_gate(&self) {
        self.gate.set(Gate::Used);
    }

    /// Lets one more read through.
    pub fn open_gate(&self) {
        self.gate.set(Gate::Open);
    }

    /// True when hyper wanted to read again before the gate was reopened: it
    /// must be polled again, for nobody will wake it.
    #[must_use]
    pub fn gate_refused(&self) -> bool {
        self.gate.get() == Gate::Refused
    }

    fn note_read(&self, t_ns: i64, t_seen_ns: i64, from_kernel: bool) {
        let read_index = self.reads.get();
        self.reads.set(read_index.saturating_add(1));
        // The answer cannot precede the request it answers: where the write was
        // stamped late, its stamp is the earliest instant that is known.
        let floor_ns = self.last_write_ns.get().unwrap_or(t_ns);
        let previous_ns = {
            let last = self.last_read.get();
            last.map_or(floor_ns, |r| r.t_ns.max(floor_ns))
        };
        self.last_read.set(Some(ReadStamp {
            read_index,
            t_ns: t_ns.max(previous_ns).min(t_seen_ns),
            t_seen_ns,
            from_kernel,
        }));
    }

    fn note_write(&self, bytes: usize, now_ns: i64) {
        let request_bytes = self.request_bytes.get();
        let over = match request_bytes {
            None => self.answered.get(),
            Some(_) => self.request_sent.get(),
        };
        if !over {
            self.last_write_ns.set(Some(now_ns));
        }
        self.written_bytes
            .set(self.written_bytes.get() + bytes as u64);
        self.write_pending.set(false);
        if !over && request_bytes.is_some_and(|least| self.written_bytes.get() >= least) {
            self.request_sent.set(true);
        }
    }
}

/// A TCP stream whose reads and writes are stamped into a [`TapState`].
#[derive(Debug)]
pub struct Tap {
    stream: TcpStream,
    context: Rc<TapContext>,
    state: Rc<TapState>,
    /// Whether to ask for readiness before the next receive: not after a wake-up,
    /// which says as much.
    ask_first: bool,
}

impl Tap {
    /// Asks the kernel for receive stamps; without them every read is stamped by
    /// this process and says so.
    #[must_use]
    pub fn new(stream: TcpStream, context: Rc<TapContext>, state: Rc<TapState>) -> Self {
        request_stamps(&stream);
        Self {
            stream,
            context,
            state,
            ask_first: true,
        }
    }
}

/// Keeps kernel receive stamps switched on while it lives.
///
/// The kernel starts to stamp some milliseconds after the first socket asked for
/// it, and stops when the last such socket is closed: without this the first
/// answers of a run would carry no stamp.
#[derive(Debug)]
pub struct KernelStamping {
    _socket: Option<UdpSocket>,
}

/// Datagrams sent to ourselves, a millisecond apart, until one comes back
/// stamped: the longest that switching on may hold up a run.
const STAMPING_TRIES: usize = 100;

impl KernelStamping {
    #[must_use]
    pub fn switch_on() -> Self {
        Self {
            _socket: Self::stamped_socket().ok(),
        }
    }

    fn stamped_socket() -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(socket.local_addr()?)?;
        request_stamps(&socket);
        let mut control = vec![0; CONTROL_BYTES];
        for _ in 0..STAMPING_TRIES {
            socket.send(&[0])?;
            let got = receive(&socket, &mut [0; 8], &mut control);
            if got.is_ok_and(|got| got.stamp_ns.is_some()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(socket)
    }
}

fn request_stamps(socket: &impl AsFd) {
    let flags = TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
    // Refused where the kernel has no stamps: reads then say `process`.
    setsockopt(socket, sockopt::Timestamping, &flags).ok();
}

/// One `recvmsg`: bytes read and the kernel's stamp, ns since the Unix epoch.
fn receive(socket: &impl AsRawFd, buf: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
    let mut iov = [IoSliceMut::new(buf)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let stamp_ns = message.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|m| match m {
            ControlMessageOwned::ScmTimestampsns(stamps) => {
                let ns = stamps.system.tv_sec() * 1_000_000_000 + stamps.system.tv_nsec();
                (ns > 0).then_some(ns)
            }
            _ => None,
        })
    });
    Ok(Received {
        bytes: message.bytes,
        stamp_ns,
    })
}

struct Received {
    bytes: usize,
    stamp_ns: Option<i64>,
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ask_first {
                let asked = this.stream.poll_read_ready(cx);
                this.ask_first = asked.is_ready();
                ready!(asked)?;
            }
            this.ask_first = true;
            let mut received = None;
            let room = buf.initialize_unfilled();
            let result = this.stream.try_io(Interest::READABLE, || {
                let mut control = this.context.control.borrow_mut();
                let got = receive(&this.stream, room, &mut control)?;
                let drained = got.bytes > 0 && got.bytes < room.len();
                let t_seen_ns = this.context.clock.now_ns();
                received = Some((got, t_seen_ns));
                // A short read has emptied the socket. Saying so saves the next
                // receive, which would only come back with EAGAIN.
                if drained {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (received, result) {
                (Some((got, t_seen_ns)), _) => {
                    this.note(&got, t_seen_ns);
                    buf.advance(got.bytes);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
                (None, result) => return Poll::Ready(result),
            }
        }
    }
}

impl Tap {
    fn note(&self, got: &Received, t_seen_ns: i64) {
        // The end of the stream is no arrival: the stamp of the last bytes stays.
        if got.bytes == 0 {
            return;
        }
        let t_ns = got
            .stamp_ns
            .and_then(|ns| self.context.converter.borrow_mut().convert(ns, t_seen_ns));
        self.state
            .note_read(t_ns.unwrap_or(t_seen_ns), t_seen_ns, t_ns.is_some());
    }

    fn note_write(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(bytes)) => self.state.note_write(*bytes, self.context.clock.now_ns()),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.write_pending.set(true),
        }
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note_write(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// A tapped connection, with or without TLS around it.
#[derive(Debug)]
pub enum Stream {
    Plain(Tap),
    Tls(Box<TlsStream<Tap>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Bytes read from the socket at once: the most that one `recvmsg` of a burst
/// returns, small enough to stay in the cache.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Hands hyper one read per [`TapState::open_gate`].
///
/// hyper reads on as soon as it has parsed a response head or has room for a
/// body frame. Without the gate the stamp of that next read would be taken for
/// the arrival of what came before it.
#[derive(Debug)]
pub struct Gated<S> {
    /// Shared with who reads bodies past hyper, through a [`Weak`].
    stream: Rc<RefCell<S>>,
    state: Rc<TapState>,
    buffer: Rc<RefCell<Vec<u8>>>,
}

impl<S> Gated<S> {
    #[must_use]
    pub fn new(stream: S, state: Rc<TapState>, buffer: Rc<RefCell<Vec<u8>>>) -> Self {
        Self {
            stream: Rc::new(RefCell::new(stream)),
            state,
            buffer,
        }
    }

    /// The stream behind the gate, for as long as the gate lives.
    #[must_use]
    pub fn stream(&self) -> Weak<RefCell<S>> {
        Rc::downgrade(&self.stream)
    }

    /// The stream behind the gate; `None` while somebody reads it.
    #[must_use]
    pub fn into_inner(self) -> Option<S> {
        Rc::into_inner(self.stream).map(RefCell::into_inner)
    }
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for Gated<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.gate.get() != Gate::Open {
            this.state.gate.set(Gate::Refused);
            return Poll::Pending;
        }
        let held = &mut *this.state.held.borrow_mut();
        if !held.bytes.is_empty() {
            this.state.gate.set(Gate::Used);
            let mut bytes = std::mem::take(&mut held.bytes);
            let given = held.hand_out(&bytes, &mut out);
            bytes.drain(..given);
            held.bytes = bytes;
            return Poll::Ready(Ok(()));
        }
        let mut buffer = this.buffer.borrow_mut();
        let room = if held.heads_only {
            buffer.len()
        } else {
            out.remaining().min(buffer.len())
        };
        let mut read = ReadBuf::new(&mut buffer[..room]);
        ready!(Pin::new(&mut *this.stream.borrow_mut()).poll_read(cx, &mut read))?;
        this.state.gate.set(Gate::Used);
        let read = read.filled();
        if !read.is_empty() {
            this.state.answered.set(true);
            let given = held.hand_out(read, &mut out);
            held.bytes.extend_from_slice(&read[given..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for Gated<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }
}
