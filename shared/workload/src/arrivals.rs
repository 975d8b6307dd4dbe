//! Arrival processes: a seed becomes absolute offsets. No clock.
//!
//! Every process is one of unit rate, whose time is then stretched: arrival n of the
//! unit process, at u, comes when the integral of the rate has got to u. So a rate
//! that changes keeps its gaps as evenly or unevenly spaced as a constant one, and
//! the offsets are exact, not stepped.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Gamma};

use crate::rates::RateShape;

/// When requests arrive. Gaps are gamma-distributed with shape `burstiness`: 1 is a
/// Poisson process, below 1 burstier, above 1 smoother, infinite evenly spaced.
#[derive(Debug, Clone, PartialEq)]
pub enum ArrivalProcess {
    /// Every arrival at offset 0.
    AtOnce,
    /// At a constant rate: gaps have the mean `1 / rate_per_s`.
    Gamma { rate_per_s: f64, burstiness: f64 },
    /// At a rate that changes, until its shape ends.
    Shaped { shape: RateShape, burstiness: f64 },
}

impl ArrivalProcess {
    /// Offsets from the start of the run, ns; none is before its predecessor, and the
    /// first is where the rate begins to be above 0. Endless, unless the rate has a
    /// shape, and equal for equal seeds.
    ///
    /// The offset is summed as a number and rounded once, so the mean rate does
    /// not drift however small the gaps are.
    pub fn offsets_ns(self, seed: u64) -> impl Iterator<Item = i64> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut gap = self.unit_gap();
        let mut unit: f64 = 0.0;
        std::iter::from_fn(move || {
            let at_s = self.instant_s(unit)?;
            unit += gap(&mut rng);
            Some((at_s * 1e9).round() as i64)
        })
    }

    /// A process that warms up for this one: at its rate, or the one that its shape
    /// begins with; `None` where that is none.
    #[must_use]
    pub fn before(&self) -> Option<Self> {
        match self {
            Self::Shaped { shape, burstiness } => {
                let rate_per_s = shape.first_per_s();
                let burstiness = *burstiness;
                (rate_per_s > 0.0).then_some(Self::Gamma {
                    rate_per_s,
                    burstiness,
                })
            }
            other => Some(other.clone()),
        }
    }

    /// Gaps of mean 1.
    fn unit_gap(&self) -> Box<dyn FnMut(&mut StdRng) -> f64> {
        let burstiness = match self {
            Self::AtOnce => f64::INFINITY,
            Self::Gamma { burstiness, .. } | Self::Shaped { burstiness, .. } => *burstiness,
        };
        match Gamma::new(burstiness, 1.0 / burstiness) {
            Ok(gamma) if burstiness.is_finite() => Box::new(move |rng| gamma.sample(rng)),
            _ => Box::new(|_| 1.0),
        }
    }

    /// When the integral of the rate has got to `unit`, s from the start.
    fn instant_s(&self, unit: f64) -> Option<f64> {
        match self {
            Self::AtOnce => Some(0.0),
            Self::Gamma { rate_per_s, .. } => Some(unit / rate_per_s),
            Self::Shaped { shape, .. } => shape.instant_s(unit),
        }
    }
}

#[cfg(test)]
mod tests;
