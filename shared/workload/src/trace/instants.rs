//! Instants as traces write them.

const DAY_S: i64 = 86_400;

/// A decimal number of units of `unit_ns`, as ns. Exact where it has no exponent:
/// months in microseconds do not fit a float.
pub(crate) fn decimal_ns(text: &str, unit_ns: i64) -> Result<i64, String> {
    let text = text.trim();
    exact_ns(text, unit_ns)
        .or_else(|| {
            let ns = text.parse::<f64>().ok()? * unit_ns as f64;
            (ns.is_finite() && ns.abs() < 9e18).then_some(ns.round() as i64)
        })
        .ok_or_else(|| format!("{:?} is no instant", shown(text)))
}

fn exact_ns(text: &str, unit_ns: i64) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let mut ns = whole.parse::<i64>().ok()?.checked_mul(unit_ns)?;
    let mut place_ns = unit_ns;
    for digit in fraction.bytes() {
        // Below a nanosecond nothing is kept.
        if place_ns % 10 != 0 {
            break;
        }
        place_ns /= 10;
        ns = ns.checked_add(i64::from(digit - b'0') * place_ns)?;
    }
    Some(if negative { -ns } else { ns })
}

/// `2023-11-16 18:17:03.9799600`, with `T`, a zone or neither, as ns since 1970.
/// Without a zone it is taken for UTC: only differences count.
pub(crate) fn datetime_ns(text: &str) -> Result<i64, String> {
    parse_datetime(text.trim()).ok_or_else(|| format!("{:?} is no date and time", shown(text)))
}

fn parse_datetime(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, zone_s) = split_zone(time)?;
    let mut parts = time.splitn(3, ':');
    let hour: i64 = parts.next()?.parse().ok()?;
    let minute: i64 = parts.next()?.parse().ok()?;
    let second_ns = exact_ns(parts.next()?, 1_000_000_000)?;
    let valid = (1970..=2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61_000_000_000).contains(&second_ns);
    let s = days_since_1970(year, month, day) * DAY_S + hour * 3600 + minute * 60 - zone_s;
    valid.then_some(s * 1_000_000_000 + second_ns)
}

/// The time of day and the zone's seconds east of UTC.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = time.find(['+', '-']) else {
        return Some((time, 0));
    };
    let digits: String = time[at + 1..].chars().filter(|c| *c != ':').collect();
    let hours: i64 = digits.get(..2)?.parse().ok()?;
    let minutes: i64 = digits
        .get(2..)
        .filter(|m| !m.is_empty())
        .map_or(Some(0), |m| m.parse().ok())?;
    let east_s = hours * 3600 + minutes * 60;
    let is_west = time.as_bytes()[at] == b'-';
    Some((&time[..at], if is_west { -east_s } else { east_s }))
}

/// Days of the proleptic Gregorian calendar (H. Hinnant, `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The beginning of what a file says, for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instants_are_read_to_the_digit() {
        assert_eq!(decimal_ns("0", 1_000_000), Ok(0));
        assert_eq!(decimal_ns("27482", 1_000_000), Ok(27_482_000_000));
        assert_eq!(
            decimal_ns("10454399.1234567", 1_000_000_000),
            Ok(10_454_399_123_456_700)
        );
        assert_eq!(decimal_ns("1e3", 1_000), Ok(1_000_000));
        assert_eq!(decimal_ns("-1.5", 1_000), Ok(-1_500));
        for bad in ["", "x", "1.2.3", "nan", "1e30", "."] {
            assert!(decimal_ns(bad, 1_000_000_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_are_read_in_every_zone() {
        let ns = 1_700_158_623_979_960_000;
        for text in [
            "2023-11-16 18:17:03.9799600",
            "2023-11-16T18:17:03.97996Z",
            "2023-11-16 18:17:03.97996+00:00",
            "2023-11-16T20:17:03.97996+0200",
            "2023-11-16T13:47:03.97996-04:30",
        ] {
            assert_eq!(datetime_ns(text), Ok(ns), "{text}");
        }
        assert_eq!(
            datetime_ns("2024-02-29 00:00:00"),
            Ok(1_709_164_800_000_000_000)
        );
        for bad in [
            "",
            "2023-13-01 00:00:00",
            "2023-11-16",
            "2023-11-16 25:00:00",
            "x y:z",
        ] {
            assert!(datetime_ns(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}", date in "[0-9TZ:+. -]{0,40}") {
            for text in [text, date] {
                decimal_ns(&text, 1_000_000_000).ok();
                datetime_ns(&text).ok();
            }
        }
    }
}
