//! Query results to a file or stdout, batch by batch.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::JsonArray;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::functions::is_binary;
use crate::render::csv_field;

/// Rows of a drawn table: its columns have to be measured before the first line
/// can be written, so all of it lies in memory.
pub(crate) const TABLE_ROWS: usize = 10_000;

/// Rows of a result, and how many of them were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RowCount {
    pub(crate) shown: usize,
    pub(crate) total: usize,
}

/// How query results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum QueryFormat {
    Table,
    Json,
    Csv,
    Parquet,
}

/// Output that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("{}", crate::session::explain(.0))]
    Query(DataFusionError),
    #[error("cannot write the output")]
    Io(#[from] io::Error),
    #[error("cannot write the rows")]
    Arrow(#[from] ArrowError),
    #[error("cannot write the rows as parquet")]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error("cannot create {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("parquet is not for a terminal\nhint: -o FILE, or redirect the output")]
    Terminal,
}

/// Stdout or a file, which takes its name in [`Output::finish`]: a question that
/// fails leaves the file of the last one alone. A reader that went away is remembered, because it is no
/// failure of ours: `analyze query … | head`.
pub(crate) struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
    is_terminal: bool,
    /// Where the bytes go meanwhile, and where they belong.
    pending: Option<(PathBuf, PathBuf)>,
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.pending {
            fs::remove_file(temporary).ok();
        }
    }
}

/// A file beside `path` to write to first, and what is meant by `path`. `None` where
/// it is no file, such as a pipe or a device: those are written to as they are.
fn beside(path: &Path) -> Option<(PathBuf, PathBuf)> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return None;
    }
    // What a link names is replaced, not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name()?);
    name.push(format!(".{}.tmp", std::process::id()));
    Some((target.with_file_name(name), target))
}

impl Output {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, OutputError> {
        let Some(path) = path else {
            return Ok(Self {
                writer: BufWriter::new(Box::new(io::stdout())),
                is_terminal: io::stdout().is_terminal(),
                pending: None,
            });
        };
        let pending = beside(path);
        let at = pending.as_ref().map_or(path, |(temporary, _)| temporary);
        let file = File::create(at).map_err(|source| OutputError::Create {
            path: path.to_owned(),
            source,
        })?;
        let mut output = Self::to(file);
        output.pending = pending;
        Ok(output)
    }

    /// Output to an open file.
    pub(crate) fn to(file: File) -> Self {
        Self {
            writer: BufWriter::new(Box::new(file)),
            is_terminal: false,
            pending: None,
        }
    }

    /// Everything was written: gives the file its name.
    pub(crate) fn finish(mut self) -> Result<(), OutputError> {
        self.writer.flush()?;
        if let Some((temporary, target)) = self.pending.take() {
            if let Ok(before) = fs::metadata(&target) {
                fs::set_permissions(&temporary, before.permissions())?;
            }
            fs::rename(&temporary, &target)?;
        }
        Ok(())
    }

    pub(crate) fn text(&mut self, text: &str) -> Result<(), OutputError> {
        self.writer.write_all(text.as_bytes())?;
        Ok(self.writer.flush()?)
    }

    /// Writes all of `rows`; of a drawn table the first `table_rows`.
    pub(crate) async fn rows(
        &mut self,
        mut rows: SendableRecordBatchStream,
        format: QueryFormat,
        table_rows: usize,
    ) -> Result<RowCount, OutputError> {
        let schema = rows.schema();
        let mut count = RowCount::default();
        let mut sink = Sink::new(format, &schema, self)?;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(OutputError::Query)?;
            let room = match format {
                QueryFormat::Table => table_rows.saturating_sub(count.shown),
                QueryFormat::Json | QueryFormat::Csv | QueryFormat::Parquet => usize::MAX,
            };
            let shown = batch.num_rows().min(room);
            sink.write(&batch.slice(0, shown))?;
            count.shown += shown;
            count.total += batch.num_rows();
        }
        sink.finish()?;
        self.writer.flush()?;
        Ok(count)
    }
}

