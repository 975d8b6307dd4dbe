//! `ServeGen`'s clients: `chunk-N-trace.csv` says in windows how often client N asks,
//! `chunk-N-dataset.json` how long its prompts and answers are. Requests are drawn
//! from both.
//!
//! A window of rate λ and length T has λT requests, the fraction left to chance. Their
//! gaps are drawn from its Gamma or Weibull distribution, scaled to T and laid around
//! it as around a circle, from an instant drawn evenly. (Its own generator begins with
//! the window and so loses one request of each.) Lengths are drawn on their own, from
//! the last distribution that began by then.

use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Gamma, Weibull};
use serde_json::Value;

use super::hashed::object;
use super::instants::{decimal_ns, shown};
use super::reading::{Reading, row_error};
use super::{Row, TraceError};
use crate::error::WorkloadError;
use crate::files;

const SECOND_NS: i64 = 1_000_000_000;

/// Of windows that stand alone.
const WINDOW_NS: i64 = 600 * SECOND_NS;

/// Requests drawn from one trace, at most.
const MOST_ROWS: usize = 20_000_000;

const DATASET: &str = "-dataset.json";
const TRACE: &str = "-trace.csv";

/// Whether `file` holds a client's lengths, which are read with its windows.
pub(super) fn is_dataset(file: &Path) -> bool {
    file.to_string_lossy().ends_with(DATASET)
}

/// Whether `line` begins a file of windows: they have no header.
pub(super) fn is_window(line: &str) -> bool {
    window(line).is_ok_and(|window| window.gaps.is_some())
}

#[derive(Debug)]
struct Window {
    begin_ns: i64,
    rate_per_s: f64,
    /// `None` where the client was silent.
    gaps: Option<Gaps>,
}

#[derive(Debug, Clone, Copy)]
enum Gaps {
    Gamma(Gamma<f64>),
    Weibull(Weibull<f64>),
}

impl Gaps {
    fn draw(self, rng: &mut StdRng) -> f64 {
        match self {
            Self::Gamma(gamma) => gamma.sample(rng),
            Self::Weibull(weibull) => weibull.sample(rng),
        }
    }
}

/// Lengths from an instant on: each with the sum of the shares up to it.
#[derive(Debug)]
struct Lengths {
    begin_ns: i64,
    input: Vec<(u32, f64)>,
    output: Vec<(u32, f64)>,
}

pub(super) fn client(file: &Path, seed: u64, reading: &mut Reading) -> Result<(), TraceError> {
    let dataset = dataset_of(file);
    let lengths = match lengths(&dataset)? {
        Ok(lengths) => lengths,
        Err(problem) => return reading.bad(row_error(&dataset, 1, problem)),
    };
    let mut windows: Vec<(u64, Window)> = Vec::new();
    reading.lines(file, |_, number, line| {
        let window = window(line)?;
        let begins_later = |(_, last): &(u64, Window)| last.begin_ns < window.begin_ns;
        if !windows.last().is_none_or(begins_later) {
            return Err("does not begin after the window before it".to_owned());
        }
        windows.push((number, window));
        Ok(None)
    })?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    for (place, (number, window)) in windows.iter().enumerate() {
        let key = format!("servegen {seed} {name} {}", window.begin_ns);
        let mut rng = StdRng::from_seed(*blake3::hash(key.as_bytes()).as_bytes());
        let drawn = requests(
            *number,
            window,
            length_ns(&windows, place),
            &lengths,
            &mut rng,
        );
        match drawn {
            Ok(rows) if reading.rows.len() + rows.len() > MOST_ROWS => {
                let problem = format!(
                    "the windows up to here make more than {MOST_ROWS} requests: name fewer clients"
                );
                return Err(row_error(file, *number, problem).into());
            }
            Ok(mut rows) => reading.rows.append(&mut rows),
            Err(problem) => reading.bad(row_error(file, *number, problem))?,
        }
    }
    Ok(())
}

/// Until the next window begins; the last is as long as the one before.
fn length_ns(windows: &[(u64, Window)], place: usize) -> i64 {
    let begin_ns = |place: usize| windows.get(place).map(|(_, window)| window.begin_ns);
    let own_ns = windows[place].1.begin_ns;
    let next = begin_ns(place + 1).map(|next_ns| next_ns.saturating_sub(own_ns));
    let before = place.checked_sub(1).and_then(begin_ns);
    next.or_else(|| before.map(|before_ns| own_ns.saturating_sub(before_ns)))
        .unwrap_or(WINDOW_NS)
}

