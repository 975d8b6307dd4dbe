//! Query results as Rust structs, and Rust structs as small tables.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A schema of nullable columns.
pub(crate) fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields = columns
        .iter()
        .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Serializes `rows` into one batch of `schema`, by column name.
///
/// # Errors
/// When a row does not have the shape of `schema`.
pub(crate) fn to_batch<T: Serialize>(
    schema: &SchemaRef,
    rows: &[T],
) -> Result<RecordBatch, ArrowError> {
    let mut decoder = ReaderBuilder::new(schema.clone())
        .with_batch_size(rows.len().max(1))
        .build_decoder()?;
    decoder.serialize(rows)?;
    let batch = decoder.flush()?;
    Ok(batch.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// Deserializes every row, by column name. Floats keep every bit.
///
/// # Errors
/// When a row does not have the shape of `T`.
pub(crate) fn from_batches<T: DeserializeOwned>(
    batches: &[RecordBatch],
) -> Result<Vec<T>, DataFusionError> {
    let mut rows = Vec::new();
    for batch in batches {
        for index in 0..batch.num_rows() {
            let row = serde_json::from_value(Value::Object(object(batch, index)?));
            rows.push(row.map_err(|e| DataFusionError::External(e.into()))?);
        }
    }
    Ok(rows)
}

fn object(batch: &RecordBatch, index: usize) -> Result<Map<String, Value>, DataFusionError> {
    let schema = batch.schema_ref();
    let cells = schema.fields().iter().zip(batch.columns());
    cells
        .map(|(field, column)| {
            let cell = ScalarValue::try_from_array(column, index)?;
            Ok((field.name().clone(), json(&cell)))
        })
        .collect()
}

/// A cell as JSON; what JSON has no word for becomes its text, NaN and NULL null.
fn json(cell: &ScalarValue) -> Value {
    match cell {
        cell if cell.is_null() => Value::Null,
        ScalarValue::Boolean(Some(v)) => Value::from(*v),
        ScalarValue::Int32(Some(v)) => Value::from(*v),
        ScalarValue::Int64(Some(v)) => Value::from(*v),
        ScalarValue::UInt64(Some(v)) => Value::from(*v),
        ScalarValue::Float64(Some(v)) => Value::from(*v),
        cell => Value::from(
            cell.try_as_str()
                .flatten()
                .map_or_else(|| cell.to_string(), str::to_owned),
        ),
    }
}
