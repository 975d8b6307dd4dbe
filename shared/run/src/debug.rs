//! `--debug`: the rows of a recording as lines for people, printed where they are
//! written. What the recording leaves out, nobody sees here.

use std::io::Write;

use tapedeck_recording::EventBatch;
use tapedeck_recording::event::{ChunkRow, Pairs, RequestRow, ResponseRow};

/// Most of a body that is shown, in characters.
const BODY_CHARS: usize = 2_000;

/// Most of a chunk.
const CHUNK_CHARS: usize = 400;

/// Prints requests, chunks and answers of `batch` on stderr.
pub(crate) fn print(batch: &EventBatch) {
    let lines = lines(batch).join("");
    // Nobody reads on: the run is not worse for it.
    std::io::stderr().write_all(lines.as_bytes()).ok();
}

/// One text a row, each ending in a newline.
fn lines(batch: &EventBatch) -> Vec<String> {
    let requests = batch.requests.iter().map(request);
    let chunks = batch.chunks.rows.iter();
    let chunks = chunks.map(|row| chunk(row, batch.chunks.payload(row)));
    let responses = batch.responses.iter().map(response);
    requests.chain(chunks).chain(responses).collect()
}

fn request(row: &RequestRow) -> String {
    let at = instant(row.t_sent_ns);
    let (phase, id, attempt) = (row.phase.as_str(), row.request_id, row.attempt);
    let path = &row.url_path;
    let query = row.query.as_ref().map(|query| format!("?{query}"));
    format!(
        "{at} > {phase} request {id}.{attempt} {} {path}{}{}\n{}",
        row.method,
        query.unwrap_or_default(),
        headers(row.headers.as_ref()),
        body(row.body.as_deref(), row.body_bytes),
    )
}

fn chunk(row: &ChunkRow, payload: Option<&[u8]>) -> String {
    let at = instant(Some(row.t_ns));
    let (id, attempt, index) = (row.request_id, row.attempt, row.chunk_index);
    let event = row.event.as_ref().map(|event| format!(" {event}"));
    let data = payload.map_or_else(
        || format!("({} bytes)", row.bytes),
        |data| shown(data, CHUNK_CHARS),
    );
    format!(
        "{at} . request {id}.{attempt} chunk {index} {}{} {data}\n",
        row.kind.as_str(),
        event.unwrap_or_default(),
    )
}

fn response(row: &ResponseRow) -> String {
    let at = instant(row.t_end_ns);
    let (id, attempt, chunks) = (row.request_id, row.attempt, row.chunk_count);
    let status = row.status.map(|status| format!(" HTTP {status}"));
    let finish = row.finish_reason.as_ref().map(|f| format!(", finish {f}"));
    let error = row.error.as_ref();
    let error = error.map(|e| format!(", error {}", shown(e.as_bytes(), CHUNK_CHARS)));
    // A stream's body was shown chunk by chunk.
    let bytes = if chunks == 0 { row.body_bytes } else { 0 };
    format!(
        "{at} < request {id}.{attempt} {}{}, {chunks} chunks{}{}{}\n{}",
        row.outcome.as_str(),
        status.unwrap_or_default(),
        finish.unwrap_or_default(),
        error.unwrap_or_default(),
        headers(row.headers.as_ref()),
        body(row.body.as_deref(), bytes),
    )
}

/// Instants since the recording began; a dash where there is none.
fn instant(t_ns: Option<i64>) -> String {
    t_ns.map_or_else(
        || format!("{:>12}", "-"),
        |t_ns| format!("{:>9.3} ms", t_ns as f64 / 1e6),
    )
}

fn headers(pairs: Option<&Pairs>) -> String {
    let pairs = pairs.into_iter().flat_map(|pairs| pairs.iter());
    let pair = |(name, value): &(String, String)| {
        let value = shown(value.as_bytes(), CHUNK_CHARS);
        format!(", {name}: {value}")
    };
    pairs.map(pair).collect()
}

/// A line of its own; none for an answer that came in chunks.
fn body(body: Option<&[u8]>, bytes: i64) -> String {
    match body {
        Some(body) => format!("    {}\n", shown(body, BODY_CHARS)),
        None if bytes > 0 => format!("    ({bytes} bytes)\n"),
        None => String::new(),
    }
}

/// The first `limit` characters of a text. What would move a terminal's cursor or
/// is no UTF-8 is written as an escape.
fn shown(bytes: &[u8], limit: usize) -> String {
    let mut text = String::new();
    let mut left = limit;
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            if left == 0 {
                return format!("{text}… ({} bytes)", bytes.len());
            }
            left -= 1;
            match c.is_control() {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        text.push_str(&part.invalid().escape_ascii().to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_cannot_move_the_cursor() {
        assert_eq!(shown("héllo".as_bytes(), 9), "héllo");
        assert_eq!(shown(b"a\x1b[2Jb\nc", 9), "a\\u{1b}[2Jb\\nc");
        assert_eq!(shown(b"ab\xffcd", 9), "ab\\xffcd");
        assert_eq!(shown("aé漢d".as_bytes(), 3), "aé漢… (7 bytes)");
    }
}
