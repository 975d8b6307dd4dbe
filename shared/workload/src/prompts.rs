//! Prompts from the command line and from files of lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

/// What one request asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Text(String),
    /// Chat messages.
    Messages(Vec<Value>),
    /// A whole request body.
    Body(Map<String, Value>),
}

/// A data set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} line {line}: {problem}\nhint: correct the line, or leave such lines out with --skip-bad", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        problem: String,
    },
    #[error("{} holds no prompt", .0.display())]
    Empty(PathBuf),
    #[error("--prompt is empty")]
    EmptyPrompt,
}

/// Longest line of a data set; a longer one is refused before it fills memory.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What a data set gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub items: Vec<Item>,
    /// Lines left out by `--skip-bad`.
    pub skipped_lines: usize,
}

/// `--prompt TEXT`, or `--prompt @FILE` for the whole text of a file.
///
/// # Errors
/// When the file cannot be read or the prompt is empty.
pub fn prompt(argument: &str) -> Result<Item, WorkloadError> {
    let text = match argument.strip_prefix('@') {
        Some(path) => read_text(Path::new(path))?,
        None => argument.to_owned(),
    };
    if text.trim().is_empty() {
        return Err(WorkloadError::EmptyPrompt);
    }
    Ok(Item::Text(text))
}

fn read_text(path: &Path) -> Result<String, WorkloadError> {
    let mut text = String::new();
    open(path)?
        .read_to_string(&mut text)
        .map_err(|source| WorkloadError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}

/// Each line a prompt: plain text, a JSON array of messages, or a JSON object
/// that is a whole body. Blank lines are passed over; gzip is recognised by its
/// first bytes.
///
/// # Errors
/// With the number of the first bad line, unless `skip_bad`.
pub fn line_by_line(path: &Path, skip_bad: bool) -> Result<Loaded, WorkloadError> {
    let mut reader = open(path)?;
    let mut items = Vec::new();
    let mut skipped_lines = 0;
    for line in 1.. {
        let Some(bytes) = read_line(&mut reader, path)? else {
            break;
        };
        match parse_line(&bytes) {
            Ok(None) => {}
            Ok(Some(item)) => items.push(item),
            Err(_) if skip_bad => skipped_lines += 1,
            Err(problem) => {
                return Err(WorkloadError::Line {
                    path: path.to_owned(),
                    line,
                    problem,
                });
            }
        }
    }
    if items.is_empty() {
        return Err(WorkloadError::Empty(path.to_owned()));
    }
    Ok(Loaded {
        items,
        skipped_lines,
    })
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, WorkloadError> {
    let read_error = |source| WorkloadError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(File::open(path).map_err(read_error)?);
    let gzip = file
        .fill_buf()
        .map_err(read_error)?
        .starts_with(&[0x1f, 0x8b]);
    Ok(if gzip {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(file)
    })
}

fn read_line(reader: &mut dyn BufRead, path: &Path) -> Result<Option<Vec<u8>>, WorkloadError> {
    let read_error = |source| WorkloadError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    reader
        .take(MAX_LINE_BYTES)
        .read_until(b'\n', &mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 == MAX_LINE_BYTES {
        let too_long = std::io::Error::other(format!("a line is over {MAX_LINE_BYTES} bytes"));
        return Err(read_error(too_long));
    }
    Ok((!bytes.is_empty()).then_some(bytes))
}

fn parse_line(bytes: &[u8]) -> Result<Option<Item>, String> {
    let line = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    // A byte order mark stands at the start of many exported files.
    let line = line.trim_start_matches('\u{feff}').trim();
    match line.as_bytes().first() {
        None => Ok(None),
        Some(b'{') => match serde_json::from_str(line) {
            Ok(Value::Object(body)) => Ok(Some(Item::Body(body))),
            Ok(_) => Err("not a JSON object".to_owned()),
            Err(e) => Err(format!("begins like a JSON body but is not one: {e}")),
        },
        Some(b'[') => match serde_json::from_str(line) {
            Ok(Value::Array(messages)) if messages.iter().all(Value::is_object) => {
                Ok(Some(Item::Messages(messages)))
            }
            Ok(_) => Err("an array whose elements are not messages".to_owned()),
            Err(e) => Err(format!(
                "begins like an array of messages but is not one: {e}"
            )),
        },
        Some(_) => Ok(Some(Item::Text(line.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_messages_or_a_body() {
        assert_eq!(parse_line(b"  \r\n"), Ok(None));
        assert_eq!(
            parse_line(b"hello\r\n"),
            Ok(Some(Item::Text("hello".into())))
        );
        assert!(matches!(
            parse_line(br#"[{"role":"user","content":"x"}]"#),
            Ok(Some(Item::Messages(m))) if m.len() == 1
        ));
        assert!(matches!(
            parse_line(br#"{"prompt":"x"}"#),
            Ok(Some(Item::Body(_)))
        ));
    }

    #[test]
    fn broken_lines_say_what_is_wrong() {
        assert!(parse_line(b"{\"a\":").unwrap_err().contains("not one"));
        assert!(parse_line(b"[1,2]").unwrap_err().contains("not messages"));
        assert!(parse_line(b"\xff\xfe").unwrap_err().contains("UTF-8"));
    }
}
