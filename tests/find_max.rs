//! `record load --find-max` against a simulator with a knee.

use serde_json::Value;
use tapedeck_recording::{ChunkKind, Phase, Recording, RequestRow, Table};

use crate::support::programs::{Ran, run_line};
use crate::support::recording::MS;

/// Two slots: with four requests in flight, half of them wait for one as long as a
/// whole answer takes.
const SERVER: &str = "sim:?ttft_ms=60&itl_ms=5&tokens=5&slots=2";
const SLO_MS: i64 = 110;

fn search(more: &str, out: &std::path::Path) -> Ran {
    let out = out.display();
    run_line(
        "record",
        &format!("load --url {SERVER} --prompt x --json {more} --out {out}"),
    )
}

fn found(ran: &Ran) -> Value {
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    json["find_max"].clone()
}

fn prompts_of(recording: &Recording) -> Vec<String> {
    let requests = recording.rows(Table::Requests).unwrap().requests;
    let prompt = |row: &RequestRow| {
        let body: Value = serde_json::from_slice(row.body.as_ref().unwrap()).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    requests.iter().map(prompt).collect()
}

/// The line that all prompts of a trial begin with, the probe's too.
fn salt_of(recording: &Recording) -> String {
    let prompts = prompts_of(recording);
    let (salt, prompt) = prompts[0].split_once('\n').unwrap();
    assert_eq!((salt.len(), prompt), (16, "x"));
    assert!(prompts.iter().all(|other| *other == prompts[0]));
    salt.to_owned()
}

/// Measured requests of a recording, and those with a TTFT within the SLO, counted
/// without the analyzer.
fn counted(recording: &Recording) -> (usize, usize) {
    let requests = recording.rows(Table::Requests).unwrap().requests;
    let chunks = recording.rows(Table::Chunks).unwrap().chunks.rows;
    let measured = requests.iter().filter(|r| r.phase == Phase::Measure);
    let is_good = |id: i64, t_sent_ns: i64| {
        let mut content = chunks.iter().filter(|c| c.kind == ChunkKind::Content);
        let first = content.find(|c| c.request_id == id).unwrap();
        first.t_ns - t_sent_ns <= SLO_MS * MS
    };
    let good = measured
        .clone()
        .filter(|r| is_good(r.request_id, r.t_sent_ns.unwrap()));
    (measured.count(), good.count())
}

#[test]
fn the_highest_parallel_within_the_slo_is_found_by_trials_that_are_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let flags = format!(
        "--seed 7 --find-max parallel --parallel 2 --number 6 --slo ttft_ms={SLO_MS} --slo-share 0.8 \
         --find-tolerance 0.5 --find-repeats 1"
    );
    // A busy machine may make this client the bottleneck, which ends a search, or the
    // server so late that it keeps the SLO at no level.
    let knee = (0..10).find_map(|attempt| {
        let ran = search(&flags, &dir.path().join(attempt.to_string()));
        let json = found(&ran);
        if json["end"] == "client_bound" {
            return None;
        }
        let trials = json["trials"].as_array().unwrap();
        assert_trials_are_recordings(trials);
        assert!(ran.stderr.contains("trial 1: parallel 2"));
        let ran = ran.expect(i32::from(json["highest"].is_null()));
        let levels = |result: &str| {
            let with = trials.iter().filter(|t| t["result"] == result);
            let levels: Vec<f64> = with.map(|t| t["level"].as_f64().unwrap()).collect();
            levels
        };
        let highest = levels("passes").into_iter().reduce(f64::max);
        let lowest = levels("fails").into_iter().reduce(f64::min);
        assert_eq!(json["highest"].as_f64(), highest, "{}", ran.stderr);
        assert_eq!(json["lowest_failing"].as_f64(), lowest, "{}", ran.stderr);
        let is_knee = (highest, lowest) == (Some(2.0), Some(4.0));
        is_knee.then_some(json)
    });
    let knee = knee.expect("one of ten searches is the server's");
    assert_eq!(knee["end"], "found");
    let trials = knee["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 2);
    assert_eq!(knee["trial_prompts"], "salted");
    // Four in flight send two rounds at least.
    assert_eq!(trials[1]["requests"], 8);
}

/// What a search says of each of its trials is what its recording holds.
fn assert_trials_are_recordings(trials: &[Value]) {
    let mut salts = Vec::new();
    for (number, trial) in trials.iter().enumerate() {
        let recording = Recording::open(trial["path"].as_str().unwrap().as_ref()).unwrap();
        let (requests, good) = counted(&recording);
        assert_eq!(trial["requests"], requests, "trial {number}");
        assert_eq!(trial["good_requests"], good, "trial {number}");
        salts.push(salt_of(&recording));
        assert_eq!(trial["salt"], salts[number]);
        let manifest = &recording.manifest;
        assert_eq!(manifest.workload.as_ref().unwrap().seed, 7);
        let settings = &manifest.settings;
        let told = serde_json::json!({"number": number, "repeat": 0, "salt": salts[number], "salted_prompts": 1});
        assert_eq!((&settings["trial"], &settings["seed"]), (&told, &7.into()));
        let labels = &recording.manifest.labels;
        assert_eq!(labels["trial"], number.to_string());
        assert_eq!(
            labels["level"],
            trial["level"].to_string().trim_end_matches(".0")
        );
        let share = good as f64 / requests as f64;
        assert_eq!(
            trial["result"],
            if share >= 0.8 { "passes" } else { "fails" }
        );
        let interval = trial["interval"].as_array().unwrap();
        let within = interval[0].as_f64().unwrap()..=interval[1].as_f64().unwrap();
        assert!(within.contains(&share), "{within:?}");
    }
    for (number, salt) in salts.iter().enumerate() {
        let others = &salts[..number];
        assert!(!others.contains(salt), "no trial has a prompt of another");
    }
}

#[test]
fn an_slo_that_no_level_keeps_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let flags =
        "--find-max rate --rate 40 --number 4 --slo ttft_ms=1 --find-trials 2 --find-same-prompts";
    let ran = search(flags, &dir.path().join("r")).expect(1);
    let found = found(&ran);
    assert_eq!(found["trial_prompts"], "same");
    for trial in found["trials"].as_array().unwrap() {
        let recording = Recording::open(trial["path"].as_str().unwrap().as_ref()).unwrap();
        assert!(prompts_of(&recording).iter().all(|prompt| prompt == "x"));
        assert_eq!(recording.manifest.settings["trial"]["salt"], Value::Null);
    }
    assert_eq!(found["what"], "rate");
    assert_eq!(found["highest"], Value::Null);
    if found["end"] == "out_of_trials" {
        let levels: Vec<&Value> = found["levels"].as_array().unwrap().iter().collect();
        assert_eq!(levels.len(), 2);
        assert_eq!(
            (&levels[0]["level"], &levels[1]["level"]),
            (&20.0.into(), &40.0.into())
        );
    } else {
        assert_eq!(found["end"], "client_bound");
    }
}

