//! The server's own metrics beside a load, and the verdict on the client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tapedeck_analyze::{Parameters, Session, session};
use tapedeck_recording::Recording;
use tapedeck_simulator::{Running, SimConfig, Simulator};

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::nobody::Nobody;
use crate::support::programs::{Ran, program, run, run_line};
use crate::support::proxy::{ProxyProcess, chat, converse};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn ask<T: serde::de::DeserializeOwned>(path: &Path, sql: &str) -> Vec<T> {
    block_on(async {
        let recordings = session::open_all(&[path.to_owned()]).unwrap();
        let parameters = Parameters::default();
        let session = Session::open(recordings, &parameters).await.unwrap();
        session.rows(sql).await.unwrap()
    })
}

#[derive(Deserialize)]
struct Judged {
    verdict: String,
    reason: String,
}

fn judged(path: &Path) -> Judged {
    ask(path, "SELECT verdict, reason FROM verdict")
        .pop()
        .unwrap()
}

/// The verdict on `path`, which is not `ok`, for a reason that is one `is_cause` knows.
#[track_caller]
fn doubted(path: &Path, is_cause: impl Fn(&str) -> bool) -> Judged {
    let judged = judged(path);
    assert_ne!(judged.verdict, "ok", "{}", judged.reason);
    assert!(is_cause(&judged.reason), "{}", judged.reason);
    judged
}

fn simulator(settings: &str) -> Running {
    let config = SimConfig::from_url(&format!("sim:?{settings}")).unwrap();
    Simulator::start(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

fn metrics_text(server: &Running) -> String {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_servers_queue_and_its_ttft_stand_beside_the_clients() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = "load --url sim:?ttft_ms=50&itl_ms=5&tokens=30&slots=2 --prompt x --parallel 8 \
        --number 16 --server-metrics auto --server-metrics-interval 100ms --out";
    let words = line.split_whitespace().map(Into::into);
    let ran = run("record", words.chain([out.clone().into_os_string()])).expect(0);
    assert!(ran.stdout.contains("(vllm): at most"), "{}", ran.stdout);

    #[derive(Deserialize)]
    struct Seen {
        scrapes: i64,
        waiting_requests_max: f64,
        running_requests_max: f64,
        server_ttft_ms_mean: f64,
        first_tokens: i64,
        client_ttft_ms_max: f64,
        source: String,
    }
    let sql = "SELECT s.*, \
        (SELECT sum(server_ttft_n) FROM server_vs_client) AS first_tokens, \
        (SELECT max(ttft_ms) FROM request_latency) AS client_ttft_ms_max \
        FROM server_summary AS s";
    let seen: Seen = ask(&out, sql).pop().unwrap();
    assert!(seen.source.starts_with("server:http://127.0.0.1:"));
    assert!(seen.scrapes >= 3, "{}", seen.scrapes);
    // Eight at a time for two slots.
    assert!((1.0..=6.0).contains(&seen.waiting_requests_max));
    assert!((1.0..=2.0).contains(&seen.running_requests_max));
    // The server's is part of the client's: no mean of the one is above all of the other.
    assert!(seen.server_ttft_ms_mean >= 50.0 * 0.9);
    assert!(seen.server_ttft_ms_mean <= seen.client_ttft_ms_max);
    // With the probe; those of the first second have no second before them.
    assert!(
        (1..=17).contains(&seen.first_tokens),
        "{}",
        seen.first_tokens
    );
    let recording = Recording::open(&out).unwrap();
    assert_eq!(
        recording.manifest.settings["server_metrics"]["sources"][0],
        seen.source
    );
}

#[test]
fn a_scrape_that_fails_is_told_and_nothing_else_fails() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let nobody = Nobody::take();
    let gone = nobody.addr;
    let line = format!(
        "load --url sim:?ttft_ms=1&itl_ms=1&tokens=3 --prompt x --number 4 --no-report \
         --server-metrics http://{gone}/metrics?token=hunter2 --out {}",
        out.display()
    );
    let ran = run_line("record", &line).expect(0);
    assert!(
        ran.stderr.contains("scrapes of server:http://"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    let manifest = std::fs::read_to_string(out.join("recording.json")).unwrap();
    assert!(!manifest.contains("hunter2"));

    #[derive(Deserialize)]
    struct Mark {
        name: String,
        detail: String,
    }
    let sql = "SELECT name, detail FROM marks WHERE name LIKE 'server_metrics%' ORDER BY t_ns";
    let marks: Vec<Mark> = ask(&out, sql);
    let names: Vec<&str> = marks.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["server_metrics_failed", "server_metrics"]);
    assert!(marks.iter().all(|m| !m.detail.contains("hunter2")));
    let tally: serde_json::Value = serde_json::from_str(&marks[1].detail).unwrap();
    assert_eq!(tally["failed"], tally["scrapes"]);

    let bad = format!(
        "load --url sim: --prompt x --server-metrics me:hunter2@host --out {}",
        dir.path().join("bad").display()
    );
    let ran = run_line("record", &bad).expect(2);
    assert!(ran.stderr.contains("--server-metrics") && ran.stderr.contains("hint: "));
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
}

#[test]
fn a_proxy_scrapes_the_server_behind_it_for_every_recording() {
    let server = simulator("ttft_ms=5&itl_ms=1&tokens=5");
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.addr());
    let flags = [
        "--server-metrics",
        "auto",
        "--server-metrics-interval",
        "100ms",
    ];
    let proxy = ProxyProcess::start(&url, dir.path(), &flags);
    converse(proxy.addr, &chat("x", ""), Duration::from_secs(10));
    proxy.stop().expect(0);
    #[derive(Deserialize)]
    struct Row {
        tokens: f64,
    }
    let sql = "SELECT max(value) AS tokens FROM server_metric WHERE metric = 'output_tokens'";
    let rows: Vec<Row> = ask(&ProxyProcess::recording(dir.path()), sql);
    assert!(rows[0].tokens >= 5.0);
}

/// Runs `record` on one core of those that this test may use.
fn on_one_core(line: &str) -> Ran {
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let core = (0..CpuSet::count()).find(|core| all.is_set(*core).unwrap());
    let mut one = CpuSet::new();
    one.set(core.unwrap()).unwrap();
    // A child starts with the affinity of the thread that starts it.
    let output = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut command = program("record");
            command.args(line.split_whitespace());
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            command.output().unwrap()
        });
        thread.join().unwrap()
    });
    output.into()
}

