//! Traces that hold the requests themselves: `EvalScope`'s `workload_trace`, HAR
//! and goreplay files. Only paths and bodies are taken, no header: those hold
//! keys.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::hashed::{Fields, instant_ns, object, tokens};
use super::instants::{datetime_ns, decimal_ns};
use super::reading::{Reading, row_error};
use super::{Content, Row, TraceError};
use crate::error::WorkloadError;
use crate::files;

const SECOND_NS: i64 = 1_000_000_000;
const MS_NS: i64 = 1_000_000;

/// Largest document that is read whole.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// Between the records of a goreplay file.
pub(super) const GOREPLAY_SEPARATOR: &[u8] = "\n🐵🙈🙉\n".as_bytes();

const CHAT_PATH: &str = "/v1/chat/completions";
const COMPLETIONS_PATH: &str = "/v1/completions";

/// A row with the body `fields`, sent as `body`.
pub(super) fn row_of(number: u64, t_ns: i64, path: &str, fields: &Fields, body: Bytes) -> Row {
    let limit = ["max_tokens", "max_completion_tokens"];
    let limit = limit.iter().find_map(|name| fields.get(*name)?.as_i64());
    Row {
        model: fields.get("model").and_then(Value::as_str).map(Into::into),
        stream: fields
            .get("stream")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        content: Some(Content {
            url_path: path.into(),
            body,
            max_output_tokens: limit.and_then(|n| i32::try_from(n).ok()),
        }),
        ..Row::new(number, t_ns)
    }
}

fn is_llm_path(path: &str) -> bool {
    path.ends_with("/completions")
}

/// Where a body of that shape goes.
pub(super) fn path_for(body: &Fields) -> Result<&'static str, String> {
    if body.contains_key("messages") {
        Ok(CHAT_PATH)
    } else if body.contains_key("prompt") {
        Ok(COMPLETIONS_PATH)
    } else {
        Err("has a body without \"messages\" or \"prompt\"".to_owned())
    }
}

/// Fills in what a whole answer's `usage` says.
fn add_usage(row: &mut Row, answer: &Fields) {
    let Some(usage) = answer.get("usage").and_then(Value::as_object) else {
        return;
    };
    row.input_tokens = tokens(usage, "prompt_tokens").ok();
    row.output_tokens = tokens(usage, "completion_tokens").ok();
}

/// Lines of `body`, `timestamp` (seconds, or a date) and `completion_tokens`.
pub(super) fn evalscope(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |_, number, line| {
        let fields = object(line)?;
        let t_ns = match fields.get("timestamp") {
            Some(Value::String(text)) if text.contains(':') => datetime_ns(text)?,
            _ => instant_ns(&fields, "timestamp", SECOND_NS)?,
        };
        let body = fields.get("body").and_then(Value::as_object);
        let body = body.ok_or_else(|| "has no object \"body\"".to_owned())?;
        let path = path_for(body)?;
        let bytes = Bytes::from(serde_json::to_vec(body).map_err(|e| e.to_string())?);
        let mut row = row_of(number, t_ns, path, body, bytes);
        row.output_tokens = tokens(&fields, "completion_tokens").ok();
        Ok(Some(row))
    })
}

/// The entries of a HAR document that went to an LLM.
pub(super) fn har(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let text = whole(file)?;
    let document: Value = match serde_json::from_slice(&text) {
        Ok(document) => document,
        Err(e) => return reading.bad(row_error(file, 1, format!("is no JSON: {e}"))),
    };
    let entries = document.pointer("/log/entries").and_then(Value::as_array);
    let Some(entries) = entries else {
        return reading.bad(row_error(file, 1, "has no log.entries".to_owned()));
    };
    for (number, entry) in (1..).zip(entries) {
        match har_row(number, entry) {
            Ok(Some(row)) => reading.rows.push(row),
            Ok(None) => reading.other += 1,
            Err(problem) => reading.bad(row_error(file, number, problem))?,
        }
    }
    Ok(())
}

fn har_row(number: u64, entry: &Value) -> Result<Option<Row>, String> {
    let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str);
    let url = text("/request/url").ok_or("has no request.url")?;
    let path = path_of(url);
    if text("/request/method") != Some("POST") || !is_llm_path(path) {
        return Ok(None);
    }
    let body = text("/request/postData/text").ok_or("has no request body")?;
    let t_ns = datetime_ns(text("/startedDateTime").ok_or("has no startedDateTime")?)?;
    let mut row = row_of(
        number,
        t_ns,
        path,
        &object(body)?,
        Bytes::from(body.to_owned()),
    );
    let time = entry
        .get("time")
        .filter(|t| t.as_f64().is_some_and(|t| t >= 0.0));
    let time_ns = time
        .map(|t| decimal_ns(&t.to_string(), MS_NS))
        .transpose()?;
    row.t_end_ns = time_ns.and_then(|ns| t_ns.checked_add(ns));
    if let Some(answer) = text("/response/content/text").and_then(|t| object(t).ok()) {
        add_usage(&mut row, &answer);
    }
    Ok(Some(row))
}

