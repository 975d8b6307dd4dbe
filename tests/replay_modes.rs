//! What a replay does with time, sessions and copies: against the ledger of a server
//! and in the plan.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tapedeck_recording::{EventBatch, Outcome, Phase, RequestRow};

use crate::support::mock_llm::replies::{SSE_HEAD, Stream};
use crate::support::mock_llm::{Ended, MockLlm, Script, Served, Step};
use crate::support::programs::{Ran, run, run_line};
use crate::support::proxy::rows;

const MS: i64 = 1_000_000;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/traces")).join(name)
}

/// A record of `AIPerf`: turn `turn` of `session`, sent and ended at those ms.
fn record(session: &str, turn: u32, (start_ms, end_ms): (i64, i64)) -> String {
    format!(
        r#"{{"metadata":{{"x_correlation_id":"{session}","turn_index":{turn},"request_start_ns":{},"request_end_ns":{},"benchmark_phase":"profiling"}},"payload":{{"model":"{session}-{turn}","stream":true,"messages":[{{"role":"user","content":"x"}}]}}}}"#,
        start_ms * MS,
        end_ms * MS
    ) + "\n"
}

/// `quick` thinks 20 ms before its second turn, which is due long before a slow
/// server has answered the first; `slow` comes back when everything is over.
fn sessions(dir: &Path) -> PathBuf {
    let path = dir.join("records.jsonl");
    let text = [
        record("quick", 0, (1000, 1010)),
        record("slow", 0, (1000, 1010)),
        record("quick", 1, (1030, 1040)),
        record("quick", 2, (1031, 1050)),
        record("slow", 1, (1900, 1950)),
    ];
    std::fs::write(&path, text.concat()).unwrap();
    path
}

/// Answers everything after 450 ms.
fn slow_server() -> MockLlm {
    MockLlm::start(Script::always(Stream::chat(2, 450, 1).reply()))
}

fn replay(source: &Path, mock: &MockLlm, flags: &str, out: &Path) -> (Ran, EventBatch) {
    let line = format!(
        "run {} --url {} --no-probe --json --no-progress {flags} --out {}",
        source.display(),
        mock.url(),
        out.display()
    );
    let ran = run_line("replay", &line).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    (ran, rows(out))
}

fn served<'a>(ledger: &'a [Served], model: &str) -> Option<&'a Served> {
    let is_it = |served: &&Served| served.request.case().as_deref() == Some(model);
    ledger.iter().find(is_it)
}

fn request<'a>(rows: &'a EventBatch, model: &str) -> &'a RequestRow {
    let is_it = |row: &&RequestRow| row.model.as_deref() == Some(model);
    rows.requests.iter().find(is_it).unwrap()
}

fn t_end_ns(rows: &EventBatch, request_id: i64) -> i64 {
    let row = rows.responses.iter().find(|r| r.request_id == request_id);
    row.unwrap().t_end_ns.unwrap()
}

/// Of the last write about `model`, and of the read that completed the request.
fn ended_and_read(ledger: &[Served], before: &str, after: &str) -> (i64, i64) {
    let ended = served(ledger, before).unwrap().writes.last().unwrap();
    (
        ended.t_before_ns,
        served(ledger, after).unwrap().request.t_read_ns,
    )
}

