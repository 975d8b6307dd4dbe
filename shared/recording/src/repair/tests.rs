use std::collections::BTreeMap;

use super::*;
use crate::manifest::State;
use crate::testing::{all_rows, copy, die_after, exchange, rows_of};
use crate::writer::{SegmentLimits, Writer, WriterOptions};

const CHUNKS: i32 = 3;

/// Segments of two exchanges.
fn options() -> WriterOptions {
    SegmentLimits {
        rows: 2 * rows_of(CHUNKS) as usize,
        ..SegmentLimits::default()
    }
    .into()
}

/// Two segments sealed, a third open.
fn dead(dir: &Path) -> EventBatch {
    let batches = (0..5).map(|id| exchange(id, CHUNKS)).collect();
    die_after(dir, options(), batches);
    let mut written = EventBatch::default();
    for id in 0..5 {
        written.append(&mut exchange(id, CHUNKS));
    }
    written
}

/// Every file below `dir` with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn without_mark(mut events: EventBatch) -> EventBatch {
    events.marks.retain(|mark| &*mark.name != MARK);
    events
}

#[test]
fn a_repair_seals_the_log_once_and_touches_no_sealed_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("r");
    let written = dead(&dir);
    let sealed_before: Vec<(PathBuf, Vec<u8>)> = content(&dir)
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    assert_eq!(all_rows(&dir), written, "read without a repair");
    let counts = RecoveredCounts {
        rows: rows_of(CHUNKS),
        lost_rows: 0,
        torn_bytes: 0,
    };
    assert_eq!(repair(&dir).unwrap(), Repaired::Recovered(counts));
    assert_eq!(without_mark(all_rows(&dir)), written);
    let recording = Recording::open(&dir).unwrap();
    assert_eq!(recording.manifest.state, State::Recovered);
    assert_eq!(recording.manifest.recovered, Some(counts));
    assert_eq!(
        recording.manifest.timestamp_source.as_deref(),
        Some("kernel")
    );
    assert_eq!(recording.manifest.rows(Table::Chunks), 15);
    let marks = recording.rows(Table::Marks).unwrap().marks;
    assert_eq!(marks.iter().filter(|m| &*m.name == MARK).count(), 1);
    assert_eq!(fs::read_dir(dir.join(WAL_DIR)).unwrap().count(), 0);
    let after = content(&dir);
    for (path, bytes) in sealed_before {
        assert_eq!(after[&path], bytes, "{}", path.display());
    }
    assert_eq!(repair(&dir).unwrap(), Repaired::NothingToDo);
    assert_eq!(content(&dir), after, "a second repair changes nothing");
}

#[test]
fn a_crash_between_the_files_of_one_cut_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let written = dead(&left);
    let whole = dir.path().join("whole");
    copy(&left, &whole);
    repair(&whole).unwrap();
    let cut = Recording::open(&left).unwrap().recovered().unsealed[0].cut;
    // Every set of tables may have got their files before the crash; the manifest
    // names none of them.
    for set in 0..1 << Table::ALL.len() {
        let crashed = dir.path().join(format!("crashed-{set}"));
        copy(&left, &crashed);
        let tables = Table::ALL.iter().filter(|t| set & (1 << **t as usize) != 0);
        for table in tables {
            fs::copy(whole.join(cut.file(*table)), crashed.join(cut.file(*table))).unwrap();
        }
        fs::write(crashed.join("chunks/x.parquet.tmp"), "half").unwrap();
        assert_eq!(all_rows(&crashed), written, "set {set:05b}");
        let counts = Recording::open(&crashed).unwrap().recovered().counts;
        assert_eq!((counts.lost_rows, counts.torn_bytes), (0, 0));
        repair(&crashed).unwrap();
        assert_eq!(without_mark(all_rows(&crashed)), written, "set {set:05b}");
        assert!(!crashed.join("chunks/x.parquet.tmp").exists());
        let listed = Recording::open(&crashed)
            .unwrap()
            .manifest
            .rows(Table::Chunks);
        assert_eq!(listed, 15);
    }
}

#[test]
fn a_log_that_outlived_its_seal_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let written = dead(&left);
    let done = dir.path().join("done");
    copy(&left, &done);
    repair(&done).unwrap();
    // The manifest is stored, the log is not removed yet.
    for path in wal_files(&left).unwrap() {
        fs::copy(&path, done.join(WAL_DIR).join(path.file_name().unwrap())).unwrap();
    }
    let before = content(&done.join("chunks"));
    assert_eq!(without_mark(all_rows(&done)), written);
    assert_eq!(repair(&done).unwrap(), Repaired::NothingToDo);
    assert_eq!(wal_files(&done).unwrap().len(), 0);
    assert_eq!(content(&done.join("chunks")), before);
}

#[test]
fn damage_is_counted_in_manifest_and_mark() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("r");
    dead(&dir);
    let log = wal_files(&dir).unwrap().pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let place = bytes.windows(7).position(|w| w == b"chunk 0").unwrap();
    bytes[place] ^= 1;
    fs::write(&log, bytes).unwrap();
    let Repaired::Recovered(counts) = repair(&dir).unwrap() else {
        unreachable!()
    };
    assert_eq!(counts.lost_rows, 3, "the chunks of one commit");
    assert_eq!(counts.rows, rows_of(CHUNKS) - 3);
    assert!(counts.torn_bytes > 0);
    let marks = Recording::open(&dir).unwrap().rows(Table::Marks).unwrap();
    let mark = marks.marks.iter().find(|m| &*m.name == MARK).unwrap();
    assert_eq!(
        serde_json::from_str::<RecoveredCounts>(&mark.detail).unwrap(),
        counts
    );
}

#[test]
fn a_recording_that_is_written_is_read_and_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("r");
    let writer = Writer::create(&dir, crate::testing::manifest(), options()).unwrap();
    assert!(matches!(repair(&dir), Err(RepairError::InUse(_))));
    assert!(Recording::open(&dir).unwrap().recovered().live);
    writer.finish().unwrap();
    assert_eq!(repair(&dir).unwrap(), Repaired::NothingToDo);
    assert!(!Recording::open(&dir).unwrap().recovered().live);
}
