//! Reading one file of the write-ahead log, whatever state it is in.
//!
//! Nothing is taken that its checksums do not vouch for. A damaged frame is
//! stepped over: by its header where that is sound, else by looking for the next
//! sound header. Rows are numbered, so what was stepped over is known.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;

use crate::frame::{ALIGNMENT, HEADER_BYTES, Header, Kind, Seed};
use crate::schema::Table;
use crate::wal::Numbered;

/// What a file of the log holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scanned {
    /// In the order of their numbers.
    pub(crate) rows: Vec<Numbered>,
    /// One above the highest number that a sound header speaks of.
    pub(crate) end_seq: u64,
    /// One above the number of the last row.
    pub(crate) rows_end_seq: u64,
    /// Bytes that are no sound frame.
    pub(crate) torn_bytes: u64,
}

/// Reads `path`, a file whose first row has the number `first_seq`.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn scan(path: &Path, first_seq: u64, seed: Seed) -> io::Result<Scanned> {
    Ok(scan_bytes(std::fs::read(path)?, first_seq, seed))
}

pub(crate) fn scan_bytes(bytes: Vec<u8>, first_seq: u64, seed: Seed) -> Scanned {
    let bytes = Buffer::from(bytes);
    let mut scan = Scan {
        seed,
        schemas: BTreeMap::new(),
        decoders: BTreeMap::new(),
        found: Scanned {
            end_seq: first_seq,
            rows_end_seq: first_seq,
            ..Scanned::default()
        },
    };
    let mut at = 0;
    while at < bytes.len() {
        let Some(header) = Header::decode(&bytes[at..], seed) else {
            let step = ALIGNMENT.min(bytes.len() - at);
            scan.found.torn_bytes += step as u64;
            at += step;
            continue;
        };
        let start = at + HEADER_BYTES;
        let end = start.saturating_add(header.payload_len as usize);
        let sound =
            end <= bytes.len() && scan.take(&header, &bytes.slice_with_length(start, end - start));
        if !sound {
            scan.found.end_seq = scan.found.end_seq.max(header.end_seq());
            scan.found.torn_bytes += (end.min(bytes.len()) - at) as u64;
        }
        at = end.min(bytes.len());
    }
    scan.found
}

struct Scan {
    seed: Seed,
    /// IPC messages of schemas, by checksum: those of the file, or ours.
    schemas: BTreeMap<u32, Buffer>,
    decoders: BTreeMap<(u8, u32), StreamDecoder>,
    found: Scanned,
}

impl Scan {
    /// Takes a frame if it is sound.
    fn take(&mut self, header: &Header, payload: &Buffer) -> bool {
        if self.seed.crc(payload) != header.payload_crc {
            return false;
        }
        match header.kind {
            // The end of a commit: rows before it that were not found are lost.
            Kind::Schema if payload.is_empty() => {
                self.found.end_seq = self.found.end_seq.max(header.end_seq());
                true
            }
            Kind::Schema => {
                self.schemas.insert(header.schema_crc, payload.clone());
                true
            }
            // Numbers only grow. What comes late was left behind by a commit that
            // the disk refused, and has been written again.
            Kind::Rows if header.first_seq < self.found.end_seq => false,
            Kind::Rows => {
                let Ok(batch) = self.decode(header, payload) else {
                    // Sound, and yet not understood: counted as lost.
                    return false;
                };
                self.found.end_seq = header.end_seq();
                self.found.rows_end_seq = header.end_seq();
                self.found.rows.push(Numbered {
                    table: header.table,
                    first_seq: header.first_seq,
                    batch,
                });
                true
            }
        }
    }

    fn decode(&mut self, header: &Header, payload: &Buffer) -> Result<RecordBatch, ArrowError> {
        let key = (header.table as u8, header.schema_crc);
        if !self.decoders.contains_key(&key) {
            let mut schema = match self.schemas.get(&header.schema_crc) {
                Some(schema) => schema.clone(),
                // The frame of the schema may be damaged; ours does as well when it
                // is the same.
                None => own_schema(header)?,
            };
            let mut decoder = StreamDecoder::new();
            decoder.decode(&mut schema)?;
            self.decoders.insert(key, decoder);
        }
        let decoder = self.decoders.get_mut(&key).ok_or_else(unreadable)?;
        let batch = decoder.decode(&mut payload.clone())?;
        let batch = batch.ok_or_else(unreadable)?;
        if batch.num_rows() != header.rows as usize {
            return Err(unreadable());
        }
        to_current(header.table, &batch)
    }
}

fn unreadable() -> ArrowError {
    ArrowError::IpcError("a frame does not hold the rows it says".to_owned())
}

fn own_schema(header: &Header) -> Result<Buffer, ArrowError> {
    let schema = crate::wal::schema_message(header.table)?;
    if crc32c::crc32c(&schema) == header.schema_crc {
        Ok(schema.into())
    } else {
        Err(unreadable())
    }
}

/// The columns of today's schema by name: a log may have been left behind by a
/// version that lacked one.
fn to_current(table: Table, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = table.row_schema();
    if batch.schema_ref().fields() == schema.fields() {
        return Ok(batch.clone());
    }
    let columns = schema.fields().iter().map(|field| {
        let found = batch.column_by_name(field.name());
        found
            .cloned()
            .unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
    });
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &rows)
}