#[test]
fn a_later_turn_waits_for_its_instant_and_for_the_turn_before() {
    let dir = tempfile::tempdir().unwrap();
    let source = sessions(dir.path());
    let mock = slow_server();
    let (ran, rows) = replay(&source, &mock, "", &dir.path().join("session"));
    assert!(ran.stderr.contains("mode session"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("3 of them are later turns"),
        "{}",
        ran.stderr
    );
    let ledger = mock.ledger();
    assert_eq!(ledger.len(), 5);
    for (before, after) in [("quick-0", "quick-1"), ("quick-1", "quick-2")] {
        let (ended_ns, read_ns) = ended_and_read(&ledger, before, after);
        assert!(read_ns > ended_ns, "{after} waited for {before}");
        let waited_for = request(&rows, before).request_id;
        let later = request(&rows, after);
        assert_eq!(later.t_scheduled_ns, Some(t_end_ns(&rows, waited_for)));
        assert_eq!(later.parent_request_id, Some(waited_for));
        assert!(later.t_sent_ns > later.t_scheduled_ns);
    }
    // The first turns were in flight together, and `slow` came back at its instant.
    let (ended_ns, _) = ended_and_read(&ledger, "slow-0", "slow-1");
    assert!(served(&ledger, "quick-0").unwrap().request.t_read_ns < ended_ns);
    let (first, last) = (request(&rows, "quick-0"), request(&rows, "slow-1"));
    let offset_ns = last.t_scheduled_ns.unwrap() - first.t_scheduled_ns.unwrap();
    assert_eq!(offset_ns, 900 * MS);
    assert!(last.t_sent_ns > last.t_scheduled_ns);
    assert_eq!(
        (last.turn, last.session_id.as_deref()),
        (Some(1), Some("slow"))
    );
    let of: BTreeSet<_> = rows.requests.iter().map(|r| r.replay_of).collect();
    assert_eq!(of, (0..5).map(Some).collect());
}

#[test]
fn modes_open_and_closed_and_a_bound_on_lateness() {
    let dir = tempfile::tempdir().unwrap();
    let source = sessions(dir.path());
    let few = "--where turn<2 --window ..500ms";
    let mock = slow_server();
    let (_, open) = replay(
        &source,
        &mock,
        &format!("--mode open {few}"),
        &dir.path().join("open"),
    );
    // The second turn is on its way while the first is answered.
    let (ended_ns, read_ns) = ended_and_read(&mock.ledger(), "quick-0", "quick-1");
    assert!(read_ns < ended_ns);
    assert_eq!(open.requests.len(), 3);

    let mock = slow_server();
    let out = dir.path().join("closed");
    let (_, closed) = replay(&source, &mock, "--mode closed --idle-cap 50ms", &out);
    for (before, after, think_ms) in [
        ("quick-0", "quick-1", 20),
        // It was sent before the second had ended.
        ("quick-1", "quick-2", 0),
        // 890 ms, and no longer than the cap.
        ("slow-0", "slow-1", 50),
    ] {
        let (ended_ns, read_ns) = ended_and_read(&mock.ledger(), before, after);
        assert!(read_ns > ended_ns + think_ms * MS);
        let ended_ns = t_end_ns(&closed, request(&closed, before).request_id);
        let scheduled_ns = request(&closed, after).t_scheduled_ns.unwrap();
        assert_eq!(scheduled_ns - ended_ns, think_ms * MS, "{after}");
    }

    let mock = slow_server();
    let out = dir.path().join("late");
    let (ran, late) = replay(&source, &mock, "--max-lateness 250ms", &out);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(said["late_dropped"], 2);
    let doubt = "SELECT value FROM recording_health WHERE finding = 'late_dropped'";
    let doubt = run(
        "analyze",
        ["query", out.to_str().unwrap(), doubt, "--format", "csv"],
    );
    assert!(doubt.expect(0).stdout.contains("2.0"));
    assert!(
        ran.stderr.contains("2 requests were too late"),
        "{}",
        ran.stderr
    );
    let ledger = mock.ledger();
    let models: BTreeSet<_> = ledger.iter().filter_map(|s| s.request.case()).collect();
    assert_eq!(
        models,
        ["quick-0", "slow-0", "slow-1"].map(str::to_owned).into()
    );
    let dropped: Vec<Value> = late
        .marks
        .iter()
        .filter(|mark| &*mark.name == "late_dropped")
        .map(|mark| serde_json::from_str(&mark.detail).unwrap())
        .collect();
    let of: BTreeSet<_> = dropped.iter().map(|d| d["replay_of"].as_i64()).collect();
    assert_eq!(of, BTreeSet::from([Some(2), Some(3)]));
    assert!(dropped.iter().all(|d| d["late_s"].as_f64().unwrap() > 0.25));
}

#[test]
fn what_was_cancelled_is_cancelled_again_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let begun = vec![Step::send(SSE_HEAD), Step::Stall];
    let whole = Stream::chat(2, 0, 0).reply();
    let mock = MockLlm::start(Script::new(move |request| {
        let is_long = request.body.windows(4).any(|four| four == b"long");
        if is_long {
            begun.clone().into()
        } else {
            whole.clone()
        }
    }));
    let source = fixture("aiperf_raw.jsonl");
    let (ran, rows) = replay(&source, &mock, "", &dir.path().join("out"));
    assert!(ran.stderr.contains("1 were cancelled"), "{}", ran.stderr);
    let cancelled: Vec<_> = rows
        .responses
        .iter()
        .filter(|r| r.outcome == Outcome::Cancelled)
        .collect();
    let [cancelled] = cancelled.as_slice() else {
        panic!("one is cancelled");
    };
    let error = cancelled.error.as_deref().unwrap();
    assert!(error.contains("as the original was"), "{error}");
    let is_it = |r: &&RequestRow| r.request_id == cancelled.request_id;
    let row = rows.requests.iter().find(is_it).unwrap();
    // 60 ms after sending, as the original.
    let after_ns = cancelled.t_end_ns.unwrap() - row.t_sent_ns.unwrap();
    assert!(after_ns >= 60 * MS, "{after_ns}");
    let left: Vec<_> = mock.ledger().iter().map(|s| s.ended).collect();
    assert_eq!(left.iter().filter(|e| **e == Ended::ClientLeft).count(), 1);
}

fn text_of(row: &RequestRow) -> String {
    let body: Value = serde_json::from_slice(row.body.as_ref().unwrap()).unwrap();
    let text = body["messages"][0]["content"].as_str();
    text.unwrap().to_owned()
}

/// Measured requests of a replay against the simulator, in order.
fn simulated(source: &Path, flags: &str, out: &Path) -> Vec<RequestRow> {
    let line = format!(
        "run {} --url sim:?ttft_ms=1&itl_ms=1&tokens=2 {flags} --json --out {}",
        source.display(),
        out.display()
    );
    run_line("replay", &line).expect(0);
    run("analyze", ["check", out.to_str().unwrap()]).expect(0);
    let mut requests = rows(out).requests;
    requests.retain(|r| r.phase == Phase::Measure);
    requests.sort_by_key(|r| r.request_id);
    requests
}

