//! `distribution` and `stream` against what anybody would write first: sort all
//! values, look at the neighbours.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tapedeck_analyze::distribution::{Distribution, Real, Rule, Spill, Whole};
use tapedeck_analyze::{Parameters, Session, session};
use tapedeck_recording::{ChunkKind, EventBatch, Phase};

use crate::support::recording::{self, MS};

/// The values a percentile lies between, and where, by the rules' own words.
fn naive(sorted: &[f64], p: f64, rule: Rule) -> (f64, f64, f64) {
    let n = sorted.len();
    let at = match rule {
        Rule::Linear => p / 100.0 * (n - 1) as f64,
        Rule::NearestRank => ((p * n as f64 / 100.0).ceil() - 1.0).max(0.0),
        Rule::Floor => (p * n as f64 / 100.0).floor().min((n - 1) as f64),
    };
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    (sorted[below], sorted[above], at - at.floor())
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-12)
}

fn expect_same(mut found: Distribution, mut all: Vec<f64>, percentiles: &[f64], rule: Rule) {
    all.sort_by(f64::total_cmp);
    let Some(summary) = found.summary(percentiles, rule).unwrap() else {
        assert!(all.is_empty());
        return;
    };
    let n = all.len() as f64;
    let mean = all.iter().sum::<f64>() / n;
    let variance = all.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    assert_eq!(summary.n, all.len() as u64);
    assert_eq!((summary.min, summary.max), (all[0], all[all.len() - 1]));
    assert!(close(summary.mean, mean), "{} {mean}", summary.mean);
    assert!(close(summary.std, variance.sqrt()) || variance.sqrt() < 1e-6 * mean.abs());
    for (p, near) in percentiles.iter().zip(&summary.percentiles) {
        let found = (near.below, near.above, near.fraction);
        assert_eq!(found, naive(&all, *p, rule), "p{p} of {rule:?}");
    }
}

/// Gaps as they come: many alike, some far away, a few below zero.
fn gaps() -> impl Strategy<Value = Vec<(i64, u64)>> {
    let value = prop_oneof![
        4 => 0_i64..70_000,
        4 => 20_000_000_i64..20_000_100,
        2 => 0_i64..3_000_000_000,
        1 => -100_000_i64..0,
        1 => any::<i32>().prop_map(|v| i64::from(v) * 1_000_000),
    ];
    let weight = prop_oneof![9 => Just(1_u64), 1 => 0_u64..700];
    prop::collection::vec((value, weight), 0..400)
}

fn percentiles() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(
        prop_oneof![
            Just(0.0),
            Just(50.0),
            Just(99.9),
            Just(100.0),
            0.0..100.0_f64
        ],
        0..6,
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    prop::sample::select(Rule::ALL.map(|(_, rule)| rule).to_vec())
}

fn repeated(values: &[(i64, u64)]) -> Vec<f64> {
    let each = values
        .iter()
        .map(|(v, n)| std::iter::repeat_n(*v as f64, *n as usize));
    each.flatten().collect()
}

proptest! {
    #[test]
    fn whole_numbers_are_those_of_a_sort(values in gaps(), p in percentiles(), rule in rule()) {
        let mut whole = Whole::default();
        values.iter().for_each(|(v, n)| whole.add(*v, *n));
        expect_same(Distribution::Whole(whole), repeated(&values), &p, rule);
    }

    #[test]
    fn parts_put_together_are_the_whole(
        values in gaps(), cut in 0.0..1.0_f64, p in percentiles(), rule in rule(), real in any::<bool>(),
    ) {
        let (a, b) = values.split_at((values.len() as f64 * cut) as usize);
        let part = |values: &[(i64, u64)]| {
            if real {
                let mut part = Real::default();
                values.iter().for_each(|(v, n)| part.add(*v as f64, *n));
                return Distribution::Real(part);
            }
            let mut part = Whole::default();
            values.iter().for_each(|(v, n)| part.add(*v, *n));
            Distribution::Whole(part)
        };
        let mut whole = part(a);
        prop_assert!(whole.merge(&part(b).take_bytes().unwrap()).is_some());
        expect_same(whole, repeated(&values), &p, rule);
    }

    #[test]
    fn what_goes_to_the_disk_is_what_stays_in_memory(
        n in 0_usize..60_000, seed in any::<u64>(), spread in 1_u64..1 << 40,
        weighted in any::<bool>(), cut in 0.0..1.0_f64, p in percentiles(), rule in rule(),
    ) {
        // As `metric_ms` are: whole ns, divided, many alike where the spread is small.
        let value = |i: usize| {
            let mixed = (i as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            let weight = if weighted { mixed % 5 } else { 1 };
            (((mixed % spread) as f64 - 1e3) / 1e6, weight)
        };
        let spill = Arc::new(Spill::new(1 << 16));
        let part = |rows: std::ops::Range<usize>, mut part: Real| {
            let first = rows.start;
            for i in rows {
                let (value, weight) = value(i);
                part.add(value, weight);
                if (i - first) % 1_000 == 999 {
                    let mut relieved = Distribution::Real(part);
                    relieved.relieve().unwrap();
                    let Distribution::Real(left) = relieved else { unreachable!() };
                    part = left;
                }
            }
            Distribution::Real(part)
        };
        let middle = (n as f64 * cut) as usize;
        let mut parts = part(0..middle, Real::spilling(&spill));
        let mut rest = part(middle..n, Real::spilling(&spill));
        prop_assert!(parts.size_bytes() + rest.size_bytes() < 1 << 19, "bounded, whatever n");
        prop_assert!(parts.merge(&rest.take_bytes().unwrap()).is_some());
        let expected = part(0..n, Real::default()).summary(&p, rule).unwrap();
        prop_assert_eq!(parts.summary(&p, rule).unwrap(), expected, "to the last bit");
    }

    #[test]
    fn a_damaged_part_is_refused_or_read_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut whole = Distribution::Whole(Whole::default());
        let mut real = Distribution::Real(Real::default());
        let read = (whole.merge(&bytes), real.merge(&bytes));
        prop_assert!(bytes.is_empty() || read.1.is_none() || bytes.len() % 8 == 1);
    }
}

