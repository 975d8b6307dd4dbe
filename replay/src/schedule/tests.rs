use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::cli::{Cli, Command};

const S: i64 = 1_000_000_000;

fn shape(flags: &str) -> ShapeArgs {
    let line = ["replay", "plan", "x"];
    let line = line.into_iter().chain(flags.split_whitespace());
    match Cli::try_parse_from(line).unwrap().command {
        Command::Plan(args) => args.source.shape,
        _ => panic!("a plan"),
    }
}

/// At second `t_s`, answered half a second later.
fn found(request_id: i64, t_s: i64, session: &str, parent: Option<i64>) -> Found {
    Found {
        t_ns: t_s * S,
        t_end_ns: Some(t_s * S + S / 2),
        cancel_after: None,
        original: RequestRow {
            session_id: (!session.is_empty()).then(|| session.into()),
            parent_request_id: parent,
            block_runs: Some(vec![(request_id, 2)].into()),
            ..RequestRow::blank(request_id)
        },
        input_tokens: None,
        output_tokens: None,
    }
}

/// Two sessions, a lone request, and a sub-agent of the first session's second turn.
fn source() -> Vec<Found> {
    vec![
        found(0, 0, "a", None),
        found(1, 1, "b", None),
        found(2, 3, "a", Some(0)),
        found(3, 4, "", None),
        found(4, 5, "a/1", Some(2)),
        found(5, 20, "a", Some(2)),
    ]
}

pub(crate) fn planned(flags: &str) -> Schedule {
    schedule(source(), &shape(flags), 7, "fresh").unwrap()
}

fn offsets_s(schedule: &Schedule) -> Vec<i64> {
    let requests = schedule.requests.iter();
    requests.map(|p| p.offset_ns / S).collect()
}

fn chosen_ids(flags: &str, seed: u64) -> Vec<i64> {
    let source = source();
    let seen: Vec<Seen> = source
        .iter()
        .map(|f| Seen {
            request_id: f.original.request_id,
            t_ns: f.t_ns,
            session_id: f.original.session_id.clone(),
            parent_request_id: f.original.parent_request_id,
        })
        .collect();
    let places = chosen(&seen, None, &shape(flags), seed);
    places.into_iter().map(|at| seen[at].request_id).collect()
}

#[test]
fn turns_wait_for_the_turn_before_and_sub_agents_for_their_parent() {
    let plan = planned("");
    assert_eq!(plan.mode, Mode::Session);
    let after: Vec<_> = plan.requests.iter().map(|p| p.after).collect();
    assert_eq!(after, [None, None, Some(0), None, Some(2), Some(2)]);
    assert_eq!(offsets_s(&plan), [0, 1, 3, 4, 5, 20]);
    let open = planned("--mode open");
    assert!(open.requests.iter().all(|p| p.after.is_none()));
    assert_eq!(open.requests[4].parent, Some(2));
}

#[test]
fn think_times_count_from_the_end_of_the_turn_before() {
    let plan = planned("--mode closed --speed 2");
    let think: Vec<_> = plan
        .requests
        .iter()
        .map(|p| p.think.as_secs_f64())
        .collect();
    assert_eq!(think, [0.0, 0.0, 1.25, 0.0, 0.75, 8.25]);
    assert_eq!(plan.think_from_start, 0);
    let capped = planned("--mode closed --idle-cap 3s");
    assert_eq!(capped.requests[5].think, Duration::from_secs(3));
    let endless: Vec<Found> = source()
        .into_iter()
        .map(|f| Found {
            t_end_ns: None,
            ..f
        })
        .collect();
    let plan = schedule(endless, &shape("--mode closed"), 0, "").unwrap();
    assert_eq!(plan.think_from_start, 3);
    assert_eq!(plan.requests[2].think, Duration::from_secs(3));
}

#[test]
fn without_sessions_a_plan_is_open_and_no_other() {
    let lone = || vec![found(0, 0, "", None), found(1, 1, "", None)];
    let plan = schedule(lone(), &shape(""), 0, "").unwrap();
    assert_eq!(plan.mode, Mode::Open);
    for mode in ["session", "closed"] {
        let refused = schedule(lone(), &shape(&format!("--mode {mode}")), 0, "");
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("hint: --mode open"), "{refused}");
    }
}

#[test]
fn idle_time_is_cut_out_and_everything_after_it_moves_up() {
    assert_eq!(offsets_s(&planned("--idle-cap 2s")), [0, 1, 3, 4, 5, 7]);
}