/// The requests of a window that line `number` describes.
fn requests(
    number: u64,
    window: &Window,
    length_ns: i64,
    lengths: &[Lengths],
    rng: &mut StdRng,
) -> Result<Vec<Row>, String> {
    let Some(gaps) = window.gaps.filter(|_| window.rate_per_s > 0.0) else {
        return Ok(Vec::new());
    };
    let begun = lengths.iter().rfind(|l| l.begin_ns <= window.begin_ns);
    let lengths = begun.ok_or("asks before any lengths are known")?;
    let wanted = window.rate_per_s * length_ns as f64 / 1e9;
    if wanted > MOST_ROWS as f64 {
        return Err(format!("asks for {wanted} requests, over {MOST_ROWS}"));
    }
    let n = wanted.floor() + f64::from(rng.random_bool(wanted.fract()));
    let places = around(n as usize, gaps, rng);
    let rows = places.into_iter().map(|at| {
        let t_ns = window.begin_ns.checked_add((at * length_ns as f64) as i64);
        Ok(Row {
            input_tokens: Some(drawn(&lengths.input, rng)),
            output_tokens: Some(drawn(&lengths.output, rng)),
            ..Row::new(number, t_ns.ok_or("ends later than instants go")?)
        })
    });
    rows.collect()
}

/// `n` places on a circle of length 1, with gaps of that distribution.
fn around(n: usize, gaps: Gaps, rng: &mut StdRng) -> Vec<f64> {
    let gaps: Vec<f64> = (0..n).map(|_| gaps.draw(rng)).collect();
    let whole: f64 = gaps.iter().sum();
    let mut at: f64 = rng.random();
    let mut places: Vec<f64> = gaps
        .iter()
        .map(|gap| {
            // All of a bursty distribution's draws may be 0 to the last digit.
            at += if whole > 0.0 { gap / whole } else { 0.0 };
            at.fract()
        })
        .collect();
    places.sort_by(f64::total_cmp);
    places
}

fn drawn(shares: &[(u32, f64)], rng: &mut StdRng) -> u32 {
    let whole = shares.last().map_or(0.0, |(_, sum)| *sum);
    let at = rng.random::<f64>() * whole;
    let place = shares.partition_point(|(_, sum)| *sum <= at);
    shares.get(place).map_or(0, |(length, _)| *length)
}

/// `t_s,rate_per_s,cv,Gamma|Weibull,shape,scale`; a silent window has no pattern.
fn window(line: &str) -> Result<Window, String> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let [t, rate, _, pattern, shape, scale] = cells.as_slice() else {
        return Err(format!("has {} fields, not 6", cells.len()));
    };
    let begin_ns = decimal_ns(t, SECOND_NS)?;
    if pattern.is_empty() {
        return Ok(Window {
            begin_ns,
            rate_per_s: 0.0,
            gaps: None,
        });
    }
    let number = |text: &str| match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!("{:?} is no number from 0 on", shown(text))),
    };
    let (shape, scale) = (number(shape)?, number(scale)?);
    let wrong = |_| format!("has no {pattern} distribution of shape {shape} and scale {scale}");
    let gaps = match *pattern {
        "Gamma" => Gaps::Gamma(Gamma::new(shape, scale).map_err(|e| wrong(e.to_string()))?),
        "Weibull" => Gaps::Weibull(Weibull::new(scale, shape).map_err(|e| wrong(e.to_string()))?),
        other => return Err(format!("{:?} is no known pattern", shown(other))),
    };
    Ok(Window {
        begin_ns,
        rate_per_s: number(rate)?,
        gaps: Some(gaps),
    })
}

fn dataset_of(file: &Path) -> PathBuf {
    let text = file.to_string_lossy();
    let stem = text.strip_suffix(TRACE).unwrap_or(&text);
    PathBuf::from(format!("{stem}{DATASET}"))
}

type Read<T> = Result<Result<T, String>, WorkloadError>;

/// Of each instant, in their order; those without any length are left out, as the
/// format's own reader does.
fn lengths(file: &Path) -> Read<Vec<Lengths>> {
    let text = files::read_text(file)?;
    let read = || {
        let mut all = Vec::new();
        for (begin, fields) in object(&text)? {
            let shares_of = |name: &str| {
                let value = fields
                    .get(name)
                    .ok_or_else(|| format!("has no {name:?} at {begin}"));
                shares(value?).map_err(|problem| format!("has {name:?} at {begin} that {problem}"))
            };
            let (input, output) = (shares_of("input_tokens")?, shares_of("output_tokens")?);
            if !input.is_empty() && !output.is_empty() {
                all.push(Lengths {
                    begin_ns: decimal_ns(&begin, SECOND_NS)?,
                    input,
                    output,
                });
            }
        }
        all.sort_by_key(|lengths| lengths.begin_ns);
        Ok(all)
    };
    Ok(read())
}

