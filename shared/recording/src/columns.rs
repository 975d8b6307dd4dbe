//! The only conversion between rows and Arrow batches, in both directions.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Float64Array, Int32Array,
    Int32Builder, Int64Array, Int64Builder, ListBuilder, MapArray, MapBuilder, MapFieldNames,
    RecordBatch, StringArray, StringBuilder, StructBuilder, new_null_array,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type};
use arrow::error::ArrowError;
use bytes::Bytes;

use crate::event::{
    ChunkKind, ChunkRow, ChunkRows, EventBatch, MarkRow, Outcome, Pairs, Phase, RequestRow,
    ResponseRow, SampleRow, TimestampSource,
};
use crate::schema::{Table, block_run_fields};

/// The rows of `table` in `events` as one batch without `recording_id`, which is
/// one word for a whole recording ([`with_recording_id`] adds it). Chunks come
/// out sorted by (`request_id`, `attempt`, `chunk_index`); all other tables in
/// event order.
pub fn to_batch(table: Table, events: &[EventBatch]) -> Result<RecordBatch, ArrowError> {
    let columns = match table {
        Table::Requests => request_columns(&all(events, |e| &e.requests)),
        Table::Chunks => chunk_columns(events),
        Table::Responses => response_columns(&all(events, |e| &e.responses)),
        Table::Samples => sample_columns(&all(events, |e| &e.samples)),
        Table::Marks => mark_columns(&all(events, |e| &e.marks)),
    };
    RecordBatch::try_new(table.row_schema(), columns)
}

fn all<T>(events: &[EventBatch], rows: impl Fn(&EventBatch) -> &Vec<T>) -> Vec<&T> {
    events.iter().flat_map(rows).collect()
}

/// `batch`, rows of `table` without `recording_id`, with that column in front.
pub fn with_recording_id(
    table: Table,
    recording_id: &str,
    batch: &RecordBatch,
) -> Result<RecordBatch, ArrowError> {
    let rows = batch.num_rows();
    let offsets = OffsetBuffer::from_repeated_length(recording_id.len(), rows);
    let ids = recording_id.as_bytes().repeat(rows);
    let ids = StringArray::try_new(offsets, Buffer::from(ids), None)?;
    let mut columns: Vec<ArrayRef> = vec![Arc::new(ids)];
    columns.extend_from_slice(batch.columns());
    RecordBatch::try_new(table.schema(), columns)
}

fn i64s<T>(rows: &[T], get: impl Fn(&T) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(get)))
}

fn opt_i64s<T>(rows: &[T], get: impl Fn(&T) -> Option<i64>) -> ArrayRef {
    match filled(rows, |row| get(row).is_some()) {
        Filled::All => i64s(rows, |row| get(row).unwrap_or_default()),
        Filled::None => new_null_array(&DataType::Int64, rows.len()),
        Filled::Some => Arc::new(rows.iter().map(get).collect::<Int64Array>()),
    }
}

/// How many rows have a value in a column: nearly always all or none, and those
/// arrays need no decision for each row.
enum Filled {
    All,
    Some,
    None,
}

fn filled<T>(rows: &[T], has_value: impl Fn(&T) -> bool) -> Filled {
    match rows.iter().filter(|row| has_value(row)).count() {
        0 => Filled::None,
        count if count == rows.len() => Filled::All,
        _ => Filled::Some,
    }
}

fn i32s<T>(rows: &[T], get: impl Fn(&T) -> i32) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(rows.iter().map(get)))
}

fn opt_i32s<T>(rows: &[T], get: impl Fn(&T) -> Option<i32>) -> ArrayRef {
    match filled(rows, |row| get(row).is_some()) {
        Filled::All => i32s(rows, |row| get(row).unwrap_or_default()),
        Filled::None => new_null_array(&DataType::Int32, rows.len()),
        Filled::Some => Arc::new(rows.iter().map(get).collect::<Int32Array>()),
    }
}

fn strs<'a, T>(rows: &'a [T], get: impl Fn(&'a T) -> &'a str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(get)))
}

fn opt_strs<'a, T>(rows: &'a [T], get: impl Fn(&'a T) -> Option<&'a Arc<str>>) -> ArrayRef {
    if rows.iter().all(|row| get(row).is_none()) {
        return new_null_array(&DataType::Utf8, rows.len());
    }
    Arc::new(
        rows.iter()
            .map(|row| get(row).map(AsRef::as_ref))
            .collect::<StringArray>(),
    )
}