/// Scheme, host and query cut off.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = if url.starts_with('/') {
        url
    } else {
        rest.find('/').map_or("/", |at| &rest[at..])
    };
    path.split(['?', '#']).next().unwrap_or(path)
}

/// `TYPE ID TIMESTAMP_NS LATENCY_NS` and the raw HTTP message; 1 is a request, 2
/// its response.
pub(super) fn goreplay(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let text = whole(file)?;
    let mut requests: HashMap<String, usize> = HashMap::new();
    let mut rest = text.as_slice();
    for number in 1.. {
        if rest.trim_ascii().is_empty() {
            break;
        }
        let end = memchr::memmem::find(rest, GOREPLAY_SEPARATOR);
        let (record, after) = match end {
            Some(at) => (&rest[..at], &rest[at + GOREPLAY_SEPARATOR.len()..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        if let Err(problem) = goreplay_record(number, record, reading, &mut requests) {
            reading.bad(row_error(file, number, problem))?;
        }
    }
    Ok(())
}

fn goreplay_record(
    number: u64,
    record: &[u8],
    reading: &mut Reading,
    requests: &mut HashMap<String, usize>,
) -> Result<(), String> {
    let (head, message) = split_at(record, b"\n").ok_or("has no header line")?;
    let head = str::from_utf8(head).map_err(|_| "has a header that is not UTF-8")?;
    let fields: Vec<&str> = head.split_ascii_whitespace().collect();
    let [kind, id, rest @ ..] = fields.as_slice() else {
        return Err("has no header of type, id and instant".to_owned());
    };
    let number_ns = |at: usize| rest.get(at).and_then(|n| n.parse::<i64>().ok());
    match *kind {
        "1" => {
            let t_ns = number_ns(0).ok_or("has no instant")?;
            let Some(row) = goreplay_request(number, t_ns, message)? else {
                reading.other += 1;
                return Ok(());
            };
            requests.insert((*id).to_owned(), reading.rows.len());
            reading.rows.push(row);
        }
        "2" => {
            let row = requests
                .get(*id)
                .and_then(|index| reading.rows.get_mut(*index));
            if let (Some(row), Some(latency_ns)) = (row, number_ns(1)) {
                row.t_end_ns = row.t_ns.checked_add(latency_ns);
                let answer = http_body(message)
                    .and_then(|(_, body)| str::from_utf8(&body).ok().and_then(|b| object(b).ok()));
                if let Some(answer) = answer {
                    add_usage(row, &answer);
                }
            }
        }
        "3" => {}
        _ => return Err("is of an unknown type".to_owned()),
    }
    Ok(())
}

fn goreplay_request(number: u64, t_ns: i64, message: &[u8]) -> Result<Option<Row>, String> {
    let (first, body) = http_body(message).ok_or("is no whole HTTP message")?;
    let mut words = first.split_ascii_whitespace();
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or("/"),
    );
    let path = path_of(target);
    if method != "POST" || !is_llm_path(path) {
        return Ok(None);
    }
    let text = str::from_utf8(&body).map_err(|_| "has a body that is not UTF-8")?;
    let fields = object(text)?;
    Ok(Some(row_of(number, t_ns, path, &fields, body)))
}

/// First line and body of a message that is whole; chunked bodies put together.
fn http_body(message: &[u8]) -> Option<(&str, Bytes)> {
    let (head, body) = split_at(message, b"\r\n\r\n")?;
    let head = str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse::<usize>().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Some((first, unchunked(body)?));
        }
    }
    let body = match length {
        Some(length) => body.get(..length)?,
        None => body,
    };
    Some((first, Bytes::copy_from_slice(body)))
}

fn unchunked(mut body: &[u8]) -> Option<Bytes> {
    let mut whole = Vec::new();
    loop {
        let (size, rest) = split_at(body, b"\r\n")?;
        let size = str::from_utf8(size).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole.into());
        }
        whole.extend_from_slice(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn split_at<'a>(bytes: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(bytes, separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}

pub(super) fn whole(file: &Path) -> Result<Vec<u8>, WorkloadError> {
    let mut bytes = Vec::new();
    files::open(file)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| WorkloadError::read(file, source))?;
    Ok(bytes)
}
