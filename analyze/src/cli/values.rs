//! Values of flags: what a user writes, and what it stands for.

use crate::parameters::Slo;

/// What vLLM's `--goodput` calls the metrics, in ms as well. `itl` is here to be
/// refused by its full name.
const SHORT_NAMES: [(&str, &str); 4] = [
    ("ttft", "ttft_ms"),
    ("tpot", "tpot_ms"),
    ("e2el", "e2el_ms"),
    ("itl", "itl_ms"),
];

/// `METRIC=VALUE`, or `METRIC:VALUE` as vLLM has it.
///
/// # Errors
/// When the metric is not one that every request has a value of, or the value is
/// not a finite number.
pub fn parse_slo(text: &str) -> Result<Slo, String> {
    let (metric, bound) = text
        .split_once(['=', ':'])
        .ok_or("expected METRIC=VALUE, for example ttft_ms=200")?;
    let metric = metric.trim();
    let mut short_names = SHORT_NAMES.iter();
    let long = short_names.find(|(short, _)| *short == metric);
    let metric = long.map_or(metric, |(_, long)| long);
    let bound: f64 = bound
        .trim()
        .parse()
        .map_err(|_| format!("{bound} is not a number"))?;
    if !bound.is_finite() {
        return Err("the bound must be a finite number".to_owned());
    }
    Slo::new(metric, bound).map_err(|error| error.to_string())
}

/// A duration in ms; a bare number is seconds.
pub(super) fn parse_duration_ms(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3_600e3)];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, scale) = match unit {
        Some((unit, scale)) => (text.strip_suffix(unit).unwrap_or(text), *scale),
        None => (text, 1e3),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| "expected a duration such as 500ms, 30s or 2m".to_owned())?;
    if number.is_finite() && number >= 0.0 {
        Ok(number * scale)
    } else {
        Err("a duration is finite and not negative".to_owned())
    }
}

/// Least memory with which the engine can sort at all.
const LEAST_MEMORY: usize = 64 << 20;

/// A number of bytes, in units of 1024.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let (number, shift) = match text.trim().to_ascii_uppercase() {
        text if text.ends_with('K') => (text, 10),
        text if text.ends_with('M') => (text, 20),
        text if text.ends_with('G') => (text, 30),
        text => (text, 0),
    };
    let number = number
        .trim_end_matches(['K', 'M', 'G'])
        .trim()
        .parse::<usize>();
    let size = number.ok().and_then(|n| n.checked_mul(1 << shift));
    match size {
        Some(size) if size >= LEAST_MEMORY => Ok(size),
        Some(_) => Err("the least is 64M".to_owned()),
        None => Err("expected a size such as 512M or 8G".to_owned()),
    }
}

pub(super) fn parse_percentile(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let number = text.strip_prefix('p').unwrap_or(text).parse::<f64>();
    match number {
        Ok(p) if (0.0..=100.0).contains(&p) => Ok(p),
        _ => Err(format!("{text} is not a percentile from 0 to 100")),
    }
}
