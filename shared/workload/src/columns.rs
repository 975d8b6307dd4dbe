//! JSON records as rows of text columns, read by Polars in batches.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use polars::prelude::*;

use crate::dataset::{LeftOut, Reason};
use crate::error::WorkloadError;
use crate::records::{Batch, Progress, Record, Records};

/// What is read of every record.
pub(crate) struct Columns<'a> {
    /// Fields with their types; others are passed over.
    pub(crate) schema: Schema,
    /// Text expressions over them.
    pub(crate) texts: &'a [Expr],
}

/// What reading a file came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) records: u64,
    pub(crate) left_out: LeftOut,
    pub(crate) lost: Option<String>,
}

/// Reads `path` and hands every row to `take`: the texts of `columns` in their
/// order, `None` where a record has none. What `take` objects to is a bad record.
///
/// # Errors
/// At the first bad record or where the file breaks, unless `skip_bad`.
pub(crate) fn read(
    path: &Path,
    skip_bad: bool,
    columns: &Columns<'_>,
    mut take: impl FnMut(&[Option<&str>]) -> Result<(), String>,
) -> Result<Tally, WorkloadError> {
    let mut records = Records::open(path)?;
    let mut batch = Batch::default();
    let mut tally = Tally::default();
    loop {
        let progress = records.fill(&mut batch)?;
        let mut row = |record: &Record, row: Result<&[Option<&str>], String>| {
            tally.records += 1;
            match row.and_then(&mut take) {
                Ok(()) => Ok(()),
                Err(_) if skip_bad => {
                    tally.left_out.add(Reason::Bad, 1);
                    Ok(())
                }
                Err(problem) => Err(WorkloadError::Record {
                    path: path.to_owned(),
                    record: record.number,
                    offset: record.offset,
                    problem,
                }),
            }
        };
        rows(&batch, columns, &mut row)?;
        match progress {
            Progress::More => {}
            Progress::End => return Ok(tally),
            Progress::Broken(how) if skip_bad => {
                tally.lost = Some(how);
                return Ok(tally);
            }
            Progress::Broken(problem) => {
                return Err(WorkloadError::Broken {
                    path: path.to_owned(),
                    whole: tally.records,
                    problem,
                });
            }
        }
    }
}

type Row<'r> = Result<&'r [Option<&'r str>], String>;

/// Every row of `batch`. Polars refuses a batch for one bad record in it: then
/// each is read by itself.
fn rows<E>(
    batch: &Batch,
    columns: &Columns<'_>,
    row: &mut impl FnMut(&Record, Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if batch.records.is_empty() {
        return Ok(());
    }
    let whole = [&batch.text[..], b"]"].concat();
    if let Ok(table) = parse(whole, batch.records.len(), columns) {
        return each(&table, &batch.records, row);
    }
    for record in &batch.records {
        let own = [b"[", &batch.text[record.range.clone()], b"]"].concat();
        match parse(own, 1, columns) {
            Ok(table) => each(&table, std::slice::from_ref(record), row)?,
            Err(problem) => row(record, Err(problem))?,
        }
    }
    Ok(())
}

/// The text columns of `rows` records.
fn parse(json: Vec<u8>, rows: usize, columns: &Columns<'_>) -> Result<Vec<StringChunked>, String> {
    let frame = JsonReader::new(Cursor::new(json))
        .with_json_format(JsonFormat::Json)
        .with_schema(Arc::new(columns.schema.clone()))
        .finish()
        .and_then(|frame| {
            let named = columns.texts.iter().enumerate();
            let named = named.map(|(index, text)| text.clone().alias(index.to_string()));
            frame.lazy().select(named.collect::<Vec<_>>()).collect()
        })
        .map_err(|e| first_line(&e.to_string()))?;
    if frame.height() != rows {
        return Err("is more than one record".to_owned());
    }
    let texts = frame.columns().iter().map(|column| column.str().cloned());
    let texts: PolarsResult<Vec<_>> = texts.collect();
    texts.map_err(|e| first_line(&e.to_string()))
}

/// Polars' advice behind it is about its own options.
pub(crate) fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let mut line: String = line.chars().take(200).collect();
    if line.is_empty() {
        line.push_str("is not what it should be");
    }
    line
}

fn each<E>(
    table: &[StringChunked],
    records: &[Record],
    row: &mut impl FnMut(&Record, Row<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut texts: Vec<Option<&str>> = Vec::with_capacity(table.len());
    for (index, record) in records.iter().enumerate() {
        texts.clear();
        texts.extend(table.iter().map(|column| column.get(index)));
        row(record, Ok(&texts))?;
    }
    Ok(())
}
