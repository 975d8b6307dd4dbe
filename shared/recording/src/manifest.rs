//! `recording.json`: what a recording is, replaced whole at every seal.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::schema::FORMAT_VERSION;

/// File name of the manifest inside a recording.
pub const MANIFEST_FILE: &str = "recording.json";

/// Life of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being written, or left behind by a recorder that died.
    Open,
    /// Ended by its recorder; nothing is missing but what is counted.
    Sealed,
    /// Made whole again after its recorder died.
    Recovered,
}

/// A simultaneous reading of `CLOCK_MONOTONIC` and `CLOCK_REALTIME`, absolute ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnchor {
    pub monotonic_ns: i64,
    pub realtime_ns: i64,
}

/// One sealed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFile {
    /// Path below the recording, with `/`.
    pub file: String,
    pub rows: u64,
    /// Smallest and largest instant of the rows; `None` in an empty file.
    pub min_t_ns: Option<i64>,
    pub max_t_ns: Option<i64>,
    /// BLAKE3 of the whole file, first 128 bits, 32 hex digits. `None` in
    /// recordings of early versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// What was found when a recording was made whole after its recorder died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredCounts {
    /// Rows that lay in the write-ahead log and in no sealed file.
    pub rows: u64,
    /// Rows that were numbered and are nowhere.
    pub lost_rows: u64,
    /// Bytes of the log that are no whole frame: what was being written at the
    /// end, or damage.
    pub torn_bytes: u64,
}

/// What was asked of the recorder, and of what data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub kind: String,
    pub path: Option<String>,
    /// BLAKE3 of the prepared request bodies in arrival order, 32 hex digits.
    pub content_hash: Option<String>,
    pub seed: u64,
}

/// The machine that recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub cpu: Option<String>,
    pub cores: Option<u32>,
    pub kernel: Option<String>,
    pub clock_source: Option<String>,
}

/// The manifest. Unknown fields of later minor changes are kept out of the way
/// by `serde`; a newer `format_version` is refused by [`Manifest::load`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format_version: u32,
    /// UUIDv7.
    pub recording_id: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Program and version that wrote the recording.
    pub tool: String,
    pub state: State,
    /// RFC 3339 with nanoseconds, UTC.
    pub wall_clock_start: String,
    /// Absolute `CLOCK_MONOTONIC` at t = 0.
    pub monotonic_start_ns: i64,
    pub boot_id: Option<String>,
    pub anchors: Vec<ClockAnchor>,
    /// `kernel`, `process` or `mixed`; `None` while nothing has arrived.
    pub timestamp_source: Option<String>,
    /// The command line, secrets removed.
    pub command: Vec<String>,
    pub target: Option<String>,
    /// Every setting as it was resolved.
    pub settings: serde_json::Value,
    pub workload: Option<Workload>,
    pub host: Host,
    pub segments: Vec<SegmentFile>,
    pub dropped_events: u64,
    /// Set by `record repair`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<RecoveredCounts>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a manifest", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{} has format version {found}, this program reads up to {FORMAT_VERSION}\nhint: use a newer tapedeck",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
}

impl Manifest {
    /// The manifest of a new, open recording that says nothing yet of where and
    /// what; `tool` writes it, t = 0 is `monotonic_start_ns`.
    #[must_use]
    pub fn new(name: &str, tool: &str, monotonic_start_ns: i64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            recording_id: crate::new_recording_id(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            tool: tool.to_owned(),
            state: State::Open,
            wall_clock_start: String::new(),
            monotonic_start_ns,
            boot_id: None,
            anchors: Vec::new(),
            timestamp_source: None,
            command: Vec::new(),
            target: None,
            settings: serde_json::Value::Null,
            workload: None,
            host: Host::default(),
            segments: Vec::new(),
            dropped_events: 0,
            recovered: None,
        }
    }

    /// Reads `<recording>/recording.json`, refusing a newer format.
    pub fn load(recording: &Path) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let path = recording.join(MANIFEST_FILE);
        let text = fs::read(&path).map_err(|source| ManifestError::Read {
            path: path.clone(),
            source,
        })?;
        let parse_error = |source| ManifestError::Parse {
            path: path.clone(),
            source,
        };
        // The version first: a newer manifest may not have today's fields.
        let version: Version = serde_json::from_slice(&text).map_err(parse_error)?;
        if version.format_version > FORMAT_VERSION {
            return Err(ManifestError::Newer {
                path: path.clone(),
                found: version.format_version,
            });
        }
        serde_json::from_slice(&text).map_err(parse_error)
    }

    /// Replaces the manifest of `recording` atomically.
    pub fn store(&self, recording: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::replace(&recording.join(MANIFEST_FILE), &text)
    }

    /// Rows of `table` over all sealed files.
    #[must_use]
    pub fn rows(&self, table: crate::Table) -> u64 {
        let prefix = format!("{}/", table.name());
        self.segments
            .iter()
            .filter(|s| s.file.starts_with(&prefix))
            .map(|s| s.rows)
            .sum()
    }
}

impl Host {
    /// Facts of this machine; what cannot be read is `None`.
    #[must_use]
    pub fn read() -> Self {
        let line = |path: &str| fs::read_to_string(path).ok().map(|s| s.trim().to_owned());
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            text.lines()
                .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
                .map(|(_, name)| name.trim().to_owned())
        });
        Self {
            cpu,
            cores: std::thread::available_parallelism()
                .ok()
                .and_then(|n| u32::try_from(n.get()).ok()),
            kernel: line("/proc/sys/kernel/osrelease"),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        }
    }

    /// The kernel's id of this boot, within which `CLOCK_MONOTONIC` compares.
    #[must_use]
    pub fn boot_id() -> Option<String> {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .map(|s| s.trim().to_owned())
    }
}
