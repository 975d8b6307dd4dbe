//! What is odd about a trace, before anybody measures with it.

use std::collections::HashSet;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Trace;

/// Steps in which a clock or a collector may count, ns, long ones first.
const STEPS_NS: [i64; 17] = [
    3_600_000_000_000,
    600_000_000_000,
    300_000_000_000,
    60_000_000_000,
    30_000_000_000,
    20_000_000_000,
    15_000_000_000,
    10_000_000_000,
    5_000_000_000,
    3_000_000_000,
    2_000_000_000,
    1_000_000_000,
    500_000_000,
    200_000_000,
    100_000_000,
    50_000_000,
    10_000_000,
];

/// Share of the instants that must lie on a step for it to be the trace's. A
/// thousandth of the step to either side counts: by chance 0.2 % do.
const SHARE: f64 = 0.99;

/// A trace of a few rows may lie on a step by chance.
const ROWS_FOR_A_STEP: usize = 20;

/// Prefix blocks, and what a cache that forgets nothing would hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLint {
    pub blocks: u64,
    /// Blocks whose whole prefix an earlier request had too.
    pub hits: u64,
    /// Rows whose number of blocks is neither the length by the block size
    /// rounded up nor down.
    pub wrong_count: u64,
}

/// Findings about a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Lint {
    pub rows: u64,
    pub span_ns: i64,
    pub out_of_order: u64,
    pub other: u64,
    /// Greatest step on which every instant lies, ns; 0 when there is one instant.
    pub resolution_ns: i64,
    /// A coarser step on which nearly all lie, and their share.
    pub quantum: Option<(i64, f64)>,
    /// Rows with the instant of the row before.
    pub same_instant: u64,
    /// Coefficient of variation of the gaps; 1 for a Poisson process.
    pub gap_cv: Option<f64>,
    pub blocks: Option<BlockLint>,
    pub no_input: u64,
    pub no_output: u64,
    pub bad: u64,
    pub first_bad: Option<String>,
}

impl Trace {
    #[must_use]
    pub fn lint(&self) -> Lint {
        let t: Vec<i64> = self.rows.iter().map(|r| r.t_ns).collect();
        let first = t.first().copied().unwrap_or_default();
        let gaps: Vec<i64> = t.windows(2).map(|w| w[1] - w[0]).collect();
        let zero = |n: Option<u32>| u64::from(n == Some(0));
        Lint {
            rows: t.len() as u64,
            span_ns: t.last().map_or(0, |last| last - first),
            out_of_order: self.out_of_order,
            other: self.other,
            resolution_ns: gaps.iter().fold(0, |step, gap| gcd(step, *gap)),
            quantum: quantum(&t),
            same_instant: gaps.iter().filter(|gap| **gap == 0).count() as u64,
            gap_cv: variation(&gaps),
            blocks: self.block_lint(),
            no_input: self.rows.iter().map(|r| zero(r.input_tokens)).sum(),
            no_output: self.rows.iter().map(|r| zero(r.output_tokens)).sum(),
            bad: self.bad,
            first_bad: self.first_bad.clone(),
        }
    }

    fn block_lint(&self) -> Option<BlockLint> {
        let mut seen: HashSet<u64> = HashSet::new();
        let mut lint = BlockLint {
            blocks: 0,
            hits: 0,
            wrong_count: 0,
        };
        for row in &self.rows {
            let mut chain = 0;
            let mut blocks = 0;
            for id in row.block_ids() {
                chain = mixed(chain, id);
                blocks += 1;
                // A prefix that is new has new ones behind it only.
                lint.hits += u64::from(!seen.insert(chain));
            }
            lint.blocks += blocks;
            if let (Some(size), Some(tokens)) = (self.block_size, row.input_tokens) {
                let (tokens, size) = (u64::from(tokens), u64::from(size));
                let fits = blocks == tokens / size || blocks == tokens.div_ceil(size);
                lint.wrong_count += u64::from(!fits);
            }
        }
        (lint.blocks > 0).then_some(lint)
    }

