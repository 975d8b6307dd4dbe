//! `analyze compare`: judgements, intervals, gates and the fidelity of a replay.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tapedeck_analyze::compare::bootstrap::{
    Drawing, Draws, Runs, Series, Stat, block_length, reach, welch,
};
use tapedeck_analyze::compare::{
    CompareOptions, Compared, Comparisons, Judgement, compare, gate::Gate,
};
use tapedeck_recording::{ChunkKind, EventBatch};

use crate::support::programs::{run, run_line};
use crate::support::recording::{self, MS, chunk, request, response};

fn uniform(draws: &mut Draws) -> f64 {
    (draws.next() >> 11) as f64 / (1_u64 << 53) as f64
}

/// `n` values in blocks, each like the one before it by `memory`, from 0 to 1.
fn series(draws: &mut Draws, n: u64, memory: f64, shift: f64) -> Series {
    let length = block_length(n, memory);
    let mut last = uniform(draws);
    let values = (0..n).map(|index| {
        last = memory * last + (1.0 - memory) * uniform(draws);
        (last + shift, (index / length) as u32)
    });
    Series::values(values.collect(), n.div_ceil(length) as usize)
}

const MEAN_AND_MEDIAN: [Stat; 2] = [Stat::Mean, Stat::Percentile(50.0)];

/// Of `trials`, those in which mean and median of `new` seem to differ from `base`'s.
fn alarms(trials: u64, memory: f64, shift: f64) -> [u64; 2] {
    let mut draws = Draws::new(7);
    let mut alarms = [0, 0];
    for seed in 0..trials {
        let base = [series(&mut draws, 300, memory, 0.0)];
        let new = [series(&mut draws, 300, memory, shift)];
        let whole = |side: &[Series]| side[0].stats(&MEAN_AND_MEDIAN);
        let (of_base, of_new) = (whole(&base), whole(&new));
        let found = reach((&base, &new), &MEAN_AND_MEDIAN, Drawing::Apart, 1.0, seed);
        for (index, found) in found.into_iter().enumerate() {
            let (found, difference) = (found.unwrap(), of_new[index] - of_base[index]);
            let has_zero = difference + found.below <= 0.0 && difference + found.above >= 0.0;
            alarms[index] += u64::from(!has_zero);
        }
    }
    alarms
}

#[test]
fn a_difference_is_called_one_when_there_is_one_and_seldom_else() {
    // 3 of 60 are expected of equal samples; with requests much like the one before
    // it a few more, not the third of all that blocks of one length would give.
    for (memory, most) in [(0.0, 8), (0.5, 8), (0.9, 12)] {
        let found = alarms(60, memory, 0.0);
        assert!(found.iter().all(|n| *n <= most), "{memory}: {found:?}");
    }
    let found = alarms(20, 0.0, 0.3);
    assert_eq!(found, [20, 20], "a shift of 0.3 is seen");
}

#[test]
fn pairs_see_what_separate_draws_cannot() {
    let mut draws = Draws::new(1);
    let base = series(&mut draws, 300, 0.0, 0.0);
    let Series::Values { values, blocks } = base.clone() else {
        unreachable!("values were given")
    };
    let later = values.iter().map(|(value, block)| (value * 1.02, *block));
    let new = Series::values(later.collect(), blocks);
    let width = |drawing| {
        let both = (&[base.clone()][..], &[new.clone()][..]);
        let found = reach(both, &[Stat::Mean], drawing, 1.0, 0)[0].unwrap();
        found.above - found.below
    };
    assert!(width(Drawing::Pairs) < width(Drawing::Apart) / 10.0);
}

#[test]
fn percentiles_are_numpys_and_too_few_blocks_say_nothing() {
    let values = [4.0, 1.0, 3.0, 2.0].into_iter().zip(0..);
    let small = [Series::values(values.collect(), 4)];
    let stats = [Stat::Mean, Stat::Percentile(50.0), Stat::Percentile(90.0)];
    assert_eq!(small[0].stats(&stats), [2.5, 2.5, 3.7]);
    assert_eq!(
        reach((&small, &small), &stats, Drawing::Apart, 1.0, 0),
        [None; 3]
    );
    // Two runs on each side: t of 2 degrees of freedom.
    let side = Runs { n: 2, spread: 1.0 };
    assert!((welch(side, side).unwrap() - 4.303).abs() < 1e-9);
    assert_eq!(welch(side, Runs { n: 1, spread: 0.0 }), None);
}

