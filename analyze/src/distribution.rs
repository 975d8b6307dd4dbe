//! All values of a sample, exactly, in little memory: what `distribution` in SQL
//! keeps while it reads.
//!
//! Whole numbers (ns) lie in pages of 65,536 neighbouring values. A page holds two
//! bytes a value until a table of counts is smaller, 64 KiB, however often its
//! values come. So a million gaps take at most 2 MB, and any number of gaps that
//! lie within 40 ms take at most 40 MB. Other numbers take 8 bytes each, one a
//! request, or one a gap where another tool's profile is asked for: beyond what a
//! [`Spill`] allows they go to the disk as sorted runs, which are merged at the end.

mod real;
mod runs;

use std::collections::BTreeMap;
use std::io;

pub use real::Real;
pub use runs::Spill;

/// Which of `n` sorted values a percentile is, by position from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// numpy's: p / 100 × (n − 1), between neighbours by proportion.
    #[default]
    Linear,
    /// The value of rank ceil(n p / 100), from 1.
    NearestRank,
    /// The value at index int(n p / 100).
    Floor,
}

impl Rule {
    pub const ALL: [(&'static str, Self); 3] = [
        ("linear", Self::Linear),
        ("nearest_rank", Self::NearestRank),
        ("floor", Self::Floor),
    ];

    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let mut known = Self::ALL.into_iter();
        known.find(|(n, _)| *n == name).map(|(_, rule)| rule)
    }

    /// In 0..=n − 1; `p` in 0..=100, `n` at least 1.
    fn position(self, p: f64, n: u64) -> f64 {
        let (n, last) = (n as f64, (n - 1) as f64);
        let position = match self {
            Self::Linear => p / 100.0 * last,
            Self::NearestRank => (p * n / 100.0).ceil() - 1.0,
            Self::Floor => (p * n / 100.0).floor(),
        };
        position.clamp(0.0, last)
    }
}

/// The one or two values that a percentile lies between, and how far from the
/// first to the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbours {
    pub below: f64,
    pub above: f64,
    /// From 0 to below 1.
    pub fraction: f64,
}

/// What is said of a sample that is not empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub n: u64,
    pub mean: f64,
    /// Of the population.
    pub std: f64,
    pub min: f64,
    pub max: f64,
    /// One for each percentile that was asked for.
    pub percentiles: Vec<Neighbours>,
}

/// A multiset of numbers. A NaN sorts behind all others.
#[derive(Debug)]
pub enum Distribution {
    Whole(Whole),
    Real(Real),
}

impl Distribution {
    #[must_use]
    pub fn n(&self) -> u64 {
        match self {
            Self::Whole(values) => values.n,
            Self::Real(values) => values.n,
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Whole(values) => values.bytes,
            Self::Real(values) => values.size_bytes(),
        }
    }

    /// Takes to the disk what is more than may be held.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn relieve(&mut self) -> io::Result<()> {
        match self {
            Self::Whole(_) => Ok(()),
            Self::Real(values) => values.relieve(),
        }
    }

    /// `None` of no values.
    ///
    /// # Errors
    /// When what is on the disk cannot be read.
    pub fn summary(&mut self, percentiles: &[f64], rule: Rule) -> io::Result<Option<Summary>> {
        let n = self.n();
        if n == 0 {
            return Ok(None);
        }
        let position = |p: &f64| rule.position(*p, n);
        let positions: Vec<f64> = percentiles.iter().map(position).collect();
        let ends = positions.iter().flat_map(|p| [p.floor(), p.ceil()]);
        let mut ranks: Vec<u64> = ends.map(|rank| rank as u64).chain([0, n - 1]).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let (values, mean, variance) = match self {
            Self::Whole(values) => values.sorted(&ranks),
            Self::Real(values) => values.sorted(&ranks)?,
        };
        let at = |rank: f64| {
            let found = ranks.binary_search(&(rank as u64));
            found.map_or(f64::NAN, |index| values[index])
        };
        Ok(Some(Summary {
            n,
            mean,
            std: variance.sqrt(),
            min: at(0.0),
            max: at((n - 1) as f64),
            percentiles: positions
                .iter()
                .map(|p| Neighbours {
                    below: at(p.floor()),
                    above: at(p.ceil()),
                    fraction: p.fract(),
                })
                .collect(),
        }))
    }

    /// Empties it into bytes that [`Self::merge`] takes, of the same process where
    /// a part is on the disk.
    ///
    /// # Errors
    /// When the disk does not take the rest of what it has a part of.
    pub fn take_bytes(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Whole(values) => Ok(std::mem::take(values).to_bytes()),
            Self::Real(values) => values.take_bytes(),
        }
    }

    /// Adds what [`Self::take_bytes`] of the same kind made. `None` when it did not.
    #[must_use]
    pub fn merge(&mut self, bytes: &[u8]) -> Option<()> {
        let mut bytes = Bytes(bytes);
        match self {
            Self::Whole(values) => values.merge(&mut bytes),
            Self::Real(values) => values.merge(&mut bytes),
        }
    }
}

