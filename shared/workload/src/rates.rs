//! Rates of arrivals that change with time.

/// How the rate goes from one end of a piece to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// By as much in equal times.
    Linear,
    /// By the same factor in equal times.
    Exponential,
}

impl Curve {
    /// As typed, and as it stands in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Exponential => "exponential",
        }
    }

    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Linear, Self::Exponential]
            .into_iter()
            .find(|curve| curve.as_str() == word)
    }
}

/// A time during which the rate is constant or follows one curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatePiece {
    /// Arrivals per second at its begin.
    pub from_per_s: f64,
    /// At its end.
    pub to_per_s: f64,
    pub curve: Curve,
    pub duration_s: f64,
}

/// ln(to / from) below which an exponential is constant as far as a double can tell.
const FLAT: f64 = 1e-12;

impl RatePiece {
    fn check(&self) -> Result<(), String> {
        let rates = [self.from_per_s, self.to_per_s];
        if rates.iter().any(|r| !r.is_finite() || *r < 0.0) {
            return Err("a rate is a number from 0 on".to_owned());
        }
        if self.curve == Curve::Exponential && rates.contains(&0.0) {
            return Err("an exponential ramp neither begins nor ends at 0".to_owned());
        }
        if !(self.duration_s.is_finite() && self.duration_s > 0.0) {
            return Err("a rate lasts a time above zero".to_owned());
        }
        Ok(())
    }

    /// ln(to / from), where the rate changes exponentially.
    fn growth(&self) -> Option<f64> {
        let growth = (self.to_per_s / self.from_per_s).ln();
        (self.curve == Curve::Exponential && growth.abs() > FLAT).then_some(growth)
    }

    /// Expected arrivals: the integral of the rate over the piece.
    fn expected(&self) -> f64 {
        match self.growth() {
            Some(growth) => self.from_per_s * self.duration_s * growth.exp_m1() / growth,
            None => (self.from_per_s + self.to_per_s) / 2.0 * self.duration_s,
        }
    }

    /// Seconds into the piece after which `expected` arrivals are to be expected: the
    /// inverse of the integral of the rate.
    fn instant_s(&self, expected: f64) -> f64 {
        if expected <= 0.0 {
            return 0.0;
        }
        let from = self.from_per_s;
        let instant_s = if let Some(growth) = self.growth() {
            let grown = (expected * growth / (from * self.duration_s)).ln_1p();
            self.duration_s / growth * grown
        } else {
            let slope = (self.to_per_s - from) / self.duration_s;
            // The root of from·t + slope·t²/2 in the form that does not cancel.
            2.0 * expected / (from + (from * from + 2.0 * slope * expected).max(0.0).sqrt())
        };
        instant_s.min(self.duration_s)
    }
}

/// Pieces one after the other; at the end of the last one arrivals end.
#[derive(Debug, Clone, PartialEq)]
pub struct RateShape {
    pieces: Vec<RatePiece>,
    /// Expected arrivals up to the end of each piece.
    expected_until: Vec<f64>,
    /// Seconds from the begin of the shape to that of each piece.
    begins_s: Vec<f64>,
}

/// Pieces of a shape at most.
pub const MAX_PIECES: usize = 1_000;

impl RateShape {
    /// # Errors
    /// When a piece makes no sense, there are too many, or nothing would arrive.
    pub fn new(pieces: Vec<RatePiece>) -> Result<Self, String> {
        if pieces.len() > MAX_PIECES {
            return Err(format!("at most {MAX_PIECES} pieces"));
        }
        let (mut expected, mut begin_s) = (0.0, 0.0);
        let (mut expected_until, mut begins_s) = (Vec::new(), Vec::new());
        for piece in &pieces {
            piece.check()?;
            expected += piece.expected();
            expected_until.push(expected);
            begins_s.push(begin_s);
            begin_s += piece.duration_s;
        }
        if expected <= 0.0 || !expected.is_finite() || !begin_s.is_finite() {
            return Err("the rates come to no number of arrivals".to_owned());
        }
        Ok(Self {
            pieces,
            expected_until,
            begins_s,
        })
    }

    #[must_use]
    pub fn pieces(&self) -> &[RatePiece] {
        &self.pieces
    }

    /// Arrivals to be expected of the whole shape.
    #[must_use]
    pub fn expected(&self) -> f64 {
        self.expected_until.last().copied().unwrap_or_default()
    }

    /// The rate with which the shape begins, arrivals per second.
    #[must_use]
    pub fn first_per_s(&self) -> f64 {
        self.pieces.first().map_or(0.0, |piece| piece.from_per_s)
    }