/// 64 streamed requests, one every 20 ms, whose first chunk comes `ttft_ms` and up to
/// 2 ms after they were sent.
fn write(dir: &Path, ttft_ms: i64) -> PathBuf {
    let mut draws = Draws::new(3);
    let mut events = EventBatch::default();
    for id in 0..64 {
        let t_ns = id * 20 * MS;
        let jitter = (uniform(&mut draws) * 2e6) as i64;
        events.requests.push(request(id, t_ns));
        for index in 0..3 {
            let t_ns = t_ns + ttft_ms * MS + jitter + i64::from(index) * 5 * MS;
            let row = chunk(id, index, ChunkKind::Content, t_ns);
            events.chunks.push(row, Some(b"x"));
        }
        let t_end_ns = t_ns + ttft_ms * MS + 13 * MS;
        events.responses.push(response(id, t_end_ns, 3, Some(3)));
    }
    recording::write(dir, recording::manifest("run"), 1 << 18, [events])
}

fn compared(base: &Path, new: &Path, gates: &[&str]) -> Comparisons {
    let gates: Result<Vec<Gate>, String> = gates.iter().map(|text| text.parse()).collect();
    let options = CompareOptions {
        gates: gates.unwrap(),
        ..CompareOptions::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(compare(base, new, &options)).unwrap()
}

#[test]
fn rows_say_worse_better_and_noise_and_gates_decide_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let base = write(&dir.path().join("base"), 30);
    let new = write(&dir.path().join("new"), 20);
    let found = compared(
        &base,
        &new,
        &[
            "ttft_ms.mean < -30%",
            "ttft_ms.mean < -40%",
            "ttft_ms.p50 < -9.9",
            "e2el_ms.p99.9 > 100",
            "goodput < 1",
            "drift_ms > 1",
        ],
    );
    let holds: Vec<Option<bool>> = found.gates.iter().map(|gate| gate.holds).collect();
    assert_eq!(
        holds,
        [Some(true), Some(false), Some(true), Some(false), None, None]
    );
    assert!(found.fails());
    let comparison = &found.comparisons[0];
    assert!(comparison.pairing.is_none() && comparison.fidelity.is_empty());
    let row = |metric: &str, stat: &str| -> &Compared {
        let mut rows = comparison.metrics.iter();
        rows.find(|m| m.metric == metric && m.stat == stat).unwrap()
    };
    let ttft = row("ttft_ms", "mean");
    assert_eq!(ttft.judgement, Judgement::Better);
    let [low, high] = ttft.interval.unwrap();
    assert!(low < -9.0 && -11.0 < low && low < high && high < -9.0);
    assert_eq!(row("itl_ms", "p50").judgement, Judgement::Same);
    assert_eq!(row("ttft_ms", "p99").judgement, Judgement::TooFew);
    assert_eq!(
        row("request_throughput", "value").judgement,
        Judgement::Noise
    );
    assert_eq!(row("goodput", "value").judgement, Judgement::NoData);
    // The other way round it is worse.
    let found = compared(&new, &base, &[]);
    let mut rows = found.comparisons[0].metrics.iter();
    let ttft = rows
        .find(|m| m.metric == "ttft_ms" && m.stat == "p50")
        .unwrap();
    assert_eq!(ttft.judgement, Judgement::Worse);
    assert!(!found.fails());
}

