//! What passes through the proxy, and what it records of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use tapedeck_recording::{ChunkKind, EventBatch, Outcome, Phase, ResponseRow};

use crate::support::answers::{Answer, all, script};
use crate::support::mock_llm::replies::{Stream, http_chunk, sse};
use crate::support::mock_llm::{MockLlm, Reply, Script, Step};
use crate::support::programs::{run, run_line};
use crate::support::proxy::{Finish, ProxyProcess, Seen, chat, converse, post, receive};

/// With an answer that ends in silence.
const PATIENCE: Duration = Duration::from_millis(1200);
/// With one that ends.
const LONG: Duration = Duration::from_secs(10);

/// Answers that a client sees otherwise, and how.
fn through_proxy(answer: &Answer, mut direct: Seen) -> Seen {
    match answer.name {
        // No HTTP came: the proxy says so.
        "nothing" | "nothttp" => {
            direct.status = "502 Bad Gateway".to_owned();
            direct.finish = Finish::Whole;
        }
        // Trailers go only to those who say that they take them.
        "trailers" => direct.trailers.clear(),
        _ => {}
    }
    direct
}

/// What the recording must say where the client's leaving ends the answer.
fn outcome(answer: &Answer) -> Outcome {
    match answer.expect.outcome {
        Outcome::Timeout => Outcome::Cancelled,
        other => other,
    }
}

fn response_of<'a>(rows: &'a EventBatch, model: &str) -> &'a ResponseRow {
    let named = |r: &&tapedeck_recording::RequestRow| r.model.as_deref() == Some(model);
    let request = rows.requests.iter().filter(named).max_by_key(|r| r.attempt);
    let request = request.unwrap_or_else(|| panic!("{model} is recorded"));
    let key = (request.request_id, request.attempt);
    let mut responses = rows.responses.iter();
    responses
        .find(|r| (r.request_id, r.attempt) == key)
        .unwrap()
}

fn chunks_of(rows: &EventBatch, request_id: i64) -> Vec<&tapedeck_recording::ChunkRow> {
    let chunks = rows.chunks.rows.iter();
    chunks.filter(|c| c.request_id == request_id).collect()
}