/// Enough values of a page for it to become a table, and far more of one value
/// than a byte counts.
#[test]
fn dense_pages_count_right_and_stay_small() {
    let mut whole = Whole::default();
    let mut all = Vec::new();
    for n in 0..400_000_i64 {
        let value = if n % 3 == 0 { 0 } else { n * 7_919 % 65_536 };
        whole.add(value, 1);
        all.push(value as f64);
    }
    let mut found = Distribution::Whole(whole);
    assert!(found.size_bytes() <= 3 * 65_536, "{}", found.size_bytes());
    let mut copy = Distribution::Whole(Whole::default());
    copy.merge(&found.take_bytes().unwrap()).unwrap();
    let percentiles = [0.0, 33.3, 33.4, 50.0, 99.99, 100.0];
    expect_same(copy, all, &percentiles, Rule::NearestRank);
}

/// Attempts in several files, choices that alternate, reads that are shared.
fn write(dir: &Path) {
    let batches = (0..300_i64).map(|id| {
        let mut events = EventBatch::default();
        let mut request = recording::request(id, id * MS);
        if id % 7 == 0 {
            request.phase = Phase::Warmup;
        }
        events.requests.push(request);
        for index in 0..(id % 40) as i32 {
            let kind = match (id + i64::from(index)) % 5 {
                0 => ChunkKind::Role,
                1 => ChunkKind::Reasoning,
                _ => ChunkKind::Content,
            };
            let t_ns = id * MS + i64::from(index) * (MS + id * 17) + id * i64::from(index % 3);
            let mut row = recording::chunk(id, index, kind, t_ns);
            row.choice_index = (id % 3 > 0).then_some(index % (1 + (id % 3) as i32));
            row.read_index = index / 2;
            row.tokens = (id % 4 == 0).then_some(index);
            events.chunks.push(row, Some(b"x"));
        }
        events
    });
    recording::write(dir, recording::manifest("r"), 1 << 9, batches);
}

#[test]
fn the_read_model_has_the_gaps_of_the_window_over_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    write(&path);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let recordings = session::open_all(&[path]).unwrap();
        let session = Session::open(recordings, &Parameters::default())
            .await
            .unwrap();
        let count = async |sql: &str| {
            let rows = session.query(sql).await.unwrap();
            rows.count().await.unwrap()
        };
        let listed = "SELECT request_id, attempt, unnest(itl_ns) / 1e6 AS itl_ms FROM chunk_stream";
        let paired = "SELECT request_id, attempt, itl_ms FROM chunk_gap";
        assert!(count(paired).await > 1_000);
        assert_eq!(count(listed).await, count(paired).await);
        assert_eq!(count(&format!("{listed} EXCEPT ALL {paired}")).await, 0);
        let streams = "SELECT request_id, attempt, t_first_ns, t_last_ns, content_chunks, \
             content_reads, first_chunk_tokens FROM chunk_stream";
        let counted = "SELECT request_id, attempt, min(t_ns), max(t_ns), count(*), \
             count(DISTINCT read_index), first_value(tokens ORDER BY chunk_index) \
             FROM content_chunk GROUP BY request_id, attempt";
        assert!(count(counted).await > 200);
        assert_eq!(count(streams).await, count(counted).await);
        assert_eq!(count(&format!("{streams} EXCEPT {counted}")).await, 0);
    });
}
