//! Records as rows of text columns, read by Polars: JSON in batches, CSV and
//! Parquet whole but for the columns nobody asked for.

use std::fs::File;
use std::io::{BufRead, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use polars::prelude::*;

use crate::dataset::{Gathered, LeftOut, Reason};
use crate::error::WorkloadError;
use crate::files::open;
use crate::prompts::{Item, Prompt};
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
fn first_line(message: &str) -> String {
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

/// Every record of a file of JSON, CSV or Parquet with the prompt in `column`, in
/// the file's order.
pub(crate) fn gather(path: &Path, column: &str, skip_bad: bool) -> Result<Gathered, WorkloadError> {
    match Format::of(path)? {
        Format::Json => json(path, column, skip_bad),
        Format::Csv => {
            let mut bytes = Vec::new();
            open(path)?
                .read_to_end(&mut bytes)
                .map_err(|source| WorkloadError::read(path, source))?;
            let text = Schema::from_iter([Field::new(column.into(), DataType::String)]);
            let frame = CsvReadOptions::default()
                .with_columns(Some(Arc::new([column.into()])))
                .with_schema_overwrite(Some(Arc::new(text)))
                .into_reader_with_file_handle(Cursor::new(bytes))
                .finish();
            frame_rows(path, column, skip_bad, frame)
        }
        Format::Parquet => {
            let file = File::open(path).map_err(|source| WorkloadError::read(path, source))?;
            let frame = ParquetReader::new(file)
                .with_columns(Some(vec![column.to_owned()]))
                .finish();
            frame_rows(path, column, skip_bad, frame)
        }
    }
}

enum Format {
    Json,
    Csv,
    Parquet,
}

impl Format {
    /// Parquet by its first bytes, CSV by its name, all else is JSON.
    fn of(path: &Path) -> Result<Self, WorkloadError> {
        let begins = open(path)?
            .fill_buf()
            .map(|bytes| bytes.starts_with(b"PAR1"))
            .map_err(|source| WorkloadError::read(path, source))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_lowercase();
        Ok(match name.trim_end_matches(".gz") {
            _ if begins => Self::Parquet,
            name if name.ends_with(".csv") => Self::Csv,
            _ => Self::Json,
        })
    }
}

fn json(path: &Path, column: &str, skip_bad: bool) -> Result<Gathered, WorkloadError> {
    let columns = Columns {
        schema: Schema::from_iter([Field::new(column.into(), DataType::String)]),
        texts: &[col(column)],
    };
    let mut prompts: Vec<Prompt> = Vec::new();
    let tally = read(path, skip_bad, &columns, |row| {
        prompts.push(prompt_of(row[0], column)?);
        Ok(())
    })?;
    Ok(Gathered {
        prompts,
        records: tally.records,
        left_out: tally.left_out,
        lost: tally.lost,
        ..Gathered::default()
    })
}

fn prompt_of(text: Option<&str>, column: &str) -> Result<Prompt, String> {
    match text {
        Some(text) if !text.trim().is_empty() => Ok(Item::Text(text.to_owned()).into()),
        _ => Err(format!("has no text in {column:?}")),
    }
}

/// The prompts of a table that was read whole, but for its other columns.
fn frame_rows(
    path: &Path,
    column: &str,
    skip_bad: bool,
    frame: PolarsResult<DataFrame>,
) -> Result<Gathered, WorkloadError> {
    let table = |e: PolarsError| WorkloadError::Table {
        path: path.to_owned(),
        column: column.to_owned(),
        problem: first_line(&e.to_string()),
    };
    let frame = frame.map_err(table)?;
    let texts = frame.column(column).and_then(|c| c.str()).map_err(table)?;
    let mut gathered = Gathered {
        records: texts.len() as u64,
        ..Gathered::default()
    };
    for (row, text) in (1..).zip(texts.iter()) {
        match prompt_of(text, column) {
            Ok(prompt) => gathered.prompts.push(prompt),
            Err(_) if skip_bad => gathered.left_out.add(Reason::Bad, 1),
            Err(problem) => {
                return Err(WorkloadError::Row {
                    path: path.to_owned(),
                    row,
                    problem,
                });
            }
        }
    }
    Ok(gathered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn texts(gathered: &Gathered) -> Vec<String> {
        gathered.prompts.iter().map(|p| p.item.text()).collect()
    }

    #[test]
    fn lines_and_arrays_plain_and_compressed_are_the_same_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let lines = "{\"question\": \"one\", \"answers\": [1]}\n{\"question\": \"twö\"}\n";
        let array = format!("[{}]", lines.trim().replace('\n', ",\n"));
        for text in [lines, &array] {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            for bytes in [text.as_bytes().to_vec(), gzip.finish().unwrap()] {
                std::fs::write(&path, bytes).unwrap();
                let gathered = gather(&path, "question", false).unwrap();
                assert_eq!(texts(&gathered), ["one", "twö"]);
            }
        }
    }

    #[test]
    fn a_gzip_stream_that_is_cut_off_gives_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.gz");
        let line = |n: u32| format!("{{\"question\": \"{}\"}}\n", n.wrapping_mul(2_654_435_761));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        for n in 0..5_000 {
            gzip.write_all(line(n).as_bytes()).unwrap();
        }
        let bytes = gzip.finish().unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let refused = gather(&path, "question", false).unwrap_err().to_string();
        assert!(refused.contains("gzip stream is cut off"), "{refused}");
        let gathered = gather(&path, "question", true).unwrap();
        assert!((1_000..4_000).contains(&gathered.prompts.len()));
        assert!(gathered.lost.is_some());
    }

    #[test]
    fn a_bad_line_costs_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let good = "{\"q\": \"x\"}";
        let bad = [
            "{\"q\": \"x",
            "\"y\": 1}",
            "{\"z\": 1}",
            "{\"q\": 1},{\"q\": 2}",
            "nonsense",
        ];
        let text = format!("{good}\n{}\n{good}\n", bad.join("\n"));
        std::fs::write(&path, text).unwrap();
        let refused = gather(&path, "q", false).unwrap_err().to_string();
        assert!(refused.contains("record 2"), "{refused}");
        let gathered = gather(&path, "q", true).unwrap();
        assert_eq!(texts(&gathered), ["x", "x"]);
        assert_eq!(gathered.left_out.total(), 5);
        assert_eq!(gathered.records, 7);
    }

    #[test]
    fn csv_and_parquet_are_tables_too() {
        let dir = tempfile::tempdir().unwrap();
        let csv = dir.path().join("q.csv");
        std::fs::write(&csv, "id,q\n1,\"one, \"\"two\"\"\nlines\"\n2,3\n3,\n").unwrap();
        let refused = gather(&csv, "q", false).unwrap_err().to_string();
        assert!(refused.contains("q.csv row 3"), "{refused}");
        let gathered = gather(&csv, "q", true).unwrap();
        assert_eq!(texts(&gathered), ["one, \"two\"\nlines", "3"]);
        assert_eq!((gathered.records, gathered.left_out.total()), (3, 1));

        let parquet = dir.path().join("q");
        let mut frame = df!("q" => ["a", "b"], "n" => [1, 2]).unwrap();
        let file = File::create(&parquet).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        assert_eq!(texts(&gather(&parquet, "q", false).unwrap()), ["a", "b"]);
        for wrong in ["n", "none"] {
            let refused = gather(&parquet, wrong, true).unwrap_err().to_string();
            assert!(refused.contains(&format!("column {wrong:?}")), "{refused}");
        }
    }
}
