//! What `AIPerf` leaves behind: `inputs.json`, the payloads of each session without
//! any instant, and its records, one JSON line a request, with the payload where it
//! was told to keep that (`profile_export_raw.jsonl`) and with lengths where not.
//! Of headers nothing is taken: those hold keys.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::bodies::{path_for, row_of, whole};
use super::hashed::{Fields, object};
use super::instants::decimal_ns;
use super::reading::{Reading, row_error};
use super::{Row, TraceError};
use crate::files;

/// Records of warm-ups are no requests of the run.
const MEASURED: &str = "profiling";

pub(super) fn export(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let read_error = |source| crate::error::WorkloadError::read(file, source);
    let mut reader = files::open(file)?;
    let first = files::read_line(&mut *reader).map_err(read_error)?;
    let first = first.unwrap_or_default();
    let first = str::from_utf8(&first)
        .ok()
        .and_then(|line| object(line).ok());
    match first {
        Some(fields) if fields.contains_key("metadata") => records(file, reading),
        _ => inputs(file, reading),
    }
}

/// Sessions of payloads. Nothing says when they were sent: every one begins at once,
/// and its turns follow in their order.
fn inputs(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let document: Value = match serde_json::from_slice(&whole(file)?) {
        Ok(document) => document,
        Err(e) => return reading.bad(row_error(file, 1, format!("is no JSON: {e}"))),
    };
    let Some(sessions) = document.get("data").and_then(Value::as_array) else {
        return reading.bad(row_error(file, 1, "has no list \"data\"".to_owned()));
    };
    let mut number = 0;
    for (place, session) in sessions.iter().enumerate() {
        let name = session.get("session_id").and_then(Value::as_str);
        let name = name.map_or_else(|| format!("session-{place}"), str::to_owned);
        let Some(payloads) = session.get("payloads").and_then(Value::as_array) else {
            let problem = format!("session {name} has no list \"payloads\"");
            reading.bad(row_error(file, number.max(1), problem))?;
            continue;
        };
        for (turn, payload) in (0..).zip(payloads) {
            number += 1;
            match with_payload(&Row::new(number, 0), payload) {
                Ok(row) => reading.rows.push(Row {
                    session: Some(name.as_str().into()),
                    turn: Some(turn),
                    ..row
                }),
                Err(problem) => reading.bad(row_error(file, number, problem))?,
            }
        }
    }
    Ok(())
}

fn records(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |reading, number, line| {
        let fields = object(line)?;
        let metadata = fields.get("metadata").and_then(Value::as_object);
        let metadata = metadata.ok_or("has no \"metadata\"")?;
        let text = |name: &str| metadata.get(name).and_then(Value::as_str);
        if text("benchmark_phase").is_some_and(|phase| phase != MEASURED) {
            reading.other += 1;
            return Ok(None);
        }
        let t_ns = instant_ns(metadata, "request_start_ns")?;
        let mut row = Row::new(number, t_ns.ok_or("has no request_start_ns")?);
        if let Some(payload) = fields.get("payload").filter(|payload| !payload.is_null()) {
            row = with_payload(&row, payload)?;
        }
        let cancelled = metadata.get("was_cancelled").and_then(Value::as_bool);
        row.cancelled = cancelled.unwrap_or(false);
        row.t_end_ns = match instant_ns(metadata, "cancellation_time_ns")? {
            Some(t_ns) if row.cancelled => Some(t_ns),
            _ => instant_ns(metadata, "request_end_ns")?,
        };
        // A data set's conversation may be sent several times: sessions are the
        // sendings.
        let session = text("x_correlation_id").or_else(|| text("conversation_id"));
        row.session = session.map(Into::into);
        let turn = metadata.get("turn_index").and_then(Value::as_i64);
        row.turn = turn.and_then(|turn| i32::try_from(turn).ok());
        let count = |name: &str| {
            let value = fields.get("metrics")?.get(name)?.get("value")?.as_f64()?;
            (value >= 0.0 && value <= f64::from(u32::MAX)).then_some(value as u32)
        };
        row.input_tokens = count("input_sequence_length");
        row.output_tokens = count("output_sequence_length");
        Ok(Some(row))
    })
}

fn instant_ns(fields: &Fields, name: &str) -> Result<Option<i64>, String> {
    match fields.get(name) {
        Some(Value::Number(number)) => decimal_ns(&number.to_string(), 1).map(Some),
        Some(Value::Null) | None => Ok(None),
        Some(_) => Err(format!("has a {name:?} that is no number")),
    }
}

