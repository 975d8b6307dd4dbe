//! A recording becomes arrivals.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use tapedeck_recording::{Manifest, Phase, Recording, RequestRow, Table};

use crate::cli::SourceArgs;

/// A request of the source and when it is due.
#[derive(Debug, Clone)]
pub struct Planned {
    /// From the first planned request, ns, speed applied.
    pub offset_ns: i64,
    pub original: RequestRow,
}

/// What is to be replayed.
#[derive(Debug)]
pub struct Plan {
    pub manifest: Manifest,
    pub requests: Vec<Planned>,
}

/// Reads the source and settles what is sent when.
///
/// # Errors
/// When the source is no single recording, the filter does not hold up as SQL,
/// or nothing is left to send.
pub fn plan(args: &SourceArgs) -> Result<Plan> {
    let mut recordings = Recording::open_all(&args.source)?;
    if recordings.len() != 1 {
        bail!(
            "{} holds {} recordings\nhint: name one of them",
            args.source.display(),
            recordings.len()
        );
    }
    let recording = recordings.remove(0);
    let kept = match &args.filter {
        Some(filter) => Some(matching(args, filter)?),
        None => None,
    };
    let rows = recording.rows(Table::Requests)?.requests;
    let requests = select(rows, kept.as_ref(), args);
    if requests.is_empty() {
        bail!("{} has no request to replay", args.source.display());
    }
    Ok(Plan {
        manifest: recording.manifest,
        requests,
    })
}

fn matching(args: &SourceArgs, filter: &str) -> Result<BTreeSet<i64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let paths = [args.source.clone()];
    runtime
        .block_on(tapedeck_analyze::matching_requests(&paths, filter))
        .with_context(|| format!("--where {filter}"))
}

/// First attempts but for probes, in order of arrival, at offsets relative to the
/// first one kept.
fn select(rows: Vec<RequestRow>, kept: Option<&BTreeSet<i64>>, args: &SourceArgs) -> Vec<Planned> {
    let mut due: Vec<(i64, RequestRow)> = rows
        .into_iter()
        .filter(|row| row.attempt == 0 && row.phase != Phase::Probe)
        .filter(|row| kept.is_none_or(|kept| kept.contains(&row.request_id)))
        .filter_map(|row| Some((arrived_ns(&row)?, row)))
        .collect();
    due.sort_by_key(|(t_ns, row)| (*t_ns, row.request_id));
    due.truncate(args.limit.map_or(usize::MAX, |n| n as usize));
    let first_ns = due.first().map_or(0, |(t_ns, _)| *t_ns);
    due.into_iter()
        .map(|(t_ns, original)| Planned {
            offset_ns: scaled(t_ns - first_ns, args.speed),
            original,
        })
        .collect()
}

/// When the original came: at the proxy, by its schedule, or when it was sent.
fn arrived_ns(row: &RequestRow) -> Option<i64> {
    row.t_received_ns.or(row.t_scheduled_ns).or(row.t_sent_ns)
}

/// Exact for speed 1: an offset in ns fits the 53 bits of a float for 104 days.
fn scaled(offset_ns: i64, speed: f64) -> i64 {
    (offset_ns as f64 / speed).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_divided_once_and_do_not_drift() {
        for i in 0..100_000 {
            let offset_ns = i * 3_370_001;
            assert_eq!(scaled(offset_ns, 1.0), offset_ns);
            assert_eq!(scaled(offset_ns * 2, 2.0), offset_ns);
        }
    }
}
