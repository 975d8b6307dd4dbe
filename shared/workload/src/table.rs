//! Data set `table`: a prompt a row, of JSON in batches, of CSV and Parquet whole but
//! for the columns nobody asked for.

use std::io::{BufRead, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use polars::prelude::*;

use crate::columns::{Columns, Tally, first_line, read};
use crate::dataset::{DatasetSpec, Gathered, Reason, TableColumns};
use crate::error::WorkloadError;
use crate::files::open;
use crate::prompts::{Item, Prompt};
use crate::sessions::by_session;
use crate::shaping::{add_images, image_parts};

/// Every record of a file of JSON, CSV or Parquet as a prompt, in the file's order;
/// rows of one session become one conversation.
pub(crate) fn gather(
    path: &Path,
    columns: &TableColumns,
    spec: &DatasetSpec,
) -> Result<Gathered, WorkloadError> {
    let mut rows = Rows::new(path, columns);
    let names = rows.names.clone();
    let tally = match Format::of(path)? {
        Format::Json => json(path, &names, spec.skip_bad, &mut rows)?,
        Format::Csv => frame_rows(path, &names, spec.skip_bad, csv(path, &names)?, &mut rows)?,
        Format::Parquet => frame_rows(
            path,
            &names,
            spec.skip_bad,
            parquet(path, &names)?,
            &mut rows,
        )?,
    };
    let (mut prompts, replies) = rows.done();
    if spec.num_turns > 1 {
        prompts = by_session(prompts, &replies, spec.num_turns);
    }
    Ok(Gathered {
        prompts,
        records: tally.records,
        left_out: tally.left_out,
        lost: tally.lost,
        ..Gathered::default()
    })
}

/// Rows of text columns on their way to prompts.
struct Rows<'a> {
    columns: &'a TableColumns,
    folder: Option<&'a Path>,
    /// Columns that are read, the prompt's first.
    names: Vec<String>,
    prompts: Vec<Prompt>,
    replies: Vec<Option<String>>,
}