    /// Spreads the instants that share a step of the trace's clock evenly at
    /// random over that step, in their order. Returns the step in ns, or `None`
    /// where there is none.
    pub fn dequantize(&mut self, seed: u64) -> Option<i64> {
        let lint = self.lint();
        let step_ns = lint.quantum.map_or(lint.resolution_ns, |(step, _)| step);
        if step_ns <= 1 {
            return None;
        }
        let first = self.rows.first()?.t_ns;
        let mut rng = StdRng::seed_from_u64(seed);
        let slack_ns = step_ns / 1_000;
        let step_of = |t_ns: i64| (t_ns - first + slack_ns).div_euclid(step_ns);
        let mut rest = self.rows.as_mut_slice();
        while let Some(row) = rest.first() {
            let step = step_of(row.t_ns);
            let n = rest.partition_point(|r| step_of(r.t_ns) <= step);
            let (group, after) = rest.split_at_mut(n);
            let mut within: Vec<i64> = (0..n).map(|_| rng.random_range(0..step_ns)).collect();
            within.sort_unstable();
            for (row, within) in group.iter_mut().zip(within) {
                let moved = first + step * step_ns + within;
                row.t_end_ns = row.t_end_ns.map(|end| end + (moved - row.t_ns));
                row.t_ns = moved;
            }
            rest = after;
        }
        Some(step_ns)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.abs(), b.abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn quantum(t: &[i64]) -> Option<(i64, f64)> {
    let first = *t.first().filter(|_| t.len() >= ROWS_FOR_A_STEP)?;
    let span_ns = t.last()? - first;
    let share = |step: i64| {
        let on = t.iter().filter(|t| {
            let off = (**t - first).rem_euclid(step);
            off.min(step - off) <= step / 1_000
        });
        on.count() as f64 / t.len() as f64
    };
    let steps = STEPS_NS.iter().filter(|step| **step * 10 <= span_ns);
    steps
        .map(|step| (*step, share(*step)))
        .find(|(_, share)| *share >= SHARE)
}

fn variation(gaps: &[i64]) -> Option<f64> {
    let n = gaps.len() as f64;
    let mean = gaps.iter().map(|g| *g as f64).sum::<f64>() / n;
    let variance = gaps.iter().map(|g| (*g as f64 - mean).powi(2)).sum::<f64>() / n;
    (gaps.len() > 1 && mean > 0.0).then(|| variance.sqrt() / mean)
}

/// One step of a hash over block ids (`splitmix64`): prefixes are told apart by
/// 64 bits.
fn mixed(chain: u64, id: i64) -> u64 {
    let mut x = chain.rotate_left(17) ^ id.cast_unsigned().wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

struct Duration(i64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns if ns < 1_000 => write!(f, "{ns} ns"),
            ns if ns < 1_000_000 => write!(f, "{} µs", ns as f64 / 1e3),
            ns if ns < 1_000_000_000 => write!(f, "{} ms", ns as f64 / 1e6),
            ns => write!(f, "{} s", ns as f64 / 1e9),
        }
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64 * 100.0
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows over {:.1} s",
            self.rows,
            self.span_ns as f64 / 1e9
        )?;
        if let Some(cv) = self.gap_cv {
            write!(f, ", gaps vary by {cv:.2} (1 is a Poisson process)")?;
        }
        if self.bad > 0 {
            let first = self.first_bad.as_deref().unwrap_or_default();
            write!(
                f,
                "\n{} bad rows are left out, the first: {first}",
                self.bad
            )?;
        }
        if self.other > 0 {
            write!(f, "\n{} requests of other kinds are left out", self.other)?;
        }
        if self.out_of_order > 0 {
            write!(
                f,
                "\n{} rows came earlier than the file lists them; they are sorted",
                self.out_of_order
            )?;
        }
        let resolution = Duration(self.resolution_ns);
        write!(f, "\nthe clock counts in steps of {resolution}")?;
        if let Some((step, share)) = self.quantum.filter(|(step, _)| *step > self.resolution_ns) {
            let step = Duration(step);
            write!(
                f,
                ", and {:.1} % of the instants lie on multiples of {step}: such bursts are the trace's, not the traffic's; --dequantize spreads them",
                share * 100.0
            )?;
        }
        if self.same_instant > 0 {
            let share = percent(self.same_instant, self.rows);
            write!(
                f,
                "\n{} rows ({share:.1} %) have the instant of the row before",
                self.same_instant
            )?;
        }
        if let Some(blocks) = self.blocks {
            let share = percent(blocks.hits, blocks.blocks);
            write!(
                f,
                "\na prefix cache that forgets nothing would hit {share:.1} % of {} blocks",
                blocks.blocks
            )?;
            if blocks.wrong_count > 0 {
                write!(
                    f,
                    "\n{} rows have more or fewer blocks than their length makes",
                    blocks.wrong_count
                )?;
            }
        }
        for (rows, what) in [(self.no_input, "input"), (self.no_output, "output")] {
            if rows > 0 {
                write!(f, "\n{rows} rows have no {what} tokens")?;
            }
        }
        Ok(())
    }
}
