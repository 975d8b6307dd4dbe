//! Hops that only pass bytes on: what any proxy costs here.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use tokio::io::copy_bidirectional;
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};

use crate::thread;

/// Called as the proxy's worker, that its CPU be found.
const NAME: &str = "tapedeck-proxy-relay";

/// Two threads a connection, each in `read` or `write`.
pub(crate) fn on_threads(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread(NAME, move || {
        while let Ok((client, _)) = listener.accept() {
            let upstream = TcpStream::connect(server).unwrap();
            for (from, to) in [(&client, &upstream), (&upstream, &client)] {
                to.set_nodelay(true).unwrap();
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread(NAME, move || {
                    let mut buffer = vec![0; 8192];
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    to.shutdown(Shutdown::Both).ok();
                });
            }
        }
    });
    addr
}

/// One thread in `epoll` for all connections, as the proxy's worker.
pub(crate) fn on_tokio(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    thread(NAME, move || {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                spawn_local(pass_on(client, server));
            }
        });
    });
    addr
}

async fn pass_on(mut client: tokio::net::TcpStream, server: SocketAddr) {
    let mut upstream = tokio::net::TcpStream::connect(server).await.unwrap();
    client.set_nodelay(true).unwrap();
    upstream.set_nodelay(true).unwrap();
    // What breaks it is the end of a row.
    copy_bidirectional(&mut client, &mut upstream).await.ok();
}
