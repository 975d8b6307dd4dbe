//! A folder of prompts, as byzer-perf keeps them: `*.jsonl` has records with a
//! `prompt`, every other file a prompt a line. Files count in the order of their
//! names; hidden ones and folders are passed over.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dataset::{Gathered, Reason};
use crate::error::WorkloadError;
use crate::files::{self, open, read_line};
use crate::prompts::Item;

pub(crate) fn gather(folder: &Path, skip_bad: bool) -> Result<Gathered, WorkloadError> {
    let mut gathered = Gathered::default();
    for path in files_of(folder)? {
        let is_records = path.extension().is_some_and(|e| e == "jsonl");
        let mut reader = open(&path)?;
        for line in 1.. {
            let next =
                read_line(&mut reader).map_err(|source| WorkloadError::read(&path, source))?;
            let Some(bytes) = next else { break };
            match parse(&bytes, is_records) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    gathered.records += 1;
                    gathered.prompts.push(Item::Text(text).into());
                }
                Err(_) if skip_bad => {
                    gathered.records += 1;
                    gathered.left_out.add(Reason::Bad, 1);
                }
                Err(problem) => {
                    return Err(WorkloadError::Line {
                        path,
                        line,
                        problem,
                    });
                }
            }
        }
    }
    Ok(gathered)
}

fn parse(bytes: &[u8], is_record: bool) -> Result<Option<String>, String> {
    let line = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    if !is_record {
        return Ok(Some(line.to_owned()));
    }
    let record: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    match record.get("prompt").and_then(Value::as_str) {
        Some(prompt) if !prompt.trim().is_empty() => Ok(Some(prompt.to_owned())),
        _ => Err("has no text in \"prompt\"".to_owned()),
    }
}

/// The files of `folder` that hold prompts, by name.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, WorkloadError> {
    let read_error = |source| WorkloadError::read(folder, source);
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() && !name.starts_with('.') {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// BLAKE3 over the names and the contents of the files, 32 hex digits.
pub(crate) fn hash(folder: &Path) -> Result<String, WorkloadError> {
    let mut hasher = blake3::Hasher::new();
    for path in files_of(folder)? {
        let name = path.file_name().unwrap_or_default();
        hasher.update(name.as_encoded_bytes());
        hasher.update(files::hash(&path)?.as_bytes());
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_lines_are_prompts_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("b.txt", "first line\n\nsecond line\n");
        write("a.jsonl", "{\"prompt\": \"from a record\"}\n");
        write(".hidden", "not this\n");
        let gathered = gather(dir.path(), false).unwrap();
        let texts: Vec<String> = gathered.prompts.iter().map(|p| p.item.text()).collect();
        assert_eq!(texts, ["from a record", "first line", "second line"]);
        let before = hash(dir.path()).unwrap();
        write("a.jsonl", "{\"prompt\": 7}\n");
        assert_ne!(before, hash(dir.path()).unwrap());
        let refused = gather(dir.path(), false).unwrap_err().to_string();
        assert!(refused.contains("a.jsonl line 1"), "{refused}");
        assert_eq!(gather(dir.path(), true).unwrap().left_out.total(), 1);
    }
}
