//! Load shapes: when requests leave, in which order, and what counts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tapedeck_recording::{MarkRow, Phase, Recording, RequestRow, Table};

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script, Served};
use crate::support::programs::{Ran, program, run, run_line};

const MS: i64 = 1_000_000;

/// A file of `count` prompts, each its own number.
fn prompts(dir: &Path, count: usize) -> String {
    let path = dir.join("prompts.txt");
    let lines: String = (0..count).map(|n| format!("prompt {n}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    path.display().to_string()
}

fn prompt_number(body: &[u8]) -> usize {
    let body: Value = serde_json::from_slice(body).unwrap();
    let prompt = body["messages"][0]["content"].as_str().unwrap();
    prompt.rsplit(' ').next().unwrap().parse().unwrap()
}

fn load(mock: &MockLlm, out: &Path, rest: &str) -> Ran {
    let line = format!(
        "load --url {} --model m --no-probe --json --out {} {rest}",
        mock.url(),
        out.display()
    );
    run_line("record", &line)
}

/// All requests in the order of their ids.
fn requests(out: &Path) -> Vec<RequestRow> {
    let recording = Recording::open(out).unwrap();
    let mut rows = recording.rows(Table::Requests).unwrap().requests;
    rows.sort_by_key(|row| row.request_id);
    rows
}

fn of_phase(rows: &[RequestRow], phase: Phase) -> Vec<&RequestRow> {
    rows.iter().filter(|row| row.phase == phase).collect()
}

/// Scheduled instants from the first on, and bodies.
fn plan(rows: &[&RequestRow]) -> Vec<(i64, String)> {
    let first_ns = rows[0].t_scheduled_ns.unwrap();
    rows.iter()
        .map(|row| {
            let offset_ns = row.t_scheduled_ns.unwrap() - first_ns;
            (offset_ns, row.body_hash.as_deref().unwrap().to_owned())
        })
        .collect()
}

fn settings(out: &Path) -> Value {
    Recording::open(out).unwrap().manifest.settings
}

fn ask(out: &Path, sql: &str) -> String {
    let shown = run(
        "analyze",
        ["query", out.to_str().unwrap(), sql, "--format", "csv"],
    );
    let shown = shown.expect(0).stdout;
    shown.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_rate_that_changes_is_kept_to_and_is_the_same_for_the_same_seed() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 5, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(dir.path(), 7);
    let series = |name: &str, seed: u64| {
        let out = dir.path().join(name);
        let rest = format!(
            "--dataset-path {prompts} --rate-series 40@500ms,40..160:exponential@500ms \
             --burstiness 3 --seed {seed}"
        );
        load(&mock, &out, &rest).expect(0);
        out
    };
    let (first, again, other) = (series("a", 1), series("b", 1), series("c", 2));
    let rows = requests(&first);
    let planned = plan(&of_phase(&rows, Phase::Measure));
    assert_eq!(planned, plan(&of_phase(&requests(&again), Phase::Measure)));
    assert_ne!(planned, plan(&of_phase(&requests(&other), Phase::Measure)));

    // 20 are to be expected of the first half and 43 of the second; the shape ends it.
    let half = planned.partition_point(|(offset_ns, _)| *offset_ns < 500 * MS);
    assert!((10..30).contains(&half), "{half}");
    assert!(
        (30..60).contains(&(planned.len() - half)),
        "{}",
        planned.len()
    );
    assert!(planned.last().unwrap().0 < 1_000 * MS);

    // Nothing left before its instant, and nothing arrived before it left.
    let origin_ns = Recording::open(&first).unwrap().manifest.monotonic_start_ns;
    let ledger = mock.ledger();
    let received: Vec<&Served> = ledger.iter().take(rows.len()).collect();
    for (row, served) in rows.iter().zip(received) {
        let (scheduled, sent) = (row.t_scheduled_ns.unwrap(), row.t_sent_ns.unwrap());
        assert!(scheduled <= sent);
        // The ledger is in order of arrival, so its n-th is no earlier than the n-th
        // that was due.
        assert!(scheduled + origin_ns <= served.request.t_read_ns);
    }
    assert_eq!(
        settings(&first)["rate_shape"],
        json!([
            {"from_per_s": 40.0, "to_per_s": 40.0, "curve": "linear", "duration_s": 0.5},
            {"from_per_s": 40.0, "to_per_s": 160.0, "curve": "exponential", "duration_s": 0.5},
        ])
    );
    // An open loop without a cap: its lag is judged.
    let sql = "SELECT f.scheduled, l.dispatched, l.dispatch_lag_ms_p99 IS NOT NULL AS dispatch,
        l.pacer_lag_ms_p99 IS NOT NULL AS pacer, v.verdict IS NOT NULL AS judged
        FROM schedule_fidelity AS f JOIN schedule_lag AS l USING (recording_id)
        JOIN verdict AS v USING (recording_id)";
    let n = rows.len();
    assert_eq!(ask(&first, sql), format!("{n},{n},true,true,true"));
}

/// How many requests the server had at once, by its own ledger.
fn most_at_once(ledger: &[Served]) -> usize {
    let mut steps: Vec<(i64, i32)> = Vec::new();
    for served in ledger {
        steps.push((served.request.t_read_ns, 1));
        steps.push((served.writes.last().unwrap().t_before_ns, -1));
    }
    steps.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, change) in steps {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap()
}

#[test]
fn clients_begin_one_after_the_other_and_each_has_its_own_order() {
    const CLIENTS: i64 = 4;
    const PROMPTS: usize = 6;
    const TOTAL: usize = 30;
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(dir.path(), PROMPTS);
    let run = |name: &str, ttft_ms: i64| {
        let mock = MockLlm::start(Script::always(Stream::chat(3, ttft_ms, 1).reply()));
        let out = dir.path().join(name);
        let rest = format!(
            "--dataset-path {prompts} --parallel {CLIENTS} --ramp-up 50ms/client \
             --client-sequences --number {TOTAL}"
        );
        load(&mock, &out, &rest).expect(0);
        assert!(most_at_once(&mock.ledger()) <= CLIENTS as usize);
        let mut clients: BTreeMap<String, Vec<RequestRow>> = BTreeMap::new();
        for row in requests(&out) {
            let client = row.session_id.as_deref().unwrap().to_owned();
            clients.entry(client).or_default().push(row);
        }
        (out, clients)
    };
    // Answers of another speed change who sends when, and no client's order.
    let (out, first) = run("a", 10);
    let (_, again) = run("b", 25);
    assert_eq!(first.len(), CLIENTS as usize);
    let start_ns = first["client-0"][0].t_scheduled_ns.unwrap();
    let hashes = |rows: &[RequestRow]| -> Vec<_> {
        rows.iter()
            .map(|row| row.body_hash.clone().unwrap())
            .collect()
    };
    for client in 0..CLIENTS {
        let name = format!("client-{client}");
        let rows = &first[&name];
        assert_eq!(hashes(rows), hashes(&again[&name]));
        let begun_ns = rows[0].t_scheduled_ns.unwrap() - start_ns;
        assert_eq!(begun_ns, client * 50 * MS);

        let client = usize::try_from(client).unwrap();
        let mut order: Vec<usize> = (0..PROMPTS).collect();
        order.rotate_left(client);
        if client % 2 == 1 {
            order.reverse();
        }
        let sent = rows
            .iter()
            .map(|row| prompt_number(row.body.as_ref().unwrap()));
        let share = TOTAL / 4 + usize::from(client < TOTAL % 4);
        let expected: Vec<usize> = order.into_iter().cycle().take(share).collect();
        assert_eq!(sent.collect::<Vec<_>>(), expected);
    }
    let settings = settings(&out);
    assert_eq!(settings["ramp_up_s"], 0.2);
    assert_eq!(settings["client_sequences"], true);
}

#[test]
fn a_client_ends_after_its_own_time() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 15, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let rest = "--prompt x --parallel 3 --ramp-up 300ms --client-sequences --client-duration 250ms";
    load(&mock, &out, rest).expect(0);
    let rows = requests(&out);
    let of = |client: &str| -> Vec<i64> {
        let rows = rows
            .iter()
            .filter(|row| row.session_id.as_deref() == Some(client));
        rows.map(|row| row.t_scheduled_ns.unwrap()).collect()
    };
    let first_ns = of("client-0")[0];
    for client in 0..3_i64 {
        let scheduled = of(&format!("client-{client}"));
        let begun_ns = scheduled[0];
        assert_eq!(begun_ns - first_ns, client * 100 * MS);
        assert!(scheduled.len() > 1);
        assert!(scheduled.iter().all(|t_ns| t_ns - begun_ns < 250 * MS));
    }
    assert_eq!(settings(&out)["client_duration_s"], 0.25);

    // A warm-up that is longer takes nothing of it.
    let out = dir.path().join("warm");
    let rest = "--prompt x --parallel 2 --client-duration 120ms --warmup-duration 250ms";
    let said = load(&mock, &out, rest).expect(0).stderr;
    assert!(!said.contains("nothing was measured"), "{said}");
    let rows = requests(&out);
    let measured = of_phase(&rows, Phase::Measure);
    let marks = Recording::open(&out).unwrap().rows(Table::Marks).unwrap();
    let is_begin =
        |mark: &&MarkRow| &*mark.name == "phase_begin" && mark.detail.contains("measure");
    let begin_ns = marks.marks.iter().find(is_begin).unwrap().t_ns;
    assert!(measured.len() > 2, "each of two clients went on");
    let freed = measured.iter().map(|row| row.t_scheduled_ns.unwrap());
    assert!(freed.max().unwrap() < begin_ns + 120 * MS);
}

#[test]
fn a_warm_up_whose_request_dies_of_us_is_an_error_and_no_wait() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 1, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut command = program("record");
    command.args([
        "load",
        "--url",
        &mock.url(),
        "--model",
        "m",
        "--prompt",
        "x",
    ]);
    command
        .args("--no-probe --json --workers 1 --rate -1 --warmup-requests 4 --number 2".split(' '));
    command.arg("--out").arg(&out);
    command.env("FAILPOINTS", "worker::request=1*panic");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let has_ended = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        child.try_wait().unwrap().is_some()
    });
    if !has_ended {
        child.kill().unwrap();
    }
    let ran = Ran::from(child.wait_with_output().unwrap()).expect(2);
    assert!(
        ran.stderr.contains("tapedeck-worker-0 ended early"),
        "{}",
        ran.stderr
    );
    // What came of the others is there; the load never began.
    let rows = requests(&out);
    assert!(of_phase(&rows, Phase::Measure).is_empty());
}

