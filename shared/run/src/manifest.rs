//! The manifest that a recording starts with.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tapedeck_clock::{Anchor, RunClock, realtime_ns};
use tapedeck_live::Timeouts;
use tapedeck_recording::manifest::{ClockAnchor, Host, Workload};
use tapedeck_recording::{Content, Manifest, Privacy};

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
/// which may hold more of them, are left out.
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
    if privacy.content() != Content::Full {
        command = mask_texts(command, |text| privacy.hash(text.as_bytes()));
        for key in ["body", "dialect", "where"] {
            settings.as_object_mut().and_then(|s| s.remove(key));
        }
        let hash = workload.content_hash.take();
        workload.content_hash = hash.map(|hash| privacy.hash(hash.as_bytes()));
    }
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
