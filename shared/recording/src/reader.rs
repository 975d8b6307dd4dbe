//! Finding and opening recordings.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::columns::{RowError, from_batch, with_recording_id};
use crate::event::EventBatch;
use crate::footer::Footer;
use crate::lock::WAL_DIR;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError};
use crate::recover::{Recovered, SealedFiles, snapshot};
use crate::schema::{FORMAT_VERSION, Table};

/// A recording that could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("no recording at {}\nhint: a recording is a folder with {MANIFEST_FILE}", .0.display())]
    NotFound(PathBuf),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a sealed segment", path.display())]
    Parquet {
        path: PathBuf,
        #[source]
        source: parquet::errors::ParquetError,
    },
    #[error("{} cannot be decoded", path.display())]
    Arrow {
        path: PathBuf,
        #[source]
        source: arrow::error::ArrowError,
    },
    #[error("{} has format version {found}, this program reads up to {FORMAT_VERSION}\nhint: use a newer tapedeck", path.display())]
    NewerSegment { path: PathBuf, found: u32 },
    #[error("{} changes faster than it can be read\nhint: try again when its recorder has ended", .0.display())]
    Changing(PathBuf),
    #[error("{} does not hold rows of the format", path.display())]
    Rows {
        path: PathBuf,
        #[source]
        source: RowError,
    },
}

/// A folder with a recording, or why it cannot be looked into.
pub type Listed = (PathBuf, Result<(), ReadError>);

/// A folder, and the recording in it or why there is none to be had.
pub type Opened = (PathBuf, Result<Recording, ReadError>);

/// A recording as of the instant it was opened: sealed files, and the rows that
/// only the write-ahead log holds, in memory. Opening writes nothing.
#[derive(Debug, Clone)]
pub struct Recording {
    pub dir: PathBuf,
    /// As it lies on the disk; for an open recording with what the log adds to its
    /// anchors, drops and source of timestamps.
    pub manifest: Manifest,
    sealed: Arc<SealedFiles>,
    recovered: Arc<Recovered>,
}

impl Recording {
    /// Opens the recording in `dir`.
    ///
    /// # Errors
    /// When `dir` holds no manifest or one of a newer format, or a file of it
    /// cannot be read.
    pub fn open(dir: &Path) -> Result<Self, ReadError> {
        Self::open_as(dir, false)
    }

    /// As [`Self::open`], for whoever holds the recording's lock.
    pub(crate) fn open_locked(dir: &Path) -> Result<Self, ReadError> {
        Self::open_as(dir, true)
    }

    fn open_as(dir: &Path, is_mine: bool) -> Result<Self, ReadError> {
        expect_manifest(dir)?;
        let snapshot = snapshot(dir, is_mine)?;
        Ok(Self {
            dir: dir.to_owned(),
            manifest: snapshot.manifest,
            sealed: Arc::new(snapshot.sealed),
            recovered: Arc::new(snapshot.recovered),
        })
    }

    /// What the write-ahead log adds to the sealed files.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// Rows of `table` that only the write-ahead log holds, with the columns of
    /// the table and in no particular order.
    ///
    /// # Errors
    /// When they do not fit the table, which their checksums rule out.
    pub fn unsealed(&self, table: Table) -> Result<Vec<RecordBatch>, ReadError> {
        let unsealed = self.recovered.unsealed.iter();
        unsealed
            .flat_map(|part| part.rows.of(table))
            .map(|batch| with_recording_id(table, &self.manifest.recording_id, batch))
            .collect::<Result<_, _>>()
            .map_err(|source| ReadError::Arrow {
                path: self.dir.join(WAL_DIR),
                source,
            })
    }

    /// Opens `path` if it is a recording, otherwise every recording below it up
    /// to two folders deep, ordered by path.
    ///
    /// # Errors
    /// When there is none, or one of them cannot be opened.
    pub fn open_all(path: &Path) -> Result<Vec<Self>, ReadError> {
        let found = Self::below(path)?;
        found.into_iter().map(|(_, opened)| opened).collect()
    }

