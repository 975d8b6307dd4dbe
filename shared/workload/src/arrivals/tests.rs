//! The plan against what was asked for: mean, coefficient of variation, and
//! Kolmogorov–Smirnov. The asked-for distributions are computed here, from the rate
//! itself, by other means than the code's.

use super::*;
use crate::rates::{Curve, RatePiece};

/// Critical value of the one-sample Kolmogorov–Smirnov test at 1 %: the largest
/// distance between the two distribution functions is below it, over √n, 99 times out
/// of 100. Seeds are fixed, so a test passes always or never.
const KS_CRITICAL: f64 = 1.628;

fn gamma(rate_per_s: f64, burstiness: f64) -> ArrivalProcess {
    ArrivalProcess::Gamma {
        rate_per_s,
        burstiness,
    }
}

fn piece(from_per_s: f64, to_per_s: f64, curve: Curve, duration_s: f64) -> RatePiece {
    RatePiece {
        from_per_s,
        to_per_s,
        curve,
        duration_s,
    }
}

/// Pieces that come to a few thousand arrivals each: two ramps, a series with a
/// pause.
fn shapes() -> [Vec<RatePiece>; 3] {
    use Curve::{Exponential, Linear};
    [
        vec![piece(0.0, 100.0, Linear, 100.0)],
        vec![piece(200.0, 2.0, Exponential, 100.0)],
        vec![
            piece(30.0, 30.0, Linear, 50.0),
            piece(0.0, 0.0, Linear, 20.0),
            piece(100.0, 100.0, Linear, 20.0),
            piece(100.0, 10.0, Linear, 30.0),
        ],
    ]
}

fn shaped(pieces: &[RatePiece], burstiness: f64) -> ArrivalProcess {
    ArrivalProcess::Shaped {
        shape: RateShape::new(pieces.to_vec()).unwrap(),
        burstiness,
    }
}

/// Steps of the integral; the pieces of [`shapes`] end where a step does.
const STEPS: u32 = 24_000;

/// Arrivals to be expected until the end of each step, by the midpoint rule.
struct Asked {
    step_s: f64,
    until: Vec<f64>,
}

impl Asked {
    fn of(pieces: &[RatePiece]) -> Self {
        let whole_s: f64 = pieces.iter().map(|p| p.duration_s).sum();
        let step_s = whole_s / f64::from(STEPS);
        let rate = |mut at_s: f64| {
            for p in pieces {
                if at_s < p.duration_s {
                    let share = at_s / p.duration_s;
                    return match p.curve {
                        Curve::Linear => p.from_per_s * (1.0 - share) + p.to_per_s * share,
                        Curve::Exponential => {
                            (p.from_per_s.ln() * (1.0 - share) + p.to_per_s.ln() * share).exp()
                        }
                    };
                }
                at_s -= p.duration_s;
            }
            0.0
        };
        let mut until = vec![0.0];
        for n in 0..STEPS {
            let middle_s = (f64::from(n) + 0.5) * step_s;
            until.push(until[until.len() - 1] + rate(middle_s) * step_s);
        }
        Self { step_s, until }
    }

    fn whole(&self) -> f64 {
        *self.until.last().unwrap()
    }

    fn until(&self, at_s: f64) -> f64 {
        let place = (at_s / self.step_s).min(f64::from(STEPS) - 1e-3);
        let (low, share) = (place as usize, place.fract());
        self.until[low] * (1.0 - share) + self.until[low + 1] * share
    }
}

fn offsets_s(process: ArrivalProcess, seed: u64, n: usize) -> Vec<f64> {
    let offsets = process.offsets_ns(seed).take(n);
    offsets.map(|ns| ns as f64 / 1e9).collect()
}

fn gaps(offsets: &[f64]) -> Vec<f64> {
    offsets.windows(2).map(|w| w[1] - w[0]).collect()
}

fn mean_and_cv(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt() / mean)
}

/// The largest distance between the distribution of `values` and `cdf`, times √n.
fn ks(mut values: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let distance = |(i, value): (usize, &f64)| {
        let expected = cdf(*value);
        let below = (expected - i as f64 / n).abs();
        below.max((expected - (i + 1) as f64 / n).abs())
    };
    values.iter().enumerate().map(distance).fold(0.0, f64::max) * n.sqrt()
}

/// The share of gaps of mean 1 and shape `k` below `x`, by the series of the
/// incomplete gamma function; `gamma_of_next` is Γ(k + 1).
fn gap_cdf(k: f64, gamma_of_next: f64) -> impl Fn(f64) -> f64 {
    move |x| {
        let x = k * x;
        if x > 60.0 {
            return 1.0;
        }
        let (mut term, mut sum, mut n) = (1.0, 1.0, 1.0);
        while term > 1e-15 * sum {
            term *= x / (k + n);
            sum += term;
            n += 1.0;
        }
        x.powf(k) * (-x).exp() / gamma_of_next * sum
    }
}

