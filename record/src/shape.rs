//! How rates and ramps are typed.

use std::time::Duration;

use tapedeck_run::args::{parse_duration, parse_series};
use tapedeck_workload::RateShape;

/// Until when the clients of a closed loop have begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RampUp {
    Total(Duration),
    PerClient(Duration),
}

impl RampUp {
    /// For so many clients.
    #[must_use]
    pub fn total(self, clients: usize) -> Duration {
        match self {
            Self::Total(total) => total,
            Self::PerClient(each) => {
                each.saturating_mul(u32::try_from(clients).unwrap_or(u32::MAX))
            }
        }
    }
}

/// `10s` for all of them, or `100ms/client`; `0` is none.
pub(crate) fn parse_ramp_up(text: &str) -> Result<RampUp, String> {
    let hint = |e| format!("{e}; or 100ms/client");
    match text.strip_suffix("/client") {
        Some(each) => parse_duration(each).map(RampUp::PerClient).map_err(hint),
        None if text == "0" => Ok(RampUp::Total(Duration::ZERO)),
        None => parse_duration(text).map(RampUp::Total).map_err(hint),
    }
}

/// `-1` and `inf` become infinity: all at once.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "expected a number")?;
    if rate == -1.0 || rate == f64::INFINITY {
        Ok(f64::INFINITY)
    } else if rate.is_finite() && rate > 0.0 {
        Ok(rate)
    } else {
        Err("expected a positive number, or -1 for all at once".to_owned())
    }
}

pub(crate) fn parse_burstiness(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(shape) if shape > 0.0 => Ok(shape),
        _ => Err("expected a positive number or inf".to_owned()),
    }
}

pub(crate) fn parse_ramp(text: &str) -> Result<RateShape, String> {
    let shape = parse_series(text)?;
    if shape.pieces().len() > 1 {
        return Err("several pieces are --rate-series".to_owned());
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_is_all_at_once() {
        assert_eq!(parse_rate("-1"), Ok(f64::INFINITY));
        assert_eq!(parse_rate("2.5"), Ok(2.5));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("nan").is_err());
    }

    #[test]
    fn a_ramp_is_one_piece() {
        assert!(parse_ramp("1..50@60s").is_ok());
        assert!(parse_ramp("1@60s,50@10s").is_err());
    }

    #[test]
    fn a_ramp_up_is_of_all_clients_or_of_each() {
        let seconds = Duration::from_secs;
        assert_eq!(parse_ramp_up("10"), Ok(RampUp::Total(seconds(10))));
        assert_eq!(parse_ramp_up("0"), Ok(RampUp::Total(Duration::ZERO)));
        let each = parse_ramp_up("100ms/client").unwrap();
        assert_eq!(each.total(32), Duration::from_millis(3_200));
        for bad in ["", "/client", "-1s", "1s/user", "0/client"] {
            assert!(parse_ramp_up(bad).is_err(), "{bad}");
        }
    }
}