#[test]
fn a_client_without_a_core_to_spare_is_saturated_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    // A write of the server is hundreds of chunks for the client to understand.
    let answer = Stream::chat(400, 0, 0).reply_in_bulk(64 << 10);
    let mock = MockLlm::start(Script::always(answer));
    on_one_core(&format!(
        "load --url {} --model m --prompt x --parallel 16 --duration 3s --no-report \
         --workers 1 --out {}",
        mock.url(),
        out.display()
    ))
    .expect(0);
    let causes = [
        "wanted a core",
        "cores it may use",
        "waited for the recording",
    ];
    let Judged { verdict, .. } = doubted(&out, |reason| causes.iter().any(|c| reason.contains(c)));
    // Nothing but the title stands before it.
    let report = run("analyze", ["report".as_ref(), out.as_os_str()]).expect(0);
    let first = report.stdout.lines().nth(2).unwrap();
    assert!(
        first.starts_with(&format!("Verdict: {verdict} (")),
        "{first}"
    );
}

#[test]
fn an_open_loop_faster_than_the_client_is_saturated_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mock = MockLlm::start(Script::always(Stream::chat(3, 0, 0).reply()));
    // All are due within 8 ms; a core takes many times that to connect and send them.
    on_one_core(&format!(
        "load --url {} --model m --prompt x --rate 100000 --number 800 --no-report --out {}",
        mock.url(),
        out.display()
    ))
    .expect(0);
    let causes = [
        "requests left late: dispatch lag",
        "chunks waited for this client: read lag",
    ];
    doubted(&out, |reason| causes.iter().any(|c| reason.starts_with(c)));
    #[derive(Deserialize)]
    struct Late {
        sent: i64,
        dispatch_lag_ms_p99: f64,
    }
    let sql = "SELECT (SELECT count(*) FROM requests WHERE phase = 'measure') AS sent, \
        dispatch_lag_ms_p99 FROM schedule_lag";
    let late: Late = ask(&out, sql).pop().unwrap();
    // Late, and none left out.
    assert_eq!(late.sent, 800);
    assert!(
        late.dispatch_lag_ms_p99 > 10.0,
        "{}",
        late.dispatch_lag_ms_p99
    );
}

#[test]
fn strict_ends_with_1_when_the_client_slept_through_its_chunks() {
    let server = simulator("ttft_ms=400&itl_ms=10&tokens=10");
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let out = dir.path().join(name);
        let mut command = program("record");
        command.args(
            format!(
                "load --url http://{} --prompt x --parallel 4 --number 4 --no-probe --strict \
                 --json --out {}",
                server.addr(),
                out.display()
            )
            .split_whitespace(),
        );
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        (command, out)
    };
    let (mut awake, out) = load("awake");
    let ran: Ran = awake.output().unwrap().into();
    // A machine that is busy enough makes this one late, too.
    ran.expect(i32::from(judged(&out).verdict == "invalid"));

    // Once all are under way; one that was over before anybody looked runs again.
    let under_way = |attempt: usize| {
        let (mut asleep, out) = load(&format!("asleep-{attempt}"));
        let mut child = asleep.spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if metrics_text(&server).contains("vllm:num_requests_running 4") {
                return Some((child, out));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    };
    let (child, out) = (0..5).find_map(under_way).expect("four at a time");
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    // Half a second of answers, and more than the bound on top.
    std::thread::sleep(Duration::from_millis(1500));
    kill(pid, Signal::SIGCONT).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap()).expect(1);
    assert!(ran.stderr.contains("invalid: "), "{}", ran.stderr);
    let Judged { verdict, reason } = judged(&out);
    assert_eq!(verdict, "invalid");
    assert!(
        reason.starts_with("chunks waited for this client"),
        "{reason}"
    );
}

#[test]
fn an_open_loop_with_slots_is_judged_by_what_the_client_counted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url sim:?ttft_ms=20&itl_ms=1&tokens=3 --prompt x --parallel 2 --rate 400 \
         --number 40 --no-report --out {}",
        out.display()
    );
    run_line("record", &line).expect(0);
    #[derive(Deserialize)]
    struct Lag {
        dispatch_lag_ms_p99: Option<f64>,
        pacer_lag_ms_max: f64,
        slot_lag_ms_max: f64,
        queue_delay_ms_max: f64,
    }
    let sql = "SELECT l.*, (SELECT max(queue_delay_ms) FROM request_latency) \
        AS queue_delay_ms_max FROM schedule_lag AS l";
    let lag: Lag = ask(&out, sql).pop().unwrap();
    assert_eq!(lag.dispatch_lag_ms_p99, None);
    // Two slots serve 80 a second and 400 come: most of the delay is theirs.
    assert!(lag.pacer_lag_ms_max <= lag.slot_lag_ms_max);
    assert!(lag.slot_lag_ms_max < lag.queue_delay_ms_max);
}
