//! `stream(t_ns, choice_index, chunk_index, read_index)`: what lies between the
//! chunks of an attempt, as one struct of its gaps and its number of reads.
//!
//! A window over rows would sort all chunks; here the rows of each group are put
//! in order when it is asked for, and as sealed files have them in order that is
//! nothing to do.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int32Type, Int64Type};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

pub(super) fn function() -> AggregateUDF {
    AggregateUDF::from(Function {
        signature: Signature::any(4, Volatility::Immutable),
    })
}

fn longs() -> FieldRef {
    Arc::new(Field::new("item", DataType::Int64, true))
}

static STREAM: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![
        Field::new("itl_ns", DataType::List(longs()), true),
        Field::new("reads", DataType::Int64, true),
    ])
});

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    signature: Signature,
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &'static str {
        "stream"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let expected = [
            DataType::Int64,
            DataType::Int32,
            DataType::Int32,
            DataType::Int32,
        ];
        if arguments != expected {
            return plan_err!("stream takes t_ns, choice_index, chunk_index and read_index");
        }
        Ok(DataType::Struct(STREAM.clone()))
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One(Streams::default())))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        _: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Streams::default()))
    }

    fn state_fields(&self, _: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(
            "chunks",
            DataType::List(longs()),
            true,
        ))])
    }
}

/// A chunk, to be sorted by its group, its choice and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Chunk {
    group: u32,
    /// NULL is a choice of its own.
    choice: i32,
    index: i32,
    read: i32,
    t_ns: i64,
}

const NO_CHOICE: i32 = i32::MIN;

/// The chunks of all groups; 24 bytes each.
#[derive(Debug, Default)]
struct Streams {
    chunks: Vec<Chunk>,
    groups: usize,
}

impl Streams {
    fn add(
        &mut self,
        columns: &[ArrayRef],
        group: impl Fn(usize) -> usize,
        filter: Option<&BooleanArray>,
    ) {
        let t_ns = columns[0].as_primitive::<Int64Type>();
        let [choices, indexes, reads] = [1, 2, 3].map(|i| columns[i].as_primitive::<Int32Type>());
        self.chunks.reserve(t_ns.len());
        for row in 0..t_ns.len() {
            if filter.is_some_and(|keep| keep.is_null(row) || !keep.value(row)) {
                continue;
            }
            self.chunks.push(Chunk {
                // More groups than this do not fit into memory.
                group: group(row) as u32,
                choice: if choices.is_null(row) {
                    NO_CHOICE
                } else {
                    choices.value(row)
                },
                index: indexes.value(row),
                read: reads.value(row),
                t_ns: t_ns.value(row),
            });
        }
    }

    /// Takes the chunks of the first groups, sorted, and their number.
    fn take(&mut self, emit_to: EmitTo) -> (Vec<Chunk>, usize) {
        let groups = match emit_to {
            EmitTo::All => self.groups,
            EmitTo::First(n) => n.min(self.groups),
        };
        let mut chunks = std::mem::take(&mut self.chunks);
        chunks.sort();
        let end = chunks.partition_point(|chunk| (chunk.group as usize) < groups);
        self.chunks = chunks.split_off(end);
        for chunk in &mut self.chunks {
            chunk.group -= groups as u32;
        }
        self.groups -= groups;
        (chunks, groups)
    }
}

/// Where the chunks of each group end.
fn ends(chunks: &[Chunk], groups: usize) -> Vec<usize> {
    let end = |group| chunks.partition_point(|chunk| chunk.group as usize <= group);
    (0..groups).map(end).collect()
}

fn reads(chunks: &[Chunk], buffer: &mut Vec<i32>) -> i64 {
    buffer.clear();
    buffer.extend(chunks.iter().map(|chunk| chunk.read));
    buffer.sort_unstable();
    buffer.dedup();
    buffer.len() as i64
}