/// `row` with what was sent: a body, or the text of one.
fn with_payload(row: &Row, payload: &Value) -> Result<Row, String> {
    let parsed;
    let fields = match payload {
        Value::Object(fields) => fields,
        Value::String(text) => {
            parsed = object(text).map_err(|e| format!("has a payload that {e}"))?;
            &parsed
        }
        _ => return Err("has a payload that is no JSON object".to_owned()),
    };
    let path = path_for(fields)?;
    let body = Bytes::from(serde_json::to_vec(fields).map_err(|e| e.to_string())?);
    Ok(row_of(row.number, row.t_ns, path, fields, body))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Trace, TraceSpec, read};
    use super::*;

    fn trace(text: &str, skip_bad: bool) -> Result<Trace, TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.json");
        std::fs::write(&path, text).unwrap();
        read(&TraceSpec {
            path,
            format: None,
            skip_bad,
            block_size: None,
            seed: 0,
        })
    }

    const INPUTS: &str = r#"{
  "data": [
    {"session_id": "s1", "payloads": [
      {"messages": [{"role": "user", "content": "a"}], "model": "m", "max_tokens": 5, "stream": true},
      {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]},
    {"session_id": "s2", "payloads": [{"prompt": "c"}]}
  ]
}"#;

    #[test]
    fn inputs_are_sessions_of_bodies() {
        let trace = trace(INPUTS, false).unwrap();
        assert_eq!(trace.format, Format::AiPerf);
        let rows: Vec<_> = trace
            .rows
            .iter()
            .map(|r| (r.session.as_deref(), r.turn, r.stream, r.t_ns))
            .collect();
        let expected = [
            (Some("s1"), Some(0), true, 0),
            (Some("s1"), Some(1), false, 0),
            (Some("s2"), Some(0), false, 0),
        ];
        assert_eq!(rows, expected);
        let content = |at: usize| trace.rows[at].content.as_ref().unwrap();
        assert_eq!(content(0).max_output_tokens, Some(5));
        assert_eq!(&*content(2).url_path, "/v1/completions");
        assert_eq!(&*content(2).body, br#"{"prompt":"c"}"#);
    }

    fn record(start_ns: i64, more: &str, rest: &str) -> String {
        format!(
            r#"{{"metadata":{{"x_correlation_id":"c","conversation_id":"d","turn_index":1,"request_start_ns":{start_ns},"benchmark_phase":"profiling"{more}}}{rest}}}"#
        ) + "\n"
    }

    #[test]
    fn records_have_instants_lengths_and_what_was_cancelled() {
        let text = [
            record(
                2_000_000_000_000_000_001,
                r#","request_end_ns":2000000000000000500,"was_cancelled":false,"cancellation_time_ns":null"#,
                r#","metrics":{"input_sequence_length":{"value":550},"output_sequence_length":{"value":9.0}},"error":null"#,
            ),
            record(
                2_000_000_000_000_000_101,
                r#","request_end_ns":2000000000000000200,"was_cancelled":true,"cancellation_time_ns":2000000000000000150"#,
                r#","payload":{"prompt":"x","stream":true},"request_headers":{"Authorization":"<redacted>"},"responses":[]"#,
            ),
            record(5, "", "").replace(MEASURED, "warmup"),
        ]
        .concat();
        let trace = trace(&text, false).unwrap();
        assert_eq!((trace.format, trace.other), (Format::AiPerf, 1));
        let [first, second] = trace.rows.as_slice() else {
            panic!("two rows");
        };
        assert_eq!(first.t_end_ns.unwrap() - first.t_ns, 499);
        assert_eq!(
            (first.input_tokens, first.output_tokens, first.cancelled),
            (Some(550), Some(9), false)
        );
        assert_eq!(
            (second.session.as_deref(), second.turn),
            (Some("c"), Some(1))
        );
        assert_eq!(second.t_end_ns.unwrap() - second.t_ns, 49);
        assert!(second.cancelled && second.content.is_some());
    }

    #[test]
    fn bad_payloads_are_named_or_left_out() {
        let bad = INPUTS.replace(r#"{"prompt": "c"}"#, r#"{"prompt": "c"}, {"x": 1}, 7"#);
        let refused = trace(&bad, false).unwrap_err().to_string();
        assert!(refused.contains("row 4"), "{refused}");
        let read = trace(&bad, true).unwrap();
        assert_eq!((read.rows.len(), read.bad), (3, 2));
    }
}
