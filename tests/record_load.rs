//! `record load` against the mock server's ledger: order and containment.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapedeck_recording::manifest::State;
use tapedeck_recording::{ChunkKind, ChunkRow, EventBatch, Outcome, Phase, Recording, Table};

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Reply, Script, Served, Step};
use crate::support::programs::{program, run, run_line};
use crate::support::recording::events;

/// Bodies that say which request they are, one a line.
fn numbered_bodies(dir: &Path, count: usize) -> std::path::PathBuf {
    let path = dir.join("bodies.jsonl");
    let mut file = std::fs::File::create(&path).unwrap();
    for n in 0..count {
        let body = serde_json::json!({
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "user": n.to_string(),
        });
        writeln!(file, "{body}").unwrap();
    }
    path
}

fn number_of(body: &[u8]) -> usize {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["user"].as_str().unwrap().parse().unwrap()
}

fn content_of(events: &EventBatch) -> BTreeMap<i64, Vec<&ChunkRow>> {
    let mut content: BTreeMap<i64, Vec<&ChunkRow>> = BTreeMap::new();
    let rows = events.chunks.rows.iter();
    for chunk in rows.filter(|c| c.kind == ChunkKind::Content) {
        content.entry(chunk.request_id).or_default().push(chunk);
    }
    content
}

#[test]
fn no_arrival_is_earlier_than_its_send() {
    const REQUESTS: usize = 120;
    let stream = Stream::chat(30, 40, 5);
    let mock = MockLlm::start(Script::always(stream.reply()));
    let dir = tempfile::tempdir().unwrap();
    let bodies = numbered_bodies(dir.path(), REQUESTS);
    let out = dir.path().join("r");
    run_line(
        "record",
        &format!(
            "load --url {} --dataset line_by_line --dataset-path {} --parallel 40 --no-probe --json --out {}",
            mock.url(), bodies.display(), out.display()
        ),
    )
    .expect(0);
    let recording = Recording::open(&out).unwrap();
    let events = events(&recording);
    let served: BTreeMap<usize, Served> = mock
        .ledger()
        .into_iter()
        .map(|s| (number_of(&s.request.body), s))
        .collect();
    assert_eq!(served.len(), REQUESTS);
    let content = content_of(&events);
    let origin_ns = recording.manifest.monotonic_start_ns;
    assert_eq!(
        recording.manifest.timestamp_source.as_deref(),
        Some("kernel")
    );
    for request in &events.requests {
        let served = &served[&number_of(request.body.as_ref().unwrap())];
        let chunks = &content[&request.request_id];
        assert_eq!(chunks.len(), 30);
        for (index, chunk) in chunks.iter().enumerate() {
            let write = served.write_of(stream.step_of(index)).unwrap();
            assert!(
                chunk.t_ns + origin_ns >= write.t_before_ns,
                "chunk {index} came early"
            );
            assert!(chunk.t_seen_ns >= chunk.t_ns);
        }
        let instants = [
            request.t_scheduled_ns.unwrap(),
            request.t_dispatched_ns.unwrap(),
            request.t_sent_ns.unwrap(),
            chunks[0].t_ns,
        ];
        assert!(instants.is_sorted(), "{instants:?}");
        let reads: Vec<i32> = chunks.iter().map(|c| c.read_index).collect();
        assert!(reads.is_sorted());
    }
}

