//! A proxy that begins new recordings while traffic flows, and deletes old ones.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use tapedeck_recording::manifest::State;
use tapedeck_recording::{Manifest, Outcome};

use crate::support::mock_llm::replies::{
    LAST_CHUNK, SSE_HEAD, Stream, chat_delta, http_chunk, sse,
};
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::programs::{run, run_line};
use crate::support::proxy::{Finish, ProxyProcess, chat, converse, post, receive, rows};

const LONG: Duration = Duration::from_secs(10);

/// What lies below `root`, oldest first.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // One that is just being deleted.
        .filter(|path| !path.to_str().unwrap().contains("/.removed-"))
        .collect();
    found.sort_by_key(|path| Manifest::load(path).map(|m| m.recording_id).ok());
    found
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("never: {what}");
}

fn until_sealed(path: &Path) {
    until("sealed", || {
        let manifest = Manifest::load(path).ok()?;
        (manifest.state == State::Sealed).then_some(())
    });
}

/// The recording that follows at a SIGHUP.
fn rotate(proxy: &ProxyProcess, root: &Path) -> PathBuf {
    let before = below(root);
    proxy.signal(Signal::SIGHUP);
    until("a new recording", || {
        let last = below(root).pop()?;
        let is_new = !before.contains(&last) && Manifest::load(&last).is_ok();
        is_new.then_some(last)
    })
}

/// The rows of a recording are all its own: numbers from 0, instants from its
/// start, and everything ended before it did.
fn assert_own(path: &Path, models: &[&str]) {
    run("analyze", ["check", path.to_str().unwrap()]).expect(0);
    let rows = rows(path);
    let requests = rows.requests.iter();
    let found: Vec<_> = requests.filter_map(|r| r.model.as_deref()).collect();
    assert_eq!(found, models);
    let ids: Vec<i64> = rows.requests.iter().map(|r| r.request_id).collect();
    assert_eq!(ids, (0..models.len() as i64).collect::<Vec<_>>());
    assert!(rows.responses.iter().all(|r| r.outcome == Outcome::Ok));
    let marks = rows.marks.iter();
    let ends: Vec<_> = marks.filter(|m| m.name.starts_with("phase")).collect();
    let last_ns = rows
        .responses
        .iter()
        .filter_map(|r| r.t_client_end_ns)
        .max();
    assert!(ends.len() == 2 && last_ns.unwrap() <= ends[1].t_ns);
    for request in &rows.requests {
        let dispatched_ns = request.t_dispatched_ns.unwrap();
        assert!(dispatched_ns >= 0 && dispatched_ns <= request.t_sent_ns.unwrap());
    }
    for chunk in &rows.chunks.rows {
        let forwarded_ns = chunk.t_forwarded_ns.unwrap();
        assert!(chunk.t_ns > 0 && chunk.t_ns <= forwarded_ns && Some(forwarded_ns) <= last_ns);
    }
}

/// A server of one answer, the rest of which comes when it is told to, as an
/// upstream of its own.
fn in_two_parts() -> (String, SyncSender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("/long=http://{}/", listener.local_addr().unwrap());
    let (go_on, told) = sync_channel(1);
    let token = |delta, finish| http_chunk(&sse(&chat_delta(delta, finish)));
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut buffer = [0; 4096];
            let n = socket.read(&mut buffer).unwrap();
            assert!(n > 0, "the request is whole");
            request.extend_from_slice(&buffer[..n]);
        }
        let first = token(r#"{"content":"a"}"#, None);
        let first = [SSE_HEAD.as_bytes(), &first].concat();
        socket.write_all(&first).unwrap();
        told.recv().unwrap();
        let second = token(r#"{"content":"b"}"#, Some("stop"));
        let rest = [second, http_chunk(&sse("[DONE]")), LAST_CHUNK.to_vec()].concat();
        socket.write_all(&rest).unwrap();
    };
    let thread = std::thread::Builder::new().name("in-two-parts".into());
    thread.spawn(serve).unwrap();
    (upstream, go_on)
}

