//! GPUs of this machine as time series, through NVIDIA's management library where
//! it is installed. It is loaded while running: a machine without one has no
//! series, and that is no error.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::sync::Arc;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use serde_json::{Value, json};
use tapedeck_recording::SampleRow;

/// What the driver installs, and what its development files add.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// One reading of one GPU; what it does not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    pub index: u32,
    pub name: Option<String>,
    /// Share of the last moments in which a kernel ran, 0 to 1.
    pub utilization_ratio: Option<f64>,
    pub memory_used_bytes: Option<f64>,
    pub memory_total_bytes: Option<f64>,
    pub power_w: Option<f64>,
    pub temperature_c: Option<f64>,
    pub sm_clock_mhz: Option<f64>,
}

/// Whoever knows the GPUs.
pub trait Gpus: Debug + Send + Sync {
    /// All of them now.
    fn read(&self) -> Vec<Reading>;
}

/// The GPUs of this machine; `None` where there are none or nobody tells.
#[must_use]
pub fn find() -> Option<Arc<dyn Gpus>> {
    let nvml = LIBRARIES.iter().find_map(|name| Nvidia::load(name))?;
    let gpus: Arc<dyn Gpus> = Arc::new(nvml);
    (!gpus.read().is_empty()).then_some(gpus)
}

#[derive(Debug)]
struct Nvidia(Nvml);

impl Nvidia {
    fn load(library: &str) -> Option<Self> {
        let mut builder = Nvml::builder();
        builder.lib_path(OsStr::new(library)).init().ok().map(Self)
    }

    fn reading(&self, index: u32) -> Option<Reading> {
        let device = self.0.device_by_index(index).ok()?;
        let utilization = device.utilization_rates().ok();
        let memory = device.memory_info().ok();
        let milliwatts = device.power_usage().ok();
        let temperature = device.temperature(TemperatureSensor::Gpu).ok();
        Some(Reading {
            index,
            name: device.name().ok(),
            utilization_ratio: utilization.map(|u| f64::from(u.gpu) / 100.0),
            memory_used_bytes: memory.as_ref().map(|m| m.used as f64),
            memory_total_bytes: memory.as_ref().map(|m| m.total as f64),
            power_w: milliwatts.map(|mw| f64::from(mw) / 1e3),
            temperature_c: temperature.map(f64::from),
            sm_clock_mhz: device.clock_info(Clock::SM).ok().map(f64::from),
        })
    }
}

impl Gpus for Nvidia {
    fn read(&self) -> Vec<Reading> {
        let count = self.0.device_count().unwrap_or_default();
        (0..count).filter_map(|index| self.reading(index)).collect()
    }
}

/// A reading as rows with source `gpu:<index>`.
#[must_use]
pub fn rows(reading: &Reading, t_ns: i64) -> Vec<SampleRow> {
    let source: Arc<str> = format!("gpu:{}", reading.index).into();
    let values = [
        ("utilization_ratio", reading.utilization_ratio),
        ("memory_used_bytes", reading.memory_used_bytes),
        ("memory_total_bytes", reading.memory_total_bytes),
        ("power_w", reading.power_w),
        ("temperature_c", reading.temperature_c),
        ("sm_clock_mhz", reading.sm_clock_mhz),
    ];
    let row = |(name, value): (&str, Option<f64>)| {
        Some(SampleRow {
            t_ns,
            source: Arc::clone(&source),
            name: name.into(),
            labels: Arc::new([]),
            value: value?,
        })
    };
    values.into_iter().filter_map(row).collect()
}

/// The GPUs as the settings of a manifest have them; empty where there are none.
#[must_use]
pub fn describe(gpus: Option<&Arc<dyn Gpus>>) -> Value {
    let readings = gpus.map(|gpus| gpus.read()).unwrap_or_default();
    let one = |r: &Reading| {
        json!({
            "index": r.index,
            "name": r.name,
            "memory_total_bytes": r.memory_total_bytes,
        })
    };
    readings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fake;

    impl Gpus for Fake {
        fn read(&self) -> Vec<Reading> {
            vec![Reading {
                index: 1,
                name: Some("Fake 9000".to_owned()),
                utilization_ratio: Some(0.5),
                memory_total_bytes: Some(8e9),
                power_w: Some(300.5),
                ..Reading::default()
            }]
        }
    }

    #[test]
    fn a_library_that_is_not_there_is_no_gpu() {
        assert!(Nvidia::load("no-such-library.so").is_none());
        assert_eq!(describe(None), json!([]));
    }

    #[test]
    fn what_a_gpu_tells_becomes_rows_and_what_it_does_not_has_none() {
        let gpus: Arc<dyn Gpus> = Arc::new(Fake);
        let found: Vec<_> = rows(&gpus.read()[0], 7)
            .into_iter()
            .map(|row| {
                (
                    row.t_ns,
                    row.source.to_string(),
                    row.name.to_string(),
                    row.value,
                )
            })
            .collect();
        let row = |name: &str, value| (7, "gpu:1".to_owned(), name.to_owned(), value);
        assert_eq!(
            found,
            [
                row("utilization_ratio", 0.5),
                row("memory_total_bytes", 8e9),
                row("power_w", 300.5),
            ]
        );
        let described = describe(Some(&gpus));
        assert_eq!(
            described,
            json!([{"index": 1, "name": "Fake 9000", "memory_total_bytes": 8e9}])
        );
    }
}