#[test]
fn warm_connections_stand_before_the_first_request() {
    const WARM: usize = 5;
    let mock = MockLlm::start(Script::always(Stream::chat(5, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    run_line(
        "record",
        &format!(
            "load --url {} --model m --prompt x --number 20 --rate 200 --workers 2 --no-probe \
             --warm-connections {WARM} --json --out {}",
            mock.url(),
            out.display()
        ),
    )
    .expect(0);
    let events = events(&Recording::open(&out).unwrap());
    let names: Vec<&str> = events.marks.iter().map(|m| &*m.name).collect();
    let warmed = names.iter().position(|name| *name == "connections_warmed");
    assert_eq!(
        &*events.marks[warmed.unwrap()].detail,
        r#"{"asked":5,"opened":5}"#
    );
    assert!(warmed < names.iter().position(|name| *name == "phase_begin"));
    for request in &events.requests {
        // Each worker's first request finds one that is there for it.
        let opened_one = request.t_connect_ns.is_some();
        assert!(request.request_id >= 2 || !opened_one);
        assert_eq!(request.conn_reused, Some(!opened_one));
    }
}

/// A whole answer, and then the connection is cut without a word.
fn answer_then_close() -> Reply {
    let mut steps = Stream::chat(5, 1, 1).reply().0.to_vec();
    steps.push(Step::pause_ms(5));
    steps.push(Step::Close);
    steps.into()
}

#[test]
fn a_connection_that_the_server_closed_silently_is_replaced_once() {
    // The server reads the second request on the old connection and cuts it.
    let mock = MockLlm::start(Script::in_order(vec![
        Stream::chat(5, 1, 1).reply(),
        vec![Step::Reset].into(),
        Stream::chat(5, 1, 1).reply(),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url {} --model m --prompt x --number 2 --no-probe --json --out {}",
        mock.url(),
        out.display()
    );
    run_line("record", &line).expect(0);
    let events = events(&Recording::open(&out).unwrap());
    let second: Vec<_> = events
        .requests
        .iter()
        .filter(|r| r.request_id == 1)
        .collect();
    assert_eq!(second.len(), 2, "two attempts");
    assert_eq!(second[0].conn_reused, Some(true));
    assert_eq!(second[1].conn_reused, Some(false));
    let outcomes: Vec<Outcome> = events
        .responses
        .iter()
        .filter(|r| r.request_id == 1)
        .map(|r| r.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::ConnectionError, Outcome::Ok]);

    // The report's instants are those of the attempt that was answered.
    // Equal where one read brought it all.
    let sql =
        "SELECT attempt, ttft_ms <= e2el_ms AS ordered FROM request_latency WHERE request_id = 1";
    let shown = run(
        "analyze",
        ["query", out.to_str().unwrap(), sql, "--format", "csv"],
    )
    .expect(0);
    assert_eq!(shown.stdout.lines().last(), Some("1,true"));
}

#[test]
fn keep_alive_is_used_and_closed_connections_are_noticed() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let line = |url: &str, out: &str| {
        format!(
            "load --url {url} --model m --prompt x --number 20 --no-probe --json --out {}",
            dir.path().join(out).display()
        )
    };
    run_line("record", &line(&mock.url(), "kept")).expect(0);
    assert_eq!(mock.connections(), 1, "20 requests on one connection");
    // A free slot goes to the worker that holds its connection.
    let several = line(&mock.url(), "workers") + " --workers 4 --parallel 2";
    run_line("record", &several).expect(0);
    assert_eq!(mock.connections(), 3, "one more for each of two slots");

    let closing = MockLlm::start(Script::always(answer_then_close()));
    run_line("record", &line(&closing.url(), "closed")).expect(0);
    let events = events(&Recording::open(&dir.path().join("closed")).unwrap());
    let ok = events.responses.iter().filter(|r| r.outcome == Outcome::Ok);
    assert_eq!(ok.count(), 20);
}

#[test]
fn the_probe_is_recorded_and_kept_apart() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url {} --model m --prompt x --number 3 --json --out {}",
        mock.url(),
        out.display()
    );
    let ran = run_line("record", &line).expect(0);
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(summary["requests"], 3);
    assert_eq!(summary["recordings"][0], out.to_str().unwrap());
    let events = events(&Recording::open(&out).unwrap());
    let phases: Vec<Phase> = events.requests.iter().map(|r| r.phase).collect();
    assert_eq!(
        phases,
        [Phase::Probe, Phase::Measure, Phase::Measure, Phase::Measure]
    );
}

#[test]
fn credentials_go_to_the_server_and_nowhere_else() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let url = format!("{}/v1?api-key=canary-url", mock.url());
    let line = format!(
        "load --url {url} --model m --prompt x --number 2 --api-key canary-key \
         --header x-api-key=canary-header Cookie=canary-cookie --out {}",
        out.display()
    );
    let ran = run_line("record", &line).expect(0);
    let received = &mock.ledger()[0].request;
    assert_eq!(received.header("authorization"), Some("Bearer canary-key"));
    assert_eq!(received.header("x-api-key"), Some("canary-header"));
    assert!(received.path.contains("canary-url"));
    assert!(!ran.stdout.contains("canary") && !ran.stderr.contains("canary"));
    let found = std::process::Command::new("grep")
        .args(["-ra", "canary"])
        .arg(&out)
        .output();
    assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "");
}

