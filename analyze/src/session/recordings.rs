//! Table `recordings`: what the manifest and the disk say of each.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use serde::Serialize;
use tapedeck_recording::Recording;
use tapedeck_recording::schema::{RECORDING_ID, map_type};

use crate::rows;

/// One row a recording. `tokenizer` is the one a user chose; `damaged` has the
/// number of damaged files of each, where somebody looked.
pub(super) fn table(
    recordings: &[Recording],
    tokenizer: Option<&Path>,
    damaged: Option<&[usize]>,
) -> Result<RecordBatch, ArrowError> {
    let row = |(index, recording)| RecordingRow {
        damaged_segments: damaged.and_then(|files| files.get(index).copied()),
        ..RecordingRow::of(recording, tokenizer)
    };
    let rows: Vec<RecordingRow<'_>> = recordings.iter().enumerate().map(row).collect();
    rows::to_batch(&schema(), &rows)
}

fn schema() -> SchemaRef {
    rows::schema(&[
        (RECORDING_ID, DataType::Utf8),
        ("path", DataType::Utf8),
        ("name", DataType::Utf8),
        ("labels", map_type()),
        ("state", DataType::Utf8),
        ("target", DataType::Utf8),
        ("tool", DataType::Utf8),
        ("wall_clock_start", DataType::Utf8),
        ("dropped_events", DataType::Int64),
        ("missing_segments", DataType::Int64),
        ("damaged_segments", DataType::Int64),
        ("live", DataType::Boolean),
        ("recovered_rows", DataType::Int64),
        ("lost_rows", DataType::Int64),
        ("torn_bytes", DataType::Int64),
        ("timestamp_source", DataType::Utf8),
        ("without_log", DataType::Boolean),
        ("open_loop", DataType::Boolean),
        ("waits_for_slots", DataType::Boolean),
        ("tokenizer", DataType::Utf8),
        ("settings", DataType::Utf8),
        ("replay_of_recording_id", DataType::Utf8),
        ("speed", DataType::Float64),
        ("reshaped_by", DataType::Utf8),
        ("workload_kind", DataType::Utf8),
        ("workload_hash", DataType::Utf8),
        ("content", DataType::Utf8),
    ])
}

#[derive(Serialize)]
struct RecordingRow<'a> {
    recording_id: &'a str,
    path: String,
    name: &'a str,
    labels: &'a BTreeMap<String, String>,
    state: tapedeck_recording::manifest::State,
    target: Option<&'a str>,
    tool: &'a str,
    wall_clock_start: &'a str,
    dropped_events: u64,
    /// Files that the manifest lists and the disk does not have.
    missing_segments: usize,
    /// Files that are not what was sealed; `None` where nobody looked.
    damaged_segments: Option<usize>,
    /// Somebody is writing it now.
    live: bool,
    /// Of the write-ahead log, when its recorder had died: rows found in it, rows
    /// missing, bytes that are no whole frame.
    recovered_rows: u64,
    lost_rows: u64,
    torn_bytes: u64,
    timestamp_source: Option<&'a str>,
    without_log: bool,
    /// Arrivals had a schedule of their own.
    open_loop: bool,
    /// Arrivals had a schedule and a cap on requests in flight: waiting for a
    /// slot is part of such a load, not lateness of the client.
    waits_for_slots: bool,
    /// Path of what counts tokens where nobody else did.
    tokenizer: Option<String>,
    /// JSON.
    settings: String,
    replay_of_recording_id: Option<&'a str>,
    /// Of a replay only.
    speed: Option<f64>,
    reshaped_by: Option<String>,
    workload_kind: Option<&'a str>,
    workload_hash: Option<&'a str>,
    /// What was kept of texts; everything where the manifest is older than the
    /// choice.
    content: &'a str,
}

fn is_set(settings: &serde_json::Value, name: &str) -> bool {
    settings.get(name).is_some_and(|value| !value.is_null())
}

/// `--durability none`.
pub(crate) fn ran_without_log(settings: &serde_json::Value) -> bool {
    settings.get("durability") == Some(&"none".into())
}

