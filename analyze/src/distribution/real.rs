//! A sample of any numbers, in memory and beyond what it may hold on the disk.

use std::io;
use std::sync::Arc;

use super::Bytes;
use super::runs::{Runs, Spill};

/// Any numbers.
#[derive(Debug, Default)]
pub struct Real {
    values: Vec<f64>,
    /// Empty as long as each value counts once.
    weights: Vec<u64>,
    pub(super) n: u64,
    runs: Runs,
    spill: Option<Arc<Spill>>,
    /// Bytes that the spill knows of.
    accounted: usize,
}

impl Drop for Real {
    fn drop(&mut self) {
        if let Some(spill) = &self.spill {
            spill.account(self.accounted, 0);
        }
    }
}

/// What the bytes of a part hold.
const SINGLE: u8 = 0;
const WEIGHTED: u8 = 1;
const ON_DISK: u8 = 2;

impl Real {
    /// One that holds no more than `spill` allows.
    #[must_use]
    pub fn spilling(spill: &Arc<Spill>) -> Self {
        let mut empty = Self::default();
        empty.spill = Some(Arc::clone(spill));
        empty
    }

    /// Adds `value`, `weight` times.
    pub fn add(&mut self, value: f64, weight: u64) {
        if weight == 0 {
            return;
        }
        if weight != 1 && self.weights.is_empty() {
            self.weights = vec![1; self.values.len()];
        }
        if weight != 1 || !self.weights.is_empty() {
            self.weights.push(weight);
        }
        self.values.push(value);
        self.n = self.n.saturating_add(weight);
    }

    pub(super) fn size_bytes(&self) -> usize {
        8 * (self.values.capacity() + self.weights.capacity())
    }

    fn account(&mut self) {
        let now = self.size_bytes();
        if let Some(spill) = &self.spill {
            spill.account(self.accounted, now);
            self.accounted = now;
        }
    }

    pub(super) fn relieve(&mut self) -> io::Result<()> {
        self.account();
        let is_over = self.spill.as_ref().is_some_and(|spill| spill.is_over());
        if is_over && self.runs.has_room_for(self.values.len()) {
            self.write_run()?;
        }
        Ok(())
    }

    /// Moves what is in memory to the disk.
    fn write_run(&mut self) -> io::Result<()> {
        let is_weighted = !self.weights.is_empty();
        let pairs = self.take_sorted();
        if !pairs.is_empty() {
            self.runs.push(pairs.into_iter(), is_weighted)?;
        }
        self.account();
        Ok(())
    }

    fn take_sorted(&mut self) -> Vec<(f64, u64)> {
        let values = std::mem::take(&mut self.values).into_iter();
        let weights = std::mem::take(&mut self.weights).into_iter();
        let mut pairs: Vec<(f64, u64)> = values.zip(weights.chain(std::iter::repeat(1))).collect();
        pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        pairs
    }

    /// As `Whole::sorted`.
    pub(super) fn sorted(&mut self, ranks: &[u64]) -> io::Result<(Vec<f64>, f64, f64)> {
        if !self.runs.is_empty() {
            self.write_run()?;
            let runs = &self.runs;
            return moments(self.n, ranks, |each| runs.for_each(each));
        }
        if self.weights.is_empty() {
            self.values.sort_unstable_by(f64::total_cmp);
            let values = &self.values;
            return moments(self.n, ranks, |each| {
                values.iter().for_each(|value| each(*value, 1));
                Ok(())
            });
        }
        let pairs = self.take_sorted();
        moments(self.n, ranks, |each| {
            pairs
                .iter()
                .for_each(|(value, weight)| each(*value, *weight));
            Ok(())
        })
    }

    pub(super) fn take_bytes(&mut self) -> io::Result<Vec<u8>> {
        if let Some(spill) = self.spill.clone().filter(|_| !self.runs.is_empty()) {
            self.write_run()?;
            let mut bytes = vec![ON_DISK];
            bytes.extend(self.n.to_le_bytes());
            bytes.extend(
                spill
                    .hand_over(std::mem::take(&mut self.runs))
                    .to_le_bytes(),
            );
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        if self.n > 0 {
            bytes.reserve_exact(1 + 8 * (self.values.len() + self.weights.len()));
            bytes.push(if self.weights.is_empty() {
                SINGLE
            } else {
                WEIGHTED
            });
        }
        for (index, value) in self.values.iter().enumerate() {
            bytes.extend(value.to_le_bytes());
            let weight = self.weights.get(index);
            weight
                .into_iter()
                .for_each(|weight| bytes.extend(weight.to_le_bytes()));
        }
        (self.values, self.weights, self.n) = Default::default();
        self.account();
        Ok(bytes)
    }

    pub(super) fn merge(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        if bytes.0.is_empty() {
            return Some(());
        }
        let [kind] = bytes.take()?;
        if kind == ON_DISK {
            let n = u64::from_le_bytes(bytes.take()?);
            let key = u64::from_le_bytes(bytes.take()?);
            self.runs.append(self.spill.as_ref()?.take(key)?);
            self.n = self.n.saturating_add(n);
            return Some(());
        }
        while !bytes.0.is_empty() {
            let value = f64::from_le_bytes(bytes.take()?);
            let weight = match kind {
                SINGLE => 1,
                WEIGHTED => u64::from_le_bytes(bytes.take()?),
                _ => return None,
            };
            self.add(value, weight);
        }
        Some(())
    }
}

/// The values of `ranks`, ascending numbers from 0, then mean and variance, of `n`
/// values that `for_each` goes through in order, twice.
fn moments(
    n: u64,
    ranks: &[u64],
    for_each: impl Fn(&mut dyn FnMut(f64, u64)) -> io::Result<()>,
) -> io::Result<(Vec<f64>, f64, f64)> {
    let mut sum = Sum::default();
    for_each(&mut |value, weight| sum.add(value * weight as f64))?;
    let mean = sum.total() / n as f64;
    let mut squares = Sum::default();
    let mut found = Vec::with_capacity(ranks.len());
    let mut before = 0;
    for_each(&mut |value, weight| {
        squares.add((value - mean) * (value - mean) * weight as f64);
        before = weight.saturating_add(before);
        while ranks.get(found.len()).is_some_and(|rank| *rank < before) {
            found.push(value);
        }
    })?;
    Ok((found, mean, squares.total() / n as f64))
}

/// Neumaier's sum: the error does not grow with the number of values.
#[derive(Default)]
struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        let next = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - next) + value
        } else {
            (value - next) + self.sum
        };
        self.sum = next;
    }

    fn total(&self) -> f64 {
        // Of an infinite sum nothing is lost but the meaning of `lost`.
        if self.sum.is_finite() {
            self.sum + self.lost
        } else {
            self.sum
        }
    }
}
