//! A TLS endpoint with a certificate of its own authority.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tapedeck_recording::{Outcome, Recording, Table};

use crate::support::mock_llm::replies::{LAST_CHUNK, chat_delta, http_chunk, sse};
use crate::support::programs::run_line;

/// Serves each connection one request. Then it says goodbye: at once, or, where
/// the connection is said to be kept, only when the next request has come.
fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, keep: bool) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        // A client that refuses the certificate ends its connection here.
        drop(answer(stream, config, keep));
    }
}

fn answer(stream: TcpStream, config: &Arc<ServerConfig>, keep: bool) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut tls = StreamOwned::new(connection, stream);
    if !read_request(&mut tls)? {
        return Ok(());
    }
    let connection = if keep { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
         transfer-encoding: chunked\r\nconnection: {connection}\r\n\r\n"
    );
    let end = [sse(&chat_delta("{}", Some("stop"))), sse("[DONE]")].concat();
    let records = [
        head.into_bytes(),
        http_chunk(&sse(&chat_delta(r#"{"content":"hello"}"#, None))),
        [http_chunk(&end), LAST_CHUNK.to_vec()].concat(),
    ];
    for record in records {
        tls.write_all(&record)?;
        tls.flush()?;
    }
    if keep {
        read_request(&mut tls)?;
    }
    tls.conn.send_close_notify();
    tls.flush()
}

/// False when the client left instead.
fn read_request(tls: &mut StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<bool> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"}") {
        let n = tls.read(&mut buffer)?;
        if n == 0 {
            return Ok(false);
        }
        request.extend_from_slice(&buffer[..n]);
    }
    Ok(true)
}

/// An authority's certificate, as a file in `dir`, and a server's settings under it.
pub(crate) fn authority(dir: &Path) -> (PathBuf, ServerConfig) {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, issued.cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    (ca, config)
}

fn start(dir: &Path, keep: bool) -> SocketAddr {
    let (_, config) = authority(dir);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::Builder::new()
        .name("tls-server".to_owned())
        .spawn(move || serve(&listener, &Arc::new(config), keep))
        .unwrap();
    addr
}

#[test]
fn tls_is_verified_and_its_phases_are_stamped() {
    let dir = tempfile::tempdir().unwrap();
    let addr = start(dir.path(), false);
    let load = |name: &str, trust: &str| {
        run_line(
            "record",
            &format!(
                "load --url https://localhost:{} --model m --prompt x --number 3 --json {trust} --out {}",
                addr.port(),
                dir.path().join(name).display()
            ),
        )
    };
    let ca = format!("--cacert {}", dir.path().join("ca.pem").display());
    load("trusted", &ca).expect(0);
    load("insecure", "--insecure").expect(0);
    let refused = load("refused", "").expect(2);
    assert!(refused.stderr.contains("certificate"), "{}", refused.stderr);

    let recording = Recording::open(&dir.path().join("trusted")).unwrap();
    for request in recording.rows(Table::Requests).unwrap().requests {
        let instants = [
            request.t_connect_ns.unwrap(),
            request.t_connected_ns.unwrap(),
            request.t_tls_ns.unwrap(),
            request.t_sent_ns.unwrap(),
        ];
        assert!(instants.is_sorted(), "{instants:?}");
    }
    let responses = recording.rows(Table::Responses).unwrap().responses;
    assert!(responses.iter().all(|r| r.outcome == Outcome::Ok));
    assert_eq!(
        recording.manifest.timestamp_source.as_deref(),
        Some("kernel")
    );
}

#[test]
fn a_tls_connection_that_was_closed_between_requests_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let addr = start(dir.path(), true);
    let out = dir.path().join("r");
    let line = format!(
        "load --url https://localhost:{} --model m --prompt x --number 3 --no-probe --json --cacert {} --out {}",
        addr.port(),
        dir.path().join("ca.pem").display(),
        out.display()
    );
    run_line("record", &line).expect(0);
    let recording = Recording::open(&out).unwrap();
    let responses = recording.rows(Table::Responses).unwrap().responses;
    let attempts: Vec<_> = responses
        .iter()
        .map(|r| (r.request_id, r.attempt, r.outcome))
        .collect();
    // The goodbye is a TLS record, and yet no byte of an answer.
    let stale = Outcome::ConnectionError;
    let expected = [
        (0, 0, Outcome::Ok),
        (1, 0, stale),
        (1, 1, Outcome::Ok),
        (2, 0, stale),
        (2, 1, Outcome::Ok),
    ];
    assert_eq!(attempts, expected);
}