#[test]
fn a_request_in_flight_ends_in_the_recording_it_began_in() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 0, 0).reply()));
    let (long, go_on) = in_two_parts();
    let dir = tempfile::tempdir().unwrap();
    let further = ["--workers", "2", "--upstream", &long];
    let proxy = ProxyProcess::start(&mock.url(), dir.path(), &further);
    let first = ProxyProcess::recording(dir.path());
    let mut client = TcpStream::connect(proxy.addr).unwrap();
    let request = r#"{"model":"long","stream":true}"#;
    let request = post("/long/v1/chat/completions", "", request);
    client.write_all(&request).unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    let second = rotate(&proxy, dir.path());
    // Workers follow within a tick; a busy machine may make that a long one.
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..3 {
        converse(proxy.addr, &chat("short", ""), LONG);
    }
    assert_eq!(Manifest::load(&first).unwrap().state, State::Open);
    go_on.send(()).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"0\r\n\r\n") {
        let mut buffer = [0; 4096];
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "the answer is whole");
        got.extend_from_slice(&buffer[..n]);
    }
    until_sealed(&first);
    // The client's connection goes on into the second recording.
    client.write_all(&chat("short", "")).unwrap();
    assert_eq!(receive(&mut client, false, LONG).finish, Finish::Whole);
    let ran = proxy.stop().expect(0);
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(summary["requests"], 5);
    assert_eq!(summary["recordings"].as_array().unwrap().len(), 2);
    let early = rows(&first).requests.len() - 1;
    assert!(
        early <= 3,
        "the last one came when the first recording was over"
    );
    assert_own(&first, &[&["long"][..], &["short"; 3][..early]].concat());
    assert_own(&second, &["short"; 4][early..]);
    let began = |path| Manifest::load(path).unwrap().monotonic_start_ns;
    assert!(began(&first) < began(&second));
}

#[test]
fn nothing_is_lost_or_doubled_at_a_rotation() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 0, 1).reply()));
    for limit in ["300ms", "1B"] {
        let dir = tempfile::tempdir().unwrap();
        let proxy = ProxyProcess::start(&mock.url(), dir.path(), &["--rotate", limit]);
        let mut sent = 0;
        until("three recordings", || {
            converse(
                proxy.addr,
                &chat("m", &format!("x-session-id: {sent}\r\n")),
                LONG,
            );
            sent += 1;
            (below(dir.path()).len() >= 3).then_some(())
        });
        proxy.stop().expect(0);
        let mut sessions = Vec::new();
        for path in below(dir.path()) {
            run("analyze", ["check", path.to_str().unwrap()]).expect(0);
            let rows = rows(&path);
            assert_eq!(rows.requests.len(), rows.responses.len());
            let counts = rows.responses.iter().map(|r| r.chunk_count as usize);
            assert_eq!(rows.chunks.rows.len(), counts.sum::<usize>());
            sessions.extend(rows.requests.into_iter().filter_map(|r| r.session_id));
        }
        let mut numbers: Vec<i32> = sessions.iter().map(|s| s.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "{limit}");
    }
}

#[test]
fn only_sealed_recordings_that_a_proxy_made_there_are_deleted() {
    let mock = MockLlm::start(Script::always(Stream::chat(1, 0, 0).reply()));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let record = |further: &[&str]| {
        let proxy = ProxyProcess::start(&mock.url(), root, further);
        converse(proxy.addr, &chat("m", ""), LONG);
        proxy.stop().expect(0);
    };
    record(&["--name", "other"]);
    record(&[]);
    let renamed = root.join("kept");
    let made = below(root).pop().unwrap();
    std::fs::rename(made, &renamed).unwrap();
    let name = "20260101T000000Z-proxy";
    let load = root.join(name);
    let line = format!(
        "load --url sim:?ttft_ms=1&tokens=1 --prompt x --number 1 --no-probe --json --name proxy --out {}",
        load.display()
    );
    run_line("record", &line).expect(0);
    let mut kept = below(root);
    record(&[]);
    let old = below(root).pop().unwrap();
    // One that a dead proxy left is not sealed.
    let dead = {
        let proxy = ProxyProcess::start(&mock.url(), root, &[]);
        drop(proxy);
        below(root).pop().unwrap()
    };
    assert_eq!(Manifest::load(&dead).unwrap().state, State::Open);
    let proxy = ProxyProcess::start(&mock.url(), root, &["--retain", "10GiB", "1B"]);
    until("the old one is gone", || (!old.exists()).then_some(()));
    converse(proxy.addr, &chat("m", ""), LONG);
    let last = below(root).pop().unwrap();
    let next = rotate(&proxy, root);
    until("the last one is gone", || (!last.exists()).then_some(()));
    kept.extend([dead, next]);
    kept.sort();
    let mut left = below(root);
    left.sort();
    assert_eq!(left, kept);
    let ran = proxy.stop().expect(0);
    let said = ran.stderr.matches("(--retain)").count();
    assert_eq!(said, 3, "{}", ran.stderr);
    let aged = ProxyProcess::start(&mock.url(), root, &["--name", "other", "--retain", "7d"]);
    aged.stop().expect(0);
    let named = |path: &&PathBuf| path.to_str().unwrap().contains("-other");
    assert_eq!(
        below(root).iter().filter(named).count(),
        2,
        "younger than a week"
    );
    let aged = ProxyProcess::start(&mock.url(), root, &["--name", "other", "--retain", "1ms"]);
    until("both are gone", || {
        (below(root).iter().filter(named).count() == 1).then_some(())
    });
    drop(aged);
}
