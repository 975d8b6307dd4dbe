//! `derived/`: what a report would otherwise compute from every chunk again.
//!
//! The rows of view `chunk_stream`, one per attempt with a list of its gaps, as
//! one Parquet file per recording. It is nothing but that view's result: with it,
//! without it and after it was deleted a report says the same. Its key is of the
//! format, of the SQL that made it and of the sealed files, so that it is rebuilt
//! when one of them changes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::ColumnPath;
use tapedeck_recording::manifest::{RecoveredCounts, State};
use tapedeck_recording::schema::FORMAT_VERSION;
use tapedeck_recording::segment::hash_file;
use tapedeck_recording::{Recording, Table, body_hash};

use crate::models;
use crate::session::{Error, Session};

/// The view whose rows are kept, after what it reads.
pub(crate) const READ_MODEL: &str = "chunk_stream";
const VIEWS: [&str; 2] = ["content_chunk", READ_MODEL];

const FILE: &str = "derived/chunk_stream.parquet";
/// BLAKE3 of that file: one that was damaged is made again.
const HASH_FILE: &str = "derived/chunk_stream.blake3";
/// Footer key of what the file was made from.
const FOOTER_KEY: &str = "tapedeck.derived_from";

/// Below this many chunks in all, computing is as fast as looking for a file.
const MIN_CHUNKS: u64 = 1 << 14;

/// Gaps in one row group: readers hold a row group's lists in memory.
const GAPS_PER_GROUP: usize = 1 << 20;

/// A file that could not be made.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Session(#[from] Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error(transparent)]
    Query(#[from] datafusion::error::DataFusionError),
}

/// A fresh file for each of `recordings`, made where there is none. `None` where
/// one of them cannot have one, so that the view has to be computed: it is still
/// open, its files are not those of its manifest, or its folder cannot be written.
pub(crate) async fn files(recordings: &[Recording]) -> Option<Vec<PathBuf>> {
    let chunks: u64 = recordings
        .iter()
        .map(|r| r.manifest.rows(Table::Chunks))
        .sum();
    if chunks < MIN_CHUNKS || !recordings.iter().all(is_whole) {
        return None;
    }
    let mut files = Vec::new();
    for recording in recordings {
        let path = recording.dir.join(FILE);
        let key = key(recording);
        let is_fresh = key_of(&path).as_deref() == Some(&key) && is_intact(recording, &path);
        if !is_fresh && let Err(error) = build(recording, &path, key).await {
            note(&path, &error);
            return None;
        }
        files.push(path);
    }
    Some(files)
}

/// Every row is in a sealed file, and every sealed file is in the manifest.
fn is_whole(recording: &Recording) -> bool {
    let manifest = &recording.manifest;
    let is_sealed = match manifest.state {
        State::Open => false,
        State::Sealed | State::Recovered => true,
    };
    let on_disk: usize = Table::ALL
        .iter()
        .map(|table| recording.files(*table).len())
        .sum();
    let mut listed = manifest.segments.iter();
    is_sealed
        && recording.recovered().counts == RecoveredCounts::default()
        && on_disk == manifest.segments.len()
        && listed.all(|segment| recording.dir.join(&segment.file).is_file())
}

/// Of everything that the rows depend on.
fn key(recording: &Recording) -> String {
    let sql = VIEWS.iter().filter_map(|name| models::view(name));
    let mut text = format!("{FORMAT_VERSION} {}\n", recording.manifest.recording_id);
    text.extend(sql.map(|model| model.sql));
    for segment in &recording.manifest.segments {
        let length = fs::metadata(recording.dir.join(&segment.file)).map_or(0, |file| file.len());
        let hash = segment.blake3.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "{} {} {length} {hash}\n",
            segment.file, segment.rows
        ));
    }
    body_hash(text.as_bytes())
}

/// What the file at `path` was made from; `None` where it is none of ours.
fn key_of(path: &Path) -> Option<String> {
    let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
    let mut pairs = reader
        .metadata()
        .file_metadata()
        .key_value_metadata()?
        .iter();
    pairs.find(|pair| pair.key == FOOTER_KEY)?.value.clone()
}

fn is_intact(recording: &Recording, path: &Path) -> bool {
    let known = fs::read_to_string(recording.dir.join(HASH_FILE));
    known.is_ok_and(|known| hash_file(path).is_ok_and(|found| found == known.trim_end()))
}

/// A folder that one may not write is nothing to mention.
fn note(path: &Path, error: &Failed) {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    if let Failed::Io(error) = error
        && matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
    {
        return;
    }
    let reason = crate::check::chain(error);
    drop(io::Write::write_fmt(
        &mut io::stderr(),
        format_args!("note: {} is not kept: {reason}\n", path.display()),
    ));
}

/// Writes beside and renames: who reads finds a whole file or none.
async fn build(recording: &Recording, path: &Path, key: String) -> Result<(), Failed> {
    let rows = Session::open_views(recording.clone(), &VIEWS).await?;
    let rows = rows
        .context()
        .table(READ_MODEL)
        .await?
        .execute_stream()
        .await?;
    if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
        DirBuilder::new().mode(0o700).create(dir)?;
    }
    // Two reports at once write two files, and the last one stays.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(rows, &temporary, key).await;
    let placed = written.and_then(|()| {
        let hash = hash_file(&temporary)?;
        fs::rename(&temporary, path)?;
        // Without it, or with another's, the file is taken for a damaged one.
        create(&temporary)?.write_all(hash.as_bytes())?;
        Ok(fs::rename(&temporary, recording.dir.join(HASH_FILE))?)
    });
    if placed.is_err() {
        fs::remove_file(&temporary).ok();
    }
    placed
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

async fn write(
    mut rows: SendableRecordBatchStream,
    path: &Path,
    key: String,
) -> Result<(), Failed> {
    let file = create(path)?;
    let properties = properties(&rows.schema(), key);
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties))?;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        for (first, rows) in groups(&batch) {
            writer.write(&batch.slice(first, rows))?;
            writer.flush()?;
        }
    }
    writer.close()?;
    Ok(())
}

/// Runs of rows, first and number, with at most [`GAPS_PER_GROUP`] gaps each
/// unless one row alone has more.
fn groups(batch: &RecordBatch) -> Vec<(usize, usize)> {
    let lists = batch.column_by_name("itl_ns");
    let lists = lists.and_then(|column| column.as_list_opt::<i32>());
    let gaps = |row: usize| {
        lists.map_or(0, |lists| {
            usize::try_from(lists.value_length(row)).unwrap_or(0)
        })
    };
    let mut groups = Vec::new();
    let (mut first, mut sum) = (0, 0);
    for row in 0..batch.num_rows() {
        if row > first && sum + gaps(row) > GAPS_PER_GROUP {
            groups.push((first, row - first));
            (first, sum) = (row, 0);
        }
        sum += gaps(row);
    }
    if batch.num_rows() > first {
        groups.push((first, batch.num_rows() - first));
    }
    groups
}

fn properties(schema: &SchemaRef, key: String) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(vec![KeyValue::new(FOOTER_KEY.to_owned(), key)]));
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