#[test]
fn awkward_answers_reach_the_client_and_the_recording_as_they_are() {
    let answers = all();
    let mock = MockLlm::start(script());
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let proxy_addr = proxy.addr;
    let direct_addr = mock.url().strip_prefix("http://").unwrap().parse().unwrap();
    let pairs: Vec<(Seen, Seen)> = std::thread::scope(|scope| {
        let pair = |answer: &Answer| {
            let request = chat(answer.name, "");
            let (one, two) = (request.clone(), request);
            let is_silent = matches!(answer.steps.last(), Some(Step::Stall));
            let patience = if is_silent { PATIENCE } else { LONG };
            let direct = scope.spawn(move || converse(direct_addr, &one, patience));
            let proxied = scope.spawn(move || converse(proxy_addr, &two, patience));
            (direct, proxied)
        };
        let threads: Vec<_> = answers.iter().map(pair).collect();
        let join = |(a, b): (
            std::thread::ScopedJoinHandle<'_, Seen>,
            std::thread::ScopedJoinHandle<'_, Seen>,
        )| (a.join().unwrap(), b.join().unwrap());
        threads.into_iter().map(join).collect()
    });
    let rows = proxy.finish();
    let mut wrong = Vec::new();
    for (answer, (direct, proxied)) in answers.iter().zip(pairs) {
        let mut expected = through_proxy(answer, direct);
        if expected.status.starts_with("502") {
            expected.headers.clone_from(&proxied.headers);
            expected.body.clone_from(&proxied.body);
        }
        if expected != proxied {
            wrong.push(format!("{}: {expected:?}\n  but {proxied:?}", answer.name));
        }
        wrong.extend(misrecorded(answer, &rows));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn misrecorded(answer: &Answer, rows: &EventBatch) -> Option<String> {
    let response = response_of(rows, answer.name);
    let content = [ChunkKind::Content, ChunkKind::Tool, ChunkKind::Reasoning];
    let chunks = chunks_of(rows, response.request_id);
    let bearing = chunks.iter().filter(|c| content.contains(&c.kind)).count();
    let expect = &answer.expect;
    let found = (
        response.outcome,
        response.status,
        bearing,
        response.output_tokens,
        response.finish_reason.as_deref(),
        response.malformed_chunks,
    );
    let expected = (
        outcome(answer),
        expect.status,
        expect.content_chunks,
        expect.output_tokens,
        expect.finish_reason,
        expect.malformed_chunks,
    );
    (found != expected).then(|| format!("{}: recorded {found:?}, not {expected:?}", answer.name))
}

#[test]
fn both_legs_are_stamped_in_their_order() {
    let mock = MockLlm::start(Script::always(Stream::chat(10, 20, 5).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    // The second request of one connection meets a kept one upstream.
    for _ in 0..2 {
        stream.write_all(&chat("m", "")).unwrap();
        assert_eq!(receive(&mut stream, false, LONG).finish, Finish::Whole);
    }
    proxy.await_metric("tapedeck_proxy_requests_total{outcome=\"ok\"}", 2.0);
    let of_answers =
        |name: &str| proxy.metric(&format!("tapedeck_proxy_{name}{{leg=\"response\"}}"));
    let added = of_answers("added_latency_seconds_count");
    assert!(added > 2.0);
    assert_eq!(of_answers("waited_seconds_count"), added);
    let added_s = of_answers("added_latency_seconds_sum");
    assert!(of_answers("waited_seconds_sum") <= added_s);
    let rows = proxy.finish();
    assert_eq!(mock.connections(), 1);
    assert_eq!(rows.requests.len(), 2);
    for (request, response) in rows.requests.iter().zip(&rows.responses) {
        assert_eq!(request.t_scheduled_ns, None);
        assert_eq!(request.conn_reused, Some(request.request_id == 1));
        assert_eq!(request.max_output_tokens, Some(20));
        assert!(request.stream);
        let mut instants = vec![
            request.t_received_ns.unwrap(),
            request.t_sent_ns.unwrap(),
            response.t_headers_ns.unwrap(),
        ];
        let chunks = chunks_of(&rows, request.request_id);
        assert!(chunks.len() > 10);
        let forwarded: Vec<i64> = chunks.iter().map(|c| c.t_forwarded_ns.unwrap()).collect();
        assert!(forwarded.is_sorted());
        for chunk in &chunks {
            let own = [chunk.t_ns, chunk.t_seen_ns, chunk.t_forwarded_ns.unwrap()];
            assert!(own.is_sorted(), "{own:?}");
        }
        instants.extend(chunks.iter().map(|c| c.t_ns));
        instants.push(response.t_end_ns.unwrap());
        assert!(instants.is_sorted(), "{instants:?}");
        let last = forwarded.last().unwrap();
        assert!(response.t_client_end_ns.unwrap() >= *last);
    }
    // What one read brought has left before the next is taken.
    let chunks = chunks_of(&rows, 0);
    let mut reads = 0;
    for pair in chunks
        .windows(2)
        .filter(|p| p[0].read_index < p[1].read_index)
    {
        assert!(pair[0].t_forwarded_ns.unwrap() <= pair[1].t_seen_ns);
        reads += 1;
    }
    assert!(reads > 0, "the tokens came in more than one read");
}

/// The process that was started is the one that serves: its signals end it, and its
/// allocator gives memory back.
#[test]
fn the_allocator_is_told_to_give_memory_back() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start("http://127.0.0.1:9", dir.path(), &[]);
    let environment = proxy.environment();
    for name in ["MALLOC_MMAP_THRESHOLD_=", "MALLOC_TRIM_THRESHOLD_="] {
        assert!(environment.contains(name), "{name}");
    }
    proxy.stop().expect(0);
}

/// What the mock saw of the only request.
fn seen_by_server(mock: &MockLlm) -> crate::support::mock_llm::Received {
    let ledger = mock.ledger();
    assert_eq!(ledger.len(), 1);
    (*ledger[0].request).clone()
}

#[test]
fn a_request_arrives_as_it_was_sent_but_for_what_is_the_connections() {
    let mock = MockLlm::start(Script::always(Stream::chat(1, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let upstream = format!("{}/base/", mock.url());
    let proxy = ProxyProcess::start(&upstream, dir.path(), &[]);
    let headers = "X-MiXed-Case: 1\r\nAccept-Encoding: br, zstd\r\nConnection: keep-alive, X-Hop\r\nX-Hop: gone\r\nx-tapedeck-record: full\r\n";
    let body = r#"{"model":"m","stream":true,"x":"é\u0000"}"#;
    let request = post("/v1/chat/completions?a=1&api-key=s3cret", headers, body);
    assert_eq!(converse(proxy.addr, &request, LONG).status, "200 OK");
    let seen = seen_by_server(&mock);
    assert_eq!(seen.path, "/base/v1/chat/completions?a=1&api-key=s3cret");
    assert_eq!(seen.body, body.as_bytes());
    let host = mock.url().strip_prefix("http://").unwrap().to_owned();
    let mut found = seen.headers;
    found.sort();
    let expected = [
        ("Accept-Encoding", "br, zstd"),
        ("Content-Length", &body.len().to_string()),
        ("Content-Type", "application/json"),
        ("Host", &host),
        ("X-MiXed-Case", "1"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    assert_eq!(found, expected);
    let rows = proxy.finish();
    assert_eq!(rows.requests[0].query.as_deref(), Some("a=1&api-key=***"));
    assert_eq!(rows.requests[0].body.as_deref(), Some(body.as_bytes()));
}

#[test]
fn a_body_is_passed_on_while_it_comes() {
    let mock = MockLlm::start(Script::always(Stream::chat(1, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    stream
        .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
        .unwrap();
    // The server's own word lets the body go.
    let mut interim = [0; 25];
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let body = format!(
        r#"{{"model":"m","stream":true,"pad":"{}"}}"#,
        "x".repeat(3 << 20)
    );
    for piece in body.as_bytes().chunks(100_000) {
        stream.write_all(&http_chunk(piece)).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(receive(&mut stream, false, LONG).status, "200 OK");
    assert_eq!(seen_by_server(&mock).body, body.as_bytes());
    let rows = proxy.finish();
    assert_eq!(rows.requests[0].body.as_deref(), Some(body.as_bytes()));
    assert_eq!(rows.requests[0].model.as_deref(), Some("m"));
}

#[test]
fn answers_without_bodies_and_other_methods_pass() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-A: b\r\n\r\n";
    let answer = |text: &str| Reply::from(vec![Step::send(text)]);
    let mock = MockLlm::start(Script::by_path(vec![
        ("/head".to_owned(), answer(head)),
        (
            "/none".to_owned(),
            answer("HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n"),
        ),
        (
            "/same".to_owned(),
            answer("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n"),
        ),
        (
            "/odd".to_owned(),
            answer(
                "HTTP/1.1 299 Odd Reason\r\nSet-Cookie: a\r\nSet-Cookie: b\r\ncontent-length: 2\r\n\r\nok",
            ),
        ),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let direct = mock.url().strip_prefix("http://").unwrap().parse().unwrap();
    for line in [
        "HEAD /head",
        "GET /none",
        "GET /same",
        "DELETE /odd",
        "GET /missing",
    ] {
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n");
        let expected = converse(direct, request.as_bytes(), LONG);
        assert_eq!(expected.finish, Finish::Whole);
        assert_eq!(
            converse(proxy.addr, request.as_bytes(), LONG),
            expected,
            "{line}"
        );
    }
    proxy.await_metric(
        "tapedeck_proxy_unrecorded_requests_total{reason=\"path\"}",
        5.0,
    );
    assert!(proxy.finish().requests.is_empty());
}

#[test]
fn trailers_reach_those_who_take_them() {
    let stream = "HTTP/1.1 200 OK\r\nTrailer: server-timing\r\ntransfer-encoding: chunked\r\n\r\n";
    let steps = vec![
        Step::send(stream),
        Step::send(http_chunk(&sse("[DONE]"))),
        Step::send("0\r\nserver-timing: total;dur=1\r\n\r\n"),
    ];
    let mock = MockLlm::start(Script::always(steps));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    let seen = converse(proxy.addr, &chat("m", "TE: trailers\r\n"), LONG);
    assert_eq!(seen.trailers, ["server-timing: total;dur=1"]);
    let rows = proxy.finish();
    let expected = [("server-timing".to_owned(), "total;dur=1".to_owned())];
    assert_eq!(rows.responses[0].trailers.as_deref(), Some(&expected[..]));
}

#[test]
fn a_websocket_is_carried_both_ways_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::Builder::new().name("websocket".into());
    let server = server.spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        // The first bytes of the new protocol come with the agreement.
        socket
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello")
            .unwrap();
        let mut echo = [0; 4];
        socket.read_exact(&mut echo).unwrap();
        socket.write_all(&echo).unwrap();
        String::from_utf8(head).unwrap()
    });
    let server = server.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&upstream, dir.path(), &[]);
    let mut stream = TcpStream::connect(proxy.addr).unwrap();
    stream
        .write_all(b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\nping")
        .unwrap();
    let mut got = String::new();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.read_to_string(&mut got).unwrap();
    assert!(
        got.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{got}"
    );
    assert!(
        got.to_lowercase().contains("upgrade: websocket\r\n"),
        "{got}"
    );
    assert!(got.ends_with("\r\n\r\nhelloping"), "{got}");
    let head = server.join().unwrap().to_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-key: k"));
    proxy.await_metric(
        "tapedeck_proxy_unrecorded_requests_total{reason=\"upgrade\"}",
        1.0,
    );
    assert!(proxy.finish().requests.is_empty());
}

#[test]
fn what_is_recorded_can_be_chosen() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let further = [
        "--match",
        "/v1/chat/",
        "--session-header",
        "x-conversation",
        "--session-field",
        "/user",
    ];
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &further);
    let ask = |path: &str, headers: &str| {
        let body = r#"{"model":"m","stream":true,"user":"from the body"}"#;
        let seen = converse(proxy.addr, &post(path, headers, body), LONG);
        assert_eq!(seen.status, "200 OK");
    };
    ask("/v1/chat/completions", "x-conversation: c-1\r\n");
    ask("/v1/chat/completions", "");
    ask("/v1/chat/completions", "x-tapedeck-record: off\r\n");
    ask("/v1/completions", "");
    ask("/v1/chat/completions", "X-Tapedeck-Record: hashed\r\n");
    let rows = proxy.finish();
    let mut sessions: Vec<_> = rows
        .requests
        .iter()
        .map(|r| r.session_id.as_deref())
        .collect();
    assert_eq!(sessions.len(), 3);
    assert_eq!(sessions[..2], [Some("c-1"), Some("from the body")]);
    let hashed = sessions.pop().unwrap().unwrap();
    assert_eq!(hashed.len(), 32);
    assert!(rows.requests[2].body.is_none() && rows.requests[1].body.is_some());
    let wishes =
        |r: &crate::support::mock_llm::Served| r.request.header("x-tapedeck-record").is_some();
    assert!(!mock.ledger().iter().any(wishes));
}

#[test]
fn sampling_takes_or_leaves_a_session_whole() {
    let mock = MockLlm::start(Script::always(Stream::chat(1, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--sample", "0.5"]);
    for turn in 0..2 {
        for session in 0..20 {
            let headers = format!("x-session-id: {session}\r\nx-turn: {turn}\r\n");
            converse(proxy.addr, &chat("m", &headers), LONG);
        }
    }
    let rows = proxy.finish();
    let mut turns = std::collections::BTreeMap::new();
    for request in &rows.requests {
        *turns
            .entry(request.session_id.clone().unwrap())
            .or_insert(0) += 1;
    }
    assert!((3..=17).contains(&turns.len()), "{}", turns.len());
    assert!(turns.values().all(|n| *n == 2), "{turns:?}");
    let ids: Vec<i64> = rows.requests.iter().map(|r| r.request_id).collect();
    let expected: Vec<i64> = (0..).take(ids.len()).collect();
    assert_eq!(ids, expected, "numbers have no gaps");
}

#[test]
fn a_proxied_recording_is_analyzed_and_replayed_like_any_other() {
    let mock = MockLlm::start(Script::always(Stream::chat(5, 10, 2).reply()));
    let dir = tempfile::tempdir().unwrap();
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &[]);
    for _ in 0..3 {
        converse(proxy.addr, &chat("m", ""), LONG);
        std::thread::sleep(Duration::from_millis(30));
    }
    proxy.finish();
    let path = ProxyProcess::recording(dir.path());
    let path = path.to_str().unwrap();
    let report = run("analyze", ["report", path, "--format", "json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let recording = &report["recordings"][0];
    assert_eq!(recording["counts"]["succeeded"], 3);
    let metrics = recording["metrics"].as_array().unwrap();
    let mean = |name: &str| {
        let found = metrics
            .iter()
            .find(|m| m["metric"] == name && m["stat"] == "mean");
        found.and_then(|m| m["value"].as_f64())
    };
    let original = crate::support::proxy::rows(Path::new(path));
    let first_ns = |r: &tapedeck_recording::RequestRow| chunks_of(&original, r.request_id)[0].t_ns;
    let ttft_ns = |r| first_ns(r) - r.t_sent_ns.unwrap();
    let ttft_ms = original.requests.iter().map(ttft_ns).sum::<i64>() as f64 / 3e6;
    assert!(
        (mean("ttft_ms").unwrap() - ttft_ms).abs() < 1e-6,
        "{ttft_ms}"
    );
    // Nothing scheduled these requests.
    assert_eq!(mean("ttft_scheduled_ms"), None);
    let plan = run_line("replay", &format!("plan {path}")).expect(0);
    // A header and one line a request.
    assert_eq!(plan.stdout.lines().count(), 4, "{}", plan.stdout);
    let again = dir.path().join("again");
    let line = format!(
        "run {path} --url {} --json --out {}",
        mock.url(),
        again.display()
    );
    run_line("replay", &line).expect(0);
    let rows = crate::support::proxy::rows(&again);
    let measured = rows.requests.iter();
    let mut due: Vec<i64> = measured
        .filter(|r| r.phase == Phase::Measure)
        .filter_map(|r| r.t_scheduled_ns)
        .collect();
    due.sort_unstable();
    let mut came: Vec<i64> = original
        .requests
        .iter()
        .filter_map(|r| r.t_received_ns)
        .collect();
    came.sort_unstable();
    let gaps = |t: &[i64]| t.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>();
    assert_eq!(gaps(&due), gaps(&came));
}