/// `{length: share}` as Python prints it, or as a JSON object.
fn shares(value: &Value) -> Result<Vec<(u32, f64)>, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let inner = text
        .trim()
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'));
    let inner = inner.ok_or_else(|| format!("are no distribution: {:?}", shown(&text)))?;
    let mut shares = Vec::new();
    for pair in inner.split(',').filter(|pair| !pair.trim().is_empty()) {
        let wrong = || format!("name no length and share: {:?}", shown(pair.trim()));
        let (length, share) = pair.split_once(':').ok_or_else(wrong)?;
        let length = length
            .trim()
            .trim_matches(['"', '\''])
            .parse()
            .map_err(|_| wrong())?;
        let share: f64 = share.trim().parse().map_err(|_| wrong())?;
        if !share.is_finite() || share < 0.0 {
            return Err(wrong());
        }
        shares.push((length, share));
    }
    shares.sort_by_key(|(length, _)| *length);
    let mut sum = 0.0;
    for (_, share) in &mut shares {
        sum += *share;
        *share = sum;
    }
    if shares.is_empty() || sum > 0.0 {
        Ok(shares)
    } else {
        Err("add up to nothing".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Trace, TraceSpec, read};
    use super::*;
    use proptest::prelude::*;

    const LENGTHS: &str = r#"{"0": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{7: 1.0}"},
        "600": {"input_tokens": "{}", "output_tokens": "{}"},
        "1200": {"input_tokens": "{5: 1.0}", "output_tokens": "{9: 0.5, 10: 0.5}", "reason_ratio": "{}"}}"#;
    const WINDOWS: &str = "0,2.0,1.0,Gamma,1.0,0.5\n600,0,0,,,\n1200,1.5,3.0,Weibull,0.5,0.3\n";

    fn trace(windows: &str, seed: u64, skip_bad: bool) -> Result<Trace, TraceError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chunk-1-dataset.json"), LENGTHS).unwrap();
        std::fs::write(dir.path().join("chunk-1-trace.csv"), windows).unwrap();
        read(&TraceSpec {
            path: dir.path().to_owned(),
            format: None,
            skip_bad,
            block_size: None,
            seed,
        })
    }

    #[test]
    fn windows_give_their_rates_and_lengths_and_silence_gives_nothing() {
        let read = trace(WINDOWS, 3, false).unwrap();
        assert_eq!(read.format, Format::ServeGen);
        let of = |from_s: i64| {
            let from_ns = from_s * SECOND_NS;
            let window = from_ns..from_ns + WINDOW_NS;
            let rows = read.rows.iter().filter(move |r| window.contains(&r.t_ns));
            rows.collect::<Vec<_>>()
        };
        assert_eq!((of(0).len(), of(600).len(), of(1200).len()), (1200, 0, 900));
        let long = of(0).iter().filter(|r| r.input_tokens == Some(200)).count();
        // 0.75 of 1200, and 4.5 standard deviations to either side.
        assert!((830..=970).contains(&long), "{long}");
        assert!(of(0).iter().all(|r| r.output_tokens == Some(7)));
        assert!(of(1200).iter().all(|r| r.input_tokens == Some(5)));
        let gap_cv = |from_s: i64| {
            let gaps: Vec<f64> = of(from_s)
                .windows(2)
                .map(|pair| (pair[1].t_ns - pair[0].t_ns) as f64)
                .collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let square = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>();
            (square / gaps.len() as f64).sqrt() / mean
        };
        // Gamma of shape 1 is exponential; Weibull of shape 0.5 has a CV of √5.
        assert!((0.9..1.1).contains(&gap_cv(0)), "{}", gap_cv(0));
        assert!((1.8..2.7).contains(&gap_cv(1200)), "{}", gap_cv(1200));
    }

    #[test]
    fn equal_seeds_draw_equal_requests() {
        let rows = |seed| trace(WINDOWS, seed, false).unwrap().rows;
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }

    #[test]
    fn bad_windows_are_named_or_left_out() {
        let bad = format!("{WINDOWS}1200,1,1,Gamma,1,1\n1800,1,1,Pareto,1,1\n2400,x,1,Gamma,1,1\n");
        let refused = trace(&bad, 0, false).unwrap_err().to_string();
        assert!(refused.contains("trace.csv line 4"), "{refused}");
        let read = trace(&bad, 0, true).unwrap();
        assert_eq!((read.rows.len(), read.bad), (2100, 3));
    }

    #[test]
    fn a_window_may_not_last_until_after_the_last_instant() {
        // Nine requests in nine milliards of seconds from then on.
        let window = "0.000000001,1,Gamma,1,1";
        let late = format!("0,{window}\n9223372000,{window}\n");
        let refused = trace(&late, 0, false).unwrap_err().to_string();
        assert!(refused.contains("later than instants go"), "{refused}");
        let read = trace(&late, 0, true).unwrap();
        assert_eq!((read.rows.len(), read.bad), (9, 1));
    }

    proptest! {
        #[test]
        fn nothing_panics(line in "[0-9a-zA-Z,.-]{0,40}", dict in "[0-9:,.{} \"'-]{0,40}") {
            window(&line).ok();
            shares(&Value::String(dict)).ok();
        }
    }
}