#[test]
fn windows_limits_and_shares_choose_requests() {
    assert_eq!(chosen_ids("", 0), [0, 1, 2, 3, 4, 5]);
    assert_eq!(chosen_ids("--window 1s..5s", 0), [1, 2, 3]);
    assert_eq!(chosen_ids("--window 4s.. --limit 2", 0), [3, 4]);
    let mut seen_sizes = BTreeSet::new();
    for seed in 0..40 {
        let ids = chosen_ids("--sample-sessions 0.5", seed);
        assert_eq!(ids, chosen_ids("--sample-sessions 0.5", seed));
        // Sessions are whole, and what began within one goes with it.
        let has = |id: i64| ids.contains(&id);
        assert!(has(0) == has(2) && has(2) == has(4) && has(4) == has(5));
        // A window cuts what thinning chose, not the other way round.
        let cut = chosen_ids("--sample-sessions 0.5 --window 3s..", seed);
        let late: Vec<i64> = ids.iter().copied().filter(|id| *id >= 2).collect();
        assert_eq!(cut, late);
        seen_sizes.insert(ids.len());
    }
    assert!(seen_sizes.len() > 3, "{seen_sizes:?}");
    assert_eq!(chosen_ids("--sample-sessions 1", 0).len(), 6);
}

#[test]
fn a_tenth_of_many_sessions_is_a_tenth() {
    let seen: Vec<Seen> = (0..10_000)
        .map(|id| Seen {
            request_id: id,
            t_ns: id,
            session_id: Some(format!("s{}", id / 2).into()),
            parent_request_id: None,
        })
        .collect();
    let kept = chosen(&seen, None, &shape("--sample-sessions 0.1"), 1).len();
    // 500 of 5,000 sessions, and 4 standard deviations to either side.
    assert!((830..=1170).contains(&kept), "{kept}");
}

#[test]
fn copies_are_shifted_whole_and_share_neither_names_nor_blocks() {
    let plan = planned("--copies 3");
    assert_eq!(plan.requests.len(), 18);
    let of = |copy: u32| {
        let requests = plan.requests.iter().filter(move |p| p.copy == copy);
        requests.collect::<Vec<_>>()
    };
    assert_eq!(of(0)[0].salt, None);
    assert_eq!(of(0)[0].session_id.as_deref(), Some("a"));
    let mut firsts = BTreeSet::new();
    for copy in 0..3 {
        let at = |id: i64| {
            let found = of(copy)
                .into_iter()
                .find(|p| p.found.original.request_id == id);
            found.unwrap().offset_ns
        };
        // Turns keep their distance, wherever their session begins.
        assert_eq!(at(2) - at(0), 3 * S);
        assert_eq!(at(5) - at(0), 20 * S);
        for planned in of(copy) {
            let before = planned.after.map(|after| &plan.requests[after]);
            assert!(before.is_none_or(|b| b.copy == copy && b.offset_ns <= planned.offset_ns));
            assert_eq!(planned.salt, of(copy)[0].salt);
            assert_eq!(planned.first_block, of(copy)[0].first_block);
        }
        firsts.insert(at(0));
    }
    assert_eq!(firsts.len(), 3);
    // Blocks of the source are 0 to 6.
    let blocks: BTreeSet<i64> = plan.requests.iter().map(|p| p.first_block).collect();
    assert_eq!(blocks, BTreeSet::from([0, 7, 14]));
    assert_eq!(of(0)[0].first_block, 0);
    assert_ne!(of(1)[0].salt, of(2)[0].salt);
    let name = of(2)[0].session_id.clone();
    assert!(name.is_none_or(|name| name.ends_with("/copy2")));
}

#[test]
fn rounds_follow_one_another_after_a_mean_gap() {
    let plan = planned("--loop 2");
    let first: Vec<i64> = plan
        .requests
        .iter()
        .filter(|p| p.found.original.request_id == 0)
        .map(|p| p.offset_ns / S)
        .collect();
    // 20 s, and 4 s between two of six.
    assert_eq!(first, [0, 24]);
    assert_eq!(plan.requests[6].session_id.as_deref(), Some("a/round1"));
    let timed = planned("--loop 30s --speed 2");
    // The third round begins at 24 s and its last request is due at 34 s.
    assert_eq!(timed.requests.len(), 6 + 6 + 5);
    assert!(timed.requests.iter().all(|p| p.offset_ns < 30 * S));
    let lone = vec![found(0, 0, "", None)];
    assert!(schedule(lone.clone(), &shape("--loop 5s"), 0, "").is_err());
    let many = schedule(lone, &shape("--loop 4000000000"), 0, "").unwrap_err();
    assert!(many.to_string().contains("at most"), "{many}");
}

