//! How far a difference may be chance: intervals by resampling, the one part of a
//! comparison that is not SQL.
//!
//! Requests that are in flight together wait for each other, so they are no
//! independent draws: a block bootstrap (Künsch 1989) draws runs of neighbours, the
//! longer the more they are alike, with all their gaps. Where the two sides are pairs, both
//! draw the same blocks. Intervals are those of the percentiles of the differences,
//! widened for few blocks by Student's t (Hesterberg 2015, "expanded percentile").
//! Seeded, so that one comparison always says the same.

/// Resamples; the ends of a 95 % interval are then the 25th from either end.
pub const REPLICATES: usize = 1_000;

/// Fewer blocks say nothing of how blocks differ.
pub const LEAST_BLOCKS: usize = 8;

/// Of a correlation of 1 no number of requests would be enough.
const MOST_MEMORY: f64 = 0.99;

/// Two-sided 95 % points of Student's t for 1..=30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];
const Z95: f64 = 1.960;

/// Between the whole degrees of freedom the smaller one: wider, never narrower.
fn t95(freedom: f64) -> f64 {
    let whole = freedom.max(1.0) as usize;
    match T95.get(whole - 1) {
        Some(t) => *t,
        // Cornish and Fisher's first term; exact to three digits beyond 30.
        None => Z95 + (Z95.powi(3) + Z95) / (4.0 * freedom),
    }
}

/// What is said of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stat {
    Mean,
    /// In 0..=100, by numpy's linear rule.
    Percentile(f64),
}

/// One quantity of one recording, by block.
#[derive(Debug, Clone, PartialEq)]
pub enum Series {
    /// Values in ascending order, each with its block.
    Values {
        values: Vec<(f64, u32)>,
        blocks: usize,
    },
    /// Two sums per block; the quantity is the ratio of their totals.
    Ratio(Vec<(f64, f64)>),
}

impl Series {
    /// `values` in any order; their blocks below `blocks`.
    pub fn values(mut values: Vec<(f64, u32)>, blocks: usize) -> Self {
        values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Self::Values { values, blocks }
    }

    fn blocks(&self) -> usize {
        match self {
            Self::Values { blocks, .. } => *blocks,
            Self::Ratio(sums) => sums.len(),
        }
    }

    /// `stats`, which ascend, of the whole series.
    #[must_use]
    pub fn stats(&self, stats: &[Stat]) -> Vec<f64> {
        let mut totals = vec![0.0; stats.len()];
        self.add(&vec![1; self.blocks()], stats, &mut totals);
        totals
    }

    /// Adds `stats`, which ascend, of the blocks taken `weights` times each to
    /// `totals`; NaN where nothing was taken.
    fn add(&self, weights: &[u32], stats: &[Stat], totals: &mut [f64]) {
        match self {
            Self::Ratio(sums) => {
                let weighed = sums.iter().zip(weights);
                let (over, under) = weighed.fold((0.0, 0.0), |(a, b), (sum, w)| {
                    (a + sum.0 * f64::from(*w), b + sum.1 * f64::from(*w))
                });
                totals.iter_mut().for_each(|total| *total += over / under);
            }
            Self::Values { values, .. } => add_values(values, weights, stats, totals),
        }
    }
}

fn add_values(values: &[(f64, u32)], weights: &[u32], stats: &[Stat], totals: &mut [f64]) {
    let weight = |block: u32| u64::from(weights[block as usize]);
    let (n, sum) = values.iter().fold((0, 0.0), |(n, sum), (value, block)| {
        let weight = weight(*block);
        (n + weight, sum + value * weight as f64)
    });
    if n == 0 {
        totals.fill(f64::NAN);
        return;
    }
    let mut rest = values.iter();
    // Values up to and with `value` number `passed`.
    let (mut passed, mut value) = (0, f64::NAN);
    let mut at = |rank: u64| {
        while passed <= rank {
            let Some((next, block)) = rest.next() else {
                break;
            };
            let weight = weight(*block);
            if weight > 0 {
                (passed, value) = (passed + weight, *next);
            }
        }
        value
    };
    for (stat, total) in stats.iter().zip(totals) {
        *total += match stat {
            Stat::Mean => sum / n as f64,
            Stat::Percentile(p) => {
                let position = p / 100.0 * (n - 1) as f64;
                let below = at(position.floor() as u64);
                let above = at(position.ceil() as u64);
                below + (above - below) * position.fract()
            }
        };
    }
}

/// A small generator (`SplitMix64`): draws need be even, not secret.
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// How often each block comes when as many as there are, are drawn.
    fn weights(&mut self, weights: &mut Vec<u32>, blocks: usize) {
        weights.clear();
        weights.resize(blocks, 0);
        for _ in 0..blocks {
            let place = (u128::from(self.next()) * blocks as u128) >> 64;
            weights[place as usize] += 1;
        }
    }
}

