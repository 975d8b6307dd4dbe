//! hyper's view of a tokio socket.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::host::Peer;

/// Bytes taken from the socket at once.
const READ_BYTES: usize = 16 * 1024;

/// A socket hyper can serve. `hyper-util` has the same without the copy of what
/// is read, by means of `unsafe`; requests are small.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    peer: Peer,
}

impl Connection {
    pub(crate) fn new(socket: TcpStream, peer: Peer) -> Self {
        Self { socket, peer }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.peer.is_reset_at_close() {
            // Refused by a socket that is closed already, and then it is too late.
            self.socket.set_zero_linger().ok();
        }
    }
}

impl hyper::rt::Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
        let length = buf.remaining().min(READ_BYTES);
        let mut read = ReadBuf::uninit(&mut space[..length]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
