//! The write-ahead log: the open segment on disk before it is sealed.
//!
//! `wal/<first_seq>.wal` begins with the schemas of the five tables and goes on
//! with the rows of each commit and what tells its end ([`crate::frame`]). Rows are converted to Arrow
//! once: the log and the sealed file are made of the same batches.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use crate::files;
use crate::frame::{HEADER_BYTES, Header, Kind, Seed};
use crate::lock::WAL_DIR;
use crate::schema::Table;

/// End of the name of a file of the log.
pub(crate) const WAL_EXTENSION: &str = "wal";

/// Rows of one table that were numbered together.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    pub(crate) table: Table,
    pub(crate) first_seq: u64,
    pub(crate) batch: RecordBatch,
}

/// The open file.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes of whole commits; what lies behind was never finished.
    len: u64,
}

/// Writes the log. Not one thread of it syncs: the caller does, or has it done.
pub(crate) struct Wal {
    dir: PathBuf,
    seed: Seed,
    encoders: Vec<Encoder>,
    open: Option<Open>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Wal {
    pub(crate) fn new(recording: &Path, recording_id: &str) -> Result<Self, ArrowError> {
        let seed = Seed::of(recording_id);
        let encoders = Table::ALL.map(|table| Encoder::new(table, seed));
        Ok(Self {
            dir: recording.join(WAL_DIR),
            seed,
            encoders: encoders.into_iter().collect::<Result<_, _>>()?,
            open: None,
        })
    }

    /// The folder of the log.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that is written or, where there is none yet, the one that comes
    /// next.
    pub(crate) fn path(&self, segment_first_seq: u64) -> PathBuf {
        match &self.open {
            Some(open) => open.path.clone(),
            None => self
                .dir
                .join(format!("{segment_first_seq:012}.{WAL_EXTENSION}")),
        }
    }

    /// Appends one commit to the file of the segment that begins at
    /// `segment_first_seq` and returns that file, to be synced. After an error
    /// the file ends behind the commit before. Between pieces of work `give_way` is
    /// called.
    pub(crate) fn append(
        &mut self,
        segment_first_seq: u64,
        commit: &[Numbered],
        give_way: impl Fn(),
    ) -> io::Result<Arc<File>> {
        let path = self.path(segment_first_seq);
        let seed = self.seed;
        if self.open.is_none() {
            let file = Arc::new(files::create_file(&path)?);
            self.open = Some(Open { path, file, len: 0 });
        }
        let Some(open) = &mut self.open else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut at = open.len;
        let written = (|| {
            if at == 0 {
                for encoder in &self.encoders {
                    open.file.write_all_at(&encoder.schema_frame, at)?;
                    at += encoder.schema_frame.len() as u64;
                }
            }
            for rows in commit {
                let frame = self.encoders[rows.table as usize].frame(rows, seed)?;
                give_way();
                open.file.write_all_at(frame, at)?;
                at += frame.len() as u64;
                give_way();
            }
            if let Some(last) = commit.last() {
                let end_seq = last.first_seq + last.batch.num_rows() as u64;
                let end = Header::end_of_commit(end_seq, seed).encode(seed);
                open.file.write_all_at(&end, at)?;
                at += end.len() as u64;
            }
            Ok(())
        })();
        match written {
            Ok(()) => open.len = at,
            // Half a frame is no harm to a reader, but it takes room on a full disk.
            Err(_) => drop(open.file.set_len(open.len)),
        }
        written.map(|()| Arc::clone(&open.file))
    }

    /// Ends the file of the segment that was cut; the next commit begins another.
    /// `None` where the segment has no file.
    pub(crate) fn rotate(&mut self) -> Option<PathBuf> {
        self.open.take().map(|open| open.path)
    }
}

/// Encodes the rows of one table.
struct Encoder {
    schema_crc: u32,
    /// The frame that a file begins with.
    schema_frame: Vec<u8>,
    /// Writes behind room for a header.
    stream: StreamWriter<Vec<u8>>,
}

/// Room that an encoder keeps between commits.
const KEPT_BYTES: usize = 4 << 20;

/// Commits can be of one row: buffers at multiples of 8 bytes instead of 64 make
/// such a frame a third of the size.
fn stream(table: Table) -> Result<StreamWriter<Vec<u8>>, ArrowError> {
    let options = IpcWriteOptions::try_new(crate::frame::ALIGNMENT, false, MetadataVersion::V5)?;
    StreamWriter::try_new_with_options(Vec::new(), &table.row_schema(), options)
}

/// The IPC message of the schema that rows of `table` are encoded with.
pub(crate) fn schema_message(table: Table) -> Result<Vec<u8>, ArrowError> {
    Ok(stream(table)?.get_ref().clone())
}

impl Encoder {
    fn new(table: Table, seed: Seed) -> Result<Self, ArrowError> {
        let stream = stream(table)?;
        let schema = stream.get_ref().clone();
        let schema_crc = crc32c::crc32c(&schema);
        let mut schema_frame = vec![0; HEADER_BYTES];
        schema_frame.extend_from_slice(&schema);
        let header = Header {
            kind: Kind::Schema,
            table,
            payload_len: 0,
            rows: 0,
            first_seq: 0,
            schema_crc,
            payload_crc: 0,
        };
        finish(&mut schema_frame, header, seed)?;
        Ok(Self {
            schema_crc,
            schema_frame,
            stream,
        })
    }

    fn frame(&mut self, rows: &Numbered, seed: Seed) -> io::Result<&[u8]> {
        let buffer = self.stream.get_mut();
        buffer.clear();
        buffer.shrink_to(KEPT_BYTES);
        buffer.resize(HEADER_BYTES, 0);
        self.stream.write(&rows.batch).map_err(io::Error::other)?;
        let header = Header {
            kind: Kind::Rows,
            table: rows.table,
            payload_len: 0,
            rows: u32::try_from(rows.batch.num_rows()).map_err(io::Error::other)?,
            first_seq: rows.first_seq,
            schema_crc: self.schema_crc,
            payload_crc: 0,
        };
        finish(self.stream.get_mut(), header, seed)?;
        Ok(self.stream.get_ref())
    }
}

/// Pads the payload behind the room for its header and fills in the header.
fn finish(frame: &mut Vec<u8>, header: Header, seed: Seed) -> io::Result<()> {
    frame.resize(frame.len().next_multiple_of(crate::frame::ALIGNMENT), 0);
    let payload = &frame[HEADER_BYTES..];
    let header = Header {
        payload_len: u32::try_from(payload.len()).map_err(io::Error::other)?,
        payload_crc: seed.crc(payload),
        ..header
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.encode(seed));
    Ok(())
}
