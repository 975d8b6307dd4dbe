//! What of a sample does not fit into memory: sorted runs of it in files without a
//! name, which the kernel frees whatever becomes of this process.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A run has at least as many values, and at least one for [`SHARE_OF_DISK`] that
/// lie on the disk: so there are some hundred runs at most, however large a sample.
const MIN_RUN: u64 = 1 << 12;
const SHARE_OF_DISK: u64 = 64;

/// Read at once of a run.
const BUFFER_BYTES: usize = 1 << 14;

/// How much all samples of a session hold in memory, and may.
#[derive(Debug)]
pub struct Spill {
    held: AtomicUsize,
    most: usize,
    /// Runs on their way from one part of a sample to the whole.
    handed: Mutex<BTreeMap<u64, Runs>>,
    next: AtomicU64,
}

impl Spill {
    /// Samples go to the disk when together they hold more than `most_bytes`.
    #[must_use]
    pub fn new(most_bytes: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            most: most_bytes,
            handed: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    pub(super) fn hand_over(&self, runs: Runs) -> u64 {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        handed.insert(key, runs);
        key
    }

    pub(super) fn take(&self, key: u64) -> Option<Runs> {
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        handed.remove(&key)
    }

    /// A sample that held `before` bytes holds `now`.
    pub(super) fn account(&self, before: usize, now: usize) {
        self.held.fetch_add(now, Ordering::Relaxed);
        self.held.fetch_sub(before, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.most
    }
}

/// Sorted runs of values and how often each counts.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    n: u64,
}

#[derive(Debug)]
struct Run {
    file: File,
    n: u64,
    /// Behind each value how often it counts; without, each counts once.
    is_weighted: bool,
}

/// Sorts as [`f64::total_cmp`] does.
fn key(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

fn value(key: i64) -> f64 {
    f64::from_bits((key ^ (((key >> 63) as u64) >> 1) as i64) as u64)
}

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// A sample of `n` values in memory is worth a run.
    pub(super) fn has_room_for(&self, n: usize) -> bool {
        n as u64 >= MIN_RUN.max(self.n / SHARE_OF_DISK)
    }

    pub(super) fn append(&mut self, other: Self) {
        self.n += other.n;
        self.runs.extend(other.runs);
    }

    /// Writes sorted values as one run.
    pub(super) fn push(
        &mut self,
        values: impl ExactSizeIterator<Item = (f64, u64)>,
        is_weighted: bool,
    ) -> io::Result<()> {
        let n = values.len() as u64;
        let mut file = io::BufWriter::new(tempfile::tempfile()?);
        for (value, weight) in values {
            io::Write::write_all(&mut file, &key(value).to_le_bytes())?;
            if is_weighted {
                io::Write::write_all(&mut file, &weight.to_le_bytes())?;
            }
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        self.n += n;
        self.runs.push(Run {
            file,
            n,
            is_weighted,
        });
        Ok(())
    }

    /// All values, ascending, each with how often it counts there.
    pub(super) fn for_each(&self, mut each: impl FnMut(f64, u64)) -> io::Result<()> {
        let cursors = self.runs.iter().map(Cursor::new);
        let mut cursors: Vec<Cursor<'_>> = cursors.collect();
        let mut heads = BinaryHeap::with_capacity(cursors.len());
        for (index, cursor) in cursors.iter_mut().enumerate() {
            heads.extend(cursor.next()?.map(|(key, n)| Reverse((key, n, index))));
        }
        while let Some(mut head) = heads.peek_mut() {
            let Reverse((key, n, index)) = *head;
            each(value(key), n);
            match cursors[index].next()? {
                Some((key, n)) => *head = Reverse((key, n, index)),
                None => drop(PeekMut::pop(head)),
            }
        }
        Ok(())
    }
}

/// A run that is being read.
struct Cursor<'a> {
    run: &'a Run,
    /// Bytes of the run that are in `buffer` or were.
    read: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(run: &'a Run) -> Self {
        Self {
            run,
            read: 0,
            buffer: Vec::new(),
            at: 0,
        }
    }

    fn next(&mut self) -> io::Result<Option<(i64, u64)>> {
        if self.at == self.buffer.len() && !self.fill()? {
            return Ok(None);
        }
        let key = i64::from_le_bytes(self.word());
        let n = match self.run.is_weighted {
            true => u64::from_le_bytes(self.word()),
            false => 1,
        };
        Ok(Some((key, n)))
    }

    /// A buffer ends where a value does: it has a multiple of 16 bytes.
    fn word(&mut self) -> [u8; 8] {
        let mut word = [0; 8];
        word.copy_from_slice(&self.buffer[self.at..self.at + 8]);
        self.at += 8;
        word
    }

    /// Returns false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let width = if self.run.is_weighted { 16 } else { 8 };
        let left = (self.run.n * width).saturating_sub(self.read);
        let length = left.min(BUFFER_BYTES as u64);
        self.buffer.resize(length as usize, 0);
        self.run.file.read_exact_at(&mut self.buffer, self.read)?;
        self.read += length;
        self.at = 0;
        Ok(length > 0)
    }
}
