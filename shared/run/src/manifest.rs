//! The manifest that a recording starts with.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tapedeck_clock::{Anchor, RunClock, realtime_ns};
use tapedeck_live::{AttemptPolicy, CancelAfter, Timeouts};
use tapedeck_recording::manifest::{ClockAnchor, Host, Workload};
use tapedeck_recording::privacy::REDACTED;
use tapedeck_recording::{Content, Manifest, Privacy};
use tapedeck_workload::RateShape;

use crate::secrets::{mask_command, mask_texts};

/// What the caller knows of its recording.
#[derive(Debug)]
pub struct Described {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub target: String,
    pub settings: Value,
    pub workload: Workload,
}

/// The manifest of a recording whose t = 0 is that of `clock`. Where `privacy` does
/// not keep texts, those of the command line are hashed and the settings of bodies,
/// which may hold more of them, are left out; where it redacts, both are redacted.
#[must_use]
pub fn describe(clock: RunClock, described: &Described, privacy: &Privacy) -> Manifest {
    let anchor = Anchor::read();
    let start_ns = anchor.realtime_ns - (anchor.monotonic_ns - clock.origin_ns());
    let tool = concat!("tapedeck ", env!("CARGO_PKG_VERSION"));
    // A path need not be UTF-8; what stands here is for people to read.
    let mut command = mask_command(std::env::args_os().map(|a| a.to_string_lossy().into_owned()));
    let mut settings = described.settings.clone();
    let mut workload = described.workload.clone();
    settings["content"] = json!(privacy.content().as_str());
    hide_texts(&mut command, &mut settings, &mut workload, privacy);
    Manifest {
        labels: described.labels.clone(),
        wall_clock_start: DateTime::from_timestamp_nanos(start_ns)
            .to_rfc3339_opts(SecondsFormat::Nanos, true),
        boot_id: Host::boot_id(),
        anchors: vec![ClockAnchor {
            monotonic_ns: anchor.monotonic_ns,
            realtime_ns: anchor.realtime_ns,
        }],
        command,
        target: Some(described.target.clone()),
        settings,
        workload: Some(workload),
        host: Host::read(),
        ..Manifest::new(&described.name, tool, clock.origin_ns())
    }
}

/// Removes the texts that `privacy` does not keep from what describes a run, and
/// says what it removes.
fn hide_texts(
    command: &mut Vec<String>,
    settings: &mut Value,
    workload: &mut Workload,
    privacy: &Privacy,
) {
    let content = privacy.content();
    let (redaction, blocks) = (privacy.redaction(), privacy.blocks());
    if content == Content::Hashed {
        let tokenizer = blocks.tokenizer.as_ref();
        settings["blocks"] = json!({
            "size": blocks.size,
            "unit": blocks.unit(),
            "tokenizer": tokenizer.map(|t| json!({"path": t.path, "content_hash": t.content_hash})),
        });
    }
    if !privacy.hides_text() {
        return;
    }
    let hash = |text: &str| privacy.hash(text.as_bytes());
    workload.content_hash = workload.content_hash.as_deref().map(hash);
    // Of a short text it would be found again by trying texts.
    if let Some(Value::String(source)) = settings.pointer_mut("/dataset/source_hash") {
        *source = hash(source);
    }
    let rules = redaction.texts();
    if content != Content::Full {
        *command = mask_texts(std::mem::take(command), hash);
        for key in ["body", "dialect", "where"] {
            settings.as_object_mut().and_then(|s| s.remove(key));
        }
        if !redaction.is_empty() {
            settings["redact"] = rules.map(hash).collect();
        }
        return;
    }
    // What a pointer leads to in a body may stand in any of these.
    *command = mask_texts(std::mem::take(command), |_| REDACTED.to_owned());
    for key in ["dialect", "where"] {
        settings.as_object_mut().and_then(|s| s.remove(key));
    }
    for place in ["/body/fields", "/body/extra"] {
        if let Some(fields) = settings.pointer_mut(place)
            && let Some(kept) = redaction.payload(fields.to_string().as_bytes())
        {
            *fields = serde_json::from_slice(&kept).unwrap_or_else(|_| REDACTED.into());
        }
    }
    settings["redact"] = rules.collect();
}

/// Attempts as they stand in the settings of a manifest.
pub(crate) fn attempts_json(policy: &AttemptPolicy) -> Value {
    json!({
        "retries": policy.retries,
        "obey_retry_after": policy.obey_retry_after,
        "cancel_rate": policy.cancel.map(|c| c.rate),
        "cancel_after_s": policy.cancel.and_then(|c| match c.after {
            CancelAfter::Time(after) => Some(after.as_secs_f64()),
            CancelAfter::Chunks(_) => None,
        }),
        "cancel_after_chunks": policy.cancel.and_then(|c| match c.after {
            CancelAfter::Time(_) => None,
            CancelAfter::Chunks(chunks) => Some(chunks),
        }),
        "seed": policy.seed,
    })
}

/// Now in UTC as it stands in folder names, `20261122T101530Z`.
#[must_use]
pub fn utc_now() -> String {
    let now: DateTime<Utc> = DateTime::from_timestamp_nanos(realtime_ns());
    let text = now.to_rfc3339_opts(SecondsFormat::Secs, true);
    text.replace(['-', ':'], "")
}

/// Timeouts as they stand in the settings of a manifest.
#[must_use]
pub fn timeouts_json(timeouts: &Timeouts) -> Value {
    json!({
        "connect_s": timeouts.connect.as_secs_f64(),
        "first_byte_s": timeouts.first_byte.as_secs_f64(),
        "read_s": timeouts.read.as_secs_f64(),
        "total_s": timeouts.total.map(|d| d.as_secs_f64()),
    })
}

/// Rates that change as they stand in the settings of a manifest: their pieces in
/// order.
#[must_use]
pub fn rate_shape_json(shape: &RateShape) -> Value {
    let pieces = shape.pieces().iter().map(|piece| {
        json!({
            "from_per_s": piece.from_per_s,
            "to_per_s": piece.to_per_s,
            "curve": piece.curve.as_str(),
            "duration_s": piece.duration_s,
        })
    });
    pieces.collect()
}
