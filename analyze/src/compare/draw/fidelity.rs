//! How faithful a replay was, as a table.

use serde_json::{Map, Value};

use super::super::Fidelity;
use super::folder;
use super::page::Block;

pub(super) fn fidelity(fidelity: &Fidelity) -> Vec<Block> {
    let schedule = &fidelity.schedule;
    let settings = fidelity.settings.iter();
    let settings = settings.map(|(name, value)| format!(", {name} {value}"));
    let heading = format!(
        "Fidelity of {} to {}: mode {}{}",
        folder(&fidelity.replay),
        folder(&fidelity.original),
        fidelity.mode.as_deref().unwrap_or("unknown"),
        settings.collect::<String>()
    );
    let three = |name: &str| three(schedule, name);
    let mut rows = vec![
        ("Requests replayed / missing / extra", {
            let counts = ["replayed", "missing", "extra"].map(|c| cell(schedule, c, 0));
            counts.join(" / ")
        }),
        (
            "Schedule error p50 / p99 / max (ms)",
            three("schedule_error_ms"),
        ),
        (
            "Inter-arrival error p50 / p99 / max (ms)",
            three("inter_arrival_error_ms"),
        ),
        (
            "Drift, last tenth − first tenth (ms)",
            cell(schedule, "drift_ms", 3),
        ),
        ("Sent before an earlier one", cell(schedule, "overtook", 0)),
        ("Bodies that differ, of those known", {
            let counts = ["bodies_differ", "bodies_compared"].map(|c| cell(schedule, c, 0));
            counts.join(" of ")
        }),
        ("Other outcomes", cell(schedule, "outcomes_differ", 0)),
    ];
    rows.extend(given_up(schedule));
    rows.extend(fidelity.lengths.iter().map(length));
    rows.extend(flight(&fidelity.flight));
    rows.extend(prefix(fidelity));
    let rows = rows.into_iter();
    let mut blocks = vec![Block::Table {
        heading,
        header: Vec::new(),
        rows: rows
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect(),
        words: 2,
        ends_in_word: false,
    }];
    let outcomes = fidelity.outcomes.iter().map(|row| {
        let word = |name: &str| {
            row.get(name)
                .and_then(Value::as_str)
                .unwrap_or("–")
                .to_owned()
        };
        vec![word("original_outcome"), word("outcome"), cell(row, "n", 0)]
    });
    blocks.push(Block::Table {
        heading: "How requests ended".to_owned(),
        header: vec!["original", "replay", "requests"],
        rows: outcomes.collect(),
        words: 2,
        ends_in_word: false,
    });
    blocks
}

/// Three numbers of a row, each with three decimals.
fn three(row: &Map<String, Value>, name: &str) -> String {
    let stats = ["p50", "p99", "max"].map(|stat| cell(row, &format!("{name}_{stat}"), 3));
    stats.join(" / ")
}

/// A row where requests were given up, as their originals were.
fn given_up(schedule: &Map<String, Value>) -> Option<(&'static str, String)> {
    let n = schedule.get("cancelled_again").and_then(Value::as_i64);
    n.filter(|n| *n > 0).map(|_| {
        let name = "Given up again, error p50 / p99 / max (ms)";
        (name, three(schedule, "cancel_error_ms"))
    })
}

fn length(row: &Map<String, Value>) -> (&'static str, String) {
    let is_input = row.get("direction").and_then(Value::as_str) == Some("input");
    let name = if is_input {
        "Input tokens, as the server counts"
    } else {
        "Output tokens"
    };
    if row.get("compared").and_then(Value::as_u64) == Some(0) {
        return (name, "not known of both".to_owned());
    }
    let text = format!(
        "{} of {} differ, mean {}, max {}; {} for {}",
        cell(row, "differ", 0),
        cell(row, "compared", 0),
        cell(row, "error_mean", 2),
        cell(row, "error_max", 0),
        cell(row, "tokens", 0),
        cell(row, "original_tokens", 0)
    );
    (name, text)
}

fn flight(row: &Map<String, Value>) -> Option<(&'static str, String)> {
    (!row.is_empty()).then(|| {
        let text = format!(
            "{} for {}; off by {} in the mean, {} at most",
            cell(row, "in_flight", 2),
            cell(row, "original_in_flight", 2),
            cell(row, "in_flight_error_mean", 2),
            cell(row, "in_flight_error_max", 0)
        );
        ("In flight, time average", text)
    })
}

fn prefix(fidelity: &Fidelity) -> Vec<(&'static str, String)> {
    let share = |row: &Map<String, Value>, column: &str| {
        let value = row.get(column).and_then(Value::as_f64);
        value.map(|v| format!("{:.1} %", v * 100.0))
    };
    let both = |name, column| {
        let (new, base) = (
            share(&fidelity.prefix, column),
            share(&fidelity.original_prefix, column),
        );
        let is_known = new.is_some() || base.is_some();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        is_known.then(|| (name, format!("{} for {}", or_dash(new), or_dash(base))))
    };
    [
        both("Prompt tokens from the cache", "cached_ratio"),
        both("Blocks that an endless cache would hit", "ideal_hit_ratio"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A number of a row, with `decimals`; a dash where it is NULL.
fn cell(row: &Map<String, Value>, column: &str, decimals: usize) -> String {
    let value = row.get(column).and_then(Value::as_f64);
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"))
}
