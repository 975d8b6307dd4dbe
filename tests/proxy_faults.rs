//! What goes wrong around the proxy, and what it makes of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tapedeck_recording::Outcome;

use crate::support::disk::SmallDisk;
use crate::support::mock_llm::replies::{SSE_HEAD, Stream, chat_delta, http_chunk, json, sse};
use crate::support::mock_llm::{Ended, MockLlm, Reply, Script, Step};
use crate::support::nobody::Nobody;
use crate::support::programs::run_line;
use crate::support::proxy::{Finish, ProxyProcess, chat, converse, post, receive, rows};

const LONG: Duration = Duration::from_secs(10);

fn token(text: &str) -> Step {
    let delta = format!(r#"{{"content":"{text}"}}"#);
    Step::send(http_chunk(&sse(&chat_delta(&delta, None))))
}

/// Waits until the mock has seen its last client leave.
fn await_client_left(mock: &MockLlm) {
    for _ in 0..250 {
        let ledger = mock.ledger();
        if ledger.last().is_some_and(|s| s.ended == Ended::ClientLeft) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("upstream was not cancelled: {:?}", mock.ledger());
}

#[test]
fn a_client_that_leaves_cancels_upstream_and_is_recorded() {
    let half = vec![
        Step::send(SSE_HEAD),
        token("one"),
        token("two"),
        Step::Stall,
    ];
    let mock = MockLlm::start(Script::by_case(vec![
        ("half".to_owned(), half.into()),
        ("silent".to_owned(), vec![Step::Stall].into()),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    for (number, (case, last)) in [("half", "two"), ("silent", "")].iter().enumerate() {
        let mut client = TcpStream::connect(proxy.addr).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(&chat(case, "")).unwrap();
        // It leaves when the server has the request and all that comes has come.
        while mock.ledger().len() <= number {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut got = String::new();
        while !got.contains(last) {
            let mut buffer = [0; 4096];
            let n = client.read(&mut buffer).unwrap();
            assert!(n > 0, "the answer has no end");
            got.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        drop(client);
        await_client_left(&mock);
    }
    let rows = proxy.finish();
    let ends: Vec<_> = rows
        .responses
        .iter()
        .map(|r| (r.outcome, r.status, r.chunk_count, r.error.as_deref()))
        .collect();
    let left = Some("the client left");
    let expected = [
        (Outcome::Cancelled, Some(200), 2, left),
        (Outcome::Cancelled, None, 0, left),
    ];
    assert_eq!(ends, expected);
    assert!(rows.responses.iter().all(|r| r.t_client_end_ns.is_none()));
}

#[test]
fn a_client_that_breaks_off_its_request_is_recorded_too() {
    let mock = MockLlm::start(Script::always(Stream::chat(1, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    let whole = chat("m", "");
    stream.write_all(&whole[..whole.len() - 5]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(stream);
    proxy.await_metric("tapedeck_proxy_requests_total{outcome=\"cancelled\"}", 1.0);
    let rows = proxy.finish();
    assert_eq!(rows.requests[0].t_received_ns, None);
    assert_eq!(rows.requests[0].t_sent_ns, None);
    assert_eq!(rows.responses[0].outcome, Outcome::Cancelled);
}

#[test]
fn an_upstream_that_is_not_there_is_a_502_that_says_so() {
    let nobody = Nobody::take();
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&nobody.url(), dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    // The client's connection survives it.
    for _ in 0..2 {
        stream.write_all(&chat("m", "")).unwrap();
        let seen = receive(&mut stream, false, LONG);
        assert_eq!(seen.status, "502 Bad Gateway");
        assert!(
            String::from_utf8(seen.body)
                .unwrap()
                .contains("tapedeck proxy")
        );
    }
    let rows = proxy.finish();
    assert_eq!(rows.requests.len(), 2);
    assert_eq!(rows.requests[0].model.as_deref(), Some("m"));
    assert_eq!(rows.responses[0].outcome, Outcome::ConnectionError);
    assert_eq!(rows.responses[0].status, None);
}

#[test]
fn a_connection_that_upstream_closed_while_idle_is_replaced() {
    let answer = json(
        200,
        r#"{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}"#,
    );
    let mut closing = answer.0.to_vec();
    closing.extend([Step::pause_ms(30), Step::Close]);
    let mock = MockLlm::start(Script::always(closing));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--workers", "1"]);
    for n in 1..=3 {
        assert_eq!(
            converse(proxy.addr, &chat("m", ""), LONG).status,
            "200 Reason"
        );
        let closed = || {
            let ledger = mock.ledger();
            ledger.iter().filter(|s| s.ended == Ended::Closed).count()
        };
        while closed() < n {
            std::thread::sleep(Duration::from_millis(5));
        }
        // The proxy has a moment to see it.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(mock.connections(), 3);
    let rows = proxy.finish();
    assert!(rows.responses.iter().all(|r| r.outcome == Outcome::Ok));
}

#[test]
fn a_request_that_upstream_may_have_begun_is_not_sent_twice() {
    let answer = json(
        200,
        r#"{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}"#,
    );
    let mock = MockLlm::start(Script::in_order(vec![answer, vec![Step::Close].into()]));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--workers", "1"]);
    assert_eq!(
        converse(proxy.addr, &chat("m", ""), LONG).status,
        "200 Reason"
    );
    let second = converse(proxy.addr, &chat("m", ""), LONG);
    assert_eq!(second.status, "502 Bad Gateway");
    assert_eq!((mock.ledger().len(), mock.connections()), (2, 1));
    let rows = proxy.finish();
    assert_eq!(rows.requests[1].conn_reused, Some(true));
    assert!(rows.requests[1].t_sent_ns.is_some());
    assert_eq!(rows.responses[1].outcome, Outcome::ConnectionError);
}

#[test]
fn a_slow_client_slows_upstream_and_not_our_memory() {
    const BYTES: usize = 48 << 20;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\n\r\n");
    let steps = vec![Step::send(head), Step::send(vec![b'x'; BYTES])];
    let mock = MockLlm::start(Script::always(steps));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    let request = post("/v1/chat/completions", "", r#"{"model":"m"}"#);
    stream.write_all(&request).unwrap();
    // Until nothing has moved for a while: the body waits for its reader.
    let passed = || proxy.metric("tapedeck_proxy_response_bytes_total ");
    let mut before = 0.0;
    while passed() == 0.0 || passed() > before {
        before = passed();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(mock.ledger()[0].writes.len(), 1);
    assert!(before < 16e6, "{before}");
    let mut body = 0;
    let mut buffer = vec![0; 1 << 20];
    stream.set_read_timeout(Some(LONG)).unwrap();
    while body < BYTES {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the body is whole");
        body += n;
    }
    let rows = proxy.finish();
    let response = &rows.responses[0];
    assert_eq!(response.body_bytes, BYTES as i64);
    assert!(response.body.as_ref().unwrap().len() <= 16 << 20);
    assert!(rows.marks.iter().any(|m| &*m.name == "truncated_event"));
}

#[test]
fn the_first_signal_drains_and_the_second_does_not_wait() {
    let stream = |ms| {
        vec![
            Step::send(SSE_HEAD),
            token("one"),
            Step::pause_ms(ms),
            token("two"),
            Step::send(http_chunk(&sse("[DONE]"))),
            Step::send("0\r\n\r\n"),
        ]
    };
    let mock = MockLlm::start(Script::by_case(vec![
        ("short".to_owned(), stream(400).into()),
        ("long".to_owned(), stream(60_000).into()),
    ]));
    for (case, signals, outcome) in [("short", 1, Outcome::Ok), ("long", 2, Outcome::Cancelled)] {
        let dir = tempfile::tempdir().unwrap();
        let mut proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
        let mut client = TcpStream::connect(proxy.addr).unwrap();
        client.write_all(&chat(case, "")).unwrap();
        let mut first = [0; 64];
        client.read_exact(&mut first).unwrap();
        // Two that come before either was taken notice of are one.
        for words in &["waiting for requests in flight", "stopping at once"][..signals] {
            proxy.signal(Signal::SIGTERM);
            proxy.await_said(words);
        }
        let ran = proxy.wait().expect(0);
        assert!(ran.stderr.contains("recorded "), "{}", ran.stderr);
        let recording = ProxyProcess::recording(dir.path());
        let rows = rows(&recording);
        assert_eq!(rows.responses[0].outcome, outcome, "{case}");
        let manifest = tapedeck_recording::Manifest::load(&recording).unwrap();
        assert_eq!(manifest.state, tapedeck_recording::manifest::State::Sealed);
        assert!(TcpStream::connect(proxy.addr).is_err(), "nobody listens");
    }
}

/// An answer of many events: a few of them are more than waits in the queue.
fn flood() -> Reply {
    let events = ":\n\n".repeat(20_000);
    let end = sse("[DONE]");
    let length = events.len() + end.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n"
    );
    vec![
        Step::send(head),
        Step::send([events.into_bytes(), end].concat()),
    ]
    .into()
}

/// A proxy whose recording meets a disk that refuses.
struct Refusing {
    _mock: MockLlm,
    proxy: ProxyProcess,
    recording: std::path::PathBuf,
    /// What takes the room, or is in the way where nothing may be mounted.
    obstacle: std::path::PathBuf,
    _disk: Option<SmallDisk>,
    _dir: tempfile::TempDir,
}

impl Refusing {
    /// Records one answer, then lets the disk refuse until events are dropped.
    fn start(further: &[&str]) -> Self {
        let mock = MockLlm::start(Script::by_case(vec![
            ("flood".to_owned(), flood()),
            ("one".to_owned(), Stream::chat(3, 0, 0).reply()),
        ]));
        let disk = SmallDisk::mount("size=64m");
        let dir = tempfile::tempdir().unwrap();
        let root = disk.as_ref().map_or(dir.path(), SmallDisk::path);
        let further = [&["--seal-every", "300ms"], further].concat();
        let proxy = ProxyProcess::start(&mock.url(), root, &further);
        let recording = ProxyProcess::recording(root);
        converse(proxy.addr, &chat("one", ""), LONG);
        let obstacle = disk.as_ref().map_or_else(
            || {
                let path = recording.join("chunks");
                std::fs::remove_dir_all(&path).ok();
                std::fs::write(&path, "").unwrap();
                path
            },
            SmallDisk::fill,
        );
        let refusing = Self {
            _mock: mock,
            proxy,
            recording,
            obstacle,
            _disk: disk,
            _dir: dir,
        };
        // Until the segments that may wait for the disk do, and the queue is full.
        for _ in 0..500 {
            let seen = converse(refusing.proxy.addr, &chat("flood", ""), LONG);
            // A strict proxy may have noticed by itself.
            let refused = further.contains(&"--strict") && seen.status.starts_with("503");
            assert!(refused || seen.body.len() > 60_000, "{}", seen.status);
            assert_eq!(seen.finish, Finish::Whole);
            if refused || refusing.dropped() > 0.0 {
                break;
            }
        }
        assert!(refusing.dropped() > 0.0);
        assert_eq!(refusing.proxy.metric("tapedeck_proxy_disk_refuses "), 1.0);
        refusing
    }

    fn dropped(&self) -> f64 {
        self.proxy.metric("tapedeck_proxy_dropped_events_total ")
    }

    /// Status of one answer, and what `/health` says.
    fn ask(&self) -> [String; 2] {
        let seen = converse(self.proxy.addr, &chat("one", ""), LONG);
        let ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
        let health = converse(self.proxy.admin, ask, LONG);
        [seen.status, String::from_utf8(health.body).unwrap()]
    }
}

const REFUSES: &str = "the disk refuses the recording\n";

#[test]
fn a_disk_that_was_full_gets_everything_but_what_is_counted() {
    let refusing = Refusing::start(&[]);
    assert_eq!(refusing.ask(), ["200 OK", REFUSES]);
    std::fs::remove_file(&refusing.obstacle).unwrap();
    let proxy = &refusing.proxy;
    proxy.await_metric("tapedeck_proxy_disk_refuses ", 0.0);
    proxy.await_metric("tapedeck_proxy_queued_batches ", 0.0);
    let lost = refusing.dropped();
    assert_eq!(refusing.ask(), ["200 OK", "ok\n"]);
    let ran = refusing.proxy.stop().expect(0);
    let warning = "events were dropped, traffic was not";
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
    let manifest = tapedeck_recording::Manifest::load(&refusing.recording).unwrap();
    assert_eq!(manifest.state, tapedeck_recording::manifest::State::Sealed);
    assert_eq!(manifest.dropped_events as f64, lost);
    let rows = rows(&refusing.recording);
    assert!(rows.marks.iter().any(|m| &*m.name == "dropped"));
    for end in [rows.responses.first(), rows.responses.last()] {
        let end = end.unwrap();
        assert_eq!((end.outcome, end.status), (Outcome::Ok, Some(200)));
        assert!(end.chunk_count < 10, "before and after the floods");
    }
}

#[test]
fn strict_refuses_while_the_disk_does_and_no_longer() {
    let refusing = Refusing::start(&["--strict"]);
    // One worker may not have met the full queue yet: each does sooner or later.
    let mut asked = refusing.ask();
    for _ in 0..20 {
        if asked[0].starts_with("503") {
            break;
        }
        converse(refusing.proxy.addr, &chat("flood", ""), LONG);
        asked = refusing.ask();
    }
    assert_eq!(asked, ["503 Service Unavailable", REFUSES]);
    assert!(
        refusing
            .proxy
            .metric("tapedeck_proxy_refused_requests_total ")
            >= 1.0
    );
    std::fs::remove_file(&refusing.obstacle).unwrap();
    refusing
        .proxy
        .await_metric("tapedeck_proxy_queued_batches ", 0.0);
    assert_eq!(refusing.ask()[0], "200 OK");
    refusing.proxy.stop().expect(0);
}

#[test]
fn a_disk_that_stays_full_does_not_hold_the_end() {
    let refusing = Refusing::start(&[]);
    let ran = refusing.proxy.stop().expect(2);
    assert!(ran.stderr.contains("is not complete"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    for (line, message) in [
        ("--listen 0.0.0.0:0 --upstream http://h", "--allow-remote"),
        (
            "--listen 127.0.0.1:0 --admin 0.0.0.0:0 --upstream http://127.0.0.1:1",
            "--admin 0.0.0.0:0",
        ),
        ("--listen 127.0.0.1:0 --upstream sim:", "--upstream sim:"),
        (
            "--listen 127.0.0.1:0 --upstream http://me:s3cret@h",
            "has a user or password",
        ),
        (
            "--listen 127.0.0.1:0 --upstream http://h/?key=s3cret",
            "has a query",
        ),
        (
            "--listen 127.0.0.1:0 --upstream http://127.0.0.1:1 --session-field user",
            "--session-field user",
        ),
        (
            "--listen 127.0.0.1:0 --upstream http://127.0.0.1:1 --tls-cert /none --tls-key /none",
            "--tls-cert /none",
        ),
    ] {
        let out = dir.path().join("root");
        let line = format!("proxy {line} --out {}", out.display());
        let ran = run_line("record", &line).expect(2);
        assert!(ran.stderr.contains(message), "{line}: {}", ran.stderr);
        assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
        assert!(!out.exists(), "{line}");
    }
}

#[test]
fn clients_may_speak_tls() {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let mock = MockLlm::start(Script::always(Stream::chat(3, 5, 5).reply()));
    let root = dir.path().join("root");
    let further = [
        "--tls-cert",
        cert.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let proxy = ProxyProcess::start(&mock.url(), &root, &further);
    let mut roots = rustls::RootCertStore::empty();
    let own = rustls::pki_types::CertificateDer::from_pem_file(&cert).unwrap();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(proxy.addr).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut tls = rustls::StreamOwned::new(session, socket);
    tls.write_all(&chat("m", "")).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"0\r\n\r\n") {
        let mut buffer = [0; 4096];
        let n = tls.read(&mut buffer).unwrap();
        assert!(n > 0, "the answer is whole");
        got.extend_from_slice(&buffer[..n]);
    }
    drop(tls);
    let rows = proxy.finish();
    assert_eq!(rows.responses[0].outcome, Outcome::Ok);
    assert!(rows.requests[0].t_received_ns.is_some());
    assert!(rows.chunks.rows.iter().all(|c| c.t_forwarded_ns.is_some()));
}

#[test]
fn a_reply_to_a_bad_request_is_the_proxys_own_and_costs_nobody_else() {
    let reply: Reply = Stream::chat(1, 0, 0).reply();
    let mock = MockLlm::start(Script::always(reply));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    for garbage in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"PRI"] {
        let mut stream = TcpStream::connect(proxy.addr).unwrap();
        stream.write_all(garbage).unwrap();
        drop(stream);
    }
    let connect = b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n";
    let refused = converse(proxy.addr, connect, LONG);
    assert_eq!(refused.status, "501 Not Implemented");
    assert_eq!(converse(proxy.addr, &chat("m", ""), LONG).status, "200 OK");
    assert_eq!(proxy.finish().requests.len(), 1);
}
