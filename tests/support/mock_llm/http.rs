//! As much of HTTP/1.1 requests as a test server needs, read by hand.

use std::io;

/// The largest request, head and body.
pub(super) const MAX_REQUEST_BYTES: usize = 256 * 1024 * 1024;
/// The largest head.
const MAX_HEAD_BYTES: usize = 256 * 1024;

type Headers = Vec<(String, String)>;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// From 0 in order of complete arrival.
    pub number: u64,
    /// From 0 in order of acceptance.
    pub connection: u64,
    pub method: String,
    /// With its query.
    pub path: String,
    /// In wire order and wire case.
    pub headers: Headers,
    /// Without chunk framing.
    pub body: Vec<u8>,
    /// The connection's acceptance, absolute monotonic ns.
    pub t_accepted_ns: i64,
    /// Right after the read that completed the body, absolute monotonic ns.
    pub t_read_ns: i64,
}

impl Received {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as JSON, where it is.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// What the client says it wants: the header `x-case`, else `case` in the
    /// JSON body, else its `model`, which every load generator can set.
    pub fn case(&self) -> Option<String> {
        if let Some(case) = self.header("x-case") {
            return Some(case.to_owned());
        }
        let body = self.json()?;
        let named = body.get("case").or_else(|| body.get("model"))?;
        named.as_str().map(str::to_owned)
    }

    pub(super) fn wants_close(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// The start of the bytes, read as a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Headers,
    /// The body and the length of the whole request, once it is all there.
    pub(super) body: Option<(Vec<u8>, usize)>,
}

/// Reads the request at the start of `bytes`; `None` before its head is whole.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<Parsed>> {
    let Some(head_length) = find_bytes(bytes, b"\r\n\r\n").map(|at| at + 4) else {
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(invalid("a head without an end"));
        }
        return Ok(None);
    };
    let head =
        std::str::from_utf8(&bytes[..head_length]).map_err(|_| invalid("a head in bytes"))?;
    let mut lines = head.trim_end().split("\r\n");
    let mut request_line = lines.next().unwrap_or_default().split(' ');
    let method = request_line.next().unwrap_or_default().to_owned();
    let path = request_line
        .next()
        .ok_or_else(|| invalid("no path"))?
        .to_owned();
    let headers: Headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let body = match find(&headers, "transfer-encoding") {
        Some(_) => chunked_body(&bytes[head_length..])?,
        None => counted_body(&bytes[head_length..], find(&headers, "content-length"))?,
    };
    Ok(Some(Parsed {
        method,
        path,
        headers,
        body: body.map(|(body, length)| (body, head_length + length)),
    }))
}

pub(super) fn expects_continue(headers: &Headers) -> bool {
    find(headers, "expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
}

fn counted_body(rest: &[u8], length: Option<&str>) -> io::Result<Option<(Vec<u8>, usize)>> {
    let length: usize = length
        .unwrap_or("0")
        .parse()
        .map_err(|_| invalid("content-length is no number"))?;
    if length > MAX_REQUEST_BYTES {
        return Err(invalid("the body is too long"));
    }
    Ok(rest.get(..length).map(|body| (body.to_vec(), length)))
}

fn chunked_body(rest: &[u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = find_bytes(&rest[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[at..at + line]).ok();
        let size = size.and_then(|size| size.split(';').next());
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let size = size.filter(|size| *size <= MAX_REQUEST_BYTES);
        let size = size.ok_or_else(|| invalid("a chunk's size"))?;
        at += line + 2;
        if size == 0 {
            // Trailers, then an empty line.
            let end = match rest[at..].starts_with(b"\r\n") {
                true => Some(2),
                false => find_bytes(&rest[at..], b"\r\n\r\n").map(|end| end + 4),
            };
            return Ok(end.map(|end| (body, at + end)));
        }
        let Some(piece) = rest.get(at..at + size + 2) else {
            return Ok(None);
        };
        body.extend_from_slice(&piece[..size]);
        at += size + 2;
    }
}

fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn find_bytes(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For every prefix of a request: no body before its last byte is there.
    #[test]
    fn a_request_is_whole_at_its_last_byte_and_not_before() {
        let counted =
            b"POST /v1/x?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_vec();
        let chunked =
            b"POST /v1/x?a=b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;e=1\r\nbc\r\n0\r\n\r\n"
                .to_vec();
        for request in [counted, chunked] {
            for length in 0..request.len() {
                let parsed = parse(&request[..length]).unwrap();
                assert!(parsed.is_none_or(|parsed| parsed.body.is_none()));
            }
            let mut pipelined = request.clone();
            pipelined.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let parsed = parse(&pipelined).unwrap().unwrap();
            assert_eq!(parsed.body, Some((b"abc".to_vec(), request.len())));
            assert_eq!(parsed.path, "/v1/x?a=b");
        }
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_wait() {
        assert!(parse(b"GET\r\n\r\n").is_err());
        assert!(parse(b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n").is_err());
        assert!(parse(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").is_err());
        assert!(parse(&vec![b'x'; MAX_HEAD_BYTES + 1]).is_err());
    }
}
