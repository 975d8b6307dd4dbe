//! A server process on one core that writes streams: one chunk a write and a
//! millisecond on each connection, as the decode step of an inference server does,
//! or as fast as it can.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use tapedeck_clock::monotonic_ns;

use super::mock_llm::Step;
use super::mock_llm::replies::Stream;

/// Turns between two looks at sockets that wait for room or for a request.
const TURNS: usize = 16;
/// From one chunk to the next. Faster than that a client that is taken off its core
/// finds several chunks in one read, which is cheaper, and the more so the more
/// often it is.
const STEP_NS: i64 = 1_000_000;
const SERVE: &str = "--serve";

/// How the answer is cut into writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One write a chunk, on all connections once a millisecond.
    Single,
    /// 16 KiB a write, as fast as it goes.
    Bulk,
}

impl Shape {
    pub const ALL: [Self; 2] = [Self::Single, Self::Bulk];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "one write a chunk",
            Self::Bulk => "16 KiB a write",
        }
    }

    fn writes(self, tokens: usize) -> Vec<Vec<u8>> {
        let stream = Stream::chat(tokens, 0, 0);
        let reply = match self {
            Self::Single => stream.reply(),
            Self::Bulk => stream.reply_in_bulk(16 * 1024),
        };
        let steps = reply.0.iter().filter_map(|step| match step {
            Step::Send(bytes) => Some(bytes.to_vec()),
            _ => None,
        });
        steps.collect()
    }
}

/// The running server; ends with this.
#[derive(Debug)]
pub struct Blast {
    pub addr: SocketAddr,
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Blast {
    /// Starts this very program as the server.
    pub fn start(shape: Shape, tokens: usize) -> io::Result<Self> {
        let index = Shape::ALL.iter().position(|s| *s == shape);
        let mut child = Command::new(std::env::current_exe()?)
            .args([SERVE, &index.unwrap_or(0).to_string(), &tokens.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut port = [0; 2];
        if let Some(stdout) = &mut child.stdout {
            stdout.read_exact(&mut port)?;
        }
        Ok(Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_le_bytes(port))),
            _stdin: child.stdin.take(),
            child,
        })
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Serves if this process was started to; returns whether it was.
pub fn serve_if_asked() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, shape, tokens] = arguments.as_slice() else {
        return false;
    };
    if flag != SERVE {
        return false;
    }
    super::pin(0);
    let shape = Shape::ALL[shape.parse::<usize>().unwrap()];
    // Ends with an error when the client closes its side, and by being killed.
    serve(shape, &shape.writes(tokens.parse().unwrap())).ok();
    true
}

struct Connection {
    socket: TcpStream,
    /// Next write of the answer and bytes of it that are out; `None` while no
    /// request has come.
    next: Option<(usize, usize)>,
    /// The socket takes nothing more for now.
    full: bool,
}

fn serve(shape: Shape, writes: &[Vec<u8>]) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    io::stdout().write_all(&port.to_le_bytes())?;
    io::stdout().flush()?;
    listener.set_nonblocking(true)?;
    let mut open: Vec<Connection> = Vec::new();
    let turns = match shape {
        Shape::Single => 1,
        Shape::Bulk => TURNS,
    };
    let mut due_ns = monotonic_ns();
    loop {
        look(&listener, &mut open)?;
        while shape == Shape::Single && monotonic_ns() < due_ns {
            look(&listener, &mut open)?;
        }
        due_ns = monotonic_ns().max(due_ns + STEP_NS);
        for _ in 0..turns {
            for connection in &mut open {
                connection.write(writes)?;
            }
        }
    }
}

/// Takes what sockets say: new connections, requests, room. Waits when nobody has
/// anything to write.
fn look(listener: &TcpListener, open: &mut Vec<Connection>) -> io::Result<()> {
    let busy = open.iter().any(|c| c.next.is_some() && !c.full);
    let stdin = io::stdin();
    let mut fds = vec![
        PollFd::new(stdin.as_fd(), PollFlags::POLLHUP),
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
    ];
    fds.extend(open.iter().map(|connection| {
        let wanted = match connection.next {
            None => PollFlags::POLLIN,
            Some(_) if connection.full => PollFlags::POLLOUT,
            Some(_) => PollFlags::empty(),
        };
        PollFd::new(connection.socket.as_fd(), wanted)
    }));
    let timeout = if busy {
        PollTimeout::ZERO
    } else {
        PollTimeout::NONE
    };
    poll(&mut fds, timeout)?;
    if fds[0].any() == Some(true) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let new = fds[1].any() == Some(true);
    let ready: Vec<bool> = fds[2..].iter().map(|fd| fd.any() == Some(true)).collect();
    drop(fds);
    for index in (0..ready.len()).rev().filter(|i| ready[*i]) {
        if !open[index].take()? {
            open.swap_remove(index);
        }
    }
    while new && let Ok((socket, _)) = listener.accept() {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        open.push(Connection {
            socket,
            next: None,
            full: false,
        });
    }
    Ok(())
}

impl Connection {
    /// False when the client has gone.
    fn take(&mut self) -> io::Result<bool> {
        if self.next.is_some() {
            self.full = false;
            return Ok(true);
        }
        // Requests come in one piece and are all alike.
        match self.socket.read(&mut [0; 4096]) {
            Ok(0) => return Ok(false),
            Ok(_) => self.next = Some((0, 0)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(false),
        }
        Ok(true)
    }

    fn write(&mut self, writes: &[Vec<u8>]) -> io::Result<()> {
        let Some((write, done)) = self.next.filter(|_| !self.full) else {
            return Ok(());
        };
        match self.socket.write(&writes[write][done..]) {
            Ok(length) if done + length < writes[write].len() => {
                self.next = Some((write, done + length));
            }
            Ok(_) => self.next = (write + 1 < writes.len()).then_some((write + 1, 0)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.full = true,
            Err(_) => self.next = None,
        }
        Ok(())
    }
}
