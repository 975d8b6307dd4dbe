//! Rows and dead recorders for the tests of this crate.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tapedeck_clock::monotonic_ns;

use crate::event::{
    ChunkRow, EventBatch, MarkRow, Outcome, RequestRow, ResponseRow, SampleRow, TimestampSource,
};
use crate::lock::WAL_DIR;
use crate::manifest::Manifest;
use crate::recover::wal_files;
use crate::schema::Table;
use crate::writer::{Writer, WriterOptions};

pub(crate) fn manifest() -> Manifest {
    Manifest::new("test", "test", 0)
}

pub(crate) fn request(request_id: i64) -> RequestRow {
    RequestRow {
        t_sent_ns: Some(request_id * 100),
        body: Some(bytes::Bytes::from_static(b"{}")),
        body_bytes: 2,
        ..RequestRow::blank(request_id)
    }
}

pub(crate) fn chunk(request_id: i64, chunk_index: i32) -> ChunkRow {
    ChunkRow {
        bytes: 1,
        ..ChunkRow::blank(
            request_id,
            chunk_index,
            request_id * 100 + i64::from(chunk_index) + 1,
        )
    }
}

fn response(request_id: i64, chunk_count: i32) -> ResponseRow {
    ResponseRow {
        status: Some(200),
        t_headers_ns: Some(request_id * 100 + 1),
        t_end_ns: Some(request_id * 100 + 99),
        timestamp_source: TimestampSource::Kernel,
        chunk_count,
        ..ResponseRow::blank(request_id, Outcome::Ok)
    }
}

/// Rows of [`exchange`] with this many chunks.
pub(crate) const fn rows_of(chunks: i32) -> u64 {
    4 + chunks as u64
}

/// One request, its chunks and its response, a sample and a mark.
pub(crate) fn exchange(request_id: i64, chunks: i32) -> EventBatch {
    let mut batch = EventBatch::default();
    batch.requests.push(request(request_id));
    for index in 0..chunks {
        let text = format!("chunk {index} of request {request_id}");
        batch
            .chunks
            .push(chunk(request_id, index), Some(text.as_bytes()));
    }
    batch.responses.push(response(request_id, chunks));
    batch.samples.push(SampleRow {
        t_ns: request_id * 100,
        source: "client".into(),
        name: "n".into(),
        labels: [].into(),
        value: 1.0,
    });
    batch.marks.push(MarkRow {
        t_ns: request_id * 100,
        name: "note".into(),
        detail: "{}".into(),
    });
    batch
}

/// Every row of `recording`, each table in the order of its key.
pub(crate) fn all_rows(dir: &Path) -> EventBatch {
    let recording = crate::Recording::open(dir).unwrap();
    let mut events = EventBatch::default();
    for table in Table::ALL {
        events.append(&mut recording.rows(table).unwrap());
    }
    events.requests.sort_by_key(|r| r.request_id);
    events.responses.sort_by_key(|r| r.request_id);
    events.samples.sort_by_key(|s| s.t_ns);
    events.marks.sort_by_key(|m| m.t_ns);
    let mut chunks = crate::ChunkRows::default();
    let mut order: Vec<&ChunkRow> = events.chunks.rows.iter().collect();
    order.sort_by_key(|c| (c.request_id, c.chunk_index));
    for row in order {
        chunks.push(row.clone(), events.chunks.payload(row));
    }
    events.chunks = chunks;
    events
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Polls until `ready`, for ten seconds.
pub(crate) fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let give_up_ns = monotonic_ns() + 10_000_000_000;
    while !ready() {
        assert!(monotonic_ns() < give_up_ns, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What lies on the disk after `batches`, a commit each, if the recorder dies.
pub(crate) fn die_after(dir: &Path, options: WriterOptions, batches: Vec<EventBatch>) {
    let live = tempfile::tempdir().unwrap();
    let from = live.path().join("r");
    let writer = Writer::create(&from, manifest(), options).unwrap();
    let mut rows = 0;
    for batch in batches {
        rows += batch.len() as u64;
        writer.sink().push(batch).unwrap();
        // Read by another opener, as `analyze` would.
        until("the batch is on the disk", || {
            let recording = crate::Recording::open(&from).unwrap();
            let events = Table::ALL.map(|t| recording.rows(t).unwrap().len() as u64);
            events.iter().sum::<u64>() == rows
        });
    }
    // Readers find rows in the log while the sealer is still at their segment.
    until("closed segments are sealed", || {
        wal_files(&from).unwrap().len() <= 1
    });
    copy(&from, dir);
    drop(writer.finish());
    assert!(!wal_files(dir).unwrap().is_empty() || rows == 0 || !from.join(WAL_DIR).exists());
}
