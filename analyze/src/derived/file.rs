//! One file under `derived/`: written beside, hashed, renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::ColumnPath;
use tapedeck_recording::segment::hash_file;

pub(crate) const FOLDER: &str = "derived";
/// Footer key of what a file was made from.
const FOOTER_KEY: &str = "tapedeck.derived_from";

/// Values in one row group: readers hold a row group's lists in memory.
const VALUES_PER_GROUP: usize = 1 << 20;

/// Where the rows of `view` lie.
pub(super) fn path(recording: &Path, view: &str) -> PathBuf {
    recording.join(FOLDER).join(format!("{view}.parquet"))
}

/// BLAKE3 of the file at `path`: one that was damaged is made again.
fn hash_path(path: &Path) -> PathBuf {
    path.with_extension("blake3")
}

/// The file at `path` was made from `key` and is as it was written.
pub(super) fn is_fresh(path: &Path, key: &str) -> bool {
    let known = || fs::read_to_string(hash_path(path)).ok();
    key_of(path).as_deref() == Some(key)
        && known().is_some_and(|known| hash_file(path).is_ok_and(|found| found == known.trim_end()))
}

/// What the file at `path` was made from; `None` where it is none of ours.
fn key_of(path: &Path) -> Option<String> {
    let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
    let metadata = reader.metadata().file_metadata();
    let mut pairs = metadata.key_value_metadata()?.iter();
    pairs.find(|pair| pair.key == FOOTER_KEY)?.value.clone()
}

pub(crate) fn create_folder(recording: &Path) -> io::Result<()> {
    let dir = recording.join(FOLDER);
    match DirBuilder::new().mode(0o700).create(&dir) {
        // Perhaps by another report, a moment ago.
        Err(_) if dir.is_dir() => Ok(()),
        made => made,
    }
}

/// A file for the owner only, beside `path`. Two reports at once write two, and
/// the last one stays.
fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.tmp", std::process::id()))
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// Writes `text` as `path`, whole or not at all.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let written = create(&temporary)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written
}

/// A file that takes its name in [`Pending::commit`]: who reads finds a whole one
/// or none.
pub(super) struct Pending {
    writer: Option<ArrowWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    /// In the row group that is being written.
    values: usize,
}

impl Pending {
    pub(super) fn create(path: &Path, schema: &SchemaRef, key: &str) -> Result<Self, ParquetError> {
        let temporary = temporary(path);
        let file = create(&temporary)?;
        let properties = properties(schema, key);
        let mut pending = Self {
            writer: None,
            temporary,
            path: path.to_owned(),
            values: 0,
        };
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        pending.writer = Some(writer);
        Ok(pending)
    }

    /// Adds rows; a row group has at most [`VALUES_PER_GROUP`] unless one row alone
    /// has more.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let lists = batch.columns().iter().find_map(|c| c.as_list_opt::<i32>());
        let values = |row: usize| {
            let length = lists.map_or(1, |lists| lists.value_length(row));
            usize::try_from(length).unwrap_or(0).max(1)
        };
        let mut start = 0;
        for row in 0..batch.num_rows() {
            if self.values > 0 && self.values + values(row) > VALUES_PER_GROUP {
                writer.write(&batch.slice(start, row - start))?;
                writer.flush()?;
                (start, self.values) = (row, 0);
            }
            self.values += values(row);
        }
        writer.write(&batch.slice(start, batch.num_rows() - start))
    }

    pub(super) fn commit(mut self) -> Result<(), ParquetError> {
        if let Some(writer) = self.writer.take() {
            writer.close()?;
        }
        let hash = hash_file(&self.temporary)?;
        fs::rename(&self.temporary, &self.path)?;
        // Without it, or with another's, the file is taken for a damaged one.
        Ok(replace(&hash_path(&self.path), hash.as_bytes())?)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // There is none any more after a commit.
        fs::remove_file(&self.temporary).ok();
    }
}

fn properties(schema: &SchemaRef, key: &str) -> WriterProperties {
    let key = KeyValue::new(FOOTER_KEY.to_owned(), key.to_owned());
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(vec![key]));
    for field in schema.fields() {
        let column = match field.data_type() {
            DataType::Int64 => ColumnPath::from(field.name().as_str()),
            DataType::List(item) => {
                let path = [field.name().as_str(), "list", item.name()];
                ColumnPath::new(path.map(str::to_owned).to_vec())
            }
            _ => continue,
        };
        builder = builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}