/// A rate, constant or not, all at once, or the offsets of a replay.
fn is_open_loop(settings: &serde_json::Value) -> bool {
    let mode = settings.get("mode").and_then(serde_json::Value::as_str);
    is_set(settings, "rate_per_s")
        || is_set(settings, "rate_shape")
        || settings.get("all_at_once") == Some(&true.into())
        || ["open", "session"].map(Some).contains(&mode)
}

/// Flags by which a replay moved requests against each other: its offsets are not
/// its original's over the speed.
fn reshaped_by(settings: &serde_json::Value) -> Option<String> {
    let several = |name: &str| settings.get(name).and_then(|v| v.as_u64()) > Some(1);
    let dequantized = settings.pointer("/trace/dequantized_s");
    let flags = [
        ("--idle-cap", is_set(settings, "idle_cap_s")),
        ("--copies", several("copies")),
        (
            "--loop",
            several("loop_times") || is_set(settings, "loop_s"),
        ),
        ("--rate", is_set(settings, "remapped_per_s")),
        ("--rate-series", is_set(settings, "remapped_to")),
        ("--dequantize", dequantized.is_some_and(|s| !s.is_null())),
    ];
    let set: Vec<&str> = flags.iter().filter(|f| f.1).map(|f| f.0).collect();
    (!set.is_empty()).then(|| set.join(", "))
}

/// The tokenizer that was chosen, else the one that the manifest names if it is
/// still the same file; none where texts are not what they were.
fn tokenizer(recording: &Recording, chosen: Option<&Path>) -> Option<String> {
    // What was redacted is no longer the text whose tokens are wanted.
    if is_set(&recording.manifest.settings, "redact") {
        return None;
    }
    if let Some(path) = chosen {
        return Some(path.display().to_string());
    }
    let named = recording.manifest.settings.pointer("/dataset/tokenizer")?;
    let path = named.get("path")?.as_str()?;
    let hash = named.get("content_hash")?.as_str()?;
    let found = tapedeck_tokens::content_hash(Path::new(path)).ok()?;
    (found == hash).then(|| path.to_owned())
}

impl<'a> RecordingRow<'a> {
    fn of(recording: &'a Recording, chosen: Option<&Path>) -> Self {
        let manifest = &recording.manifest;
        let segments = manifest.segments.iter();
        let missing = segments.filter(|s| !recording.dir.join(&s.file).is_file());
        let log = recording.recovered();
        let counts = manifest.recovered.unwrap_or(log.counts);
        let setting = |name| manifest.settings.get(name).and_then(|v| v.as_str());
        let workload = manifest.workload.as_ref();
        // A replay of a trace: what it sent has a hash of its own, and may hide it.
        let trace_hash = manifest.settings.pointer("/trace/content_hash");
        Self {
            recording_id: &manifest.recording_id,
            path: recording.dir.display().to_string(),
            name: &manifest.name,
            labels: &manifest.labels,
            state: manifest.state,
            target: manifest.target.as_deref(),
            tool: &manifest.tool,
            wall_clock_start: &manifest.wall_clock_start,
            dropped_events: manifest.dropped_events,
            missing_segments: missing.count(),
            damaged_segments: None,
            live: log.live,
            recovered_rows: counts.rows,
            lost_rows: counts.lost_rows,
            torn_bytes: counts.torn_bytes,
            timestamp_source: manifest.timestamp_source.as_deref(),
            without_log: ran_without_log(&manifest.settings),
            open_loop: is_open_loop(&manifest.settings),
            waits_for_slots: is_open_loop(&manifest.settings)
                && is_set(&manifest.settings, "parallel"),
            tokenizer: tokenizer(recording, chosen),
            settings: manifest.settings.to_string(),
            replay_of_recording_id: setting("replay_of_recording_id"),
            speed: manifest.settings.get("speed").and_then(|v| v.as_f64()),
            reshaped_by: reshaped_by(&manifest.settings),
            workload_kind: workload.map(|w| w.kind.as_str()),
            workload_hash: trace_hash
                .and_then(|hash| hash.as_str())
                .or_else(|| workload.and_then(|w| w.content_hash.as_deref())),
            content: setting("content").unwrap_or("full"),
        }
    }
}
