//! For every damage to a log: the rows that are read are rows that were written,
//! with their own numbers, and what is missing is counted or the file is called
//! torn.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::*;
use crate::columns::to_batch;
use crate::frame::HEADER_BYTES;
use crate::scan::scan_bytes;
use crate::testing::exchange;
use crate::wal::{Numbered, Wal};

const ID: &str = "0198-of-the-recording";
const FIRST_SEQ: u64 = 1000;
/// Tables of each commit: small ones, since every byte of the log is tried.
const COMMITS: [&[Table]; 3] = [
    &[Table::Chunks, Table::Marks],
    &[Table::Samples],
    &[Table::Chunks],
];
const CHUNKS: i32 = 2;

/// A log of a few commits and where its frames with rows begin.
struct Log {
    bytes: Vec<u8>,
    /// Rows of each frame and where it ends, by where it begins.
    frames: BTreeMap<usize, (usize, usize)>,
    rows: Vec<Numbered>,
}

impl Log {
    fn rows(&self) -> u64 {
        self.frames.values().map(|(rows, _)| *rows as u64).sum()
    }

    /// Rows of frames that begin before `at` and end by it.
    fn whole_until(&self, at: usize) -> u64 {
        let whole = self.frames.values().filter(|(_, end)| *end <= at);
        whole.map(|(rows, _)| *rows as u64).sum()
    }

    /// The frame with rows that the byte `at` is of: its beginning and its rows.
    fn hit(&self, at: usize) -> Option<(usize, u64)> {
        let (begin, (rows, end)) = self.frames.range(..=at).next_back()?;
        (at < *end).then_some((*begin, *rows as u64))
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(WAL_DIR)).unwrap();
        let mut wal = Wal::new(dir.path(), ID).unwrap();
        let mut seq = FIRST_SEQ;
        let mut rows = Vec::new();
        for (request_id, tables) in COMMITS.iter().enumerate() {
            let events = exchange(request_id as i64, CHUNKS);
            let mut commit = Vec::new();
            for table in *tables {
                let batch = to_batch(*table, std::slice::from_ref(&events)).unwrap();
                let first_seq = seq;
                seq += batch.num_rows() as u64;
                commit.push(Numbered {
                    table: *table,
                    first_seq,
                    batch,
                });
            }
            wal.append(FIRST_SEQ, &commit, || {}).unwrap();
            rows.extend(commit);
        }
        let bytes = std::fs::read(wal.path(FIRST_SEQ)).unwrap();
        let mut frames = BTreeMap::new();
        let mut at = 0;
        while let Some(header) = crate::frame::Header::decode(&bytes[at..], Seed::of(ID)) {
            let end = at + HEADER_BYTES + header.payload_len as usize;
            if header.rows > 0 {
                frames.insert(at, (header.rows as usize, end));
            }
            at = end;
        }
        assert_eq!(at, bytes.len(), "frames and nothing else");
        assert_eq!(frames.len(), rows.len());
        Log {
            bytes,
            frames,
            rows,
        }
    })
}

/// Scans `bytes` as the only log of a recording: what is counted when nothing is
/// known of a next segment, when one is known to follow, and the rows.
fn recover(bytes: &[u8]) -> (RecoveredCounts, RecoveredCounts, Vec<Numbered>) {
    let next = FIRST_SEQ + log().rows();
    let alone = scan_bytes(bytes.to_vec(), FIRST_SEQ, Seed::of(ID));
    let followed = alone.clone();
    let read = alone.rows.clone();
    let empty = scan_bytes(Vec::new(), next, Seed::of(ID));
    let counts = count(BTreeMap::from([(FIRST_SEQ, alone)]));
    let followed = count(BTreeMap::from([(FIRST_SEQ, followed), (next, empty)]));
    (counts, followed, read)
}

fn count(logs: BTreeMap<u64, Scanned>) -> RecoveredCounts {
    let mut sealed = SealedFiles::default();
    // All before this log is sealed.
    sealed[0].push(PathBuf::from(format!(
        "requests/0-{}.parquet",
        FIRST_SEQ - 1
    )));
    let mut recovered = Recovered::default();
    let listed = sealed[0].iter().cloned().collect();
    merge(&mut recovered, logs, &sealed, &listed).unwrap();
    recovered.counts
}

