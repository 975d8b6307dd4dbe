//! JSON lines with lengths and block ids: Mooncake, what vLLM reads of that
//! shape, Qwen-Bailian and `RAGPulse`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::instants::decimal_ns;
use super::reading::{GLOBAL, Reading};
use super::{Row, TraceError};

const SECOND_NS: i64 = 1_000_000_000;
const MS_NS: i64 = 1_000_000;

/// The components of a RAG prompt, in the order in which it is put together.
const RAG_COMPONENTS: [&str; 5] = [
    "sys_prompt",
    "passages_ids",
    "history",
    "web_search",
    "user_input",
];

pub(super) type Fields = Map<String, Value>;

pub(super) fn object(text: &str) -> Result<Fields, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("is no JSON object".to_owned()),
        Err(e) => Err(format!("is no JSON: {e}")),
    }
}

/// A number, or a string of one, in units of `unit_ns`.
pub(super) fn instant_ns(fields: &Fields, name: &str, unit_ns: i64) -> Result<i64, String> {
    match fields.get(name) {
        Some(Value::Number(number)) => decimal_ns(&number.to_string(), unit_ns),
        Some(Value::String(text)) => decimal_ns(text, unit_ns),
        Some(_) => Err(format!("has a {name:?} that is no number")),
        None => Err(format!("has no {name:?}")),
    }
}

pub(super) fn tokens(fields: &Fields, name: &str) -> Result<u32, String> {
    let value = fields.get(name).ok_or_else(|| format!("has no {name:?}"))?;
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| format!("has a {name:?} that is no number of tokens"))
}

pub(super) fn ids(value: Option<&Value>, name: &str) -> Result<Vec<i64>, String> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(format!("has {name:?} that are no list")),
    };
    let ids = list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>();
    ids.ok_or_else(|| format!("has {name:?} that are no whole numbers"))
}

pub(super) fn mooncake(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |reading, number, line| {
        plain(reading, number, &object(line)?, MS_NS).map(Some)
    })
}

pub(super) fn vllm(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |reading, number, line| {
        plain(reading, number, &object(line)?, SECOND_NS).map(Some)
    })
}

fn plain(reading: &mut Reading, number: u64, fields: &Fields, unit_ns: i64) -> Result<Row, String> {
    let ids = ids(fields.get("hash_ids"), "hash_ids")?;
    Ok(Row {
        input_tokens: Some(tokens(fields, "input_length")?),
        output_tokens: Some(tokens(fields, "output_length")?),
        session: text(fields, "session_id").map(Into::into),
        blocks: reading.runs(GLOBAL, &ids),
        ..Row::new(number, instant_ns(fields, "timestamp", unit_ns)?)
    })
}

fn text<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// Chats that name the chat before them. A session is the first of them; one
/// whose beginning the file does not hold begins where it does.
pub(super) fn bailian(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let mut chats: HashMap<i64, (usize, Arc<str>, i32)> = HashMap::new();
    reading.lines(file, |reading, number, line| {
        let fields = object(line)?;
        let chat = fields.get("chat_id").and_then(Value::as_i64);
        let chat = chat.ok_or_else(|| "has no \"chat_id\"".to_owned())?;
        let mut row = plain(reading, number, &fields, SECOND_NS)?;
        let before = fields.get("parent_chat_id").and_then(Value::as_i64);
        let before = before.and_then(|id| chats.get(&id));
        row.parent = before.map(|(index, ..)| *index);
        let (session, turn) = match before {
            Some((_, session, turn)) => (Arc::clone(session), turn.saturating_add(1)),
            None => (chat.to_string().into(), 0),
        };
        row.session = Some(Arc::clone(&session));
        row.turn = Some(turn);
        chats.insert(chat, (reading.rows.len(), session, turn));
        Ok(Some(row))
    })
}

pub(super) fn ragpulse(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    reading.lines(file, |reading, number, line| {
        let fields = object(line)?;
        let components = match fields.get("hash_ids") {
            Some(Value::Object(components)) => components,
            _ => return Err("has no \"hash_ids\" by component".to_owned()),
        };
        let mut all = Vec::new();
        for name in RAG_COMPONENTS {
            all.extend(ids(components.get(name), name)?);
        }
        Ok(Some(Row {
            input_tokens: Some(tokens(&fields, "input_length")?),
            output_tokens: Some(tokens(&fields, "output_length")?),
            session: text(&fields, "session_id").map(Into::into),
            blocks: reading.runs(GLOBAL, &all),
            ..Row::new(number, instant_ns(&fields, "timestamp", SECOND_NS)?)
        }))
    })
}