fn opt_bytes<'a, T>(rows: &'a [T], get: impl Fn(&'a T) -> Option<&'a [u8]>) -> ArrayRef {
    let bytes = rows.iter().map(|row| get(row).map_or(0, <[u8]>::len)).sum();
    let mut builder = BinaryBuilder::with_capacity(rows.len(), bytes);
    for row in rows {
        builder.append_option(get(row));
    }
    Arc::new(builder.finish())
}

fn maps<'a, T>(rows: &'a [T], get: impl Fn(&'a T) -> Option<&'a Pairs>) -> ArrayRef {
    let names = MapFieldNames {
        entry: "entries".into(),
        key: "keys".into(),
        value: "values".into(),
    };
    let mut builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for row in rows {
        let pairs = get(row);
        for (key, value) in pairs.iter().flat_map(|pairs| pairs.iter()) {
            builder.keys().append_value(key);
            builder.values().append_value(value);
        }
        // Lengths of keys and values are equal by construction.
        if builder.append(pairs.is_some()).is_err() {
            unreachable!("one value was appended for each key");
        }
    }
    Arc::new(builder.finish())
}

fn block_runs(rows: &[&RequestRow]) -> ArrayRef {
    let fields = block_run_fields();
    let values = StructBuilder::new(
        fields.clone(),
        vec![Box::new(Int64Builder::new()), Box::new(Int32Builder::new())],
    );
    let item = Field::new("item", DataType::Struct(fields), false);
    let mut builder = ListBuilder::new(values).with_field(item);
    for row in rows {
        for (start, len) in row.block_runs.iter().flat_map(|runs| runs.iter()) {
            let value = builder.values();
            if let Some(column) = value.field_builder::<Int64Builder>(0) {
                column.append_value(*start);
            }
            if let Some(column) = value.field_builder::<Int32Builder>(1) {
                column.append_value(*len);
            }
            value.append(true);
        }
        builder.append(row.block_runs.is_some());
    }
    Arc::new(builder.finish())
}

fn request_columns(rows: &[&RequestRow]) -> Vec<ArrayRef> {
    vec![
        i64s(rows, |r| r.request_id),
        i32s(rows, |r| r.attempt),
        strs(rows, |r| r.phase.as_str()),
        opt_strs(rows, |r| r.session_id.as_ref()),
        opt_i32s(rows, |r| r.turn),
        opt_i64s(rows, |r| r.parent_request_id),
        opt_i64s(rows, |r| r.replay_of),
        opt_strs(rows, |r| r.worker.as_ref()),
        strs(rows, |r| &r.api),
        strs(rows, |r| &r.method),
        strs(rows, |r| &r.url_path),
        opt_strs(rows, |r| r.query.as_ref()),
        opt_strs(rows, |r| r.model.as_ref()),
        Arc::new(
            rows.iter()
                .map(|r| Some(r.stream))
                .collect::<BooleanArray>(),
        ),
        opt_i64s(rows, |r| r.t_scheduled_ns),
        opt_i64s(rows, |r| r.t_dispatched_ns),
        opt_i64s(rows, |r| r.t_received_ns),
        opt_i64s(rows, |r| r.t_connect_ns),
        opt_i64s(rows, |r| r.t_connected_ns),
        opt_i64s(rows, |r| r.t_tls_ns),
        opt_i64s(rows, |r| r.t_sent_ns),
        opt_i64s(rows, |r| r.conn_id),
        Arc::new(rows.iter().map(|r| r.conn_reused).collect::<BooleanArray>()),
        maps(rows, |r| r.headers.as_ref()),
        opt_bytes(rows, |r| r.body.as_deref()),
        i64s(rows, |r| r.body_bytes),
        opt_strs(rows, |r| r.body_hash.as_ref()),
        opt_i32s(rows, |r| r.input_tokens),
        opt_strs(rows, |r| r.input_tokens_source.as_ref()),
        opt_i32s(rows, |r| r.max_output_tokens),
        opt_i32s(rows, |r| r.block_size),
        block_runs(rows),
    ]
}

/// A row, and the rows that it came with, which hold its payload.
struct Placed<'a> {
    row: &'a ChunkRow,
    among: &'a ChunkRows,
}

