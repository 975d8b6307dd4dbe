//! WEKA's coding sessions: one JSON file each, with sub-agents inside.
//!
//! A session counts from its own start, so several of them begin together. The
//! requests of a sub-agent are a session of their own, whose first request descends
//! from the one before the sub-agent.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::error::WorkloadError;
use crate::files;

use super::hashed::{Fields, ids, instant_ns, object, tokens};
use super::reading::{GLOBAL, Reading, row_error};
use super::{Row, TraceError};

const SECOND_NS: i64 = 1_000_000_000;

/// Largest session read; the published ones are below 5 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Sub-agents of sub-agents, at most.
const MAX_DEPTH: usize = 16;

pub(super) fn session(file: &Path, reading: &mut Reading) -> Result<(), TraceError> {
    let fields = match whole(file)? {
        Ok(fields) => fields,
        Err(problem) => return reading.bad(row_error(file, 1, problem)),
    };
    let id = fields.get("id").and_then(Value::as_str);
    let stem = || file.file_stem().unwrap_or_default().to_string_lossy();
    let id = id.map_or_else(|| stem().into_owned(), str::to_owned);
    let is_global = fields.get("hash_id_scope").and_then(Value::as_str) == Some("global");
    let size = fields.get("block_size").and_then(Value::as_u64);
    let size = size.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    if let (Some(size), Some(before)) = (size, reading.block_size)
        && size != before
    {
        let problem = format!("has blocks of {size} tokens, files before it of {before}");
        return reading.bad(row_error(file, 1, problem));
    }
    reading.block_size = size.or(reading.block_size);
    let mut walk = Walk {
        file,
        reading,
        scope: if is_global {
            GLOBAL
        } else {
            scope_of(file, &id)
        },
        number: 0,
    };
    walk.requests(&fields, &id.into(), None, 0, 0)
}

/// A name space of their own for the block ids of one file.
fn scope_of(file: &Path, id: &str) -> u64 {
    let hash = blake3::hash(format!("{}\0{id}", file.display()).as_bytes());
    let bytes: [u8; 8] = std::array::from_fn(|i| hash.as_bytes()[i]);
    u64::from_le_bytes(bytes).max(1)
}

fn whole(file: &Path) -> Result<Result<Fields, String>, WorkloadError> {
    let mut text = String::new();
    files::open(file)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| WorkloadError::read(file, source))?;
    Ok(object(&text))
}

struct Walk<'a> {
    file: &'a Path,
    reading: &'a mut Reading,
    scope: u64,
    /// Of the last request, sub-agents' included.
    number: u64,
}

impl Walk<'_> {
    fn requests(
        &mut self,
        fields: &Fields,
        session: &Arc<str>,
        parent: Option<usize>,
        base_ns: i64,
        depth: usize,
    ) -> Result<(), TraceError> {
        let Some(Value::Array(requests)) = fields.get("requests") else {
            let problem = "has no list of \"requests\"".to_owned();
            return self
                .reading
                .bad(row_error(self.file, self.number.max(1), problem));
        };
        let mut last = parent;
        let mut turn = 0;
        for request in requests {
            let agent = request.get("requests").and(request.as_object());
            if let Some(agent) = agent.filter(|_| depth < MAX_DEPTH) {
                let t_ns = base_ns.saturating_add(instant_ns(agent, "t", SECOND_NS).unwrap_or(0));
                let name = agent.get("agent_id").and_then(Value::as_str);
                let name = name.map_or_else(|| self.number.to_string(), str::to_owned);
                let base_ns = base_of(agent, base_ns, t_ns);
                self.requests(
                    agent,
                    &format!("{session}/{name}").into(),
                    last,
                    base_ns,
                    depth + 1,
                )?;
                continue;
            }
            self.number += 1;
            match self.row(request, base_ns) {
                Ok(row) => {
                    let row = Row {
                        parent: last,
                        session: Some(Arc::clone(session)),
                        turn: Some(turn),
                        ..row
                    };
                    last = Some(self.reading.rows.len());
                    turn += 1;
                    self.reading.rows.push(row);
                }
                Err(problem) => self
                    .reading
                    .bad(row_error(self.file, self.number, problem))?,
            }
        }
        Ok(())
    }

    fn row(&mut self, request: &Value, base_ns: i64) -> Result<Row, String> {
        let fields = request.as_object().ok_or("is no JSON object")?;
        let t_ns = instant_ns(fields, "t", SECOND_NS)?.saturating_add(base_ns);
        let api_time_ns = match fields.get("api_time") {
            None | Some(Value::Null) => None,
            Some(_) => Some(instant_ns(fields, "api_time", SECOND_NS)?),
        };
        let ids = ids(fields.get("hash_ids"), "hash_ids")?;
        let model = fields.get("model").and_then(Value::as_str);
        Ok(Row {
            t_end_ns: api_time_ns.and_then(|ns| t_ns.checked_add(ns)),
            input_tokens: Some(tokens(fields, "in")?),
            output_tokens: Some(tokens(fields, "out")?),
            model: model.map(|m| self.reading.text(m)),
            // `n` is a whole answer, `s` a stream.
            stream: fields.get("type").and_then(Value::as_str) != Some("n"),
            blocks: self.reading.runs(self.scope, &ids),
            ..Row::new(self.number, t_ns)
        })
    }
}

/// What the instants of a sub-agent's requests count from. The format's description
/// leaves it open: where the first of them would lie before the sub-agent began,
/// they count from there, else from the session's start.
fn base_of(agent: &Fields, base_ns: i64, agent_ns: i64) -> i64 {
    let first = agent
        .get("requests")
        .and_then(|r| r.get(0)?.as_object().cloned());
    let first_ns = first.and_then(|first| instant_ns(&first, "t", SECOND_NS).ok());
    match first_ns {
        Some(ns) if base_ns.saturating_add(ns) < agent_ns => agent_ns,
        _ => base_ns,
    }
}
