use super::*;
use crate::event::{ChunkRow, MarkRow, SampleRow};
use crate::reader::{Recording, read_file};
use crate::recover::wal_files;
use crate::schema::Table;
use crate::sealer::WAITING_SEGMENTS;
use crate::testing::until;

fn manifest() -> Manifest {
    Manifest::new("test", "test", 0)
}

fn limits(rows: usize) -> SegmentLimits {
    SegmentLimits {
        rows,
        ..SegmentLimits::default()
    }
}

fn chunks(count: i32) -> EventBatch {
    let mut batch = EventBatch::default();
    for chunk_index in 0..count {
        let row = ChunkRow {
            bytes: 1,
            ..ChunkRow::blank(7, chunk_index, 10)
        };
        batch.chunks.push(row, Some(b"x"));
    }
    batch.samples.push(SampleRow {
        t_ns: 11,
        source: "client".into(),
        name: "n".into(),
        labels: [].into(),
        value: 1.0,
    });
    batch
}

#[test]
fn all_tables_are_cut_at_the_same_rows_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), limits(10)).unwrap();
    for _ in 0..5 {
        writer.sink().push(chunks(3)).unwrap();
    }
    let manifest = writer.finish().unwrap();
    assert_eq!(manifest.state, State::Sealed);
    let recording = Recording::open(dir.path()).unwrap();
    let names = |table| {
        let files = recording.files(table);
        let names = files
            .iter()
            .map(|f| f.file_name().unwrap().to_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    // 4 rows a batch, cut at 12, the rest at the end with all five tables.
    let cuts = [
        "000000000000-000000000011.parquet",
        "000000000012-000000000019.parquet",
    ];
    assert_eq!(names(Table::Chunks), cuts);
    assert_eq!(names(Table::Samples), cuts);
    assert_eq!(names(Table::Requests), cuts[1..]);
    assert_eq!(recording.rows(Table::Chunks).unwrap().chunks.rows.len(), 15);
    assert_eq!(recording.rows(Table::Samples).unwrap().samples.len(), 5);
    assert_eq!(recording.manifest.rows(Table::Chunks), 15);
}

#[test]
fn a_quiet_recording_is_cut_by_age_though_rows_keep_coming() {
    let dir = tempfile::tempdir().unwrap();
    let age = SegmentLimits {
        age: Duration::from_nanos(1),
        ..SegmentLimits::default()
    };
    let writer = Writer::create(dir.path(), manifest(), age).unwrap();
    for _ in 0..3 {
        writer.sink().push(chunks(1)).unwrap();
    }
    writer.finish().unwrap();
    let recording = Recording::open(dir.path()).unwrap();
    assert!(recording.files(Table::Samples).len() >= 3);
}

#[test]
fn an_empty_recording_still_has_its_five_tables() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/one");
    Writer::create(&out, manifest(), limits(10))
        .unwrap()
        .finish()
        .unwrap();
    let recording = Recording::open(&out).unwrap();
    for table in Table::ALL {
        let files = recording.files(table);
        assert_eq!(files.len(), 1, "{}", table.name());
        assert!(
            read_file(&files[0])
                .unwrap()
                .iter()
                .all(|b| b.num_rows() == 0)
        );
    }
}

#[test]
fn a_folder_that_holds_anything_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious"), "x").unwrap();
    let refused = Writer::create(dir.path(), manifest(), limits(10));
    assert!(matches!(refused, Err(WriteError::NotEmpty(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_disk_that_refuses_ends_the_writer_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), limits(4)).unwrap();
    // A file where a folder must be is refused to every user, root included.
    std::fs::write(dir.path().join("chunks"), "in the way").unwrap();
    let sink = writer.sink();
    while sink.push(chunks(3)).is_ok() {}
    let error = writer.finish().unwrap_err();
    assert!(
        matches!(&error, WriteError::Incomplete { source, .. }
            if matches!(**source, WriteError::Seal(SealError::Io { .. }))),
        "{error:?}"
    );
}

#[test]
fn only_the_owner_can_read_a_recording() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    Writer::create(&out, manifest(), limits(10))
        .unwrap()
        .finish()
        .unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out), 0o700);
    assert_eq!(mode(&out.join("recording.json")), 0o600);
    let recording = Recording::open(&out).unwrap();
    assert_eq!(mode(&recording.files(Table::Marks)[0]), 0o600);
}

#[test]
fn dropped_events_are_counted_in_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), limits(10)).unwrap();
    let mark = MarkRow {
        t_ns: 1,
        name: "dropped".into(),
        detail: r#"{"events":17}"#.into(),
    };
    let batch = EventBatch {
        marks: vec![mark],
        ..EventBatch::default()
    };
    writer.sink().push(batch).unwrap();
    assert_eq!(writer.finish().unwrap().dropped_events, 17);
}

fn patient(rows: usize) -> WriterOptions {
    WriterOptions {
        on_disk_error: DiskError::DropAndRetry,
        ..limits(rows).into()
    }
}