fn placed(among: &ChunkRows) -> impl Iterator<Item = Placed<'_>> {
    among.rows.iter().map(move |row| Placed { row, among })
}

fn chunk_columns(events: &[EventBatch]) -> Vec<ArrayRef> {
    let mut rows: Vec<_> = events.iter().flat_map(|e| placed(&e.chunks)).collect();
    rows.sort_by_key(|Placed { row, .. }| (row.request_id, row.attempt, row.chunk_index));
    let rows = rows.as_slice();
    vec![
        i64s(rows, |r| r.row.request_id),
        i32s(rows, |r| r.row.attempt),
        i32s(rows, |r| r.row.chunk_index),
        i32s(rows, |r| r.row.read_index),
        opt_i32s(rows, |r| r.row.choice_index),
        i64s(rows, |r| r.row.t_ns),
        i64s(rows, |r| r.row.t_seen_ns),
        opt_i64s(rows, |r| r.row.t_forwarded_ns),
        strs(rows, |r| r.row.kind.as_str()),
        opt_strs(rows, |r| r.row.event.as_ref()),
        opt_strs(rows, |r| r.row.event_id.as_ref()),
        opt_i32s(rows, |r| r.row.tokens),
        i64s(rows, |r| r.row.bytes),
        opt_bytes(rows, |r| r.among.payload(r.row)),
    ]
}

fn response_columns(rows: &[&ResponseRow]) -> Vec<ArrayRef> {
    vec![
        i64s(rows, |r| r.request_id),
        i32s(rows, |r| r.attempt),
        strs(rows, |r| r.outcome.as_str()),
        opt_i32s(rows, |r| r.status),
        maps(rows, |r| r.headers.as_ref()),
        maps(rows, |r| r.trailers.as_ref()),
        opt_i64s(rows, |r| r.t_headers_ns),
        opt_i64s(rows, |r| r.t_end_ns),
        opt_i64s(rows, |r| r.t_client_end_ns),
        strs(rows, |r| r.timestamp_source.as_str()),
        opt_strs(rows, |r| r.finish_reason.as_ref()),
        opt_i32s(rows, |r| r.input_tokens),
        opt_i32s(rows, |r| r.output_tokens),
        opt_i32s(rows, |r| r.reasoning_tokens),
        opt_i32s(rows, |r| r.cached_tokens),
        opt_strs(rows, |r| r.usage_source.as_ref()),
        opt_strs(rows, |r| r.error.as_ref()),
        opt_bytes(rows, |r| r.body.as_deref()),
        i64s(rows, |r| r.body_bytes),
        i32s(rows, |r| r.chunk_count),
        i32s(rows, |r| r.malformed_chunks),
    ]
}

fn sample_columns(rows: &[&SampleRow]) -> Vec<ArrayRef> {
    vec![
        i64s(rows, |r| r.t_ns),
        strs(rows, |r| &r.source),
        strs(rows, |r| &r.name),
        maps(rows, |r| Some(&r.labels)),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.value))),
    ]
}

fn mark_columns(rows: &[&MarkRow]) -> Vec<ArrayRef> {
    vec![
        i64s(rows, |r| r.t_ns),
        strs(rows, |r| &r.name),
        strs(rows, |r| &r.detail),
    ]
}

/// A row whose values do not fit the format, by column name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RowError {
    #[error("column {0} is missing")]
    MissingColumn(String),
    #[error("column {column} has type {found}, the format says {expected}")]
    WrongType {
        column: String,
        found: String,
        expected: String,
    },
    #[error("column {column} holds {value:?}, which is not a word of the format")]
    UnknownWord { column: String, value: String },
}

/// Appends the rows of `batch`, which must hold every column of `table` but
/// `recording_id`, to `events`.
pub fn from_batch(
    table: Table,
    batch: &RecordBatch,
    events: &mut EventBatch,
) -> Result<(), RowError> {
    let columns = Columns::check(table, batch)?;
    for row in 0..batch.num_rows() {
        match table {
            Table::Requests => events.requests.push(columns.request(row)?),
            Table::Chunks => {
                let (chunk, data) = columns.chunk(row)?;
                events.chunks.push(chunk, data);
            }
            Table::Responses => events.responses.push(columns.response(row)?),
            Table::Samples => events.samples.push(columns.sample(row)),
            Table::Marks => events.marks.push(columns.mark(row)),
        }
    }
    Ok(())
}

