//! One recorded answer, as it is given again.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    TRANSFER_ENCODING,
};
use tapedeck_recording::{Outcome, Pairs, ResponseRow};

use super::rebuild::Write;

/// A recorded answer. All its instants are from the one its request was sent at.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) request_id: i64,
    pub(crate) attempt: i32,
    /// `None` where not even a status came.
    pub(crate) head: Option<Head>,
    pub(crate) bytes: Bytes,
    pub(crate) writes: Vec<Write>,
    pub(crate) end: End,
    pub(crate) end_due_ns: i64,
}

#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) due_ns: i64,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
}

/// What comes after the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The end of the body.
    Whole,
    /// The connection breaks.
    BrokenOff { reset: bool },
    /// Nothing, for as long as the client waits: it ran into its own timeout.
    Silence,
    /// Nobody knows: the client left. The connection breaks a little later.
    ClientLeft,
}

/// The answer that `row` ended, to a request sent at `t_sent_ns`.
pub(crate) fn answer(
    row: &ResponseRow,
    t_sent_ns: i64,
    bytes: Bytes,
    writes: Vec<Write>,
) -> Answer {
    let end = end_of(row);
    let last_ns = writes.last().map_or(0, |write| write.due_ns);
    let end_due_ns = since(t_sent_ns, row.t_end_ns).map_or(last_ns, |ns| ns.max(last_ns));
    let first_ns = writes.first().map_or(end_due_ns, |write| write.due_ns);
    let status = row.status.and_then(|status| u16::try_from(status).ok());
    let head = status.map(|status| Head {
        due_ns: since(t_sent_ns, row.t_headers_ns).map_or(first_ns, |ns| ns.min(first_ns)),
        status,
        headers: headers(row.headers.as_ref(), end, row.chunk_count > 0, bytes.len()),
    });
    Answer {
        request_id: row.request_id,
        attempt: row.attempt,
        head,
        bytes,
        writes,
        end,
        end_due_ns,
    }
}

fn end_of(row: &ResponseRow) -> End {
    match row.outcome {
        Outcome::ConnectionError => {
            let error = row.error.as_deref().unwrap_or_default();
            let reset = error.contains("reset");
            End::BrokenOff { reset }
        }
        Outcome::Timeout => End::Silence,
        Outcome::Cancelled => End::ClientLeft,
        // An answer without a status that is none of these had no end either.
        _ if row.status.is_none() => End::BrokenOff { reset: false },
        _ => End::Whole,
    }
}

/// The recorded headers but those of the connection and of the coding: bodies were
/// decoded, and are sent as they are.
fn headers(recorded: Option<&Pairs>, end: End, streamed: bool, len: usize) -> HeaderMap {
    const DROPPED: [HeaderName; 5] = [
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        HeaderName::from_static("keep-alive"),
    ];
    let pairs = recorded.map(|pairs| &pairs[..]).unwrap_or_default();
    let value_of = |name: HeaderName| {
        pairs
            .iter()
            .find(|(n, _)| name == n.as_str())
            .map(|(_, v)| v)
    };
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value))
            && !DROPPED.contains(&name)
        {
            headers.append(name, value);
        }
    }
    let announced = value_of(CONTENT_LENGTH)
        .filter(|_| value_of(CONTENT_ENCODING).is_none())
        .and_then(|text| text.parse::<usize>().ok());
    // What breaks off is shorter than announced; what was in chunks stays so.
    let length = match (end, announced) {
        (End::Whole, Some(_)) => Some(len),
        (End::Whole, None) if streamed || value_of(TRANSFER_ENCODING).is_some() => None,
        (End::Whole, None) => Some(len),
        (_, announced) => announced.filter(|announced| *announced > len),
    };
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers
}

/// Whether the answer is that to a gRPC call.
pub(crate) fn is_grpc(headers: Option<&Pairs>) -> bool {
    let mut headers = headers.into_iter().flat_map(|pairs| pairs.iter());
    headers
        .any(|(name, value)| CONTENT_TYPE == name.as_str() && value.starts_with("application/grpc"))
}

/// From the sending of the request; never before it.
pub(crate) fn since(t_sent_ns: i64, t_ns: Option<i64>) -> Option<i64> {
    t_ns.map(|t_ns| (t_ns - t_sent_ns).max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        let owned = pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        owned.collect()
    }

    #[test]
    fn lengths_are_those_of_what_is_sent_unless_the_answer_broke_off() {
        let length = |recorded: &[(&str, &str)], end, streamed| {
            let headers = headers(Some(&pairs(recorded)), end, streamed, 10);
            let length = headers.get(CONTENT_LENGTH)?;
            length.to_str().ok()?.parse::<usize>().ok()
        };
        let broken = End::BrokenOff { reset: false };
        for (recorded, end, streamed, expected) in [
            (&[("content-length", "10")][..], End::Whole, false, Some(10)),
            // Decoded, the body is longer than what was sent.
            (
                &[("content-length", "7"), ("content-encoding", "gzip")],
                End::Whole,
                false,
                Some(10),
            ),
            (&[("transfer-encoding", "chunked")], End::Whole, false, None),
            (&[], End::Whole, true, None),
            (&[], End::Whole, false, Some(10)),
            (&[("content-length", "99")], broken, false, Some(99)),
            (&[], broken, true, None),
        ] {
            assert_eq!(length(recorded, end, streamed), expected, "{recorded:?}");
        }
    }

    #[test]
    fn headers_of_the_connection_are_not_repeated() {
        let recorded = pairs(&[
            ("content-type", "text/event-stream"),
            ("connection", "close"),
            ("retry-after", "2"),
            ("x-bad", "a\nb"),
        ]);
        let kept = headers(Some(&recorded), End::Whole, true, 0);
        let names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "retry-after"]);
    }
}