/// Which blocks are drawn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawing {
    /// Each recording its own.
    Apart,
    /// One recording a side, with the same blocks.
    Pairs,
}

/// A difference is this far from the true one with 95 % confidence, below and
/// above: what to add to the difference found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reach {
    pub below: f64,
    pub above: f64,
}

/// For each of `stats`, which ascend, how far mean over `new` minus mean over `base`
/// reaches. `sampled` is the share of all blocks that the series have: the
/// distances shrink by its root. `None` of too few blocks, or of none with values.
pub fn reach(
    (base, new): (&[Series], &[Series]),
    stats: &[Stat],
    drawing: Drawing,
    sampled: f64,
    seed: u64,
) -> Vec<Option<Reach>> {
    let all = || base.iter().chain(new);
    let fewest = all().map(Series::blocks).min().unwrap_or(0);
    if base.is_empty() || new.is_empty() || fewest < LEAST_BLOCKS {
        return vec![None; stats.len()];
    }
    let mean = |side: &[Series], weigh: &mut dyn FnMut(&Series, &mut Vec<u32>)| {
        let mut totals = vec![0.0; stats.len()];
        let mut weights = Vec::new();
        for series in side {
            weigh(series, &mut weights);
            series.add(&weights, stats, &mut totals);
        }
        totals.iter_mut().for_each(|t| *t /= side.len() as f64);
        totals
    };
    let mut whole = |series: &Series, weights: &mut Vec<u32>| {
        weights.clear();
        weights.resize(series.blocks(), 1);
    };
    let (of_base, of_new) = (mean(base, &mut whole), mean(new, &mut whole));
    let mut draws = Draws::new(seed);
    let mut found = vec![Vec::with_capacity(REPLICATES); stats.len()];
    for _ in 0..REPLICATES {
        let again = draws.clone();
        let mut draw =
            |series: &Series, weights: &mut Vec<u32>| draws.weights(weights, series.blocks());
        let left = mean(base, &mut draw);
        if drawing == Drawing::Pairs {
            draws = again;
        }
        let mut draw =
            |series: &Series, weights: &mut Vec<u32>| draws.weights(weights, series.blocks());
        let right = mean(new, &mut draw);
        for (index, found) in found.iter_mut().enumerate() {
            let difference = right[index] - left[index];
            // A draw of blocks without a value says nothing.
            if difference.is_finite() {
                found.push(difference - (of_new[index] - of_base[index]));
            }
        }
    }
    let freedom = (fewest - 1) as f64;
    let widened = t95(freedom) / Z95 * (fewest as f64 / freedom).sqrt() * sampled.sqrt();
    found.iter_mut().map(|f| ends(f, widened)).collect()
}

/// The middle 95 % of `found`, stretched by `factor`.
fn ends(found: &mut [f64], factor: f64) -> Option<Reach> {
    if found.len() < REPLICATES / 2 {
        return None;
    }
    found.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| found[(share * (found.len() - 1) as f64).round() as usize];
    Some(Reach {
        below: at(0.025) * factor,
        above: at(0.975) * factor,
    })
}

/// A side of several recordings: how many, and the standard deviation over them.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    pub n: u32,
    pub spread: f64,
}

/// Half the width of the 95 % interval of a difference of means over runs (Welch).
/// `None` of a side with one run.
pub fn welch(base: Runs, new: Runs) -> Option<f64> {
    if base.n < 2 || new.n < 2 {
        return None;
    }
    let part = |side: Runs| side.spread.powi(2) / f64::from(side.n);
    let (a, b) = (part(base), part(new));
    if a + b == 0.0 {
        return Some(0.0);
    }
    let under = a * a / f64::from(base.n - 1) + b * b / f64::from(new.n - 1);
    Some(t95((a + b).powi(2) / under) * (a + b).sqrt())
}

/// Requests in a row that are drawn together, of `n`: long enough to keep what
/// neighbours have in common, short enough to leave many blocks. `memory` is the
/// correlation of neighbours; the length is the best for the variance of a mean where
/// it fades as a power (Carlstein 1986), and n^(1/3) at least.
#[must_use]
pub fn block_length(n: u64, memory: f64) -> u64 {
    let memory = memory.clamp(0.0, MOST_MEMORY);
    let factor = (6.0_f64.sqrt() * memory / (1.0 - memory * memory)).powf(2.0 / 3.0);
    let length = (n as f64).cbrt() * factor.max(1.0);
    length.round().max(1.0) as u64
}
