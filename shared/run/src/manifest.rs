//! The manifest that a recording starts with.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tapedeck_clock::{Anchor, RunClock, realtime_ns};
use tapedeck_live::Timeouts;
use tapedeck_recording::Manifest;
use tapedeck_recording::manifest::{ClockAnchor, Host, Workload};

use crate::secrets::mask_command;

/// What the caller knows of its recording.
#[derive(Debug)]
pub struct Described {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub target: String,
    pub settings: Value,
    pub workload: Workload,
}

/// The manifest of a recording whose t = 0 is that of `clock`.
#[must_use]
pub fn describe(clock: RunClock, described: &Described) -> Manifest {
    let anchor = Anchor::read();
    let start_ns = anchor.realtime_ns - (anchor.monotonic_ns - clock.origin_ns());
    let tool = concat!("tapedeck ", env!("CARGO_PKG_VERSION"));
    Manifest {
        labels: described.labels.clone(),
        wall_clock_start: DateTime::from_timestamp_nanos(start_ns)
            .to_rfc3339_opts(SecondsFormat::Nanos, true),
        boot_id: Host::boot_id(),
        anchors: vec![ClockAnchor {
            monotonic_ns: anchor.monotonic_ns,
            realtime_ns: anchor.realtime_ns,
        }],
        // A path need not be UTF-8; what stands here is for people to read.
        command: mask_command(std::env::args_os().map(|a| a.to_string_lossy().into_owned())),
        target: Some(described.target.clone()),
        settings: described.settings.clone(),
        workload: Some(described.workload.clone()),
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
