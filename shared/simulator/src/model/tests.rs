use super::*;
use proptest::prelude::*;

fn config(query: &str) -> SimConfig {
    SimConfig::from_query(query).unwrap()
}

fn exact(query: &str) -> SimConfig {
    config(&format!("ttft_ms=100&itl_ms=10&jitter=0&{query}"))
}

/// Runs arrivals `(t_ns, prompt_tokens)` to the end; the steps of each request.
fn run(config: &SimConfig, arrivals: &[(i64, u32)]) -> Vec<Vec<Step>> {
    let mut model = Model::new(config.clone());
    let mut steps = vec![Vec::new(); arrivals.len()];
    for (number, (t_ns, prompt_tokens)) in arrivals.iter().enumerate() {
        let mut emit = |n: &usize, step| steps[*n].push(step);
        model.advance(*t_ns, usize::MAX, &mut emit);
        let plan = Plan::draw(config, number as u64, OutputLimit::default());
        model.arrive(*t_ns, *prompt_tokens, plan, number).unwrap();
    }
    model.advance(i64::MAX, usize::MAX, &mut |n, step| steps[*n].push(step));
    assert_eq!((model.running(), model.waiting()), (0, 0));
    assert_eq!(model.next_deadline_ns(), None);
    steps
}

fn instants_ms(steps: &[Step]) -> Vec<f64> {
    steps.iter().map(|s| s.t_ns as f64 / NS_PER_MS).collect()
}

#[test]
fn a_lone_request_keeps_the_configured_pace() {
    let steps = run(&exact("tokens=4"), &[(0, 0)]);
    assert_eq!(instants_ms(&steps[0]), [100.0, 110.0, 120.0, 130.0]);
    assert_eq!(steps[0].iter().filter(|s| s.last).count(), 1);
    assert!(steps[0][3].last);
}

