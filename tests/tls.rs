//! A TLS endpoint with a certificate of its own authority.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tapedeck_recording::{Outcome, Recording, Table};

use crate::support::mock_llm::replies::{chat_delta, sse};
use crate::support::programs::run_line;

/// Answers every connection once, in three TLS records, and closes it.
fn serve(listener: &TcpListener, config: &Arc<ServerConfig>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        // A client that refuses the certificate ends its connection here.
        drop(answer(stream, config));
    }
}

fn answer(stream: TcpStream, config: &Arc<ServerConfig>) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut tls = StreamOwned::new(connection, stream);
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"}") {
        let n = tls.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..n]);
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let records = [
        head.as_bytes().to_vec(),
        sse(&chat_delta(r#"{"content":"hello"}"#, None)),
        [sse(&chat_delta("{}", Some("stop"))), sse("[DONE]")].concat(),
    ];
    for record in records {
        tls.write_all(&record)?;
        tls.flush()?;
    }
    tls.conn.send_close_notify();
    tls.flush()
}

fn start(dir: &Path) -> SocketAddr {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("ca.pem"), issued.cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::Builder::new()
        .name("tls-server".to_owned())
        .spawn(move || serve(&listener, &Arc::new(config)))
        .unwrap();
    addr
}

#[test]
fn tls_is_verified_and_its_phases_are_stamped() {
    let dir = tempfile::tempdir().unwrap();
    let addr = start(dir.path());
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