/// Shapes of gaps with Γ(shape + 1), from bursty to smooth. Burstier ones have so many
/// gaps below a nanosecond that the test would see the rounding.
const SHAPES: [(f64, f64); 3] = [(0.5, 0.886_226_925_452_758), (1.0, 1.0), (4.0, 24.0)];

#[test]
fn equal_seeds_give_equal_offsets_and_others_do_not() {
    let [ramp, _, series] = shapes().map(|pieces| shaped(&pieces, 1.0));
    for process in [gamma(50.0, 1.0), ramp, series] {
        let plan = |seed| offsets_s(process.clone(), seed, 1_000);
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        assert_eq!(plan(1)[0], 0.0);
        assert!(plan(1).is_sorted());
    }
}

#[test]
fn constant_rates_have_the_mean_the_variation_and_the_distribution_asked_for() {
    for (shape, gamma_of_next) in SHAPES {
        let found = gaps(&offsets_s(gamma(200.0, shape), 7, 20_001));
        let (mean, cv) = mean_and_cv(&found);
        // 20,000 gaps put the mean within cv / √20,000, four times that at most.
        let tolerance = 4.0 / (shape * 20_000.0).sqrt();
        assert!((mean * 200.0 - 1.0).abs() < tolerance, "mean of {shape}");
        assert!(
            (cv * shape.sqrt() - 1.0).abs() < 0.05,
            "cv of {shape}: {cv}"
        );
        let units = found.into_iter().map(|gap| gap * 200.0).collect();
        let distance = ks(units, gap_cdf(shape, gamma_of_next));
        assert!(distance < KS_CRITICAL, "shape {shape}: {distance}");
    }
}

#[test]
fn the_test_itself_tells_a_wrong_rate_and_a_wrong_shape() {
    let found = gaps(&offsets_s(gamma(200.0, 1.0), 7, 20_001));
    let units = |rate: f64| found.iter().map(|gap| gap * rate).collect();
    assert!(ks(units(206.0), gap_cdf(1.0, 1.0)) > KS_CRITICAL);
    assert!(ks(units(200.0), gap_cdf(1.1, 1.046_485_846_853_560_4)) > KS_CRITICAL);
}

#[test]
fn rates_that_change_have_as_many_arrivals_where_they_are_asked_for() {
    for pieces in shapes() {
        let asked = Asked::of(&pieces);
        for (shape, gamma_of_next) in SHAPES {
            let found = offsets_s(shaped(&pieces, shape), 11, usize::MAX);
            // A count of the process has the deviation √(n / shape).
            let deviation = (asked.whole() / shape).sqrt();
            let count = found.len() as f64;
            assert!((count - asked.whole()).abs() < 4.0 * deviation, "{count}");

            // With time stretched back, gaps are those of a constant rate.
            let stretched: Vec<f64> = found.iter().map(|at| asked.until(*at)).collect();
            let units = gaps(&stretched);
            let (mean, cv) = mean_and_cv(&units);
            assert!((mean - 1.0).abs() < 4.0 / (shape * count).sqrt(), "{mean}");
            assert!((cv * shape.sqrt() - 1.0).abs() < 0.1, "cv of {shape}: {cv}");
            let distance = ks(units, gap_cdf(shape, gamma_of_next));
            assert!(distance < KS_CRITICAL, "shape {shape}: {distance}");

            // Where they lie: arrivals of a Poisson process, their number given, are a
            // sample of the rate; smoother ones are nearer to it.
            if shape >= 1.0 {
                let distance = ks(found, |at| asked.until(at) / asked.whole());
                assert!(distance < KS_CRITICAL, "instants of {shape}: {distance}");
            }
        }
    }
}

#[test]
fn evenly_spaced_arrivals_follow_a_changing_rate_one_by_one() {
    for pieces in shapes() {
        let asked = Asked::of(&pieces);
        let found = offsets_s(shaped(&pieces, f64::INFINITY), 0, usize::MAX);
        assert!((found.len() as f64 - asked.whole()).abs() <= 1.0);
        for (n, at) in found.iter().enumerate() {
            assert!((asked.until(*at) - n as f64).abs() < 0.01, "arrival {n}");
        }
    }
}

#[test]
fn infinite_burstiness_is_evenly_spaced_without_drift() {
    let offsets = gamma(300.0, f64::INFINITY).offsets_ns(0);
    let offsets: Vec<i64> = offsets.take(300_001).collect();
    assert_eq!(offsets[300], 1_000_000_000);
    assert_eq!(offsets[300_000], 1_000_000_000_000);
}

#[test]
fn at_once_is_all_zero() {
    let offsets = ArrivalProcess::AtOnce.offsets_ns(3);
    assert!(offsets.take(50).all(|offset| offset == 0));
}

#[test]
fn a_warm_up_has_the_rate_that_the_load_begins_with() {
    let [from_nothing, falling, _] = shapes().map(|pieces| shaped(&pieces, 2.0));
    assert_eq!(falling.before(), Some(gamma(200.0, 2.0)));
    assert_eq!(from_nothing.before(), None);
    assert_eq!(gamma(5.0, 1.0).before(), Some(gamma(5.0, 1.0)));
}
