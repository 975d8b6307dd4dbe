//! One segment: the rows of all five tables between two cuts, sealed as Parquet.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{concat_batches, max, min};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::columns::with_recording_id;
use crate::files::{self, Pending};
use crate::manifest::SegmentFile;
use crate::order::sorted;
use crate::schema::{
    FOOTER_FORMAT_VERSION, FOOTER_RECORDING_ID, FORMAT_VERSION, RECORDING_ID, Table,
};

/// Level 3 costs about a tenth more time than level 1 on OpenAI streams and
/// saves a seventh of the bytes.
const ZSTD_LEVEL: i32 = 3;

/// A segment that could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot encode {}", path.display())]
    Parquet {
        path: PathBuf,
        #[source]
        source: ParquetError,
    },
    #[error("cannot lay out {}", path.display())]
    Arrow {
        path: PathBuf,
        #[source]
        source: arrow::error::ArrowError,
    },
}

/// Which files a seal writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// Only tables that have rows.
    NonEmpty,
    /// All five, so that every reader finds every table in the recording.
    All,
}

/// Rows between two cuts as Arrow batches without `recording_id`, in the order of
/// their numbers within each table.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    batches: [Vec<RecordBatch>; 5],
    /// Batches at the end of each list that were not put together yet.
    loose: [usize; 5],
    rows: u64,
    bytes: usize,
}

/// A quiet recording commits a handful of rows ten times a second, and a batch of
/// one row weighs kilobytes: so many small batches become one.
const LOOSE_BATCHES: usize = 64;
const LOOSE_ROWS: usize = 1 << 14;

impl Rows {
    /// Adds `batch` behind the rows of `table`.
    ///
    /// # Errors
    /// When the batch is not of the table.
    pub fn push(&mut self, table: Table, batch: RecordBatch) -> Result<(), ArrowError> {
        let index = table as usize;
        self.rows += batch.num_rows() as u64;
        self.bytes += batch.get_array_memory_size();
        self.batches[index].push(batch);
        self.loose[index] += 1;
        if self.loose[index] < LOOSE_BATCHES {
            return Ok(());
        }
        self.loose[index] = 0;
        let batches = &mut self.batches[index];
        let loose = &batches[batches.len() - LOOSE_BATCHES..];
        if loose.iter().map(RecordBatch::num_rows).sum::<usize>() < LOOSE_ROWS {
            let whole = concat_batches(&table.row_schema(), loose)?;
            let before: usize = loose.iter().map(RecordBatch::get_array_memory_size).sum();
            self.bytes = self.bytes + whole.get_array_memory_size() - before;
            batches.truncate(batches.len() - LOOSE_BATCHES);
            batches.push(whole);
        }
        Ok(())
    }

    #[must_use]
    pub fn of(&self, table: Table) -> &[RecordBatch] {
        &self.batches[table as usize]
    }

    /// Rows of all tables.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.rows
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Memory held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }
}

/// Numbers of the first and the last row of a segment, over all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    pub first_seq: u64,
    pub last_seq: u64,
}

impl Cut {
    /// Name of the file of `table`, below the recording.
    #[must_use]
    pub fn file(self, table: Table) -> String {
        let (first, last) = (self.first_seq, self.last_seq);
        format!("{}/{first:012}-{last:012}.parquet", table.name())
    }

    /// The cut that a sealed file's name tells.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<Self> {
        let (first, last) = path.file_stem()?.to_str()?.split_once('-')?;
        Some(Self {
            first_seq: first.parse().ok()?,
            last_seq: last.parse().ok()?,
        })
    }

    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.first_seq <= other.first_seq && other.last_seq <= self.last_seq
    }
}

/// Seals `rows`, those of `cut`, as files of `recording`, and adds what it wrote
/// to `files`. A table that is in `files` already is left alone: the second try
/// after a full disk.
///
/// # Errors
/// When the disk refuses or the rows cannot be encoded; files already sealed stay.
pub fn seal(
    recording: &Path,
    recording_id: &str,
    cut: Cut,
    rows: &Rows,
    tables: Tables,
    files: &mut Vec<SegmentFile>,
) -> Result<(), SealError> {
    for table in Table::ALL {
        let file = cut.file(table);
        let wanted = tables == Tables::All || !rows.of(table).is_empty();
        if wanted && !files.iter().any(|f| f.file == file) {
            let path = recording.join(&file);
            files.push(write_file(
                &path,
                file,
                table,
                recording_id,
                rows.of(table),
            )?);
        }
    }
    Ok(())
}