#[test]
fn a_sub_agent_begins_when_its_parent_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let line = format!(
        "run {} --url sim:?ttft_ms=150&itl_ms=1&tokens=2 --speed 3 --pin-output off --json --out {}",
        fixture("weka").display(),
        out.display()
    );
    run_line("replay", &line).expect(0);
    let rows = rows(&out);
    let of = |replay_of: i64| {
        let mut requests = rows.requests.iter();
        requests.find(|r| r.replay_of == Some(replay_of)).unwrap()
    };
    for (original, parent, session) in [(2, 0, "one/a1"), (3, 2, "one/a1"), (4, 0, "one")] {
        let (request, parent) = (of(original), of(parent));
        assert_eq!(request.session_id.as_deref(), Some(session));
        assert_eq!(request.parent_request_id, Some(parent.request_id));
        assert!(request.t_sent_ns.unwrap() > t_end_ns(&rows, parent.request_id));
    }
    // Due after 100 ms, when its parent was being answered.
    let begun_ns = of(2).t_scheduled_ns.unwrap();
    assert_eq!(begun_ns, t_end_ns(&rows, of(0).request_id));
    // The next turn of its parent's session waits for its own instant.
    let offset_ns = of(4).t_scheduled_ns.unwrap() - of(0).t_scheduled_ns.unwrap();
    assert_eq!(offset_ns, 300 * MS);
}

#[test]
fn copies_share_no_prompts_and_no_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("aiperf_inputs.json");
    let sent = simulated(&source, "--copies 2", &dir.path().join("bodies"));
    assert_eq!(sent.len(), 6);
    let (salted, plain): (Vec<_>, Vec<_>) = sent.iter().partition(|r| {
        let session = r.session_id.as_deref();
        session.is_some_and(|s| s.ends_with("/copy1"))
    });
    let texts = |rows: &[&RequestRow]| rows.iter().map(|r| text_of(r)).collect::<BTreeSet<_>>();
    assert_eq!(texts(&plain), ["alone", "hi"].map(str::to_owned).into());
    let salt = text_of(salted[0]).split(' ').next().unwrap().to_owned();
    let expected = ["alone", "hi"].map(|text| format!("{salt} {text}"));
    assert_eq!(texts(&salted), expected.into());

    let source = fixture("mooncake.jsonl");
    let flags = "--copies 2 --mode open --speed 10";
    let made = simulated(&source, flags, &dir.path().join("made"));
    assert_eq!(made.len(), 8);
    let blocks = |replay_of: i64| -> BTreeSet<Vec<(i64, i32)>> {
        let of = made.iter().filter(|r| r.replay_of == Some(replay_of));
        of.map(|r| r.block_runs.as_deref().unwrap().to_vec())
            .collect()
    };
    // The third prompt begins with the second's two blocks, in each copy by itself.
    assert_eq!(
        blocks(1),
        BTreeSet::from([vec![(0, 1), (2, 1)], vec![(5, 1), (7, 1)]])
    );
    assert!(made.iter().all(|r| r.block_size == Some(512)));
    let bodies: BTreeSet<_> = made.iter().map(|r| r.body.clone()).collect();
    assert_eq!(bodies.len(), 8);
}

#[test]
fn a_plan_shows_windows_shares_rounds_and_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let source = sessions(dir.path());
    let plan = |flags: &str| -> Vec<String> {
        let line = format!("plan {} {flags}", source.display());
        let ran = run_line("replay", &line).expect(0);
        ran.stdout.lines().skip(1).map(str::to_owned).collect()
    };
    let all = plan("--mode closed");
    assert_eq!(
        all[2],
        "2,0.030000000,quick-1,76,,,quick,1,0,0.020000000,,0,0"
    );
    assert_eq!(plan("--window 10ms..500ms").len(), 2);
    assert_eq!(plan("--loop 3").len(), 15);
    assert_eq!(plan("--loop 3 --copies 2 --limit 2").len(), 12);
    assert_eq!(
        plan("--idle-cap 100ms")[4].split(',').nth(1),
        Some("0.131000000")
    );
    // Four gaps in 900 ms become four in 40 ms.
    let last_of = |lines: Vec<String>| lines[4].split(',').nth(1).map(str::to_owned);
    assert_eq!(last_of(plan("--rate 100")).as_deref(), Some("0.040000000"));
    let line = format!("plan {} --rate-series 100@30ms", source.display());
    let cut = run_line("replay", &line).expect(0);
    assert!(
        cut.stderr.contains("1 more would come after the end"),
        "{}",
        cut.stderr
    );
    let sizes: BTreeSet<usize> = (0..6)
        .map(|seed| {
            let flags = format!("--sample-sessions 0.5 --seed {seed}");
            let line = format!("plan {} {flags}", source.display());
            // Nothing is left where no session is chosen.
            run_line("replay", &line).stdout.lines().count()
        })
        .collect();
    assert!(sizes.is_subset(&BTreeSet::from([0, 3, 4, 6])), "{sizes:?}");
}
