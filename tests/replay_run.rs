//! `replay run`: the same bodies, in the same order, at the same offsets.

use tapedeck_recording::{Phase, Recording, RequestRow, Table};

use crate::support::programs::{run, run_line};

fn measured(recording: &Recording) -> Vec<RequestRow> {
    let mut rows = recording.rows(Table::Requests).unwrap().requests;
    rows.retain(|r| r.phase == Phase::Measure && r.attempt == 0);
    rows.sort_by_key(|r| r.request_id);
    rows
}

fn offsets(rows: &[RequestRow]) -> Vec<i64> {
    let first = rows[0].t_scheduled_ns.unwrap();
    rows.iter()
        .map(|r| r.t_scheduled_ns.unwrap() - first)
        .collect()
}

#[test]
fn a_replay_sends_the_same_bodies_at_the_scaled_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let sim = "sim:?ttft_ms=2&itl_ms=1&tokens=3";
    let line = format!(
        "load --url {sim} --prompt hello --number 60 --rate 200 --json --out {}",
        path("original").display()
    );
    run_line("record", &line).expect(0);
    let original = Recording::open(&path("original")).unwrap();
    let rows = measured(&original);
    for (name, speed) in [("same", 1.0), ("twice", 2.0)] {
        let line = format!(
            "run {} --url {sim} --speed {speed} --json --out {}",
            path("original").display(),
            path(name).display()
        );
        run_line("replay", &line).expect(0);
        let replay = Recording::open(&path(name)).unwrap();
        let replayed = measured(&replay);
        assert_eq!(
            replay.manifest.settings["replay_of_recording_id"],
            original.manifest.recording_id.as_str()
        );
        let of: Vec<_> = replayed.iter().map(|r| r.replay_of).collect();
        assert_eq!(
            of,
            rows.iter().map(|r| Some(r.request_id)).collect::<Vec<_>>()
        );
        let bodies = |rows: &[RequestRow]| rows.iter().map(|r| r.body.clone()).collect::<Vec<_>>();
        assert_eq!(bodies(&replayed), bodies(&rows));
        let scaled: Vec<i64> = offsets(&rows)
            .iter()
            .map(|ns| (*ns as f64 / speed).round() as i64)
            .collect();
        assert_eq!(offsets(&replayed), scaled);
        // Never before its time.
        assert!(replayed.iter().all(|r| r.t_sent_ns >= r.t_scheduled_ns));
    }
    run("analyze", ["check", path("twice").to_str().unwrap()]).expect(0);
}

#[test]
fn a_plan_names_the_arrivals_that_the_filter_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --prompt hello --number 10 --parallel 2 --json --out {}",
        out.display()
    );
    run_line("record", &line).expect(0);
    let out = out.to_str().unwrap();
    let plan = |rest: &[&str]| {
        run("replay", ["plan", out].iter().chain(rest))
            .expect(0)
            .stdout
    };
    assert_eq!(plan(&[]).lines().count(), 11);
    assert_eq!(plan(&["--limit", "3"]).lines().count(), 4);
    let kept = plan(&["--where", "request_id % 2 = 0"]);
    assert_eq!(kept.lines().nth(1).unwrap().split(',').next(), Some("2"));
    assert_eq!(kept.lines().count(), 6);
    let bad = run("replay", ["plan", out, "--where", "nonsense > 1"]).expect(2);
    assert!(bad.stderr.contains("nonsense"), "{}", bad.stderr);
}
