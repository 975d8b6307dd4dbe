//! The rows of a segment in the order in which it is sealed.

use arrow::array::{Array, ArrayData, AsArray, MutableArrayData, RecordBatch, make_array};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;

use crate::schema::Table;

/// Rows handed to the encoder at once: the copy that sorting makes is no larger.
const SLICE_ROWS: usize = 1 << 15;

pub(crate) type Slices<'a> = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + 'a>;

/// The rows of `batches` in slices; chunks in the order of their key.
pub(crate) fn sorted(table: Table, batches: &[RecordBatch]) -> Slices<'_> {
    if table.sort_columns().is_empty() {
        return Box::new(batches.iter().cloned().map(Ok));
    }
    let sources = Sources::of(batches);
    let mut runs = ordered_runs(batches).into_iter().peekable();
    Box::new(std::iter::from_fn(move || {
        runs.peek()?;
        let mut rows = 0;
        let slice: Vec<Run> = std::iter::from_fn(|| {
            let run = runs.next_if(|run| rows == 0 || rows + run.len <= SLICE_ROWS)?;
            rows += run.len;
            Some(run)
        })
        .collect();
        Some(sources.copy(table, &slice, rows))
    }))
}

/// Neighbouring rows of one batch that stay neighbours.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    /// (`request_id`, `attempt`, `chunk_index`) of its first row.
    key: (i64, i32, i32),
    /// `chunk_index` of its last row.
    last_index: i32,
    source: usize,
    start: usize,
    len: usize,
}

/// All chunks in the order of their key. A commit is sorted and holds many chunks of
/// each stream, so to order its runs is a fraction of ordering its rows.
fn ordered_runs(batches: &[RecordBatch]) -> Vec<Run> {
    let mut runs = runs(batches, SLICE_ROWS);
    runs.sort_unstable();
    let overlap = |pair: &[Run]| {
        let (before, after) = (&pair[0], &pair[1]);
        let same_attempt = (before.key.0, before.key.1) == (after.key.0, after.key.1);
        same_attempt && before.last_index > after.key.2
    };
    if runs.windows(2).any(overlap) {
        // No commit of ours: row by row.
        runs = self::runs(batches, 1);
        runs.sort_unstable();
    }
    runs
}

/// Runs of at most `longest` rows that are in order within themselves.
fn runs(batches: &[RecordBatch], longest: usize) -> Vec<Run> {
    let mut runs = Vec::<Run>::new();
    for (source, batch) in batches.iter().enumerate() {
        // The order of the format's columns.
        let request_ids = batch.column(0).as_primitive::<Int64Type>().values();
        let attempts = batch.column(1).as_primitive::<Int32Type>().values();
        let indexes = batch.column(2).as_primitive::<Int32Type>().values();
        for row in 0..batch.num_rows() {
            let key = (request_ids[row], attempts[row], indexes[row]);
            match runs.last_mut().filter(|_| row > 0) {
                Some(run)
                    if (run.key.0, run.key.1) == (key.0, key.1)
                        && run.last_index <= key.2
                        && run.len < longest =>
                {
                    run.last_index = key.2;
                    run.len += 1;
                }
                _ => runs.push(Run {
                    key,
                    last_index: key.2,
                    source,
                    start: row,
                    len: 1,
                }),
            }
        }
    }
    runs
}

/// The columns of some batches, to copy runs from.
struct Sources {
    /// By column, then by batch.
    columns: Vec<Vec<ArrayData>>,
}

impl Sources {
    fn of(batches: &[RecordBatch]) -> Self {
        let columns = batches.first().map_or(0, RecordBatch::num_columns);
        let data = |column: usize| batches.iter().map(move |b| b.column(column).to_data());
        Self {
            columns: (0..columns).map(|column| data(column).collect()).collect(),
        }
    }

    fn copy(&self, table: Table, runs: &[Run], rows: usize) -> Result<RecordBatch, ArrowError> {
        let copied = self.columns.iter().map(|sources| {
            let mut column = MutableArrayData::new(sources.iter().collect(), false, rows);
            for run in runs {
                column.try_extend(run.source, run.start, run.start + run.len)?;
            }
            Ok(make_array(column.freeze()))
        });
        let columns = copied.collect::<Result<_, ArrowError>>()?;
        RecordBatch::try_new(table.row_schema(), columns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::columns::{from_batch, to_batch};
    use crate::event::{ChunkRow, EventBatch};

    /// A chunk that says in its payload which of its batch it is.
    fn chunk(key: (i64, i32, i32), events: &mut EventBatch) {
        let number = events.chunks.rows.len();
        let row = ChunkRow {
            attempt: key.1,
            tokens: number.is_multiple_of(3).then_some(1),
            ..crate::testing::chunk(key.0, key.2)
        };
        let data = format!("{key:?} {number}");
        events.chunks.push(row, Some(data.as_bytes()));
    }

    fn commits() -> impl Strategy<Value = Vec<EventBatch>> {
        let keys = vec((0..4_i64, 0..2_i32, 0..30_i32), 0..40);
        let commit = keys.prop_map(|keys| {
            let mut events = EventBatch::default();
            keys.into_iter().for_each(|key| chunk(key, &mut events));
            events
        });
        vec(commit, 0..5)
    }

    proptest! {
        /// For all commits, however their chunks overlap: all rows, each with its own
        /// values, in the order of their key.
        #[test]
        fn all_rows_come_out_in_order(commits in commits()) {
            let batch = |e: &EventBatch| to_batch(Table::Chunks, std::slice::from_ref(e)).unwrap();
            let batches: Vec<RecordBatch> = commits.iter().map(batch).collect();
            let mut found = EventBatch::default();
            for slice in sorted(Table::Chunks, &batches) {
                from_batch(Table::Chunks, &slice.unwrap(), &mut found).unwrap();
            }
            let rows = |events: &EventBatch| -> Vec<_> {
                let chunks = &events.chunks;
                let row = |r: &ChunkRow| {
                    let key = (r.request_id, r.attempt, r.chunk_index);
                    (key, r.tokens, chunks.payload(r).map(<[u8]>::to_vec))
                };
                chunks.rows.iter().map(row).collect()
            };
            let found = rows(&found);
            prop_assert!(found.is_sorted_by_key(|(key, ..)| *key));
            let mut expected: Vec<_> = commits.iter().flat_map(rows).collect();
            let mut found = found;
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    /// What the writer commits needs no second look at its rows.
    #[test]
    fn a_stream_over_two_commits_is_two_runs() {
        let commit = |indexes: std::ops::Range<i32>| {
            let mut events = EventBatch::default();
            for index in indexes {
                (0..3).for_each(|id| chunk((id, 0, index), &mut events));
            }
            to_batch(Table::Chunks, &[events]).unwrap()
        };
        let runs = ordered_runs(&[commit(10..25), commit(0..10)]);
        let found: Vec<_> = runs.iter().map(|r| (r.key, r.source, r.len)).collect();
        let expected = (0..3).flat_map(|id| [((id, 0, 0), 1, 10), ((id, 0, 10), 0, 15)]);
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