fn offsets_ms(schedule: &Schedule) -> Vec<f64> {
    let requests = schedule.requests.iter();
    requests.map(|p| p.offset_ns as f64 / 1e6).collect()
}

#[test]
fn a_rate_stretches_time_and_gaps_stay_to_each_other_as_they_were() {
    // Five gaps in 20 s become five in 2.5 s.
    let plan = planned("--rate 2 --mode closed");
    assert_eq!(offsets_ms(&plan), [0.0, 125.0, 375.0, 500.0, 625.0, 2500.0]);
    assert_eq!(plan.requests[2].think, Duration::from_micros(312_500));
    assert_eq!(plan.requests[5].think, Duration::from_micros(2_062_500));
    // Copies and rounds come at the rate together.
    let more = planned("--rate 40 --copies 2 --loop 3");
    let last_s = offsets_ms(&more)[35] / 1e3;
    assert!((35.0 / last_s - 40.0).abs() < 1e-6, "{last_s}");
    let lone = schedule(vec![found(0, 0, "", None)], &shape("--rate 5"), 0, "");
    assert_eq!(offsets_ms(&lone.unwrap()), [0.0]);
}

#[test]
fn rates_that_change_end_the_plan() {
    // Arrivals 0, 0.25, 0.75, 1, 1.25 and 5 of a process of unit rate.
    let plan = planned("--rate-series 1@2s,4@10s");
    assert_eq!(
        offsets_ms(&plan),
        [0.0, 250.0, 750.0, 1000.0, 1250.0, 2750.0]
    );
    assert_eq!(plan.after_rates, 0);
    let pause = planned("--rate-series 0@1s,0..4@1s,2@1s --mode closed");
    assert_eq!(pause.after_rates, 1);
    let offsets = offsets_ms(&pause);
    assert_eq!((offsets.len(), offsets[0]), (5, 1000.0));
    // 2·t² arrivals after t of the ramp.
    assert!((offsets[2] - 1_612.372_436).abs() < 1e-3, "{offsets:?}");
    // From half a second after the first to 0.75 arrivals.
    let think_ms = pause.requests[2].think.as_secs_f64() * 1e3;
    let began_ms = 1000.0 + (0.125_f64 / 2.0).sqrt() * 1e3;
    assert!(
        (think_ms - (offsets[2] - began_ms)).abs() < 1e-3,
        "{think_ms}"
    );
}

#[test]
fn rates_need_gaps_and_no_other_time() {
    let at_once = vec![found(0, 0, "", None), found(1, 0, "", None)];
    let refused = schedule(at_once, &shape("--rate 5"), 0, "").unwrap_err();
    assert!(
        refused.to_string().contains("hint: --dequantize"),
        "{refused}"
    );
    let refused = schedule(source(), &shape("--rate 5 --loop 9s"), 0, "").unwrap_err();
    assert!(refused.to_string().contains("hint: --loop N"), "{refused}");
    for flags in [
        "--rate 5 --speed 2",
        "--rate 5 --rate-series 5@5s",
        "--rate-series 5@5s --speed 2",
        "--rate 0",
        "--rate inf",
    ] {
        let line = ["replay", "plan", "x"].into_iter().chain(flags.split(' '));
        assert!(Cli::try_parse_from(line).is_err(), "{flags}");
    }
}

#[test]
fn salts_are_one_for_the_run_or_one_for_a_session_and_new_in_each_run() {
    let salts = |flags: &str, fresh: &str| {
        let plan = schedule(source(), &shape(flags), 7, fresh).unwrap();
        let salts = plan
            .requests
            .into_iter()
            .map(|p| (p.salt.unwrap(), p.first_block));
        salts.collect::<Vec<_>>()
    };
    let run = salts("--salt run", "x");
    assert!(run.iter().all(|salt| *salt == run[0] && salt.1 == 0));
    assert_ne!(run[0].0, salts("--salt run", "y")[0].0);
    let sessions = salts("--salt session", "x");
    let same = |a: usize, b: usize| sessions[a] == sessions[b];
    assert!(same(0, 2) && same(0, 4) && same(0, 5), "{sessions:?}");
    assert!(!same(0, 1) && !same(1, 3) && sessions[1].1 != sessions[3].1);
}