#[test]
fn a_load_in_which_nothing_is_measured_says_so() {
    let mock = MockLlm::start(Script::always(Stream::chat(2, 60, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    // The warm-up has the only slot for longer than the load may last.
    let rest =
        "--prompt x --rate 100 --burstiness inf --parallel 1 --warmup-requests 1 --duration 5ms";
    let out = dir.path().join("r");
    let said = load(&mock, &out, rest).expect(0).stderr;
    let measured = requests(&out);
    let measured = of_phase(&measured, Phase::Measure).len();
    assert_eq!(measured, 0);
    assert!(said.contains("nothing was measured"), "{said}");
}

/// The mark is where the load begins, not where its first arrival was asked for.
const MARK_IS_BETWEEN_THE_PHASES: &str = "
    SELECT bool_and((r.phase = 'warmup') = (r.t_scheduled_ns < m.t_ns)) AS apart
    FROM requests AS r CROSS JOIN marks AS m
    WHERE m.name = 'phase_begin' AND m.detail LIKE '%measure%'";

#[test]
fn a_warm_up_goes_before_and_counts_nowhere() {
    let mock = MockLlm::start(Script::always(Stream::chat(3, 10, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let prompts = prompts(dir.path(), 20);
    let run = |name: &str, rest: &str| {
        let out = dir.path().join(name);
        let rest = format!("--dataset-path {prompts} --number 12 {rest}");
        let counts: Value =
            serde_json::from_str(&load(&mock, &out, &rest).expect(0).stdout).unwrap();
        assert_eq!(counts["requests"], 12, "{name}");
        (requests(&out), out)
    };
    let open = "--rate 200 --seed 3";
    let (cold, _) = run("cold", open);
    let (warm, out) = run("warm", &format!("{open} --warmup-requests 5"));
    let (warmed, measured) = (
        of_phase(&warm, Phase::Warmup),
        of_phase(&warm, Phase::Measure),
    );
    assert_eq!((warmed.len(), measured.len()), (5, 12));
    // The load is the one without a warm-up, and follows it.
    assert_eq!(plan(&measured), plan(&of_phase(&cold, Phase::Measure)));
    assert!(
        warmed
            .iter()
            .all(|w| w.t_scheduled_ns < measured[0].t_scheduled_ns)
    );
    // What warms up is none of what is measured, where there is enough.
    let numbers = |rows: &[&RequestRow]| -> Vec<usize> {
        rows.iter()
            .map(|row| prompt_number(row.body.as_ref().unwrap()))
            .collect()
    };
    assert_eq!(numbers(&warmed), [19, 18, 17, 16, 15]);
    assert_eq!(numbers(&measured), (0..12).collect::<Vec<_>>());
    let sql = "SELECT t.requests, c.concurrency_max <= 12 AS few, h.severity, h.value
        FROM throughput AS t JOIN concurrency AS c USING (recording_id)
        JOIN recording_health AS h USING (recording_id) WHERE h.finding = 'warmup_requests'";
    assert_eq!(ask(&out, sql), "12,true,info,5.0");
    assert_eq!(ask(&out, MARK_IS_BETWEEN_THE_PHASES), "true");
    let shown = run_line("analyze", &format!("report {}", out.display())).expect(0);
    let said = "5 requests of the warm-up, 0 of them failed";
    assert!(shown.stdout.contains(said), "{}", shown.stdout);

    // In a closed loop the clients go on, within a time or a number; the duration
    // counts from there.
    let (closed, out) = run(
        "closed",
        "--parallel 3 --warmup-requests 500 --warmup-duration 100ms --duration 10s",
    );
    let (warmed, measured) = (
        of_phase(&closed, Phase::Warmup),
        of_phase(&closed, Phase::Measure),
    );
    assert!((3..500).contains(&warmed.len()) && measured.len() == 12);
    let last = warmed.iter().filter_map(|w| w.t_scheduled_ns).max();
    assert!(last <= measured[0].t_scheduled_ns);
    let sql = "SELECT string_agg(concat(name, ' ', json_extract_string(detail, '/phase')), '; ' ORDER BY t_ns)
        AS phases FROM marks WHERE name LIKE 'phase%'";
    assert_eq!(
        ask(&out, sql),
        "phase_begin warmup; phase_end warmup; phase_begin measure; phase_end measure"
    );

    // All at once: nothing of the load is sent while something of the warm-up is
    // under way.
    let served_before = mock.ledger().len();
    let (rows, _) = run("at_once", "--rate -1 --warmup-requests 4");
    let ledger = &mock.ledger()[served_before..];
    let (warmed, measured) = ledger.split_at(4);
    let ended_ns = warmed
        .iter()
        .map(|s| s.writes.last().unwrap().t_before_ns)
        .max();
    let begun_ns = measured.iter().map(|s| s.request.t_read_ns).min();
    assert!(ended_ns < begun_ns);
    let warmed = of_phase(&rows, Phase::Warmup);
    let due: Vec<_> = warmed.iter().map(|row| row.t_scheduled_ns).collect();
    assert_eq!(due, [due[0]; 4]);
}
