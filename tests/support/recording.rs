//! Recordings from literal rows, and the rows of recordings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tapedeck_recording::manifest::Manifest;
use tapedeck_recording::{
    ChunkKind, ChunkRow, EventBatch, Outcome, Recording, RequestRow, ResponseRow, SegmentLimits,
    Table, TimestampSource, Writer,
};

pub(crate) const MS: i64 = 1_000_000;

/// A manifest with nothing in it but a name and a new id.
pub(crate) fn manifest(name: &str) -> Manifest {
    Manifest {
        labels: BTreeMap::from([("suite".to_owned(), "tests".to_owned())]),
        wall_clock_start: "2026-01-01T00:00:00.000000000Z".to_owned(),
        target: Some("http://127.0.0.1:8000/v1/chat/completions".to_owned()),
        settings: serde_json::json!({"parallel": 1}),
        ..Manifest::new(name, "tapedeck tests", 0)
    }
}

/// A measured, streamed request, sent as soon as it was scheduled.
pub(crate) fn request(request_id: i64, t_sent_ns: i64) -> RequestRow {
    RequestRow {
        model: Some("m".into()),
        t_scheduled_ns: Some(t_sent_ns),
        t_dispatched_ns: Some(t_sent_ns),
        t_sent_ns: Some(t_sent_ns),
        conn_id: Some(0),
        conn_reused: Some(request_id > 0),
        headers: Some([("accept".to_owned(), "*/*".to_owned())].into()),
        body: Some(bytes_of("{}")),
        body_bytes: 2,
        ..RequestRow::blank(request_id)
    }
}

fn bytes_of(text: &'static str) -> bytes::Bytes {
    bytes::Bytes::from_static(text.as_bytes())
}

/// A chunk in a read of its own, seen when it arrived.
pub(crate) fn chunk(request_id: i64, chunk_index: i32, kind: ChunkKind, t_ns: i64) -> ChunkRow {
    ChunkRow {
        choice_index: Some(0),
        kind,
        ..ChunkRow::blank(request_id, chunk_index, t_ns)
    }
}

/// A finished response whose usage says `output_tokens`.
pub(crate) fn response(
    request_id: i64,
    t_end_ns: i64,
    chunk_count: i32,
    output_tokens: Option<i32>,
) -> ResponseRow {
    ResponseRow {
        status: Some(200),
        t_headers_ns: Some(t_end_ns),
        t_end_ns: Some(t_end_ns),
        timestamp_source: TimestampSource::Kernel,
        finish_reason: Some("stop".into()),
        output_tokens,
        usage_source: output_tokens.map(|_| "usage".into()),
        chunk_count,
        ..ResponseRow::blank(request_id, Outcome::Ok)
    }
}

/// Every row of every table; requests and responses in the order of their key.
pub(crate) fn events(recording: &Recording) -> EventBatch {
    let mut events = EventBatch::default();
    for table in Table::ALL {
        events.append(&mut recording.rows(table).unwrap());
    }
    // Workers hand their rows over when they like.
    events.requests.sort_by_key(|r| (r.request_id, r.attempt));
    events.responses.sort_by_key(|r| (r.request_id, r.attempt));
    events
}

/// Changes the manifest of the recording `path`.
pub(crate) fn edit_manifest(path: &Path, edit: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::load(path).unwrap();
    edit(&mut manifest);
    manifest.store(path).unwrap();
}

/// Writes `batches` as the recording `dir` in segments of at most `rows` rows.
pub(crate) fn write(
    dir: &Path,
    manifest: Manifest,
    rows: usize,
    batches: impl IntoIterator<Item = EventBatch>,
) -> PathBuf {
    let limits = SegmentLimits {
        rows,
        ..SegmentLimits::default()
    };
    let writer = Writer::create(dir, manifest, limits).unwrap();
    let sink = writer.sink();
    for batch in batches {
        sink.push(batch).unwrap();
    }
    writer.finish().unwrap();
    dir.to_owned()
}