#[test]
fn a_gate_that_makes_no_sense_says_what_would() {
    for (text, part) in [
        ("ttft_ms.p99 + 5", "no >, >=, < or <="),
        ("ttft_ms.p99 > fast", "\"fast\" is no number"),
        ("ttft_ms > 5", "hint: ttft_ms.mean"),
        ("ttft_ms.p101 > 5", "no stat \"p101\""),
        (
            "tttf_ms.p99 > +5%",
            "no metric is called \"tttf_ms.p99\"\nhint: with .mean",
        ),
        (
            "schedule_error_ms.p99 > +5%",
            "no base to differ from\nhint: a bound without sign",
        ),
    ] {
        let error = text.parse::<Gate>().unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_replay_is_paired_with_its_original_and_its_fidelity_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let sim = "sim:?ttft_ms=2&itl_ms=1&tokens=3";
    let (original, replay) = (path("original"), path("replay"));
    run_line(
        "record",
        &format!(
            "load --url {sim} --prompt hello --number 40 --rate 200 --no-report --out {original}"
        ),
    )
    .expect(0);
    run_line(
        "replay",
        &format!("run {original} --url {sim} --speed 2 --limit 30 --no-report --out {replay}"),
    )
    .expect(0);
    let json = path("compared.json");
    let compare = |rest: &[&str]| {
        run(
            "analyze",
            ["compare", &original, &replay].iter().chain(rest),
        )
    };
    compare(&["--format", "json", "-o", &json]).expect(0);
    let json: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(json["compare_version"], 1);
    let comparison = &json["comparisons"][0];
    assert_eq!(comparison["pairing"]["pairing"], "replay");
    assert_eq!(comparison["pairing"]["pairs"], 30);
    let fidelity = &comparison["fidelity"][0];
    assert_eq!(fidelity["mode"], "open");
    let schedule = &fidelity["schedule"];
    for (name, count) in [
        ("speed", 2),
        ("replayed", 30),
        ("missing", 10),
        ("extra", 0),
        ("bodies_compared", 30),
        ("bodies_differ", 0),
    ] {
        assert_eq!(schedule[name].as_f64(), Some(f64::from(count)), "{name}");
    }
    let stats = ["p50", "p99", "max"].map(|s| schedule[format!("schedule_error_ms_{s}")].as_f64());
    assert!(stats.is_sorted() && stats[0] >= Some(0.0), "{stats:?}");
    // Three tokens of each, counted by the server.
    assert_eq!(fidelity["lengths"][1]["compared"], 30);
    assert_eq!(fidelity["lengths"][1]["differ"], 0);

    let failed = compare(&["--fail-if", "replayed >= 30", "--fail-if", "overtook < 0"]).expect(1);
    assert!(
        failed.stderr.contains("--fail-if replayed >= 30: "),
        "{}",
        failed.stderr
    );
    assert!(!failed.stderr.contains("overtook"), "{}", failed.stderr);
    let text = &failed.stdout;
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(
        widest <= Some(100 + original.len() + replay.len()),
        "{text}"
    );
    let place = |part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("no {part} in {text}"))
    };
    assert!(place("Before believing it") < place("Set differently"));
    assert!(place("Set differently") < place("30 pairs of requests"));
    assert!(place("30 pairs of requests") < place("Fidelity of replay to original"));
    assert!(place("FAILED") > place("Fidelity"));

    refusals_and_sql(&original, &replay);
    a_reshaped_replay_is_held_against_its_own_plan(&original, sim, &path("reshaped"));
}

fn a_reshaped_replay_is_held_against_its_own_plan(original: &str, sim: &str, replay: &str) {
    let flags = "--limit 10 --copies 2 --rate-series 100..300@10s";
    let line = format!("run {original} --url {sim} {flags} --no-report --out {replay}");
    run_line("replay", &line).expect(0);
    let compared = run("analyze", ["compare", original, replay, "--format", "json"]).expect(0);
    let json: Value = serde_json::from_str(&compared.stdout).unwrap();
    let comparison = &json["comparisons"][0];
    let schedule = &comparison["fidelity"][0]["schedule"];
    assert_eq!(schedule["reshaped_by"], "--copies, --rate-series");
    assert_eq!(schedule["replayed"], 20);
    let doubts = comparison["doubts"].to_string();
    assert!(doubts.contains("against the replay's own plan"), "{doubts}");
    let sql = "SELECT max(abs(t_sent_ns - t_scheduled_ns)) / 1e6 AS ms FROM requests WHERE phase = 'measure'";
    let own = run("analyze", ["query", replay, sql, "--format", "csv"]).expect(0);
    let own_ms: f64 = own.stdout.lines().nth(1).unwrap().parse().unwrap();
    assert_eq!(schedule["schedule_error_ms_max"].as_f64(), Some(own_ms));
}

fn refusals_and_sql(original: &str, replay: &str) {
    let sql = "SELECT missing FROM replay_schedule";
    let asked = run(
        "analyze",
        ["query", original, replay, sql, "--format", "csv"],
    )
    .expect(0);
    assert_eq!(asked.stdout, "missing\n10\n");
    let twice = run("analyze", ["compare", original, original]).expect(2);
    assert!(
        twice.stderr.contains("are the same recording\nhint:"),
        "{}",
        twice.stderr
    );
    let bad = run(
        "analyze",
        ["compare", original, replay, "--fail-if", "ttft_ms > 5"],
    )
    .expect(2);
    assert!(bad.stderr.contains("hint: ttft_ms.mean"), "{}", bad.stderr);
}
