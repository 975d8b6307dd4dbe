//! An address where nobody listens.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};

/// A port that is taken and not listened on. While this is held nobody else is
/// given it: one that was merely free a moment ago may be another test's by now.
pub struct Nobody {
    socket: OwnedFd,
    pub addr: SocketAddr,
}

impl Nobody {
    pub fn take() -> Self {
        let flags = SockFlag::empty();
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        let own: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], own.port()));
        Self { socket, addr }
    }

    /// `http://address`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets connections queue up, which nobody will take.
    pub fn queue_up(&self) {
        listen(&self.socket, Backlog::new(1).unwrap()).unwrap();
    }
}