fn structs(chunks: &[Chunk], groups: usize) -> Result<StructArray> {
    let mut gaps = Vec::with_capacity(chunks.len());
    let (mut lengths, mut valid) = (Vec::with_capacity(groups), Vec::with_capacity(groups));
    let (mut read_counts, mut buffer) = (Vec::with_capacity(groups), Vec::new());
    let mut start = 0;
    for end in ends(chunks, groups) {
        let (group, before) = (&chunks[start..end], gaps.len());
        for pair in group
            .windows(2)
            .filter(|pair| pair[0].choice == pair[1].choice)
        {
            gaps.push(pair[1].t_ns - pair[0].t_ns);
        }
        lengths.push(gaps.len() - before);
        valid.push(gaps.len() > before);
        read_counts.push(reads(group, &mut buffer));
        start = end;
    }
    let lists = ListArray::try_new(
        longs(),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(Int64Array::from(gaps)),
        Some(NullBuffer::from(valid)),
    )?;
    let columns: Vec<ArrayRef> = vec![Arc::new(lists), Arc::new(Int64Array::from(read_counts))];
    Ok(StructArray::try_new(STREAM.clone(), columns, None)?)
}

/// Numbers of one chunk within a state.
const NUMBERS: usize = 4;

fn states(chunks: &[Chunk], groups: usize) -> Result<ArrayRef> {
    let numbers = chunks.iter().flat_map(|chunk| {
        let words = [chunk.choice, chunk.index, chunk.read].map(i64::from);
        words.into_iter().chain([chunk.t_ns])
    });
    let numbers: Int64Array = numbers.collect();
    let mut start = 0;
    let lengths = ends(chunks, groups).into_iter().map(|end| {
        let length = (end - start) * NUMBERS;
        start = end;
        length
    });
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(
        longs(),
        offsets,
        Arc::new(numbers),
        None,
    )?))
}

impl GroupsAccumulator for Streams {
    fn update_batch(
        &mut self,
        columns: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> Result<()> {
        self.groups = total_groups;
        self.add(columns, |row| groups[row], filter);
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (chunks, groups) = self.take(emit_to);
        Ok(Arc::new(structs(&chunks, groups)?))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (chunks, groups) = self.take(emit_to);
        Ok(vec![states(&chunks, groups)?])
    }

    fn merge_batch(
        &mut self,
        columns: &[ArrayRef],
        groups: &[usize],
        total_groups: usize,
    ) -> Result<()> {
        self.groups = total_groups;
        let lists = columns[0].as_list::<i32>();
        for (row, group) in groups.iter().enumerate() {
            if lists.is_null(row) {
                continue;
            }
            let numbers = lists.value(row);
            let numbers = numbers.as_primitive::<Int64Type>().values();
            self.chunks
                .extend(numbers.chunks_exact(NUMBERS).map(|n| Chunk {
                    group: *group as u32,
                    choice: n[0] as i32,
                    index: n[1] as i32,
                    read: n[2] as i32,
                    t_ns: n[3],
                }));
        }
        Ok(())
    }

    fn convert_to_state(
        &self,
        columns: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut rows = Self {
            groups: columns[0].len(),
            ..Self::default()
        };
        rows.add(columns, |row| row, filter);
        rows.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.chunks.capacity() * size_of::<Chunk>()
    }
}

/// All rows as one group.
#[derive(Debug)]
struct One(Streams);

impl Accumulator for One {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.0.groups = 1;
        self.0.add(columns, |_| 0, None);
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.groups = 1;
        ScalarValue::try_from_array(&GroupsAccumulator::evaluate(&mut self.0, EmitTo::All)?, 0)
    }

    fn size(&self) -> usize {
        GroupsAccumulator::size(&self.0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.groups = 1;
        let states = GroupsAccumulator::state(&mut self.0, EmitTo::All)?;
        states
            .iter()
            .map(|state| ScalarValue::try_from_array(state, 0))
            .collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let groups = vec![0; states[0].len()];
        GroupsAccumulator::merge_batch(&mut self.0, states, &groups, 1)
    }
}