#[test]
fn equal_seeds_send_equal_requests_at_equal_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let sequence = |out: &str, seed: u64| {
        let out = dir.path().join(out);
        let line = format!(
            "load --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --prompt hello --number 40 --rate 400 --seed {seed} --json --out {}",
            out.display()
        );
        run_line("record", &line).expect(0);
        let events = events(&Recording::open(&out).unwrap());
        let measured = events.requests.iter().filter(|r| r.phase == Phase::Measure);
        let rows: Vec<_> = measured.collect();
        let first_ns = rows[0].t_scheduled_ns.unwrap();
        rows.iter()
            .map(|r| (r.body_hash.clone(), r.t_scheduled_ns.unwrap() - first_ns))
            .collect::<Vec<_>>()
    };
    let first = sequence("a", 1);
    assert_eq!(first, sequence("b", 1));
    assert_ne!(first, sequence("c", 2));
}

#[test]
fn a_signal_stops_sending_and_seals() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut child = program("record")
        .args([
            "load",
            "--url",
            "sim:?ttft_ms=20&itl_ms=2&tokens=20",
            "--prompt",
            "x",
        ])
        .args(["--duration", "60s", "--parallel", "4", "--json", "--out"])
        .arg(&out)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Until the load is under way; the bound only keeps a broken run from hanging.
    let under_way = || {
        let recording = Recording::open(&out);
        recording.is_ok_and(|r| r.rows(Table::Responses).unwrap().responses.len() > 4)
    };
    for _ in 0..600 {
        if under_way() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let recording = Recording::open(&out).unwrap();
    assert_eq!(recording.manifest.state, State::Sealed);
    let events = events(&recording);
    assert!(events.requests.len() > 1);
    assert_eq!(
        events.requests.len(),
        events.responses.len(),
        "none is unfinished"
    );
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
}

#[test]
fn a_sweep_makes_one_recording_a_level() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let line = format!(
        "load --url sim:?ttft_ms=5&itl_ms=1&tokens=5 --prompt x --parallel 1 4 --number 4 16 --out {}",
        out.display()
    );
    let ran = run_line("record", &line).expect(0);
    let recordings = Recording::open_all(&out).unwrap();
    let sent: Vec<u64> = recordings
        .iter()
        .map(|r| r.manifest.rows(Table::Requests))
        .collect();
    // One probe each.
    assert_eq!(sent, [5, 17]);
    assert!(ran.stdout.contains("TTFT"));
}

#[test]
fn waiting_for_a_slot_is_load_and_not_lateness_of_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url sim:?ttft_ms=50&itl_ms=1&tokens=2 --prompt x --rate -1 --parallel 1 --number 8 --json --out {}",
        out.display()
    );
    run_line("record", &line).expect(0);
    // From the free slot on it is the client, and a busy machine may make that late.
    let sql = "SELECT verdict = 'ok' OR slot_lag_ms_p99 > 10 OR reason LIKE 'chunks waited%'
          AS punctual,
        dispatch_lag_ms_p99 IS NULL AS unknown,
        (SELECT max(queue_delay_ms) FROM request_latency) > 100 AS waited
        FROM verdict JOIN schedule_lag USING (recording_id)";
    let shown = run(
        "analyze",
        ["query", out.to_str().unwrap(), sql, "--format", "csv"],
    )
    .expect(0);
    assert_eq!(shown.stdout.lines().last(), Some("true,true,true"));
}
