//! `derived/`: what a report would otherwise compute from every chunk again.
//!
//! The rows of the views [`READ_MODELS`], one Parquet file each. They are nothing
//! but those views' results: with them, without them and after they were deleted a
//! report says the same. The key of a file is of the format, of the SQL that made
//! it and of the sealed files, so that it is made again when one of them changes.
//!
//! They are made a range of requests at a time, as many ranges at once as there
//! are cores, each by a session of its own over the files that have its requests:
//! memory depends on the range and not on the recording.

mod file;
mod ranges;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::logical_expr::SortExpr;
use datafusion::prelude::col;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tapedeck_recording::manifest::{RecoveredCounts, State};
use tapedeck_recording::schema::{FORMAT_VERSION, RECORDING_ID};
use tapedeck_recording::{Recording, Table, body_hash};
use tokio::task::JoinError;

use crate::models;
use crate::session::{Error, Session};

pub(crate) use file::{FOLDER, create_folder, replace};
pub(crate) use ranges::{Range, Span};

/// The views whose rows are kept.
const READ_MODELS: [&str; 2] = ["chunk_stream", "read_lag"];

/// Below this many chunks in all, computing is as fast as looking for a file.
const MIN_CHUNKS: u64 = 1 << 14;

/// Chunks of one range, and what each takes while its range is looked at.
const CHUNKS_PER_RANGE: usize = 1 << 21;
const BYTES_PER_CHUNK: usize = 128;

/// Ranges looked at together, for each holds the chunks of its own.
const MOST_AT_ONCE: usize = 8;

/// How rows lie in a file, beside what the SQL says: by `request_id` and `attempt`.
const LAYOUT: u32 = 2;

/// The files of one read model, one for each recording.
pub(crate) struct ReadModel {
    pub(crate) view: &'static str,
    pub(crate) files: Vec<PathBuf>,
}

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
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Query(#[from] datafusion::error::DataFusionError),
    #[error("a part of it was not computed")]
    Task(#[from] JoinError),
}

/// What a session does about files that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It computes what it needs.
    Compute,
    /// It makes them first.
    Make,
}

/// Fresh files for `recordings`. Empty where one of them cannot have any, so that
/// the views have to be computed: it is still open, its files are not those of its
/// manifest, its folder cannot be written, or nobody made them and `missing` says
/// not to.
/// Making them takes about `memory_bytes`.
pub(crate) async fn read_models(
    recordings: &[Recording],
    missing: Missing,
    memory_bytes: usize,
) -> Vec<ReadModel> {
    let chunks = recordings.iter().map(|r| r.manifest.rows(Table::Chunks));
    if chunks.sum::<u64>() < MIN_CHUNKS || !recordings.iter().all(is_whole) {
        return Vec::new();
    }
    for recording in recordings {
        let key = key(recording);
        let path = |view| file::path(&recording.dir, view);
        if READ_MODELS
            .iter()
            .all(|view| file::is_fresh(&path(view), &key))
        {
            continue;
        }
        if missing == Missing::Compute {
            return Vec::new();
        }
        if let Err(error) = build(recording, &key, memory_bytes).await {
            note(&recording.dir.join(FOLDER), &error);
            return Vec::new();
        }
    }
    let read_model = |view| {
        let files = recordings.iter().map(|r| file::path(&r.dir, view));
        ReadModel {
            view,
            files: files.collect(),
        }
    };
    READ_MODELS.map(read_model).into()
}

/// Every row is in a sealed file, and every sealed file is in the manifest.
pub(crate) fn is_whole(recording: &Recording) -> bool {
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
    let id = &recording.manifest.recording_id;
    let mut text = format!("{FORMAT_VERSION} {LAYOUT} {id}\n");
    for name in models::needed_for(&READ_MODELS) {
        text.push_str(models::view(name).map_or("", |model| model.sql));
    }
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

/// What a range is computed from.
pub(crate) struct Part {
    pub(crate) recording_id: String,
    pub(crate) chunks: Vec<Span>,
    pub(crate) requests: Vec<Span>,
}

/// The rows of each read model.
type Rows = Vec<(SchemaRef, Vec<RecordBatch>)>;

async fn rows(part: Arc<Part>, range: Range) -> Result<Rows, Failed> {
    let session = Session::open_part(&part, range, &READ_MODELS).await?;
    let mut rows = Vec::new();
    for view in READ_MODELS {
        let view = session.context().table(view).await?;
        let schema = named(view.schema().as_arrow());
        // Within a recording: ranges follow each other.
        let order: Vec<SortExpr> = order(&schema).into_iter().skip(1).collect();
        let view = match order.is_empty() {
            true => view,
            false => view.sort(order)?,
        };
        let batches = view.collect().await?.into_iter();
        let batches = batches.map(|batch| name(&batch, &schema, &part.recording_id));
        let batches: Result<_, ArrowError> = batches.collect();
        rows.push((Arc::clone(&schema), batches?));
    }
    Ok(rows)
}

/// How the rows of a file lie, so that joins need not sort them.
pub(crate) fn order(schema: &Schema) -> Vec<SortExpr> {
    let keys = [RECORDING_ID, "request_id", "attempt"].into_iter();
    let keys = keys.take_while(|key| schema.index_of(key).is_ok());
    keys.map(|key| col(key).sort(true, true)).collect()
}

/// `schema` of a part's session, with the recording's id as text.
fn named(schema: &Schema) -> SchemaRef {
    let fields = schema
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            RECORDING_ID => Arc::new(Field::new(RECORDING_ID, DataType::Utf8, false)),
            _ => Arc::clone(field),
        });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// `batch` of a part's session with `recording_id` in place of the number.
fn name(
    batch: &RecordBatch,
    schema: &SchemaRef,
    recording_id: &str,
) -> Result<RecordBatch, ArrowError> {
    let ids = std::iter::repeat_n(recording_id, batch.num_rows());
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values(ids));
    let mut columns = batch.columns().to_vec();
    columns[schema.index_of(RECORDING_ID)?] = ids;
    RecordBatch::try_new(Arc::clone(schema), columns)
}

async fn build(recording: &Recording, key: &str, memory_bytes: usize) -> Result<(), Failed> {
    let spans = |table| {
        let files = recording.files(table).iter();
        files
            .map(|path| Span::of(path))
            .collect::<Result<Vec<_>, _>>()
    };
    let part = Arc::new(Part {
        recording_id: recording.manifest.recording_id.clone(),
        chunks: spans(Table::Chunks)?,
        requests: spans(Table::Requests)?,
    });
    create_folder(&recording.dir)?;
    let chunks = (memory_bytes / BYTES_PER_CHUNK).min(CHUNKS_PER_RANGE);
    let ranges = ranges::ranges(&part.chunks, chunks as f64);
    let at_once = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_AT_ONCE));
    let at_once = (memory_bytes / (CHUNKS_PER_RANGE * BYTES_PER_CHUNK)).clamp(1, at_once);
    let parts = stream::iter(ranges).map(|range| tokio::spawn(rows(Arc::clone(&part), range)));
    let mut parts = parts.buffered(at_once);
    let mut files: Vec<file::Pending> = Vec::new();
    while let Some(rows) = parts.try_next().await? {
        for (index, (schema, batches)) in rows?.into_iter().enumerate() {
            if files.len() == index {
                let path = file::path(&recording.dir, READ_MODELS[index]);
                files.push(file::Pending::create(&path, &schema, key)?);
            }
            for batch in batches {
                files[index].write(&batch)?;
            }
        }
    }
    files.into_iter().try_for_each(file::Pending::commit)?;
    Ok(())
}
