//! Values of flags, from text.

use std::path::Path;
use std::time::Duration;

use tapedeck_live::CancelAfter;
use tapedeck_recording::Durability;
use tapedeck_wire::dialect::{Api, Dialect, Template};

use super::Pairs;

/// A built-in API by its name, or a dialect file by its path: what holds a `/` or
/// ends in `.toml`.
///
/// # Errors
/// When there is no such API, or the file cannot be read or is no dialect.
pub fn parse_api(text: &str) -> Result<Api, String> {
    if text.contains('/') || text.ends_with(".toml") {
        let path = Path::new(text);
        let toml = std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let dialect = Dialect::parse(&toml, text, &stem).map_err(|e| e.to_string())?;
        return Ok(Api::of(dialect));
    }
    if text == "openai" {
        return Err(
            "stands for chat in some tools and for completions in others: say openai-chat or openai-completions"
                .to_owned(),
        );
    }
    Api::from_word(text).ok_or_else(|| {
        let names: Vec<&str> = Api::built_in().map(|row| row.name).collect();
        format!(
            "known: {}; or the path of a dialect file (`record apis` describes them)",
            names.join(", ")
        )
    })
}

/// `--query-template`: JSON, or @FILE with it.
pub(super) fn parse_template(text: &str) -> Result<Template, String> {
    let json = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?,
        None => text.to_owned(),
    };
    json.parse()
}

/// # Errors
/// For a word that is none of [`Durability`].
pub fn parse_durability(text: &str) -> Result<Durability, String> {
    Durability::from_word(text).ok_or_else(|| "known: none, interval, batch".to_owned())
}

/// A share, from 0 to 1.
///
/// # Errors
/// For anything else.
pub fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// `20chunks`, or a duration.
pub(super) fn parse_cancel_after(text: &str) -> Result<CancelAfter, String> {
    let Some(number) = text.strip_suffix("chunks").or(text.strip_suffix("chunk")) else {
        return parse_duration(text).map(CancelAfter::Time);
    };
    match number.trim().parse() {
        Ok(chunks @ 1..) => Ok(CancelAfter::Chunks(chunks)),
        _ => Err("expected a number of chunks such as 20chunks".to_owned()),
    }
}

/// `KEY=VALUE`.
///
/// # Errors
/// When there is no `=` or no key.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let key = key.trim();
    if key.is_empty() {
        return Err("expected KEY=VALUE, the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY=VALUE`, or several of them with commas between: a piece without `=` belongs
/// to the value before it.
pub(super) fn parse_pairs(text: &str) -> Result<Pairs, String> {
    let mut pieces: Vec<String> = Vec::new();
    for piece in text.split(',') {
        match pieces.last_mut() {
            Some(last) if !piece.contains('=') => {
                last.push(',');
                last.push_str(piece);
            }
            _ => pieces.push(piece.to_owned()),
        }
    }
    let pairs = pieces.iter().map(|piece| parse_pair(piece));
    pairs.collect::<Result<_, _>>().map(Pairs)
}

/// `1.5` or `1.5s` are seconds; `ms`, `m` and `h` are understood.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .map_err(|_| "expected a duration such as 500ms, 10s, 5m".to_owned())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        other => return Err(format!("unit {other:?} is not ms, s, m, h or d")),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a duration above zero".to_owned()),
    }
}

/// A scrape costs a server work, and thousands of rows may come of it.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < LEAST_INTERVAL {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

pub fn parse_object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_is_by_time_or_by_chunks() {
        let time = |ms| Ok(CancelAfter::Time(Duration::from_millis(ms)));
        assert_eq!(parse_cancel_after("500ms"), time(500));
        assert_eq!(parse_cancel_after("2"), time(2000));
        assert_eq!(parse_cancel_after("20chunks"), Ok(CancelAfter::Chunks(20)));
        assert_eq!(parse_cancel_after("1chunk"), Ok(CancelAfter::Chunks(1)));
        for bad in ["0chunks", "chunks", "-1chunks", "0ms", "soon"] {
            assert!(parse_cancel_after(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_are_parted_by_commas_that_begin_another() {
        let pairs = |text: &str| {
            let Pairs(pairs) = parse_pairs(text)?;
            let texts = pairs
                .into_iter()
                .map(|(key, value)| format!("{key}:{value}"));
            Ok::<_, String>(texts.collect::<Vec<_>>().join(" "))
        };
        assert_eq!(pairs("tp=1"), Ok("tp:1".to_owned()));
        assert_eq!(pairs("name=foo,bar=1"), Ok("name:foo bar:1".to_owned()));
        assert_eq!(pairs("gpus=0,1,tp=2"), Ok("gpus:0,1 tp:2".to_owned()));
        for bad in ["", "x", "=1", "a=1,=2"] {
            assert!(pairs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_units_and_are_above_zero() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "0", "-1s", "5 parsecs", "1e9h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