const PAGE_BITS: u32 = 16;
const PAGE_VALUES: usize = 1 << PAGE_BITS;
/// As many two-byte values as a table of counts has bytes.
const SPARSE_VALUES: usize = PAGE_VALUES / 2;
/// Pages from 0 on that are found by index, those of 0 to 1.07 s of ns.
const NEAR_PAGES: usize = 1 << 14;

/// Whole numbers.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    near: Vec<Page>,
    far: BTreeMap<i64, Page>,
    n: u64,
    sum: i128,
    bytes: usize,
}

#[derive(Debug, Clone)]
enum Page {
    /// Low halves of its values, in no order.
    Sparse(Vec<u16>),
    Dense(Box<Counts>),
}

/// How often each value of a page comes.
#[derive(Debug, Clone)]
struct Counts {
    n: u64,
    few: Vec<u8>,
    /// Multiples of 256, to be added to those.
    many: BTreeMap<u16, u64>,
}

impl Counts {
    fn add(&mut self, low: u16, weight: u64) {
        self.n = self.n.saturating_add(weight);
        let few = &mut self.few[usize::from(low)];
        let sum = u64::from(*few).saturating_add(weight);
        *few = (sum % 256) as u8;
        if sum >= 256 {
            let many = self.many.entry(low).or_default();
            *many = many.saturating_add(sum / 256 * 256);
        }
    }

    /// Values that come, ascending, with how often.
    fn each(&self) -> impl Iterator<Item = (u16, u64)> {
        let all = (0..=u16::MAX).zip(&self.few);
        let count = |(low, few): (u16, &u8)| {
            let many = match self.many.is_empty() {
                true => 0,
                false => self.many.get(&low).copied().unwrap_or(0),
            };
            (low, many.saturating_add((*few).into()))
        };
        all.map(count).filter(|(_, count)| *count > 0)
    }
}

impl Page {
    const EMPTY: Self = Self::Sparse(Vec::new());

    /// Returns by how many bytes it grew.
    fn add(&mut self, low: u16, weight: u64) -> usize {
        match self {
            Self::Sparse(lows) if weight == 1 && lows.len() < SPARSE_VALUES => {
                let before = lows.capacity();
                lows.push(low);
                2 * (lows.capacity() - before)
            }
            Self::Sparse(lows) => {
                let mut counts = Counts {
                    n: 0,
                    few: vec![0; PAGE_VALUES],
                    many: BTreeMap::new(),
                };
                lows.iter().for_each(|low| counts.add(*low, 1));
                counts.add(low, weight);
                let before = 2 * lows.capacity();
                *self = Self::Dense(Box::new(counts));
                PAGE_VALUES.saturating_sub(before)
            }
            Self::Dense(counts) => {
                counts.add(low, weight);
                0
            }
        }
    }

    fn n(&self) -> u64 {
        match self {
            Self::Sparse(lows) => lows.len() as u64,
            Self::Dense(counts) => counts.n,
        }
    }

    fn sort(&mut self) {
        if let Self::Sparse(lows) = self {
            lows.sort_unstable();
        }
    }

