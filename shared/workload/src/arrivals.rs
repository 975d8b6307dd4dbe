//! Arrival processes: a seed becomes absolute offsets. No clock.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Gamma};

/// How the gaps between arrivals are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ArrivalProcess {
    /// Every arrival at offset 0.
    AtOnce,
    /// Gamma-distributed gaps with mean `1 / rate_per_s` and shape `burstiness`:
    /// 1 is a Poisson process, below 1 burstier, above 1 smoother, infinite
    /// evenly spaced.
    Gamma { rate_per_s: f64, burstiness: f64 },
}

impl ArrivalProcess {
    /// Offsets from the start of the run, ns; the first is 0, and none is before
    /// its predecessor. Endless, and equal for equal seeds.
    ///
    /// The offset is summed in seconds and rounded once, so the mean rate does
    /// not drift however small the gaps are.
    pub fn offsets_ns(self, seed: u64) -> impl Iterator<Item = i64> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut gap = self.gap();
        let mut at_s: f64 = 0.0;
        std::iter::from_fn(move || {
            let offset_ns = (at_s * 1e9).round() as i64;
            at_s += gap(&mut rng);
            Some(offset_ns)
        })
    }

    fn gap(self) -> Box<dyn FnMut(&mut StdRng) -> f64> {
        match self {
            Self::AtOnce => Box::new(|_| 0.0),
            Self::Gamma {
                rate_per_s,
                burstiness,
            } => match Gamma::new(burstiness, 1.0 / (rate_per_s * burstiness)) {
                Ok(gamma) if burstiness.is_finite() => Box::new(move |rng| gamma.sample(rng)),
                _ => Box::new(move |_| 1.0 / rate_per_s),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps_s(process: ArrivalProcess, n: usize) -> Vec<f64> {
        let offsets: Vec<i64> = process.offsets_ns(7).take(n).collect();
        offsets
            .windows(2)
            .map(|w| (w[1] - w[0]) as f64 / 1e9)
            .collect()
    }

    fn mean_and_cv(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn equal_seeds_give_equal_offsets_and_others_do_not() {
        let process = ArrivalProcess::Gamma {
            rate_per_s: 50.0,
            burstiness: 1.0,
        };
        let first: Vec<i64> = process.offsets_ns(1).take(100).collect();
        assert_eq!(first, process.offsets_ns(1).take(100).collect::<Vec<_>>());
        assert_ne!(first, process.offsets_ns(2).take(100).collect::<Vec<_>>());
        assert_eq!(first[0], 0);
        assert!(first.is_sorted());
    }

    #[test]
    fn gaps_have_the_mean_and_the_variation_asked_for() {
        for (burstiness, cv) in [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)] {
            let process = ArrivalProcess::Gamma {
                rate_per_s: 200.0,
                burstiness,
            };
            let (mean, seen_cv) = mean_and_cv(&gaps_s(process, 20_000));
            assert!(
                (mean * 200.0 - 1.0).abs() < 0.05,
                "mean of shape {burstiness}"
            );
            assert!(
                (seen_cv / cv - 1.0).abs() < 0.05,
                "cv of shape {burstiness}"
            );
        }
    }

    #[test]
    fn poisson_gaps_pass_a_kolmogorov_smirnov_test() {
        let process = ArrivalProcess::Gamma {
            rate_per_s: 100.0,
            burstiness: 1.0,
        };
        let mut gaps = gaps_s(process, 5_001);
        gaps.sort_by(f64::total_cmp);
        let n = gaps.len() as f64;
        let distance = gaps
            .iter()
            .enumerate()
            .map(|(i, gap)| {
                let expected = 1.0 - (-gap * 100.0).exp();
                (expected - i as f64 / n)
                    .abs()
                    .max((expected - (i + 1) as f64 / n).abs())
            })
            .fold(0.0, f64::max);
        // 1 % critical value of the one-sample test.
        assert!(distance < 1.63 / n.sqrt(), "distance {distance}");
    }

    #[test]
    fn infinite_burstiness_is_evenly_spaced_without_drift() {
        let process = ArrivalProcess::Gamma {
            rate_per_s: 300.0,
            burstiness: f64::INFINITY,
        };
        let offsets: Vec<i64> = process.offsets_ns(0).take(300_001).collect();
        assert_eq!(offsets[300], 1_000_000_000);
        let drift_ns = offsets[300_000] - 1_000_000_000_000;
        assert!(drift_ns.abs() < 1_000, "drift {drift_ns} ns in 1000 s");
    }

    #[test]
    fn at_once_is_all_zero() {
        assert!(
            ArrivalProcess::AtOnce
                .offsets_ns(3)
                .take(50)
                .all(|o| o == 0)
        );
    }
}
