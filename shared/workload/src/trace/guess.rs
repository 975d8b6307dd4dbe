//! Which format a trace has, by its beginning.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::hashed::{Fields, object};
use super::{Format, TraceError, bodies, servegen};
use crate::error::WorkloadError;
use crate::files;

/// Looked at from the beginning of a file.
const HEAD_BYTES: u64 = 256 << 10;

/// The format of `path`, whose first file is `file`.
pub(super) fn format(path: &Path, file: &Path) -> Result<Format, TraceError> {
    let mut head = Vec::new();
    files::open(file)?
        .take(HEAD_BYTES)
        .read_to_end(&mut head)
        .map_err(|source| WorkloadError::read(file, source))?;
    of_head(&head).ok_or_else(|| TraceError::Unknown(path.to_owned()))
}

fn of_head(head: &[u8]) -> Option<Format> {
    if memchr::memmem::find(head, bodies::GOREPLAY_SEPARATOR).is_some() {
        return Some(Format::GoReplay);
    }
    // A character may be cut at the end.
    let text = head.utf8_chunks().next()?.valid();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let line = text.lines().next()?;
    let starts = |prefix: &str| line.to_ascii_lowercase().starts_with(prefix);
    if starts("timestamp,contexttokens,") {
        return Some(Format::Azure);
    }
    if starts("timestamp,") && line.contains("Request tokens") {
        return Some(Format::BurstGpt);
    }
    if servegen::is_window(line) {
        return Some(Format::ServeGen);
    }
    match object(line) {
        Ok(fields) => of_object(&fields),
        Err(_) => of_document(text),
    }
}

fn of_object(fields: &Fields) -> Option<Format> {
    let has = |name: &str| fields.contains_key(name);
    if fields
        .get("log")
        .and_then(|log| log.get("entries"))
        .is_some()
    {
        return Some(Format::Har);
    }
    if has("requests") && has("block_size") {
        return Some(Format::Weka);
    }
    if has("resourceSpans") {
        return Some(Format::OTel);
    }
    if has("metadata") || has("data") {
        return is_aiperf(fields).then_some(Format::AiPerf);
    }
    if is_servegen(fields) {
        return Some(Format::ServeGen);
    }
    if has("body") && has("timestamp") {
        return Some(Format::EvalScope);
    }
    if !has("timestamp") || !has("input_length") || !has("output_length") {
        return None;
    }
    match fields.get("hash_ids") {
        Some(Value::Object(_)) => Some(Format::RagPulse),
        _ if has("chat_id") => Some(Format::Bailian),
        Some(Value::Array(ids)) => by_block_size(fields, ids.len() as u64),
        _ => None,
    }
}

fn is_aiperf(fields: &Fields) -> bool {
    let record = fields
        .get("metadata")
        .and_then(|m| m.get("request_start_ns"));
    let inputs = fields.get("data").and_then(|d| d.get(0)?.get("payloads"));
    record.or(inputs).is_some()
}

/// Distributions of lengths by instant.
fn is_servegen(fields: &Fields) -> bool {
    let first = fields.iter().next();
    first.is_some_and(|(instant, lengths)| {
        instant.parse::<u64>().is_ok() && lengths.get("input_tokens").is_some()
    })
}

/// Mooncake and vLLM's `timed_trace` differ in the size of their blocks and the
/// unit of their instants only.
fn by_block_size(fields: &Fields, blocks: u64) -> Option<Format> {
    let length = fields.get("input_length").and_then(Value::as_u64)?;
    let fits = |format: &Format| {
        let size = u64::from(format.block_size().unwrap_or(u32::MAX));
        length.div_ceil(size) == blocks
    };
    let mut fitting = [Format::Mooncake, Format::Vllm].into_iter().filter(fits);
    // A prompt of some few tokens may fit both.
    fitting.next().filter(|_| fitting.next().is_none())
}

/// A document over several lines, of which only the beginning is known.
fn of_document(text: &str) -> Option<Format> {
    let has = |name: &str| text.contains(name);
    if !text.starts_with('{') {
        return None;
    }
    if has("\"log\"") && has("\"entries\"") {
        return Some(Format::Har);
    }
    if has("\"request_start_ns\"") || (has("\"data\"") && has("\"payloads\"")) {
        return Some(Format::AiPerf);
    }
    let first_key = text[1..].trim_start().strip_prefix('"');
    if first_key.is_some_and(|key| key.starts_with(|c: char| c.is_ascii_digit()))
        && has("\"input_tokens\"")
    {
        return Some(Format::ServeGen);
    }
    (has("\"requests\"") && has("\"block_size\"")).then_some(Format::Weka)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn formats_are_told_apart_by_their_beginning() {
        let lines = [
            ("TIMESTAMP,ContextTokens,GeneratedTokens\r\n", Format::Azure),
            (
                "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
                Format::BurstGpt,
            ),
            (
                r#"{"timestamp":0,"input_length":513,"output_length":1,"hash_ids":[0,1]}"#,
                Format::Mooncake,
            ),
            (
                r#"{"timestamp":0,"input_length":33,"output_length":1,"hash_ids":[0,1,2]}"#,
                Format::Vllm,
            ),
            (
                r#"{"chat_id":1,"timestamp":0,"input_length":9,"output_length":1,"hash_ids":[0]}"#,
                Format::Bailian,
            ),
            (
                r#"{"timestamp":"1","input_length":9,"output_length":1,"hash_ids":{}}"#,
                Format::RagPulse,
            ),
            (r#"{"id":"x","block_size":64,"requests":["#, Format::Weka),
            (r#"{"timestamp":1,"body":{}}"#, Format::EvalScope),
            (r#"{"resourceSpans":[]}"#, Format::OTel),
            ("{\n \"log\": {\n \"entries\": []", Format::Har),
            ("0,0.5,1.1,Gamma,0.9,1.2\n", Format::ServeGen),
            (r#"{"0": {"input_tokens": "{1: 1.0}"}}"#, Format::ServeGen),
            (r#"{"0": {"input_tokens": "{1: 0."#, Format::ServeGen),
            (r#"{"metadata":{"request_start_ns":1}}"#, Format::AiPerf),
            (r#"{"data":[{"payloads":[]}]}"#, Format::AiPerf),
            ("{\n \"data\": [\n {\"payloads\": [", Format::AiPerf),
            (
                "1 a 2 0\nPOST / HTTP/1.1\r\n\r\n\n🐵🙈🙉\n",
                Format::GoReplay,
            ),
        ];
        for (head, format) in lines {
            assert_eq!(of_head(head.as_bytes()), Some(format), "{head}");
        }
        let short = r#"{"timestamp":0,"input_length":9,"output_length":1,"hash_ids":[0]}"#;
        for unknown in [short, "", "\n", "hello", "[1]", "{}", "\u{feff}"] {
            assert_eq!(of_head(unknown.as_bytes()), None, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn no_beginning_panics(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            of_head(&head);
        }
    }
}