#[test]
fn the_same_seed_gives_the_same_instants_and_another_seed_others() {
    let arrivals: Vec<_> = (0..20).map(|i| (i * 7_000_000, 100)).collect();
    let of = |seed: u64| {
        let query = format!("tokens=30&jitter=0.2&tokens_jitter=0.5&slots=8&seed={seed}");
        run(&config(&query), &arrivals)
    };
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn a_long_prompt_takes_longer_to_prefill() {
    let steps = run(&exact("tokens=1&prefill_tokens=1000"), &[(0, 1000)]);
    assert_eq!(instants_ms(&steps[0]), [200.0]);
}

#[test]
fn concurrent_prefills_slow_each_other() {
    let steps = run(
        &exact("tokens=1&slots=2&prefill_slope=1"),
        &[(0, 0), (0, 0)],
    );
    assert_eq!(instants_ms(&steps[0]), [100.0]);
    assert_eq!(instants_ms(&steps[1]), [150.0]);
}

#[test]
fn a_full_batch_decodes_slower_than_a_lone_request() {
    let gaps = |n: usize| {
        let config = exact("tokens=50&slots=4&prefill_slope=0&decode_slope=1");
        let steps = run(&config, &vec![(0, 0); n]);
        let instants = instants_ms(&steps[0]);
        instants[10] - instants[9]
    };
    assert!((gaps(1) - 10.0).abs() < 1e-6);
    assert!((gaps(2) - 12.5).abs() < 1e-6);
    assert!((gaps(4) - 17.5).abs() < 1e-6);
}

#[test]
fn a_request_beyond_the_slots_starts_when_one_ends() {
    let steps = run(&exact("tokens=3&slots=1"), &[(0, 0), (0, 0), (0, 0)]);
    assert_eq!(instants_ms(&steps[0]), [100.0, 110.0, 120.0]);
    assert_eq!(instants_ms(&steps[1]), [220.0, 230.0, 240.0]);
    assert_eq!(instants_ms(&steps[2]), [340.0, 350.0, 360.0]);
}

#[test]
fn a_request_beyond_the_queue_is_refused() {
    let config = exact("slots=2&queue=3");
    let mut model = Model::new(config.clone());
    let mut arrive = |number| {
        let plan = Plan::draw(&config, number, OutputLimit::default());
        model.arrive(0, 0, plan, ())
    };
    for number in 0..5 {
        assert!(arrive(number).is_ok());
    }
    assert_eq!(arrive(5), Err(QueueFull));
    assert_eq!((model.running(), model.waiting()), (2, 3));
}

#[test]
fn a_client_that_leaves_frees_its_slot_at_once() {
    let config = exact("slots=1&tokens=2");
    let mut model = Model::new(config.clone());
    let plan = |number| Plan::draw(&config, number, OutputLimit::default());
    let first = model.arrive(0, 0, plan(0), 0).unwrap();
    let second = model.arrive(0, 0, plan(1), 1).unwrap();
    model.arrive(0, 0, plan(2), 2).unwrap();
    model.leave(second, 10);
    model.leave(first, 50_000_000);
    assert_eq!((model.running(), model.waiting()), (1, 0));
    assert_eq!(model.next_deadline_ns(), Some(150_000_000));
    model.leave(first, 60_000_000);
    assert_eq!(model.running(), 1, "leaving twice frees nothing more");
}

#[test]
fn a_late_call_shifts_no_instant() {
    let config = config("tokens=40&jitter=0.1");
    let plan = || Plan::draw(&config, 0, OutputLimit::default());
    let instants = |times: &[i64]| {
        let mut model = Model::new(config.clone());
        model.arrive(0, 10, plan(), ()).unwrap();
        let mut seen = Vec::new();
        for t_ns in times {
            model.advance(*t_ns, usize::MAX, &mut |(), step| seen.push(step));
        }
        seen
    };
    let often: Vec<i64> = (0..20_000).map(|i| i * 100_000).collect();
    assert_eq!(instants(&often), instants(&[2_000_000_000]));
}

#[test]
fn a_pause_free_server_still_returns_after_its_limit() {
    let config = config("ttft_ms=0&itl_ms=0&tokens=1000");
    let mut model = Model::new(config.clone());
    let plan = Plan::draw(&config, 0, OutputLimit::default());
    model.arrive(0, 0, plan, ()).unwrap();
    let mut count = 0;
    model.advance(i64::MAX, 64, &mut |(), _| count += 1);
    assert_eq!(count, 64);
    assert!(model.next_deadline_ns().is_some());
}

#[test]
fn the_output_is_capped_and_says_why_it_ended() {
    let ended = |tokens, max_tokens, ignore_eos| {
        let limit = OutputLimit {
            max_tokens,
            ignore_eos,
        };
        let plan = Plan::draw(&config(&format!("tokens={tokens}")), 0, limit);
        (plan.tokens, plan.ending)
    };
    assert_eq!(ended(100, None, false), (100, Ending::Stop));
    assert_eq!(ended(100, Some(200), false), (100, Ending::Stop));
    assert_eq!(ended(100, Some(30), false), (30, Ending::Length));
    assert_eq!(ended(100, Some(200), true), (200, Ending::Length));
    assert_eq!(ended(100, None, true), (100, Ending::Stop));
}

#[test]
fn errors_come_at_about_their_rate_and_leave_other_requests_alone() {
    let plans = |query: &str| -> Vec<Plan> {
        let config = config(&format!("tokens_jitter=0.5&{query}"));
        (0..2000)
            .map(|n| Plan::draw(&config, n, OutputLimit::default()))
            .collect()
    };
    let plain = plans("");
    let faulty = plans("error_rate=0.1&stream_error_rate=0.2");
    let refused = faulty.iter().filter(|p| p.refused).count();
    let failing = |p: &&Plan| p.ending == Ending::Failure;
    assert!((150..250).contains(&refused), "{refused}");
    assert!((300..500).contains(&faulty.iter().filter(failing).count()));
    for (with, without) in faulty.iter().zip(&plain) {
        assert!(with.ending == Ending::Failure || with.tokens == without.tokens);
        assert!((1..=without.tokens).contains(&with.tokens));
    }
}

proptest! {
    /// For all arrivals: every request gets exactly its tokens, numbered from 1,
    /// at instants that never go back, the first not before it arrived; and the
    /// batch and queue never pass their bounds.
    #[test]
    fn every_request_gets_its_tokens_in_order(
        gaps_ns in prop::collection::vec((0..50_000_000i64, 0..5000u32), 1..40),
        slots in 1..6u32,
        jitter in 0.0..=1.0f64,
        seed: u64,
    ) {
        let config = config(&format!("tokens=9&tokens_jitter=1&slots={slots}&jitter={jitter}&seed={seed}"));
        let mut t_ns = 0;
        let arrivals: Vec<_> = gaps_ns.iter().map(|(gap, prompt)| { t_ns += gap; (t_ns, *prompt) }).collect();
        let steps = run(&config, &arrivals);
        for (number, steps) in steps.iter().enumerate() {
            let plan = Plan::draw(&config, number as u64, OutputLimit::default());
            prop_assert_eq!(steps.len(), plan.tokens as usize);
            prop_assert!(steps[0].t_ns >= arrivals[number].0);
            prop_assert!(steps.windows(2).all(|w| w[0].t_ns <= w[1].t_ns && w[0].tokens + 1 == w[1].tokens));
        }
    }
}