/// True when `error` says that the reader of our output went away.
pub(crate) fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::BrokenPipe) {
            return true;
        }
        if let Some(ArrowError::IoError(_, io_error)) = error.downcast_ref::<ArrowError>() {
            return io_error.kind() == io::ErrorKind::BrokenPipe;
        }
        next = error.source();
    }
    false
}

type Writer<'a> = &'a mut BufWriter<Box<dyn Write + Send>>;

enum Sink<'a> {
    Table {
        writer: Writer<'a>,
        header: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Csv(Writer<'a>),
    Json(arrow::json::Writer<Writer<'a>, JsonArray>),
    Parquet(Box<ArrowWriter<Writer<'a>>>),
}

impl<'a> Sink<'a> {
    fn new(
        format: QueryFormat,
        schema: &SchemaRef,
        output: &'a mut Output,
    ) -> Result<Self, OutputError> {
        let names = schema.fields().iter().map(|f| f.name().clone());
        let writer = &mut output.writer;
        Ok(match format {
            QueryFormat::Table => Self::Table {
                writer,
                header: names.collect(),
                rows: Vec::new(),
            },
            QueryFormat::Csv => {
                let names: Vec<String> = names.map(|n| csv_field(&n)).collect();
                writeln!(writer, "{}", names.join(","))?;
                Self::Csv(writer)
            }
            QueryFormat::Json => Self::Json(
                arrow::json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build(writer),
            ),
            QueryFormat::Parquet if output.is_terminal => return Err(OutputError::Terminal),
            QueryFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(parquet::basic::ZstdLevel::default()))
                    .build();
                let writer = ArrowWriter::try_new(writer, schema.clone(), Some(properties))?;
                Self::Parquet(Box::new(writer))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let readable = match self {
            Self::Parquet(writer) => return Ok(writer.write(batch)?),
            _ => readable(batch)?,
        };
        let batch = &readable;
        match self {
            Self::Table { rows, .. } => rows.extend(cells(batch, Option::unwrap_or_default)?),
            Self::Csv(writer) => {
                let field = |text: Option<String>| text.map(|t| csv_field(&t)).unwrap_or_default();
                for row in cells(batch, field)? {
                    writeln!(writer, "{}", row.join(","))?;
                }
            }
            Self::Json(writer) => writer.write(batch)?,
            Self::Parquet(_) => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<(), OutputError> {
        match self {
            Self::Table {
                writer,
                header,
                rows,
            } => writeln!(writer, "{}", crate::render::grid(&header, &rows, false))?,
            Self::Csv(_) => {}
            Self::Json(mut writer) => {
                writer.finish()?;
                writeln!(writer.into_inner())?;
            }
            Self::Parquet(writer) => drop(writer.close()?),
        }
        Ok(())
    }
}

/// Every cell as text; `None` is NULL.
fn cells(
    batch: &RecordBatch,
    show: impl Fn(Option<String>) -> String,
) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::default().with_display_error(true);
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| Ok((column, ArrayFormatter::try_new(column.as_ref(), &options)?)))
        .collect::<Result<_, ArrowError>>()?;
    let row = |index| {
        let cell = columns.iter().map(|(column, text)| {
            show((!column.is_null(index)).then(|| text.value(index).to_string()))
        });
        cell.collect()
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// `batch` with columns of bytes as text: payloads are JSON nearly always. What
/// is not UTF-8 becomes `\x` and hexadecimal digits.
fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if !batch.columns().iter().any(|c| is_binary(c.data_type())) {
        return Ok(batch.clone());
    }
    let schema = batch.schema();
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .map(readable_column)
        .collect::<Result<_, _>>()?;
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(&columns)
        .map(|(field, column)| {
            Field::new(
                field.name(),
                column.data_type().clone(),
                field.is_nullable(),
            )
        })
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn readable_column(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !is_binary(column.data_type()) {
        return Ok(Arc::clone(column));
    }
    let bytes = cast(column, &DataType::Binary)?;
    let bytes: &BinaryArray = bytes.as_binary();
    let text: StringArray = bytes.iter().map(|value| value.map(text_or_hex)).collect();
    Ok(Arc::new(text))
}

fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            "\\x"
                .chars()
                .chain(digits.collect::<String>().chars())
                .collect()
        }
    }
}
