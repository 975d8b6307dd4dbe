//! Rows as they are read: block ids made dense, bad rows counted, and in the end
//! the order of arrival.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::WorkloadError;
use crate::files;

use super::{Format, Row, Trace, TraceError, TraceSpec};

/// Name space of block ids that mean the same in the whole trace.
pub(super) const GLOBAL: u64 = 0;

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) format: Format,
    skip_bad: bool,
    pub(super) rows: Vec<Row>,
    /// Rows before each file.
    files: Vec<usize>,
    /// As the trace itself says.
    pub(super) block_size: Option<u32>,
    blocks: HashMap<(u64, i64), i64>,
    texts: HashMap<String, Arc<str>>,
    /// Requests of other kinds.
    pub(super) other: u64,
    bad: u64,
    first_bad: Option<String>,
}

impl Reading {
    pub(super) fn new(format: Format, skip_bad: bool) -> Self {
        Self {
            format,
            skip_bad,
            rows: Vec::new(),
            files: Vec::new(),
            block_size: None,
            blocks: HashMap::new(),
            texts: HashMap::new(),
            other: 0,
            bad: 0,
            first_bad: None,
        }
    }

    /// What follows is of another file, with an order of its own.
    pub(super) fn begin_file(&mut self) {
        self.files.push(self.rows.len());
    }

    /// Gives `row` every line of `file` but blank ones, with its number from 1.
    pub(super) fn lines(
        &mut self,
        file: &Path,
        mut row: impl FnMut(&mut Self, u64, &str) -> Result<Option<Row>, String>,
    ) -> Result<(), TraceError> {
        let read_error = |source| WorkloadError::read(file, source);
        let mut reader = files::open(file)?;
        for number in 1.. {
            let Some(line) = files::read_line(&mut *reader).map_err(read_error)? else {
                break;
            };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let line = str::from_utf8(line).map_err(|e| format!("is not UTF-8: {e}"));
            match line.and_then(|line| row(self, number, line)) {
                Ok(Some(row)) => self.rows.push(row),
                Ok(None) => {}
                Err(problem) => self.bad(line_error(file, number, problem))?,
            }
        }
        Ok(())
    }

    /// Counts a row that cannot be read, or ends the reading with it.
    pub(super) fn bad(&mut self, error: WorkloadError) -> Result<(), TraceError> {
        if !self.skip_bad {
            return Err(error.into());
        }
        self.bad += 1;
        let message = || {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().to_owned()
        };
        self.first_bad.get_or_insert_with(message);
        Ok(())
    }

    /// Dense ids of `ids`, which mean the same within `scope`, as runs.
    pub(super) fn runs(&mut self, scope: u64, ids: &[i64]) -> Box<[(i64, i32)]> {
        let mut runs: Vec<(i64, i32)> = Vec::new();
        for id in ids {
            let next = self.blocks.len() as i64;
            let id = *self.blocks.entry((scope, *id)).or_insert(next);
            match runs.last_mut() {
                Some((start, len)) if *start + i64::from(*len) == id && *len < i32::MAX => {
                    *len += 1;
                }
                _ => runs.push((id, 1)),
            }
        }
        runs.into()
    }

    /// One copy of a text that many rows share.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(text.to_owned(), Arc::clone(&shared));
        shared
    }

    pub(super) fn finish(
        self,
        spec: &TraceSpec,
        files: &[PathBuf],
        block_size: Option<u32>,
    ) -> Result<Trace, TraceError> {
        if self.rows.is_empty() {
            return Err(match self.first_bad {
                Some(problem) => TraceError::NotOfFormat {
                    path: spec.path.clone(),
                    format: self.format.as_str(),
                    problem: format!("all {} rows are bad, the first: {problem}", self.bad),
                },
                None => TraceError::Empty(spec.path.clone()),
            });
        }
        let (mut rows, out_of_order) = in_order(self.rows, &self.files);
        count_turns(&mut rows);
        Ok(Trace {
            path: spec.path.clone(),
            format: self.format,
            content_hash: content_hash(files)?,
            block_size: block_size.filter(|_| rows.iter().any(|r| !r.blocks.is_empty())),
            rows,
            out_of_order,
            other: self.other,
            bad: self.bad,
            first_bad: self.first_bad,
        })
    }
}

pub(super) fn line_error(file: &Path, number: u64, problem: String) -> WorkloadError {
    WorkloadError::Line {
        path: file.to_owned(),
        line: usize::try_from(number).unwrap_or(usize::MAX),
        problem,
    }
}

pub(super) fn row_error(file: &Path, row: u64, problem: String) -> WorkloadError {
    WorkloadError::Row {
        path: file.to_owned(),
        row,
        problem,
    }
}

/// Rows by arrival, equal instants as the file lists them; and how many came
/// before one that is listed earlier in the same file.
fn in_order(rows: Vec<Row>, files: &[usize]) -> (Vec<Row>, u64) {
    let mut latest = i64::MIN;
    let mut out_of_order = 0;
    for (index, row) in rows.iter().enumerate() {
        if files.binary_search(&index).is_ok() {
            latest = i64::MIN;
        }
        out_of_order += u64::from(row.t_ns < latest);
        latest = latest.max(row.t_ns);
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|index| rows[*index].t_ns);
    let mut place = vec![0; rows.len()];
    for (now, before) in order.iter().enumerate() {
        place[*before] = now;
    }
    let mut rows: Vec<(usize, Row)> = rows.into_iter().enumerate().collect();
    rows.sort_by_key(|(index, _)| place[*index]);
    let parent = |mut row: Row| {
        row.parent = row.parent.map(|parent| place[parent]);
        row
    };
    (
        rows.into_iter().map(|(_, row)| parent(row)).collect(),
        out_of_order,
    )
}

/// Turns by arrival, where the trace does not number them.
fn count_turns(rows: &mut [Row]) {
    let mut next: HashMap<Arc<str>, i32> = HashMap::new();
    for row in rows.iter_mut().filter(|r| r.turn.is_none()) {
        if let Some(session) = &row.session {
            let turn = next.entry(Arc::clone(session)).or_default();
            row.turn = Some(*turn);
            *turn += 1;
        }
    }
}

fn content_hash(paths: &[PathBuf]) -> Result<String, WorkloadError> {
    let hashes = paths.iter().map(|path| files::hash(path));
    let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
    Ok(match hashes.as_slice() {
        [one] => one.clone(),
        many => blake3::hash(many.concat().as_bytes()).to_hex()[..32].to_owned(),
    })
}