impl<'a> Rows<'a> {
    fn new(path: &'a Path, columns: &'a TableColumns) -> Self {
        let named = [
            Some(&columns.prompt),
            columns.output_length.as_ref(),
            columns.session.as_ref(),
            columns.reply.as_ref(),
            columns.image.as_ref(),
        ];
        let mut names: Vec<String> = Vec::new();
        for name in named.into_iter().flatten() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Self {
            columns,
            folder: path.parent(),
            names,
            prompts: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Takes one row, or says what is wrong with it.
    fn take(&mut self, row: &[Option<&str>]) -> Result<(), String> {
        let value = |name: &Option<String>| {
            let place = self.names.iter().position(|n| Some(n) == name.as_ref())?;
            row[place].filter(|text| !text.trim().is_empty())
        };
        let column = &self.columns.prompt;
        let Some(text) = row[0].filter(|text| !text.trim().is_empty()) else {
            return Err(format!("has no text in {column:?}"));
        };
        let mut prompt: Prompt = Item::Text(text.to_owned()).into();
        if let Some(length) = value(&self.columns.output_length) {
            // Parquet and spreadsheets write whole numbers with a fraction of zero.
            let digits = length.trim().trim_end_matches('0').trim_end_matches('.');
            let digits = if length.contains('.') {
                digits
            } else {
                length.trim()
            };
            let tokens = digits.parse().map_err(|_| {
                format!("the output length {length:?} is no whole number of tokens")
            })?;
            prompt.max_tokens = Some(tokens);
        }
        prompt.session_id = value(&self.columns.session).map(str::to_owned);
        if let Some(image) = value(&self.columns.image) {
            let parts = image_parts(&[image.to_owned()], self.folder);
            add_images(&mut prompt.item, &parts.map_err(|e| e.to_string())?);
        }
        let reply = value(&self.columns.reply).map(str::to_owned);
        self.replies.push(reply);
        self.prompts.push(prompt);
        Ok(())
    }

    fn done(self) -> (Vec<Prompt>, Vec<Option<String>>) {
        (self.prompts, self.replies)
    }
}

fn csv(path: &Path, names: &[String]) -> Result<PolarsResult<DataFrame>, WorkloadError> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(|source| WorkloadError::read(path, source))?;
    let names: Vec<PlSmallStr> = names.iter().map(|n| n.as_str().into()).collect();
    Ok(CsvReadOptions::default()
        .with_columns(Some(names.clone().into()))
        .with_schema_overwrite(Some(Arc::new(texts_of(names))))
        .into_reader_with_file_handle(Cursor::new(bytes))
        .finish())
}

/// Columns of text by these names.
fn texts_of(names: impl IntoIterator<Item = PlSmallStr>) -> Schema {
    let field = |name| Field::new(name, DataType::String);
    Schema::from_iter(names.into_iter().map(field))
}

/// Parquet seeks in its file, so a compressed one is unpacked first.
fn parquet(path: &Path, names: &[String]) -> Result<PolarsResult<DataFrame>, WorkloadError> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(|source| WorkloadError::read(path, source))?;
    Ok(ParquetReader::new(Cursor::new(bytes))
        .with_columns(Some(names.to_vec()))
        .finish())
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

fn json(
    path: &Path,
    names: &[String],
    skip_bad: bool,
    rows: &mut Rows<'_>,
) -> Result<Tally, WorkloadError> {
    let texts: Vec<Expr> = names.iter().map(|name| col(name.as_str())).collect();
    let columns = Columns {
        schema: texts_of(names.iter().map(|n| n.as_str().into())),
        texts: &texts,
    };
    read(path, skip_bad, &columns, |row| rows.take(row))
}

/// The rows of a table that was read whole, but for its other columns.
fn frame_rows(
    path: &Path,
    names: &[String],
    skip_bad: bool,
    frame: PolarsResult<DataFrame>,
    rows: &mut Rows<'_>,
) -> Result<Tally, WorkloadError> {
    let table = |column: &str| {
        let column = column.to_owned();
        |e: PolarsError| WorkloadError::Table {
            path: path.to_owned(),
            column,
            problem: first_line(&e.to_string()),
        }
    };
    let frame = frame.map_err(table(&names[0]))?;
    let texts = |(index, name): (usize, &String)| {
        let column = frame.column(name)?;
        // A number is no prompt, but may be a length or the name of a session.
        match index {
            0 => column.str().cloned(),
            _ => column.cast(&DataType::String)?.str().cloned(),
        }
    };
    let mut columns = Vec::new();
    for (index, name) in names.iter().enumerate() {
        columns.push(texts((index, name)).map_err(table(name))?);
    }
    let mut tally = Tally {
        records: frame.height() as u64,
        ..Tally::default()
    };
    let mut row: Vec<Option<&str>> = Vec::with_capacity(columns.len());
    for at in 0..frame.height() {
        row.clear();
        row.extend(columns.iter().map(|column| column.get(at)));
        match rows.take(&row) {
            Ok(()) => {}
            Err(_) if skip_bad => tally.left_out.add(Reason::Bad, 1),
            Err(problem) => {
                return Err(WorkloadError::Row {
                    path: path.to_owned(),
                    row: at as u64 + 1,
                    problem,
                });
            }
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Source;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs::File;
    use std::io::Write;

    fn gather(path: &Path, column: &str, skip_bad: bool) -> Result<Gathered, WorkloadError> {
        let columns = TableColumns {
            prompt: column.to_owned(),
            ..TableColumns::default()
        };
        let spec = DatasetSpec {
            skip_bad,
            ..DatasetSpec::new(Source::Table {
                path: path.to_owned(),
                columns: columns.clone(),
            })
        };
        super::gather(path, &columns, &spec)
    }

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

    #[test]
    fn columns_give_lengths_sessions_and_replies_in_every_format() {
        let dir = tempfile::tempdir().unwrap();
        let csv = "q,n,s,r\none,5,7,yes\nlone,,,\ntwo,6,7,no\n";
        let json = "{\"q\": \"one\", \"n\": 5, \"s\": 7, \"r\": \"yes\"}\n{\"q\": \"lone\"}\n{\"q\": \"two\", \"n\": \"6\", \"s\": 7, \"r\": \"no\"}\n";
        std::fs::write(dir.path().join("t.csv"), csv).unwrap();
        std::fs::write(dir.path().join("t.jsonl"), json).unwrap();
        let mut frame = df!(
            "q" => ["one", "lone", "two"],
            "n" => [Some(5.0), None, Some(6.0)],
            "s" => [Some(7), None, Some(7)],
            "r" => [Some("yes"), None, Some("no")]
        )
        .unwrap();
        let mut parquet = Vec::new();
        ParquetWriter::new(&mut parquet).finish(&mut frame).unwrap();
        std::fs::write(dir.path().join("t.parquet"), &parquet).unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&parquet).unwrap();
        std::fs::write(dir.path().join("t.parquet.gz"), gzip.finish().unwrap()).unwrap();
        let columns = TableColumns {
            prompt: "q".into(),
            output_length: Some("n".into()),
            session: Some("s".into()),
            reply: Some("r".into()),
            image: None,
        };
        for name in ["t.csv", "t.jsonl", "t.parquet", "t.parquet.gz"] {
            let path = dir.path().join(name);
            let spec = DatasetSpec {
                num_turns: 2,
                ..DatasetSpec::new(Source::Prompt(String::new()))
            };
            let gathered = super::gather(&path, &columns, &spec).unwrap();
            let [session, lone] = &gathered.prompts[..] else {
                panic!("{name}: {:?}", gathered.prompts)
            };
            assert_eq!(session.max_tokens, Some(5), "{name}");
            assert_eq!(session.turns[0].max_tokens, Some(6), "{name}");
            assert_eq!(session.turns[0].reply[0]["content"], "yes", "{name}");
            assert_eq!(lone.max_tokens, None, "{name}");
        }
    }
}