    /// Every recording that [`Self::open_all`] finds, with its error where it
    /// cannot be opened; so is a folder below `path` that cannot be listed.
    ///
    /// # Errors
    /// When there is none, or `path` itself cannot be listed.
    pub fn below(path: &Path) -> Result<Vec<Opened>, ReadError> {
        let found = Self::folders(path)?.into_iter();
        Ok(found
            .map(|(dir, listed)| {
                let opened = listed.and_then(|()| Self::open(&dir));
                (dir, opened)
            })
            .collect())
    }

    /// The folders of [`Self::below`], unopened: for whoever needs their names, as
    /// opening one may read a whole log.
    ///
    /// # Errors
    /// As [`Self::below`].
    pub fn folders(path: &Path) -> Result<Vec<Listed>, ReadError> {
        let mut found = Vec::new();
        find(path, FOLDERS_DEEP, &mut found)?;
        if found.is_empty() {
            return Err(ReadError::NotFound(path.to_owned()));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// The manifest of the recording in `dir`, without its log.
    pub(crate) fn manifest_of(dir: &Path) -> Result<Manifest, ReadError> {
        expect_manifest(dir)?;
        Ok(Manifest::load(dir)?)
    }

    /// Sealed files of `table`, in order of their first row.
    #[must_use]
    pub fn files(&self, table: Table) -> &[PathBuf] {
        &self.sealed[table as usize]
    }

    /// Reads every row of `table` into memory; for tables that are known to be
    /// small, or for tests.
    ///
    /// # Errors
    /// When a file is unreadable or its rows are not of the format.
    pub fn rows(&self, table: Table) -> Result<EventBatch, ReadError> {
        let mut events = EventBatch::default();
        self.for_each_batch(table, |mut batch| {
            events.append(&mut batch);
            Ok::<_, ReadError>(())
        })?;
        Ok(events)
    }

    /// Hands the rows of `table` to `take`, a batch at a time: of the sealed files in
    /// their order, then what only the log holds. One sealed file is in memory at a
    /// time.
    ///
    /// # Errors
    /// As [`Self::rows`], and those of `take`, which end the reading.
    pub fn for_each_batch<E: From<ReadError>>(
        &self,
        table: Table,
        mut take: impl FnMut(EventBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let rows = |batch: &RecordBatch, path: &Path| {
            let mut events = EventBatch::default();
            from_batch(table, batch, &mut events).map_err(|source| ReadError::Rows {
                path: path.to_owned(),
                source,
            })?;
            Ok::<_, ReadError>(events)
        };
        for path in self.files(table) {
            for batch in read_file(path)? {
                take(rows(&batch, path)?)?;
            }
        }
        for batch in self.unsealed(table)? {
            take(rows(&batch, &self.dir.join(WAL_DIR))?)?;
        }
        Ok(())
    }
}

fn expect_manifest(dir: &Path) -> Result<(), ReadError> {
    if dir.join(MANIFEST_FILE).is_file() {
        Ok(())
    } else {
        Err(ReadError::NotFound(dir.to_owned()))
    }
}

/// All batches of one sealed file.
///
/// # Errors
/// When it is not Parquet, or of a newer format.
pub fn read_file(path: &Path) -> Result<Vec<RecordBatch>, ReadError> {
    let file = File::open(path).map_err(|source| ReadError::Io {
        path: path.to_owned(),
        source,
    })?;
    let parquet_error = |source| ReadError::Parquet {
        path: path.to_owned(),
        source,
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet_error)?;
    Footer::of(builder.metadata().file_metadata()).check_version(path)?;
    let reader = builder.build().map_err(parquet_error)?;
    reader
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| ReadError::Arrow {
            path: path.to_owned(),
            source,
        })
}

/// How many folders below the one named a recording may lie: a sweep below a root.
const FOLDERS_DEEP: usize = 2;

fn find(path: &Path, depth: usize, found: &mut Vec<Listed>) -> Result<(), ReadError> {
    if path.join(MANIFEST_FILE).is_file() {
        found.push((path.to_owned(), Ok(())));
        return Ok(());
    }
    if depth == 0 || !path.is_dir() {
        return Ok(());
    }
    let io_error = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    for entry in fs::read_dir(path).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        let dir = entry.path();
        if entry.file_type().map_err(io_error)?.is_dir()
            && let Err(error) = find(&dir, depth - 1, found)
        {
            found.push((dir, Err(error)));
        }
    }
    Ok(())
}
