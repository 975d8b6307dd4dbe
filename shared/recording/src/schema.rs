//! The contract with every reader: table names, columns, types, footer keys.
//!
//! Instants (`t_…_ns`) are ns since the recording started. A nullable column is
//! NULL where the thing did not happen or is not known, never 0.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

/// The version this crate writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Parquet footer key of the format version.
pub const FOOTER_FORMAT_VERSION: &str = "tapedeck.format_version";
/// Parquet footer key of the recording's id.
pub const FOOTER_RECORDING_ID: &str = "tapedeck.recording_id";
/// The first column of every table.
pub const RECORDING_ID: &str = "recording_id";

/// One of the five tables of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Requests,
    Chunks,
    Responses,
    Samples,
    Marks,
}

impl Table {
    pub const ALL: [Self; 5] = [
        Self::Requests,
        Self::Chunks,
        Self::Responses,
        Self::Samples,
        Self::Marks,
    ];

    /// The table's name in SQL and its folder in a recording.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Chunks => "chunks",
            Self::Responses => "responses",
            Self::Samples => "samples",
            Self::Marks => "marks",
        }
    }

    #[must_use]
    pub fn schema(self) -> SchemaRef {
        match self {
            Self::Requests => Arc::clone(&REQUESTS),
            Self::Chunks => Arc::clone(&CHUNKS),
            Self::Responses => Arc::clone(&RESPONSES),
            Self::Samples => Arc::clone(&SAMPLES),
            Self::Marks => Arc::clone(&MARKS),
        }
    }

    /// [`Self::schema`] without `recording_id`: rows before they are sealed.
    #[must_use]
    pub fn row_schema(self) -> SchemaRef {
        Arc::clone(&ROW_SCHEMAS[self as usize])
    }

    /// The table whose number is `index`, as frames of the log name it.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// Columns that a segment of this table is sorted by.
    #[must_use]
    pub const fn sort_columns(self) -> &'static [&'static str] {
        match self {
            Self::Chunks => &["request_id", "attempt", "chunk_index"],
            Self::Requests | Self::Responses | Self::Samples | Self::Marks => &[],
        }
    }
}

/// `Map<Utf8, Utf8>` as headers and labels are kept.
#[must_use]
pub fn map_type() -> DataType {
    let entries = Fields::from(vec![
        Field::new("keys", DataType::Utf8, false),
        Field::new("values", DataType::Utf8, true),
    ]);
    DataType::Map(
        Arc::new(Field::new("entries", DataType::Struct(entries), false)),
        false,
    )
}

/// Fields of one run of prefix-block ids.
#[must_use]
pub fn block_run_fields() -> Fields {
    Fields::from(vec![
        Field::new("start", DataType::Int64, false),
        Field::new("len", DataType::Int32, false),
    ])
}

fn block_runs_type() -> DataType {
    let item = Field::new("item", DataType::Struct(block_run_fields()), false);
    DataType::List(Arc::new(item))
}

fn required(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn optional(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn table(columns: Vec<Field>) -> SchemaRef {
    let mut fields = vec![required(RECORDING_ID, DataType::Utf8)];
    fields.extend(columns);
    Arc::new(Schema::new(fields))
}

static ROW_SCHEMAS: LazyLock<[SchemaRef; 5]> = LazyLock::new(|| {
    Table::ALL.map(|table| {
        let schema = table.schema();
        Arc::new(Schema::new(Fields::from_iter(
            schema.fields().iter().skip(1).cloned(),
        )))
    })
});

static REQUESTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Binary, Boolean, Int32, Int64, Utf8};
    table(vec![
        required("request_id", Int64),
        required("attempt", Int32),
        required("phase", Utf8),
        optional("session_id", Utf8),
        optional("turn", Int32),
        optional("parent_request_id", Int64),
        optional("replay_of", Int64),
        optional("worker", Utf8),
        required("api", Utf8),
        required("method", Utf8),
        required("url_path", Utf8),
        optional("query", Utf8),
        optional("model", Utf8),
        required("stream", Boolean),
        optional("t_scheduled_ns", Int64),
        optional("t_dispatched_ns", Int64),
        optional("t_received_ns", Int64),
        optional("t_connect_ns", Int64),
        optional("t_connected_ns", Int64),
        optional("t_tls_ns", Int64),
        optional("t_sent_ns", Int64),
        optional("conn_id", Int64),
        optional("conn_reused", Boolean),
        optional("headers", map_type()),
        optional("body", Binary),
        required("body_bytes", Int64),
        optional("body_hash", Utf8),
        optional("input_tokens", Int32),
        optional("input_tokens_source", Utf8),
        optional("max_output_tokens", Int32),
        optional("block_size", Int32),
        optional("block_runs", block_runs_type()),
    ])
});

static CHUNKS: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Binary, Int32, Int64, Utf8};
    table(vec![
        required("request_id", Int64),
        required("attempt", Int32),
        required("chunk_index", Int32),
        required("read_index", Int32),
        optional("choice_index", Int32),
        required("t_ns", Int64),
        required("t_seen_ns", Int64),
        optional("t_forwarded_ns", Int64),
        required("kind", Utf8),
        optional("event", Utf8),
        optional("event_id", Utf8),
        optional("tokens", Int32),
        required("bytes", Int64),
        optional("data", Binary),
    ])
});

static RESPONSES: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Binary, Int32, Int64, Utf8};
    table(vec![
        required("request_id", Int64),
        required("attempt", Int32),
        required("outcome", Utf8),
        optional("status", Int32),
        optional("headers", map_type()),
        optional("trailers", map_type()),
        optional("t_headers_ns", Int64),
        optional("t_end_ns", Int64),
        optional("t_client_end_ns", Int64),
        required("timestamp_source", Utf8),
        optional("finish_reason", Utf8),
        optional("input_tokens", Int32),
        optional("output_tokens", Int32),
        optional("reasoning_tokens", Int32),
        optional("cached_tokens", Int32),
        optional("usage_source", Utf8),
        optional("error", Utf8),
        optional("body", Binary),
        required("body_bytes", Int64),
        required("chunk_count", Int32),
        required("malformed_chunks", Int32),
    ])
});

static SAMPLES: LazyLock<SchemaRef> = LazyLock::new(|| {
    table(vec![
        required("t_ns", DataType::Int64),
        required("source", DataType::Utf8),
        required("name", DataType::Utf8),
        required("labels", map_type()),
        required("value", DataType::Float64),
    ])
});

static MARKS: LazyLock<SchemaRef> = LazyLock::new(|| {
    table(vec![
        required("t_ns", DataType::Int64),
        required("name", DataType::Utf8),
        required("detail", DataType::Utf8),
    ])
});
