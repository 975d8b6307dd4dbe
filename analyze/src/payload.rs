//! SQL functions over recorded payloads: a chunk's `data`, a request's or an
//! answer's `body`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use serde_json::Value;

/// `json_extract_string(payload, pointer)`: the value at a JSON pointer, strings
/// without their quotes, anything else as JSON. NULL where the payload is no
/// JSON, has nothing there, or has `null` there. Name and meaning are `DuckDB`'s.
pub(crate) fn json_extract_string() -> ScalarUDF {
    ScalarUDF::from(JsonExtractString {
        signature: Signature::any(2, Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonExtractString {
    signature: Signature,
}

impl ScalarUDFImpl for JsonExtractString {
    fn name(&self) -> &'static str {
        "json_extract_string"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        for kind in arguments {
            if !is_text(kind) && !is_bytes(kind) && *kind != DataType::Null {
                return plan_err!(
                    "json_extract_string(payload, pointer) takes text or bytes, not {kind}"
                );
            }
        }
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [payloads, pointers] = take_function_args(self.name(), args.args)?;
        let payloads = cast(&payloads.into_array(rows)?, &DataType::Binary)?;
        let pointers = cast(&pointers.into_array(rows)?, &DataType::Utf8)?;
        let pointers = pointers.as_string::<i32>();
        let mut values = Vec::with_capacity(payloads.len());
        for (index, payload) in payloads.as_binary::<i32>().iter().enumerate() {
            let (Some(payload), true) = (payload, pointers.is_valid(index)) else {
                values.push(None);
                continue;
            };
            let pointer = pointers.value(index);
            if !pointer.is_empty() && !pointer.starts_with('/') {
                return exec_err!(
                    "{pointer:?} is not a JSON pointer: it starts with /, as in '/usage/total_tokens'"
                );
            }
            values.push(at_pointer(payload, pointer));
        }
        Ok(ColumnarValue::Array(Arc::new(StringArray::from(values))))
    }
}

fn at_pointer(payload: &[u8], pointer: &str) -> Option<String> {
    let document: Value = serde_json::from_slice(payload).ok()?;
    match document.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    )
}

fn is_bytes(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView
    )
}

/// `batch` with columns of bytes as text: payloads are JSON nearly always. What
/// is not UTF-8 becomes `\x` and hexadecimal digits.
pub(crate) fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if !batch.columns().iter().any(|c| is_bytes(c.data_type())) {
        return Ok(batch.clone());
    }
    let schema = batch.schema();
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .map(readable_column)
        .collect::<Result<_, _>>()?;
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(&columns)
        .map(|(field, column)| {
            Field::new(
                field.name(),
                column.data_type().clone(),
                field.is_nullable(),
            )
        })
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn readable_column(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !is_bytes(column.data_type()) {
        return Ok(Arc::clone(column));
    }
    let bytes = cast(column, &DataType::Binary)?;
    let bytes: &BinaryArray = bytes.as_binary();
    let text: StringArray = bytes.iter().map(|value| value.map(text_or_hex)).collect();
    Ok(Arc::new(text))
}

fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            "\\x"
                .chars()
                .chain(digits.collect::<String>().chars())
                .collect()
        }
    }
}