fn write_file(
    path: &Path,
    file: String,
    table: Table,
    recording_id: &str,
    batches: &[RecordBatch],
) -> Result<SegmentFile, SealError> {
    let io_error = |source| SealError::Io {
        path: path.to_owned(),
        source,
    };
    let parquet_error = |source| parquet_error(path, source);
    let arrow_error = |source| SealError::Arrow {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        files::create_dir(dir).map_err(io_error)?;
    }
    let pending = Pending::create(path).map_err(io_error)?;
    let mut hashed = Hashed {
        file: pending.file(),
        hasher: blake3::Hasher::new(),
    };
    let properties = properties(table, recording_id);
    let mut writer = ArrowWriter::try_new(&mut hashed, table.schema(), Some(properties))
        .map_err(parquet_error)?;
    let mut described = Described::default();
    for slice in sorted(table, batches) {
        let slice = slice.map_err(arrow_error)?;
        described.add(&slice);
        let slice = with_recording_id(table, recording_id, &slice).map_err(arrow_error)?;
        writer.write(&slice).map_err(parquet_error)?;
    }
    crash_point!("seal::mid_file", path);
    writer.close().map_err(parquet_error)?;
    let blake3 = crate::hash_digits(&hashed.hasher.finalize());
    pending.commit().map_err(io_error)?;
    Ok(described.file(file, Some(blake3)))
}

/// A full disk is the disk's error, though the encoder passes it on as its own.
fn parquet_error(path: &Path, source: ParquetError) -> SealError {
    match source {
        ParquetError::External(error) if error.is::<io::Error>() => SealError::Io {
            path: path.to_owned(),
            source: error
                .downcast::<io::Error>()
                .map_or_else(|_| io::ErrorKind::Other.into(), |error| *error),
        },
        source => SealError::Parquet {
            path: path.to_owned(),
            source,
        },
    }
}

/// A writer that knows the hash of what went through it.
struct Hashed<'a> {
    file: &'a File,
    hasher: blake3::Hasher,
}

impl io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::Write::write(&mut self.file, bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut self.file)
    }
}

/// The hash kept of a sealed file.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(crate::hash_digits(&hasher.finalize()))
}

fn properties(table: Table, recording_id: &str) -> WriterProperties {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default();
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(1 << 20))
        .set_key_value_metadata(Some(vec![
            KeyValue::new(FOOTER_FORMAT_VERSION.to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new(FOOTER_RECORDING_ID.to_owned(), recording_id.to_owned()),
        ]));
    let schema = table.schema();
    for field in schema.fields() {
        builder = encode_column(builder, field.name());
        if has_idle_bounds(table, field.name()) {
            let column = ColumnPath::from(field.name().as_str());
            builder = builder.set_column_statistics_enabled(column, EnabledStatistics::None);
        }
    }
    let sorting: Vec<SortingColumn> = table
        .sort_columns()
        .iter()
        .filter_map(|name| schema.index_of(name).ok())
        .map(|index| SortingColumn {
            column_idx: index as i32,
            descending: false,
            nulls_first: false,
        })
        .collect();
    if !sorting.is_empty() {
        builder = builder.set_sorting_columns(Some(sorting));
    }
    builder.build()
}

/// Deltas for instants and counters that grow, prefix sharing for payloads whose
/// JSON envelope repeats, dictionaries for words.
fn encode_column(builder: WriterPropertiesBuilder, name: &str) -> WriterPropertiesBuilder {
    let column = ColumnPath::from(name);
    let is_instant = name.starts_with("t_") && name.ends_with("_ns");
    let is_counter = matches!(
        name,
        "request_id" | "chunk_index" | "read_index" | "conn_id" | "parent_request_id"
    );
    if is_instant || is_counter {
        builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
    } else if matches!(name, "data" | "body" | "event_id") {
        // Statistics of a payload would copy its text into every footer.
        builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column.clone(), EnabledStatistics::None)
            .set_column_encoding(column, Encoding::DELTA_BYTE_ARRAY)
    } else if name == RECORDING_ID {
        builder.set_column_dictionary_enabled(column, true)
    } else {
        builder
    }
}

/// Columns of `chunks` by which nobody can leave out a file: all files have the same
/// few values, or instants that `t_ns` bounds as well. Their bounds would cost a
/// comparison or two for each chunk.
fn has_idle_bounds(table: Table, name: &str) -> bool {
    let idle = [
        "attempt",
        "read_index",
        "choice_index",
        "t_seen_ns",
        "t_forwarded_ns",
        "kind",
        "event",
        "tokens",
        "bytes",
    ];
    table == Table::Chunks && idle.contains(&name)
}

/// What the manifest says of a file, gathered batch by batch.
#[derive(Debug, Default)]
pub(crate) struct Described {
    rows: u64,
    t_ns: Option<(i64, i64)>,
}

impl Described {
    pub(crate) fn add(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        let columns = ["t_ns", "t_sent_ns", "t_end_ns"];
        let instants = columns.iter().find_map(|name| batch.column_by_name(name));
        let instants = instants.map(|column| column.as_primitive::<Int64Type>());
        if let Some(low) = instants.and_then(min)
            && let Some(high) = instants.and_then(max)
        {
            let (known_low, known_high) = self.t_ns.unwrap_or((low, high));
            self.t_ns = Some((low.min(known_low), high.max(known_high)));
        }
    }

    pub(crate) fn file(self, file: String, blake3: Option<String>) -> SegmentFile {
        SegmentFile {
            file,
            rows: self.rows,
            min_t_ns: self.t_ns.map(|(low, _)| low),
            max_t_ns: self.t_ns.map(|(_, high)| high),
            blake3,
        }
    }
}
