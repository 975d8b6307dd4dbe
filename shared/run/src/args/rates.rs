//! How rates that change are typed.

use tapedeck_workload::RateShape;
use tapedeck_workload::rates::{Curve, RatePiece};

use super::parse_duration;

const EXPECTED: &str = "expected R@D or R..R[:linear|exponential]@D, such as 10@30s or 1..50@60s";

/// `RATE@D`, or `FROM..TO[:CURVE]@D`.
fn parse_piece(text: &str) -> Result<RatePiece, String> {
    let (rates, duration) = text.trim().split_once('@').ok_or(EXPECTED)?;
    let (rates, curve) = match rates.split_once(':') {
        Some((rates, word)) => {
            let known = || format!("{word:?} is no curve, those are linear and exponential");
            (rates, Curve::from_word(word).ok_or_else(known)?)
        }
        None => (rates, Curve::Linear),
    };
    let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
    let number = |text: &str| text.parse::<f64>().map_err(|_| EXPECTED.to_owned());
    Ok(RatePiece {
        from_per_s: number(from)?,
        to_per_s: number(to)?,
        curve,
        duration_s: parse_duration(duration)?.as_secs_f64(),
    })
}

/// Pieces of `--rate-series`, one after the other.
///
/// # Errors
/// When one of them cannot be read, or they come to nothing.
pub fn parse_series(text: &str) -> Result<RateShape, String> {
    let pieces = text.split(',').map(parse_piece);
    RateShape::new(pieces.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_rates_and_ramps_with_their_times() {
        let shape = parse_series("10@30s, 1..50:exponential@2m,50..0@500ms").unwrap();
        let pieces: Vec<_> = shape
            .pieces()
            .iter()
            .map(|p| (p.from_per_s, p.to_per_s, p.curve, p.duration_s))
            .collect();
        assert_eq!(
            pieces,
            [
                (10.0, 10.0, Curve::Linear, 30.0),
                (1.0, 50.0, Curve::Exponential, 120.0),
                (50.0, 0.0, Curve::Linear, 0.5),
            ]
        );
        for bad in [
            "",
            "10",
            "10@",
            "@10s",
            "10@0s",
            "-1@5s",
            "inf@5s",
            "nan@5s",
            "1..@5s",
            "1..2..3@5s",
            "1..50:steep@5s",
            "0..50:exponential@5s",
            "0@5s",
            "10@30s,",
        ] {
            assert!(parse_series(bad).is_err(), "{bad}");
        }
    }
}
