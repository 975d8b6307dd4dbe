//! OpenTelemetry spans of the GenAI conventions, as the collector's file exporter
//! writes them: one OTLP JSON document a line. Spans of tools, agents and anything
//! else are no requests. Of contents nothing is taken.

use std::path::Path;

use serde_json::Value;

use super::instants::decimal_ns;
use super::reading::Reading;
use super::{Row, TraceError};

/// Operations of one request to a model.
const OPERATIONS: [&str; 3] = ["chat", "text_completion", "generate_content"];

pub(super) fn spans(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |reading, number, line| {
        let document: Value = serde_json::from_str(line).map_err(|e| format!("is no JSON: {e}"))?;
        let list = |value: &Value, name: &str| {
            let list = value.get(name).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        if document.get("resourceSpans").is_none() {
            return Err("has no \"resourceSpans\"".to_owned());
        }
        let resources = list(&document, "resourceSpans");
        let scopes = resources.iter().flat_map(|r| list(r, "scopeSpans"));
        let mut rows = Vec::new();
        for span in scopes.flat_map(|scope| list(&scope, "spans")) {
            match row(reading, number, &span)? {
                Some(row) => rows.push(row),
                None => reading.other += 1,
            }
        }
        reading.rows.append(&mut rows);
        Ok(None)
    })
}

fn row(reading: &mut Reading, number: u64, span: &Value) -> Result<Option<Row>, String> {
    let operation = text(span, "gen_ai.operation.name").unwrap_or_default();
    if !OPERATIONS.contains(&operation) {
        return Ok(None);
    }
    let t_ns = instant_ns(span, "startTimeUnixNano")?.ok_or("has a span without its start")?;
    let model = text(span, "gen_ai.request.model").map(|model| reading.text(model));
    let stream =
        attribute(span, "gen_ai.request.stream").and_then(|v| v.get("boolValue")?.as_bool());
    Ok(Some(Row {
        t_end_ns: instant_ns(span, "endTimeUnixNano")?,
        input_tokens: count(span, "gen_ai.usage.input_tokens"),
        output_tokens: count(span, "gen_ai.usage.output_tokens"),
        session: text(span, "gen_ai.conversation.id").map(Into::into),
        model,
        stream: stream.unwrap_or(true),
        ..Row::new(number, t_ns)
    }))
}

/// Whole numbers are strings in OTLP JSON, and numbers in what some exporters write.
fn digits(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn instant_ns(span: &Value, name: &str) -> Result<Option<i64>, String> {
    let instant = span.get(name).and_then(digits);
    instant.map(|digits| decimal_ns(&digits, 1)).transpose()
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let attributes = span.get("attributes")?.as_array()?;
    let is_it = |a: &&Value| a.get("key").and_then(Value::as_str) == Some(key);
    attributes.iter().find(is_it)?.get("value")
}

fn text<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    attribute(span, key)?.get("stringValue")?.as_str()
}

fn count(span: &Value, key: &str) -> Option<u32> {
    digits(attribute(span, key)?.get("intValue")?)?.parse().ok()
}