#[test]
fn a_disk_that_comes_back_gets_everything_but_what_is_counted_as_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), patient(4)).unwrap();
    let sink = writer.sink();
    let in_the_way = dir.path().join("chunks");
    std::fs::write(&in_the_way, "in the way").unwrap();
    // One segment being sealed, those that wait for it, then the queue.
    let (mut offered, mut dropped) = (0, 0);
    while dropped < 3 * 4 {
        let batch = chunks(3);
        offered += batch.len() as u64;
        dropped += if sink.offer(batch) { 0 } else { 4 };
        assert!(
            offered < 4 * 2 * QUEUE_BATCHES as u64,
            "the queue has a bound"
        );
    }
    std::fs::remove_file(&in_the_way).unwrap();
    until("rows are taken again", || {
        let taken = sink.offer(chunks(3));
        offered += 4;
        dropped += if taken { 0 } else { 4 };
        taken
    });
    assert!(!sink.failed());
    let manifest = writer.finish().unwrap();
    assert_eq!(manifest.state, State::Sealed);
    assert_eq!(manifest.dropped_events, dropped);
    let recording = Recording::open(dir.path()).unwrap();
    let kept = recording.rows(Table::Chunks).unwrap().len()
        + recording.rows(Table::Samples).unwrap().len();
    assert_eq!(kept as u64 + dropped, offered);
    let marks = recording.rows(Table::Marks).unwrap().marks;
    assert!(
        marks
            .iter()
            .all(|m| &*m.name == "dropped" && m.detail.contains("from_ns"))
    );
}

#[test]
fn rows_go_on_into_the_log_while_segments_wait_for_the_sealer() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), patient(4)).unwrap();
    let in_the_way = dir.path().join("chunks");
    std::fs::write(&in_the_way, "in the way").unwrap();
    // A segment each: one that cannot be sealed, and all that may wait behind it.
    let segments = 1 + WAITING_SEGMENTS;
    for _ in 0..segments {
        writer.sink().push(chunks(3)).unwrap();
    }
    until("every row is in the log", || {
        let rows = Recording::open(dir.path()).unwrap().rows(Table::Chunks);
        rows.unwrap().len() == 3 * segments
    });
    assert_eq!(wal_files(dir.path()).unwrap().len(), segments);
    std::fs::remove_file(&in_the_way).unwrap();
    let manifest = writer.finish().unwrap();
    assert_eq!(
        (manifest.state, manifest.dropped_events),
        (State::Sealed, 0)
    );
    let recording = Recording::open(dir.path()).unwrap();
    assert_eq!(recording.rows(Table::Chunks).unwrap().len(), 3 * segments);
    assert_eq!(wal_files(dir.path()).unwrap().len(), 0);
}

#[test]
fn a_disk_that_never_comes_back_does_not_hold_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), patient(4)).unwrap();
    std::fs::write(dir.path().join("chunks"), "in the way").unwrap();
    for _ in 0..4 {
        writer.sink().push(chunks(3)).unwrap();
    }
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, WriteError::Seal(_)), "{error:?}");
    std::fs::remove_file(dir.path().join("chunks")).unwrap();
    // The log took what Parquet could not, the queue's rest included.
    let rows = Recording::open(dir.path()).unwrap().rows(Table::Chunks);
    assert_eq!(rows.unwrap().len(), 12);
}

#[test]
fn what_the_log_refuses_is_sealed_at_once_and_what_follows_when_it_takes_rows_again() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), patient(1000)).unwrap();
    let (wal, away) = (dir.path().join(WAL_DIR), dir.path().join("away"));
    std::fs::rename(&wal, &away).unwrap();
    writer.sink().push(chunks(3)).unwrap();
    let sealed = || {
        let recording = Recording::open(dir.path()).unwrap();
        recording.manifest.rows(Table::Chunks)
    };
    until("the first rows are sealed", || sealed() == 3);
    assert!(!wal.exists());
    writer.sink().push(chunks(2)).unwrap();
    std::fs::rename(&away, &wal).unwrap();
    // The log is tried again a second later; the hole before it is sealed then.
    until("all is sealed", || {
        writer.sink().push(chunks(1)).unwrap();
        sealed() >= 5
    });
    let manifest = writer.finish().unwrap();
    assert_eq!(
        (manifest.state, manifest.dropped_events),
        (State::Sealed, 0)
    );
}

#[test]
fn a_log_that_is_refused_ends_an_impatient_writer_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest(), limits(1000)).unwrap();
    std::fs::rename(dir.path().join(WAL_DIR), dir.path().join("away")).unwrap();
    let sink = writer.sink();
    sink.push(chunks(3)).unwrap();
    until("the writer stops", || sink.failed());
    assert_eq!(sink.push(chunks(1)), Err(Stopped));
    let error = writer.finish().unwrap_err();
    // What was in memory went into Parquet; what came later is counted.
    assert!(
        matches!(error, WriteError::Incomplete { lost_events: 2, .. }),
        "{error:?}"
    );
    let recording = Recording::open(dir.path()).unwrap();
    assert_eq!(recording.manifest.state, State::Open);
    assert_eq!(recording.manifest.rows(Table::Chunks), 3);
    assert_eq!(recording.manifest.dropped_events, 2);
}

#[test]
fn every_durability_makes_the_same_recording() {
    for durability in Durability::ALL {
        let dir = tempfile::tempdir().unwrap();
        let options = WriterOptions {
            durability: *durability,
            ..limits(10).into()
        };
        let writer = Writer::create(dir.path(), manifest(), options).unwrap();
        for _ in 0..5 {
            writer.sink().push(chunks(3)).unwrap();
        }
        assert_eq!(writer.finish().unwrap().rows(Table::Chunks), 15);
        let wal = std::fs::read_dir(dir.path().join(WAL_DIR)).unwrap();
        assert_eq!(wal.count(), 0);
    }
}
