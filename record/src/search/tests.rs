use super::*;

fn limits(start: f64, whole: bool) -> Limits {
    Limits {
        start,
        least: if whole { 1.0 } else { start / 1024.0 },
        most: 1e6,
        whole,
        tolerance: if whole { 0.0 } else { 0.05 },
        share: 0.9,
        trials: 60,
        repeats: 3,
    }
}

/// Numbers from a seed, equal on every machine (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Carries out a search; `trial` says how many of how many requests were good.
fn search(
    limits: Limits,
    mut trial: impl FnMut(Trial) -> (u64, u64),
) -> (Answer, Search, Vec<Trial>) {
    let mut search = Search::new(limits);
    let mut made = Vec::new();
    loop {
        match search.next() {
            Step::Done(answer) => return (answer, search, made),
            Step::Try(next) => {
                assert!(
                    (limits.least..=limits.most).contains(&next.level),
                    "{next:?}"
                );
                assert!(next.repeat < limits.repeats, "{next:?}");
                made.push(next);
                assert!(made.len() <= limits.trials as usize);
                let (requests, good) = trial(next);
                search.judged(next.level, requests, good);
            }
        }
    }
}

/// A server that is perfect up to `knee` and hopeless beyond.
fn sharp(knee: f64) -> impl FnMut(Trial) -> (u64, u64) {
    move |trial| (1000, if trial.level <= knee { 1000 } else { 0 })
}

#[test]
fn every_knee_is_found_from_every_start() {
    for knee in 1..=130 {
        for start in [1, 2, 3, 7, 16, 64, 129, 1000] {
            let (answer, _, made) = search(limits(f64::from(start), true), sharp(f64::from(knee)));
            assert_eq!(answer.end, End::Found, "{knee} from {start}");
            assert_eq!(answer.highest, Some(f64::from(knee)), "from {start}");
            assert_eq!(answer.lowest_failing, Some(f64::from(knee + 1)));
            assert!(made.len() <= 20, "{} trials", made.len());
            // What a sharp server decides is not asked again.
            assert!(made.iter().all(|t| t.repeat == 0));
        }
    }
}

#[test]
fn a_rate_is_found_to_within_the_tolerance() {
    let mut random = Random(7);
    for _ in 0..500 {
        let knee = 0.02 * 10f64.powf(random.unit() * 5.0);
        let start = knee * 10f64.powf(random.unit() * 4.0 - 2.0);
        let (answer, ..) = search(limits(start, false), sharp(knee));
        assert_eq!(answer.end, End::Found, "{knee} from {start}");
        let (lo, hi) = (answer.highest.unwrap(), answer.lowest_failing.unwrap());
        assert!(lo <= knee && knee < hi, "{lo} {knee} {hi}");
        assert!(hi - lo <= 0.05 * hi + 1e-12, "{lo} {hi}");
    }
}

#[test]
fn the_ends_of_the_scale_are_answers() {
    let (answer, search_of, _) = search(limits(8.0, true), sharp(0.0));
    assert_eq!(answer.end, End::NonePasses);
    assert_eq!((answer.highest, answer.lowest_failing), (None, Some(1.0)));
    assert_eq!(search_of.standings().len(), 4);
    let capped = Limits {
        most: 100.0,
        ..limits(8.0, true)
    };
    let (answer, _, made) = search(capped, sharp(1e9));
    assert_eq!(answer.end, End::AllPass);
    assert_eq!((answer.highest, answer.lowest_failing), (Some(100.0), None));
    assert_eq!(made.len(), 5);
}

#[test]
fn trials_are_bounded_and_what_is_known_is_said() {
    let few = Limits {
        trials: 5,
        ..limits(1.0, true)
    };
    let (answer, _, made) = search(few, sharp(100.0));
    assert_eq!(made.len(), 5);
    let expected = Answer {
        end: End::OutOfTrials,
        highest: Some(16.0),
        lowest_failing: None,
    };
    assert_eq!(answer, expected);
}

#[test]
fn a_saturated_client_ends_the_search_with_what_passed() {
    let mut search = Search::new(limits(1.0, true));
    search.judged(1.0, 100, 100);
    search.judged(2.0, 100, 100);
    search.client_was_the_bottleneck();
    let expected = Answer {
        end: End::ClientBound,
        highest: Some(2.0),
        lowest_failing: None,
    };
    assert_eq!(search.next(), Step::Done(expected));
}

#[test]
fn a_trial_without_requests_passes_nothing() {
    let (answer, ..) = search(limits(4.0, true), |_| (0, 0));
    assert_eq!(answer.end, End::NonePasses);
}

/// One bad trial far below the knee is tried again and outvoted.
#[test]
fn a_slip_is_outvoted_and_the_search_goes_on() {
    let mut slipped = false;
    let (answer, _, made) = search(limits(1.0, true), |trial| {
        if trial.level >= 8.0 && !slipped {
            slipped = true;
            return (20, 17);
        }
        (20, if trial.level <= 50.0 { 20 } else { 0 })
    });
    assert!(
        made.iter().any(|t| t.level == 8.0 && t.repeat > 0),
        "{made:?}"
    );
    assert_eq!(answer.highest, Some(50.0), "{made:?}");
}

/// Each request meets the SLOs by chance: nearly always at low load, at the wanted
/// share right at the knee, hardly ever well beyond. Nine answers in ten lie within
/// a tenth of the knee, and no search takes more trials than it may.
#[test]
fn noise_moves_the_answer_little() {
    const KNEE: f64 = 40.0;
    let mut close = 0;
    for seed in 0..200 {
        let mut random = Random(seed);
        let (answer, _, made) = search(limits(1.0, false), |trial| {
            // 0.9 at the knee, 0.98 a tenth below it, 0.6 a tenth above.
            let odds = 9.0 * (-(trial.level / KNEE - 1.0) * 18.0).exp();
            let share = odds / (1.0 + odds);
            let good = (0..300).filter(|_| random.unit() < share).count();
            (300, good as u64)
        });
        assert_eq!(answer.end, End::Found, "seed {seed}: {made:?}");
        let highest = answer.highest.unwrap();
        close += usize::from((highest / KNEE - 1.0).abs() <= 0.1);
    }
    assert!(close >= 180, "{close} of 200");
}

#[test]
fn the_interval_is_wilsons() {
    let standing = |good_requests, requests| Standing {
        level: 1.0,
        requests,
        good_requests,
        trials: 1,
    };
    // Values of R's prop.test(…, correct = FALSE) and of the formula at its ends.
    for (good, of, low, high) in [
        (10, 10, 0.722_467, 1.0),
        (0, 10, 0.0, 0.277_533),
        (45, 50, 0.786_398, 0.956_524),
        (990, 1000, 0.981_687, 0.994_559),
    ] {
        let (a, b) = standing(good, of).interval();
        assert!(
            (a - low).abs() < 1e-5 && (b - high).abs() < 1e-5,
            "{good}/{of}: {a} {b}"
        );
    }
    assert!(standing(1000, 1000).is_decided(0.99));
    assert!(!standing(100, 100).is_decided(0.99));
    assert!(standing(90, 100).is_decided(0.99));
    assert_eq!(standing(0, 0).interval(), (0.0, 1.0));
}
