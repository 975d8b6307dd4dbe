//! Recordings from literal rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tapedeck_recording::manifest::Manifest;
use tapedeck_recording::{
    ChunkKind, ChunkRow, EventBatch, Outcome, Phase, RequestRow, ResponseRow, SegmentLimits,
    TimestampSource, Writer,
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
        request_id,
        attempt: 0,
        phase: Phase::Measure,
        session_id: None,
        turn: None,
        parent_request_id: None,
        replay_of: None,
        worker: None,
        api: "openai-chat".into(),
        method: "POST".into(),
        url_path: "/v1/chat/completions".into(),
        query: None,
        model: Some("m".into()),
        stream: true,
        t_scheduled_ns: Some(t_sent_ns),
        t_dispatched_ns: Some(t_sent_ns),
        t_received_ns: None,
        t_connect_ns: None,
        t_connected_ns: None,
        t_tls_ns: None,
        t_sent_ns: Some(t_sent_ns),
        conn_id: Some(0),
        conn_reused: Some(request_id > 0),
        headers: Some([("accept".to_owned(), "*/*".to_owned())].into()),
        body: Some(bytes_of("{}")),
        body_bytes: 2,
        body_hash: None,
        input_tokens: None,
        input_tokens_source: None,
        max_output_tokens: None,
        block_size: None,
        block_runs: None,
    }
}

fn bytes_of(text: &'static str) -> bytes::Bytes {
    bytes::Bytes::from_static(text.as_bytes())
}

/// A chunk in a read of its own, seen when it arrived.
pub(crate) fn chunk(request_id: i64, chunk_index: i32, kind: ChunkKind, t_ns: i64) -> ChunkRow {
    ChunkRow {
        request_id,
        attempt: 0,
        chunk_index,
        read_index: chunk_index,
        choice_index: Some(0),
        t_ns,
        t_seen_ns: t_ns,
        t_forwarded_ns: None,
        kind,
        event: None,
        event_id: None,
        tokens: None,
        bytes: 0,
        payload: None,
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
        request_id,
        attempt: 0,
        outcome: Outcome::Ok,
        status: Some(200),
        headers: None,
        trailers: None,
        t_headers_ns: Some(t_end_ns),
        t_end_ns: Some(t_end_ns),
        t_client_end_ns: None,
        timestamp_source: TimestampSource::Kernel,
        finish_reason: Some("stop".into()),
        input_tokens: None,
        output_tokens,
        reasoning_tokens: None,
        cached_tokens: None,
        usage_source: output_tokens.map(|_| "usage".into()),
        error: None,
        body: None,
        body_bytes: 0,
        chunk_count,
        malformed_chunks: 0,
    }
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
