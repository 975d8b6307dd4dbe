//! One frame of the write-ahead log.
//!
//! A file of the log is a sequence of frames and nothing else:
//!
//! | bytes | field |
//! |--:|---|
//! | 4 | magic `TDwf` |
//! | 2 | version of the frame, 1 |
//! | 1 | kind: 0 a schema or, without a payload, the end of a commit, 1 rows |
//! | 1 | table, its number in [`Table::ALL`] |
//! | 4 | length of the payload, a multiple of 8 |
//! | 4 | rows |
//! | 8 | number of the first row, over all tables |
//! | 4 | checksum of the schema that the rows are encoded with |
//! | 4 | CRC32C of the payload |
//! | 4 | zero |
//! | 4 | CRC32C of the 36 bytes before |
//!
//! Integers are little endian. The payload is one message of an Arrow IPC stream
//! without dictionaries: IPC alone carries no checksum, and a flipped byte reads
//! back silently. Both checksums start from that of the recording's id, so that a
//! frame of another recording, or one that somebody put into the text of an
//! answer, is none of ours. The header has its own, so that rows whose payload is
//! damaged can still be counted. Those whose header is damaged as well are counted
//! by the number in a later one: the end of a commit has that of the row which
//! comes next. To readers of early versions it is a schema that nothing refers to.

use crate::schema::Table;

pub(crate) const HEADER_BYTES: usize = 40;
/// Frames begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
const MAGIC: [u8; 4] = *b"TDwf";
const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Schema = 0,
    Rows = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) table: Table,
    pub(crate) payload_len: u32,
    pub(crate) rows: u32,
    pub(crate) first_seq: u64,
    pub(crate) schema_crc: u32,
    pub(crate) payload_crc: u32,
}

/// Where all checksums of one recording start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn of(recording_id: &str) -> Self {
        Self(crc32c::crc32c(recording_id.as_bytes()))
    }

    pub(crate) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

impl Header {
    /// What stands behind the frames of a commit; `end_seq` is the number of the row
    /// after its last.
    pub(crate) fn end_of_commit(end_seq: u64, seed: Seed) -> Self {
        Self {
            kind: Kind::Schema,
            table: Table::Requests,
            payload_len: 0,
            rows: 0,
            first_seq: end_seq,
            schema_crc: 0,
            payload_crc: seed.crc(&[]),
        }
    }

    /// Number of the row after the last.
    pub(crate) fn end_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.rows))
    }

    pub(crate) fn encode(&self, seed: Seed) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[7] = self.table as u8;
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rows.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.schema_crc.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = seed.crc(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, or `None` when there is none that is
    /// whole and sound.
    pub(crate) fn decode(bytes: &[u8], seed: Seed) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let is_ours = bytes[..4] == MAGIC
            && u32_at(36)? == seed.crc(&bytes[..36])
            && u16::from_le_bytes(bytes[4..6].try_into().ok()?) == VERSION;
        if !is_ours {
            return None;
        }
        Some(Self {
            kind: match bytes[6] {
                0 => Kind::Schema,
                1 => Kind::Rows,
                _ => return None,
            },
            table: Table::from_index(bytes[7])?,
            payload_len: u32_at(8)?,
            rows: u32_at(12)?,
            first_seq: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
            schema_crc: u32_at(24)?,
            payload_crc: u32_at(28)?,
        })
    }
}