#[test]
fn a_search_that_makes_no_sense_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    for (flags, message) in [
        ("--find-max rate", "--slo"),
        (
            "--find-max parallel --slo ttft_ms=1 --rate 2",
            "leave out --rate",
        ),
        ("--find-max rate --slo ttft_ms=1 --rate -1", "all at once"),
        (
            "--find-max rate --slo ttft_ms=1 --rate 1 2",
            "one value of --rate",
        ),
        (
            "--find-max rate --slo ttft_ms=1 --repeat 2",
            "--find-repeats",
        ),
        ("--find-max rate --slo ttft_ms=1 --slo-share 0", "above 0"),
        // Such a trial would have no end, and its number would be shared out.
        (
            "--find-max rate --slo ttft_ms=1 --client-duration 1s",
            "leave out --ramp-up",
        ),
        (
            "--find-max rate --slo ttft_ms=1 --parallel 4 --client-sequences",
            "leave out --ramp-up",
        ),
        ("--find-trials 3", "--find-max"),
        (
            "--find-max rate --slo ttft_ms=1 --metadata level=3",
            "names level, which --find-max labels",
        ),
    ] {
        let stderr = search(flags, &out).expect(2).stderr;
        assert!(stderr.contains(message), "{flags}: {stderr}");
    }
    assert!(!out.exists());
}
