//! Which requests to look at together: enough for speed, few enough for memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::file::statistics::Statistics;

/// Request ids, from the first up to but without the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

impl Range {
    pub(crate) const ALL: Self = Self {
        from: i64::MIN,
        until: i64::MAX,
    };
}

/// A file and the request ids in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) path: PathBuf,
    rows: f64,
    /// First and last; `None` where the file does not say.
    ids: Option<(i64, i64)>,
    /// It may have rows of an attempt that is not the first.
    pub(crate) has_retries: bool,
}

/// The least and the greatest value of a column of whole numbers; `None` where the
/// file does not say.
fn ends(metadata: &ParquetMetaData, column: &str) -> Option<(i64, i64)> {
    let columns = metadata.file_metadata().schema_descr();
    let index = (0..columns.num_columns()).find(|i| columns.column(*i).name() == column)?;
    let groups = metadata.row_groups().iter();
    let ends = groups.map(|group| match group.column(index).statistics() {
        Some(Statistics::Int64(ids)) => Some((*ids.min_opt()?, *ids.max_opt()?)),
        Some(Statistics::Int32(ids)) => Some(((*ids.min_opt()?).into(), (*ids.max_opt()?).into())),
        _ => None,
    });
    let ends: Option<Vec<(i64, i64)>> = ends.collect();
    let all = ends?.into_iter();
    all.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

impl Span {
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn of(path: &Path) -> Result<Self, ParquetError> {
        let reader = SerializedFileReader::new(File::open(path)?)?;
        let metadata = reader.metadata();
        Ok(Self {
            path: path.to_owned(),
            rows: metadata.file_metadata().num_rows() as f64,
            ids: ends(metadata, "request_id"),
            has_retries: ends(metadata, "attempt") != Some((0, 0)),
        })
    }

    /// It may have rows of `range`.
    pub(crate) fn overlaps(&self, range: Range) -> bool {
        self.rows > 0.0
            && self
                .ids
                .is_none_or(|(first, last)| first < range.until && last >= range.from)
    }
}

/// Ranges that together have every id, of about `most` chunks each if those of a
/// file are spread evenly over its ids.
pub(crate) fn ranges(files: &[Span], most: f64) -> Vec<Range> {
    // Chunks per id, where it changes.
    let mut changes = Vec::new();
    for file in files.iter().filter(|file| file.rows > 0.0) {
        let Some((first, last)) = file.ids else {
            return vec![Range::ALL];
        };
        let end = last.saturating_add(1);
        let density = file.rows / (end as f64 - first as f64).max(1.0);
        changes.extend([(first, density), (end, -density)]);
    }
    changes.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut cuts = vec![i64::MIN];
    let (mut density, mut chunks, mut at) = (0.0, 0.0, i64::MIN);
    for (id, change) in changes {
        if density > 0.0 {
            loop {
                let room = ((most - chunks) / density).ceil().max(1.0);
                let cut = at.saturating_add(room as i64);
                if cut >= id {
                    break;
                }
                cuts.push(cut);
                (chunks, at) = (0.0, cut);
            }
            chunks += density * (id as f64 - at as f64);
        }
        at = id;
        density = f64::max(density + change, 0.0);
    }
    cuts.push(i64::MAX);
    let pairs = cuts.windows(2);
    pairs
        .map(|pair| Range {
            from: pair[0],
            until: pair[1],
        })
        .collect()
}