    /// Of a sorted page.
    fn for_each(&self, mut each: impl FnMut(u16, u64)) {
        match self {
            Self::Sparse(lows) => lows.iter().for_each(|low| each(*low, 1)),
            Self::Dense(counts) => counts.each().for_each(|(low, n)| each(low, n)),
        }
    }
}

impl Whole {
    /// Adds `value`, `weight` times.
    pub fn add(&mut self, value: i64, weight: u64) {
        if weight == 0 {
            return;
        }
        self.n = self.n.saturating_add(weight);
        let product = i128::from(value) * i128::from(weight);
        self.sum = self.sum.saturating_add(product);
        let (page, low) = (value >> PAGE_BITS, value as u16);
        self.bytes += self.page(page).add(low, weight);
    }

    fn page(&mut self, page: i64) -> &mut Page {
        match usize::try_from(page) {
            Ok(index) if index < NEAR_PAGES => {
                if index >= self.near.len() {
                    self.near.resize(index + 1, Page::EMPTY);
                }
                &mut self.near[index]
            }
            _ => self.far.entry(page).or_insert(Page::EMPTY),
        }
    }

    /// Pages that have values, ascending.
    fn pages(&mut self) -> impl Iterator<Item = (i64, &mut Page)> {
        let (mut below, mut above) = (Vec::new(), Vec::new());
        for (page, values) in &mut self.far {
            let side = if *page < 0 { &mut below } else { &mut above };
            side.push((*page, values));
        }
        let near = (0_i64..).zip(self.near.iter_mut());
        let all = below.into_iter().chain(near).chain(above);
        all.filter(|(_, page)| page.n() > 0)
    }

    /// The values of `ranks`, ascending numbers from 0, then mean and variance.
    fn sorted(&mut self, ranks: &[u64]) -> (Vec<f64>, f64, f64) {
        let (n, mean) = (self.n as f64, self.sum as f64 / self.n as f64);
        let mut found = Vec::with_capacity(ranks.len());
        let (mut before, mut squares) = (0, 0.0);
        for (number, page) in self.pages() {
            page.sort();
            let mut page_squares = 0.0;
            page.for_each(|low, count| {
                let value = (number << PAGE_BITS | i64::from(low)) as f64;
                page_squares += (value - mean) * (value - mean) * count as f64;
                before = count.saturating_add(before);
                while ranks.get(found.len()).is_some_and(|rank| *rank < before) {
                    found.push(value);
                }
            });
            squares += page_squares;
        }
        (found, mean, squares / n)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let near = (0_i64..).zip(&self.near);
        let all = near.chain(self.far.iter().map(|(page, values)| (*page, values)));
        for (number, page) in all.filter(|(_, page)| page.n() > 0) {
            bytes.extend(number.to_le_bytes());
            match page {
                Page::Sparse(lows) => {
                    bytes.extend((lows.len() as u32).to_le_bytes());
                    lows.iter().for_each(|low| bytes.extend(low.to_le_bytes()));
                }
                Page::Dense(counts) => {
                    bytes.extend(u32::MAX.to_le_bytes());
                    bytes.extend(&counts.few);
                    bytes.extend((counts.many.len() as u32).to_le_bytes());
                    for (low, many) in &counts.many {
                        bytes.extend(low.to_le_bytes());
                        bytes.extend(many.to_le_bytes());
                    }
                }
            }
        }
        bytes
    }

    fn merge(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        while !bytes.0.is_empty() {
            let base = i64::from_le_bytes(bytes.take()?) << PAGE_BITS;
            let value = |low: u16| base | i64::from(low);
            let values = u32::from_le_bytes(bytes.take()?);
            if values != u32::MAX {
                for _ in 0..values {
                    self.add(value(u16::from_le_bytes(bytes.take()?)), 1);
                }
                continue;
            }
            for low in 0..=u16::MAX {
                let [few] = bytes.take()?;
                self.add(value(low), few.into());
            }
            for _ in 0..u32::from_le_bytes(bytes.take()?) {
                let low = u16::from_le_bytes(bytes.take()?);
                self.add(value(low), u64::from_le_bytes(bytes.take()?));
            }
        }
        Some(())
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}
