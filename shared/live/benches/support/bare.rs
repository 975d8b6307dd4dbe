//! The least that a client of streams can do, for reference: read a socket, stamp
//! the read, find the ends of events with `memchr`. No HTTP, no JSON; nothing is
//! kept but the stamps.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use memchr::memchr;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tapedeck_clock::monotonic_ns;

use super::PATH;

const READ_BYTES: usize = 64 * 1024;
/// Sockets that one wait tells of.
const READY: usize = 1024;
/// How an answer in HTTP chunks ends.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One answered request; instants are absolute, ns.
#[derive(Debug)]
pub struct Answered {
    pub number: usize,
    /// Right after its last byte was written.
    pub t_sent_ns: i64,
    /// The read that held the end of each event.
    pub t_events_ns: Vec<i64>,
}

#[derive(Debug)]
pub struct BareRun {
    /// In the order in which they ended.
    pub answered: Vec<Answered>,
    pub reads: u64,
}

impl BareRun {
    pub fn events(&self) -> usize {
        self.answered.iter().map(|a| a.t_events_ns.len()).sum()
    }
}

struct Connection {
    socket: TcpStream,
    current: Answered,
    /// The last bytes of the read before, the longest that can matter.
    tail: [u8; LAST_CHUNK.len()],
}

/// Sends `requests`, one after the other on each of `connections`, which are opened
/// in one burst.
pub fn run(addr: SocketAddr, connections: usize, requests: usize) -> io::Result<BareRun> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let mut run = BareRun {
        answered: Vec::with_capacity(requests),
        reads: 0,
    };
    let mut started = connections.min(requests);
    let mut open = Vec::with_capacity(started);
    for number in 0..started {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        open.push(Connection::start(socket, addr, number)?);
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut ready = vec![EpollEvent::empty(); READY];
    while run.answered.len() < requests {
        let count = epoll.wait(&mut ready, EpollTimeout::NONE)?;
        for event in &ready[..count] {
            let connection = &mut open[event.data() as usize];
            run.reads += 1;
            if !connection.read(&mut buffer)? {
                continue;
            }
            let next = (started < requests).then_some(started);
            started += usize::from(next.is_some());
            run.answered.push(connection.finish(addr, next)?);
        }
    }
    Ok(run)
}

impl Connection {
    fn start(mut socket: TcpStream, addr: SocketAddr, number: usize) -> io::Result<Self> {
        let current = send(&mut socket, addr, number)?;
        Ok(Self {
            socket,
            current,
            tail: [0; LAST_CHUNK.len()],
        })
    }

    /// One read; whether the answer is over.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let length = match self.socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let now_ns = monotonic_ns();
        let bytes = &buffer[..length];
        let mut last = self.tail[LAST_CHUNK.len() - 1];
        let mut at = 0;
        while let Some(found) = memchr(b'\n', &bytes[at..]) {
            at += found;
            let before = if at == 0 { last } else { bytes[at - 1] };
            if before == b'\n' {
                self.current.t_events_ns.push(now_ns);
            }
            at += 1;
        }
        last = bytes[length - 1];
        self.keep_tail(bytes);
        Ok(last == b'\n' && self.tail == LAST_CHUNK)
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let kept = self.tail.len();
        if bytes.len() >= kept {
            self.tail.copy_from_slice(&bytes[bytes.len() - kept..]);
        } else {
            self.tail.rotate_left(bytes.len());
            self.tail[kept - bytes.len()..].copy_from_slice(bytes);
        }
    }

    fn finish(&mut self, addr: SocketAddr, next: Option<usize>) -> io::Result<Answered> {
        self.tail = [0; LAST_CHUNK.len()];
        let next = match next {
            Some(number) => send(&mut self.socket, addr, number)?,
            None => Answered {
                number: usize::MAX,
                t_sent_ns: 0,
                t_events_ns: Vec::new(),
            },
        };
        Ok(std::mem::replace(&mut self.current, next))
    }
}

fn send(socket: &mut TcpStream, addr: SocketAddr, number: usize) -> io::Result<Answered> {
    let body = super::body(number);
    let length = body.len();
    let request =
        format!("POST {PATH} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {length}\r\n\r\n{body}");
    // Shorter than any socket buffer: it goes whole, or the connection is gone.
    socket.write_all(request.as_bytes())?;
    Ok(Answered {
        number,
        t_sent_ns: monotonic_ns(),
        t_events_ns: Vec::with_capacity(256),
    })
}
