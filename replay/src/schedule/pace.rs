//! From the source's time to the plan's: divided by a speed, or stretched until
//! requests come at given rates.

use anyhow::{Result, bail};
use tapedeck_workload::RateShape;

use crate::cli::{Rounds, ShapeArgs};

/// When what the source has at an instant is due. Grows with the instant, so the
/// order stays.
#[derive(Debug)]
pub(super) enum Pace<'a> {
    Speed(f64),
    /// The source's arrivals as those of a process of unit rate, `per_ns` of them in
    /// a ns, whose time is then stretched as [`tapedeck_workload::arrivals`] does:
    /// wherever the rate is constant, gaps are to each other as they were.
    Rates {
        per_ns: f64,
        rates: Rates<'a>,
    },
}

#[derive(Debug)]
pub(super) enum Rates<'a> {
    Constant { per_s: f64 },
    Shape(&'a RateShape),
}

impl<'a> Pace<'a> {
    /// For `number` requests from instant 0 until `span_ns`.
    ///
    /// # Errors
    /// When rates are asked for of a source that has no gaps to stretch.
    pub(super) fn new(args: &'a ShapeArgs, number: usize, span_ns: i64) -> Result<Self> {
        let rates = match (args.rate, &args.rate_series) {
            (Some(per_s), _) => Rates::Constant { per_s },
            (None, Some(shape)) => Rates::Shape(shape),
            (None, None) => return Ok(Self::Speed(args.speed)),
        };
        if matches!(args.rounds, Rounds::For(_)) {
            bail!(
                "--loop for a time does not go with --rate and --rate-series, whose time is another\nhint: --loop N; --duration stops a run"
            );
        }
        if number > 1 && span_ns == 0 {
            bail!(
                "--rate and --rate-series keep the source's gaps, and all its requests come at one instant\nhint: --dequantize, where a coarse clock did that"
            );
        }
        let gaps = number.saturating_sub(1) as f64;
        Ok(Self::Rates {
            per_ns: gaps / span_ns.max(1) as f64,
            rates,
        })
    }

    /// `None` after the last of the rates.
    pub(super) fn offset_ns(&self, at_ns: i64) -> Option<i64> {
        let (per_ns, rates) = match self {
            Self::Speed(speed) => return Some(scaled(at_ns, *speed)),
            Self::Rates { per_ns, rates } => (per_ns, rates),
        };
        let unit = at_ns as f64 * per_ns;
        let offset_s = match rates {
            Rates::Constant { per_s } => unit / per_s,
            Rates::Shape(shape) => shape.instant_s(unit)?,
        };
        Some((offset_s * 1e9).round() as i64)
    }

    /// What becomes of a time to think that ends at `at_ns`.
    pub(super) fn think_ns(&self, at_ns: i64, think_ns: i64) -> i64 {
        if let Self::Speed(speed) = self {
            return scaled(think_ns, *speed);
        }
        let begins = self.offset_ns(at_ns.saturating_sub(think_ns).max(0));
        let ends = self.offset_ns(at_ns);
        begins.zip(ends).map_or(0, |(begins, ends)| ends - begins)
    }
}

/// Exact for speed 1: an offset in ns fits the 53 bits of a float for 104 days.
pub(super) fn scaled(offset_ns: i64, speed: f64) -> i64 {
    (offset_ns as f64 / speed).round() as i64
}