#[test]
fn offsets_are_divided_once_and_do_not_drift() {
    for i in 0..100_000 {
        let offset_ns = i * 3_370_001;
        assert_eq!(scaled(offset_ns, 1.0), offset_ns);
        assert_eq!(scaled(offset_ns * 2, 2.0), offset_ns);
    }
}

proptest! {
    /// Whatever is asked for: plans are in order, nobody waits for what comes later,
    /// and equal flags and seeds give equal plans.
    #[test]
    fn plans_are_in_order_and_repeatable(
        arrivals in prop::collection::vec((0..40_i64, 0..4_usize, prop::option::of(0..20_i64)), 1..20),
        copies in 1..4_u32,
        rounds in 1..3_u32,
        speed in 0.1..8.0_f64,
        seed: u64,
    ) {
        let mut arrivals = arrivals;
        arrivals.sort();
        let names = ["", "a", "b", "c"];
        let source: Vec<Found> = arrivals
            .iter()
            .zip(0..)
            .map(|((t_s, name, parent), id)| found(id, *t_s, names[*name], *parent))
            .collect();
        let flags = format!("--copies {copies} --loop {rounds} --speed {speed} --idle-cap 9s");
        let plan = || schedule(source.clone(), &shape(&flags), seed, "f").unwrap().requests;
        let requests = plan();
        prop_assert_eq!(requests.len(), source.len() * (copies * rounds) as usize);
        prop_assert!(requests.is_sorted_by_key(|p| p.offset_ns));
        prop_assert_eq!(requests[0].offset_ns, 0);
        for (place, planned) in requests.iter().enumerate() {
            prop_assert!(planned.after.is_none_or(|after| after < place));
            let before = planned.after.map(|after| &requests[after]);
            prop_assert!(before.is_none_or(|b| (b.copy, b.round) == (planned.copy, planned.round)));
        }
        let keys = |requests: &[Planned]| {
            let key = |p: &Planned| (p.offset_ns, p.found.original.request_id, p.salt.clone());
            requests.iter().map(key).collect::<Vec<_>>()
        };
        prop_assert_eq!(keys(&requests), keys(&plan()));
    }

    /// Whatever the rates: the order is that of the source, and of constant ones every
    /// gap is the source's times one number.
    #[test]
    fn rates_keep_order_and_constant_ones_keep_gaps(
        gaps_s in prop::collection::vec(0..40_i64, 2..30),
        per_s in 0.01..1000.0_f64,
        ramp in (0.1..50.0_f64, 0.1..50.0_f64, 1..100_u32),
    ) {
        prop_assume!(gaps_s.iter().sum::<i64>() > 0);
        let mut t_s = 0;
        let mut source = vec![found(0, 0, "", None)];
        for (gap_s, id) in gaps_s.iter().zip(1..) {
            t_s += gap_s;
            source.push(found(id, t_s, "", None));
        }
        let plan = |flags: &str| schedule(source.clone(), &shape(flags), 0, "f").unwrap();
        let stretched = plan(&format!("--rate {per_s}"));
        let factor = gaps_s.len() as f64 / per_s / t_s as f64;
        for planned in &stretched.requests {
            let expected_ns = planned.found.t_ns as f64 * factor;
            prop_assert!((planned.offset_ns as f64 - expected_ns).abs() <= 1.0 + expected_ns * 1e-12);
        }
        let (from, to, long_s) = ramp;
        let ramped = plan(&format!("--rate-series {from}..{to}@{long_s}s"));
        prop_assert_eq!(ramped.requests.len() + ramped.after_rates, source.len());
        let ids: Vec<i64> = ramped.requests.iter().map(|p| p.found.original.request_id).collect();
        prop_assert!(ids.iter().copied().eq(0..ids.len() as i64));
        prop_assert!(ramped.requests.iter().all(|p| p.offset_ns <= i64::from(long_s) * S));
    }
}

/// The bound is held before anything of that size is laid out.
#[test]
fn a_plan_that_memory_could_not_hold_is_refused_with_its_size() {
    let shape = shape("--copies 10000 --loop 100000");
    let refused = schedule(source(), &shape, 7, "fresh")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("6000000000 requests, at most 50000000"),
        "{refused}"
    );
    assert!(refused.contains("hint: --limit"), "{refused}");
}