    /// Seconds from the begin after which `expected` arrivals are to be expected;
    /// `None` from the end of the shape on. What falls between two pieces belongs to
    /// the later one.
    #[must_use]
    pub fn instant_s(&self, expected: f64) -> Option<f64> {
        let index = self.expected_until.partition_point(|e| *e <= expected);
        let piece = self.pieces.get(index)?;
        let before = index.checked_sub(1).map_or(0.0, |i| self.expected_until[i]);
        Some(self.begins_s[index] + piece.instant_s(expected - before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rate as it was asked for, at `at_s` into a piece.
    fn rate(piece: &RatePiece, at_s: f64) -> f64 {
        let share = at_s / piece.duration_s;
        match piece.curve {
            Curve::Linear => piece.from_per_s + (piece.to_per_s - piece.from_per_s) * share,
            Curve::Exponential => {
                piece.from_per_s * (piece.to_per_s / piece.from_per_s).powf(share)
            }
        }
    }

    /// Simpson's rule, which knows nothing of the closed forms.
    fn integral(piece: &RatePiece, until_s: f64) -> f64 {
        const STEPS: u32 = 2_000;
        let width = until_s / f64::from(STEPS);
        let at = |n: u32| rate(piece, f64::from(n) * width);
        let inner: f64 = (1..STEPS).map(|n| at(n) * f64::from(2 + 2 * (n % 2))).sum();
        (at(0) + inner + at(STEPS)) * width / 3.0
    }

    fn piece() -> impl Strategy<Value = RatePiece> {
        let linear = (0.0..500.0, 0.0..500.0, Just(Curve::Linear));
        let exponential = (0.1..500.0, 0.1..500.0, Just(Curve::Exponential));
        (prop_oneof![linear, exponential], 0.1..1e3).prop_map(
            |((from_per_s, to_per_s, curve), duration_s)| RatePiece {
                from_per_s,
                to_per_s,
                curve,
                duration_s,
            },
        )
    }

    proptest! {
        #[test]
        fn an_instant_is_where_the_integral_of_the_rate_has_got_to(
            piece in piece(),
            share in 0.0..1.0_f64,
        ) {
            let whole = integral(&piece, piece.duration_s);
            prop_assume!(whole > 1e-3);
            prop_assert!((piece.expected() / whole - 1.0).abs() < 1e-6);
            let at_s = piece.instant_s(whole * share);
            let got_to = integral(&piece, at_s);
            prop_assert!((got_to - whole * share).abs() < 1e-6 * whole, "{got_to}");
        }

        #[test]
        fn instants_rise_and_end_with_the_shape(
            pieces in prop::collection::vec(piece(), 1..6),
            shares in prop::collection::vec(0.0..1.2, 1..20),
        ) {
            let end_s: f64 = pieces.iter().map(|p| p.duration_s).sum();
            let shape = RateShape::new(pieces).unwrap();
            let mut asked: Vec<f64> = shares.iter().map(|s| s * shape.expected()).collect();
            asked.sort_by(f64::total_cmp);
            let mut last = 0.0;
            for expected in asked {
                match shape.instant_s(expected) {
                    Some(at_s) => {
                        prop_assert!(at_s >= last && at_s <= end_s * (1.0 + 1e-12));
                        last = at_s;
                    }
                    None => prop_assert!(expected >= shape.expected()),
                }
            }
        }
    }

    fn flat(per_s: f64, duration_s: f64) -> RatePiece {
        RatePiece {
            from_per_s: per_s,
            to_per_s: per_s,
            curve: Curve::Linear,
            duration_s,
        }
    }

    #[test]
    fn a_pause_is_passed_over() {
        let pieces = vec![
            flat(0.0, 5.0),
            flat(10.0, 1.0),
            flat(0.0, 5.0),
            flat(2.0, 1.0),
        ];
        let shape = RateShape::new(pieces).unwrap();
        assert_eq!(shape.instant_s(0.0), Some(5.0));
        assert_eq!(shape.instant_s(9.0), Some(5.9));
        assert_eq!(shape.instant_s(10.0), Some(11.0));
        assert_eq!(shape.instant_s(12.0), None);
    }

    #[test]
    fn a_ramp_from_nothing_begins_and_ends() {
        let mut ramp = flat(0.0, 10.0);
        ramp.to_per_s = 20.0;
        let up = RateShape::new(vec![ramp]).unwrap();
        assert_eq!(up.instant_s(0.0), Some(0.0));
        assert_eq!(up.instant_s(25.0), Some(5.0));
        let down = RatePiece {
            from_per_s: 20.0,
            to_per_s: 0.0,
            ..ramp
        };
        let down = RateShape::new(vec![down]).unwrap();
        assert_eq!(down.instant_s(75.0), Some(5.0));
        assert_eq!(down.instant_s(100.0), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let exponential = |from_per_s, to_per_s| RatePiece {
            from_per_s,
            to_per_s,
            curve: Curve::Exponential,
            duration_s: 1.0,
        };
        for pieces in [
            vec![],
            vec![flat(0.0, 5.0)],
            vec![flat(-1.0, 5.0)],
            vec![flat(f64::INFINITY, 5.0)],
            vec![flat(1.0, 0.0)],
            vec![exponential(0.0, 5.0)],
            vec![exponential(5.0, 0.0)],
            vec![flat(f64::MAX, 5.0)],
            vec![flat(1.0, 1.0); MAX_PIECES + 1],
        ] {
            assert!(RateShape::new(pieces.clone()).is_err(), "{pieces:?}");
        }
        assert!(RateShape::new(vec![exponential(5.0, 5.0)]).is_ok());
    }
}