/// A batch whose columns have been checked against the schema of its table.
struct Columns<'a> {
    batch: &'a RecordBatch,
}

impl<'a> Columns<'a> {
    fn check(table: Table, batch: &'a RecordBatch) -> Result<Self, RowError> {
        for field in table.row_schema().fields() {
            let column = batch
                .column_by_name(field.name())
                .ok_or_else(|| RowError::MissingColumn(field.name().clone()))?;
            if !same_shape(column.data_type(), field.data_type()) {
                return Err(RowError::WrongType {
                    column: field.name().clone(),
                    found: column.data_type().to_string(),
                    expected: field.data_type().to_string(),
                });
            }
        }
        Ok(Self { batch })
    }

    fn column(&self, name: &str) -> &'a ArrayRef {
        // `check` has seen every column of the table.
        &self.batch.columns()[self.batch.schema_ref().index_of(name).unwrap_or(0)]
    }

    fn opt_i64(&self, name: &str, row: usize) -> Option<i64> {
        let column = self.column(name).as_primitive::<Int64Type>();
        column.is_valid(row).then(|| column.value(row))
    }

    fn i64(&self, name: &str, row: usize) -> i64 {
        self.opt_i64(name, row).unwrap_or_default()
    }

    fn opt_i32(&self, name: &str, row: usize) -> Option<i32> {
        let column = self.column(name).as_primitive::<Int32Type>();
        column.is_valid(row).then(|| column.value(row))
    }

    fn i32(&self, name: &str, row: usize) -> i32 {
        self.opt_i32(name, row).unwrap_or_default()
    }

    fn opt_bool(&self, name: &str, row: usize) -> Option<bool> {
        let column = self.column(name).as_boolean();
        column.is_valid(row).then(|| column.value(row))
    }

    fn opt_str(&self, name: &str, row: usize) -> Option<Arc<str>> {
        let column = self.column(name).as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).into())
    }

    fn str(&self, name: &str, row: usize) -> Arc<str> {
        self.opt_str(name, row).unwrap_or_default()
    }

    fn opt_bytes(&self, name: &str, row: usize) -> Option<&'a [u8]> {
        let column: &'a BinaryArray = self.column(name).as_binary::<i32>();
        column.is_valid(row).then(|| column.value(row))
    }

    fn opt_map(&self, name: &str, row: usize) -> Option<Pairs> {
        let column: &MapArray = self.column(name).as_map();
        column.is_valid(row).then(|| {
            let entries = column.value(row);
            let keys = entries.column(0).as_string::<i32>();
            let values = entries.column(1).as_string::<i32>();
            (0..entries.len())
                .map(|i| (keys.value(i).to_owned(), values.value(i).to_owned()))
                .collect()
        })
    }

    fn opt_runs(&self, name: &str, row: usize) -> Option<Arc<[(i64, i32)]>> {
        let column = self.column(name).as_list::<i32>();
        column.is_valid(row).then(|| {
            let runs = column.value(row);
            let runs = runs.as_struct();
            let starts = runs.column(0).as_primitive::<Int64Type>();
            let lens = runs.column(1).as_primitive::<Int32Type>();
            (0..runs.len())
                .map(|i| (starts.value(i), lens.value(i)))
                .collect()
        })
    }

    fn word<T>(
        &self,
        name: &str,
        row: usize,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, RowError> {
        let value = self.str(name, row);
        parse(&value).ok_or_else(|| RowError::UnknownWord {
            column: name.to_owned(),
            value: value.to_string(),
        })
    }

    fn request(&self, row: usize) -> Result<RequestRow, RowError> {
        Ok(RequestRow {
            request_id: self.i64("request_id", row),
            attempt: self.i32("attempt", row),
            phase: self.word("phase", row, Phase::from_word)?,
            session_id: self.opt_str("session_id", row),
            turn: self.opt_i32("turn", row),
            parent_request_id: self.opt_i64("parent_request_id", row),
            replay_of: self.opt_i64("replay_of", row),
            worker: self.opt_str("worker", row),
            api: self.str("api", row),
            method: self.str("method", row),
            url_path: self.str("url_path", row),
            query: self.opt_str("query", row),
            model: self.opt_str("model", row),
            stream: self.opt_bool("stream", row).unwrap_or_default(),
            t_scheduled_ns: self.opt_i64("t_scheduled_ns", row),
            t_dispatched_ns: self.opt_i64("t_dispatched_ns", row),
            t_received_ns: self.opt_i64("t_received_ns", row),
            t_connect_ns: self.opt_i64("t_connect_ns", row),
            t_connected_ns: self.opt_i64("t_connected_ns", row),
            t_tls_ns: self.opt_i64("t_tls_ns", row),
            t_sent_ns: self.opt_i64("t_sent_ns", row),
            conn_id: self.opt_i64("conn_id", row),
            conn_reused: self.opt_bool("conn_reused", row),
            headers: self.opt_map("headers", row),
            body: self.opt_bytes("body", row).map(Bytes::copy_from_slice),
            body_bytes: self.i64("body_bytes", row),
            body_hash: self.opt_str("body_hash", row),
            input_tokens: self.opt_i32("input_tokens", row),
            input_tokens_source: self.opt_str("input_tokens_source", row),
            max_output_tokens: self.opt_i32("max_output_tokens", row),
            block_size: self.opt_i32("block_size", row),
            block_runs: self.opt_runs("block_runs", row),
        })
    }

    fn chunk(&self, row: usize) -> Result<(ChunkRow, Option<&'a [u8]>), RowError> {
        let chunk = ChunkRow {
            request_id: self.i64("request_id", row),
            attempt: self.i32("attempt", row),
            chunk_index: self.i32("chunk_index", row),
            read_index: self.i32("read_index", row),
            choice_index: self.opt_i32("choice_index", row),
            t_ns: self.i64("t_ns", row),
            t_seen_ns: self.i64("t_seen_ns", row),
            t_forwarded_ns: self.opt_i64("t_forwarded_ns", row),
            kind: self.word("kind", row, ChunkKind::from_word)?,
            event: self.opt_str("event", row),
            event_id: self.opt_str("event_id", row),
            tokens: self.opt_i32("tokens", row),
            bytes: self.i64("bytes", row),
            payload: None,
        };
        Ok((chunk, self.opt_bytes("data", row)))
    }

    fn response(&self, row: usize) -> Result<ResponseRow, RowError> {
        Ok(ResponseRow {
            request_id: self.i64("request_id", row),
            attempt: self.i32("attempt", row),
            outcome: self.word("outcome", row, Outcome::from_word)?,
            status: self.opt_i32("status", row),
            headers: self.opt_map("headers", row),
            trailers: self.opt_map("trailers", row),
            t_headers_ns: self.opt_i64("t_headers_ns", row),
            t_end_ns: self.opt_i64("t_end_ns", row),
            t_client_end_ns: self.opt_i64("t_client_end_ns", row),
            timestamp_source: self.word("timestamp_source", row, TimestampSource::from_word)?,
            finish_reason: self.opt_str("finish_reason", row),
            input_tokens: self.opt_i32("input_tokens", row),
            output_tokens: self.opt_i32("output_tokens", row),
            reasoning_tokens: self.opt_i32("reasoning_tokens", row),
            cached_tokens: self.opt_i32("cached_tokens", row),
            usage_source: self.opt_str("usage_source", row),
            error: self.opt_str("error", row),
            body: self.opt_bytes("body", row).map(Bytes::copy_from_slice),
            body_bytes: self.i64("body_bytes", row),
            chunk_count: self.i32("chunk_count", row),
            malformed_chunks: self.i32("malformed_chunks", row),
        })
    }

    fn sample(&self, row: usize) -> SampleRow {
        SampleRow {
            t_ns: self.i64("t_ns", row),
            source: self.str("source", row),
            name: self.str("name", row),
            labels: self.opt_map("labels", row).unwrap_or_default(),
            value: self
                .column("value")
                .as_primitive::<Float64Type>()
                .value(row),
        }
    }

    fn mark(&self, row: usize) -> MarkRow {
        MarkRow {
            t_ns: self.i64("t_ns", row),
            name: self.str("name", row),
            detail: self.str("detail", row),
        }
    }
}

/// Equal up to the names and nullability of nested fields, which a Parquet
/// writer other than ours may choose differently.
fn same_shape(found: &DataType, expected: &DataType) -> bool {
    found.equals_datatype(expected)
        || matches!(
            (found, expected),
            (DataType::Map(..), DataType::Map(..)) | (DataType::List(_), DataType::List(_))
        )
}

#[cfg(test)]
mod tests;