/// Every frame that was read is one that was written.
fn assert_rows_are_true(read: &[Numbered]) {
    for found in read {
        let written = log().rows.iter().find(|w| w.first_seq == found.first_seq);
        let written = written.expect("a number that was given");
        assert_eq!(found.table, written.table);
        assert_eq!(found.batch, written.batch);
    }
}

#[test]
fn a_whole_log_is_read_whole() {
    let (counts, followed, read) = recover(&log().bytes);
    assert_eq!(counts, followed);
    assert_eq!(read.len(), log().rows.len());
    assert_rows_are_true(&read);
    let expected = RecoveredCounts {
        rows: log().rows(),
        ..RecoveredCounts::default()
    };
    assert_eq!(counts, expected);
}

#[test]
fn every_truncation_keeps_the_frames_before_it_and_counts_the_rest() {
    let log = log();
    for length in 0..log.bytes.len() {
        let (counts, followed, read) = recover(&log.bytes[..length]);
        assert_rows_are_true(&read);
        assert_eq!(counts.rows, log.whole_until(length), "cut at {length}");
        // Exactly the frame that was being written is missing, if its header is
        // there; what never was written nobody can know.
        let torn = log
            .hit(length)
            .filter(|(at, _)| length >= at + HEADER_BYTES);
        let torn_rows = torn.map_or(0, |(_, rows)| rows);
        assert_eq!(counts.lost_rows, torn_rows, "cut at {length}");
        assert_eq!(followed.rows + followed.lost_rows, log.rows());
    }
}

#[test]
fn every_flipped_bit_is_found_and_costs_its_own_frame_at_most() {
    let log = log();
    let (&first, _) = log.frames.first_key_value().unwrap();
    for at in 0..log.bytes.len() {
        // All eight bits of headers; of payloads and schemas one, another at each byte.
        let hit = log.hit(at);
        let in_header = match hit {
            Some((begin, _)) => at < begin + HEADER_BYTES,
            None => at > first,
        };
        let bits = if in_header { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            let mut bytes = log.bytes.clone();
            bytes[at] ^= 1 << bit;
            let (alone, counts, read) = recover(&bytes);
            assert_rows_are_true(&read);
            assert!(counts.torn_bytes > 0, "byte {at} bit {bit} went unseen");
            assert_eq!(counts.rows + counts.lost_rows, log.rows());
            let hit_rows = hit.map_or(0, |(_, rows)| rows);
            assert_eq!(counts.lost_rows, hit_rows, "byte {at} bit {bit}");
            // The end of the last commit does for a next segment.
            assert_eq!(alone, counts, "byte {at} bit {bit}");
        }
    }
}

#[test]
fn any_bytes_at_all_are_no_panic() {
    use proptest::prelude::*;
    let log = log();
    let splices = (
        0..log.bytes.len(),
        proptest::collection::vec(any::<u8>(), 0..200),
        0..log.bytes.len(),
    );
    proptest!(|((at, noise, to) in splices)| {
        let mut bytes = log.bytes[..at].to_vec();
        bytes.extend(noise);
        bytes.extend(&log.bytes[to..]);
        let (counts, _, read) = recover(&bytes);
        assert_rows_are_true(&read);
        prop_assert!(counts.rows <= log.rows());
    });
}

#[test]
fn a_frame_inside_a_payload_is_no_frame() {
    // What an answer says is chosen by others, and may be the log of another run.
    let mut forged = log().bytes.clone();
    let read = scan_bytes(forged.clone(), FIRST_SEQ, Seed::of("another recording"));
    assert!(read.rows.is_empty());
    assert_eq!(read.torn_bytes, forged.len() as u64);
    // And a true copy of an earlier frame is not read a second time.
    let (&second, _) = log().frames.iter().nth(1).unwrap();
    let (&first, _) = log().frames.iter().next().unwrap();
    let copy = forged[first..second].to_vec();
    forged.extend(copy);
    let (counts, _, _) = recover(&forged);
    assert_eq!((counts.rows, counts.lost_rows), (log().rows(), 0));
    assert!(counts.torn_bytes > 0);
}
