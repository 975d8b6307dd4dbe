//! Traces that are tables of lengths: Azure and `BurstGPT`.

use std::path::Path;

use super::instants::{datetime_ns, decimal_ns, shown};
use super::reading::Reading;
use super::{Row, TraceError};

const SECOND_NS: i64 = 1_000_000_000;

/// Columns by their names in the first line.
#[derive(Debug, Default)]
struct Header(Vec<String>);

impl Header {
    fn column(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|n| n.eq_ignore_ascii_case(name))
    }

    fn needed(&self, names: &[&str]) -> Result<(), String> {
        let missing: Vec<&str> = names
            .iter()
            .filter(|n| self.column(n).is_none())
            .copied()
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("has no column {}", missing.join(", ")))
        }
    }

    fn cell<'a>(&self, cells: &[&'a str], name: &str) -> Option<&'a str> {
        let cell = cells.get(self.column(name)?)?.trim();
        (!cell.is_empty()).then_some(cell)
    }

    fn must<'a>(&self, cells: &[&'a str], name: &str) -> Result<&'a str, String> {
        self.cell(cells, name)
            .ok_or_else(|| format!("has no {name}"))
    }
}

/// Fields of a line. None of these files quotes its fields; one that does holds
/// something else.
fn cells(line: &str) -> Result<Vec<&str>, String> {
    if line.contains('"') {
        return Err("has quotes, which these traces never have".to_owned());
    }
    Ok(line.split(',').collect())
}

fn tokens(text: &str) -> Result<u32, String> {
    // BurstGPT's later files write whole numbers as 5.0.
    let whole = text.strip_suffix(".0").unwrap_or(text);
    whole
        .parse()
        .map_err(|_| format!("{:?} is no number of tokens", shown(text)))
}

fn table(
    file: &Path,
    reading: &mut Reading,
    columns: &[&str],
    mut row: impl FnMut(&mut Reading, u64, &Header, &[&str]) -> Result<Row, String>,
) -> Result<(), TraceError> {
    let mut header: Option<Header> = None;
    let mut wrong_header = None;
    let format = reading.format.as_str();
    let read = reading.lines(file, |reading, number, line| {
        let cells = cells(line.trim_start_matches('\u{feff}'))?;
        let Some(header) = &header else {
            let names = Header(cells.iter().map(|c| c.trim().to_owned()).collect());
            wrong_header = names.needed(columns).err();
            header = Some(names);
            return Ok(None);
        };
        if cells.len() != header.0.len() {
            let (found, wanted) = (cells.len(), header.0.len());
            return Err(format!("has {found} fields, not {wanted}"));
        }
        row(reading, number, header, &cells).map(Some)
    });
    // A table of something else is no matter of single rows.
    match wrong_header {
        Some(problem) => Err(TraceError::NotOfFormat {
            path: file.to_owned(),
            format,
            problem,
        }),
        None => read,
    }
}

/// `TIMESTAMP,ContextTokens,GeneratedTokens` and, in 2025, `NumImages`.
pub(super) fn azure(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let columns = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];
    table(file, reading, &columns, |_, number, header, cells| {
        Ok(Row {
            input_tokens: Some(tokens(header.must(cells, "ContextTokens")?)?),
            output_tokens: Some(tokens(header.must(cells, "GeneratedTokens")?)?),
            ..Row::new(number, datetime_ns(header.must(cells, "TIMESTAMP")?)?)
        })
    })
}

/// Seconds, lengths, and in the later files sessions and the elapsed time.
pub(super) fn burstgpt(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let columns = ["Timestamp", "Request tokens", "Response tokens"];
    table(file, reading, &columns, |reading, number, header, cells| {
        let t_ns = decimal_ns(header.must(cells, "Timestamp")?, SECOND_NS)?;
        let elapsed = header.cell(cells, "Elapsed time");
        let elapsed_ns = elapsed.map(|s| decimal_ns(s, SECOND_NS)).transpose()?;
        if elapsed_ns.is_some_and(|ns| ns < 0) {
            return Err("has a negative elapsed time".to_owned());
        }
        Ok(Row {
            t_end_ns: elapsed_ns.and_then(|ns| t_ns.checked_add(ns)),
            input_tokens: Some(tokens(header.must(cells, "Request tokens")?)?),
            output_tokens: Some(tokens(header.must(cells, "Response tokens")?)?),
            session: header.cell(cells, "Session ID").map(Into::into),
            model: header.cell(cells, "Model").map(|m| reading.text(m)),
            ..Row::new(number, t_ns)
        })
    })
}
