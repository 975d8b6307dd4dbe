//! Which headers are the message's, and which only this connection's.

use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

use crate::rules::WISH_HEADER;

/// Headers that end with the connection they came on (RFC 9110, 7.6.1).
/// `transfer-encoding` is handled apart: hyper undoes and redoes the chunks of the
/// body, and no other coding.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION,
    TE,
    UPGRADE,
];

/// The headers of a request as it goes upstream, to `host`.
pub(crate) fn request_headers(headers: &HeaderMap, host: &HeaderValue) -> HeaderMap {
    let mut out = end_to_end(headers, |name| {
        name == WISH_HEADER || name == "http2-settings" || name == HOST
    });
    out.insert(HOST, host.clone());
    // Trailers are the one thing in `te` that is understood on both legs.
    let trailers = headers.get_all(TE).iter().any(|value| {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        text.split(',').any(|word| word.trim() == "trailers")
    });
    if trailers {
        out.insert(TE, HeaderValue::from_static("trailers"));
        out.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    out
}

/// The headers of an answer as they go to the client. A client that speaks h2 has
/// no use for a transfer coding.
pub(crate) fn response_headers(headers: &HeaderMap, to_h2: bool) -> HeaderMap {
    end_to_end(headers, |name| to_h2 && name == TRANSFER_ENCODING)
}

/// All headers but those of the connection, in their order.
fn end_to_end(headers: &HeaderMap, dropped: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let of_connection =
            HOP_BY_HOP.contains(name) || listed.iter().any(|listed| listed == name.as_str());
        if !of_connection && !dropped(name) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// The protocol that a request wants to switch to. HTTP/2 over an upgrade is an
/// offer that may be ignored, and is.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| asks)?;
    let h2c = protocol.as_bytes().eq_ignore_ascii_case(b"h2c");
    (!h2c).then_some(protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_belongs_to_a_connection_stays_on_it() {
        let came = headers(&[
            ("host", "proxy:1"),
            ("authorization", "Bearer x"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("x-two", "a"),
            ("x-two", "b"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("proxy-authorization", "Basic y"),
            ("x-tapedeck-record", "hashed"),
            ("accept-encoding", "br"),
            ("transfer-encoding", "chunked"),
        ]);
        let sent = request_headers(&came, &HeaderValue::from_static("up:2"));
        let expected = headers(&[
            ("authorization", "Bearer x"),
            ("x-two", "a"),
            ("x-two", "b"),
            ("accept-encoding", "br"),
            ("transfer-encoding", "chunked"),
            ("host", "up:2"),
            ("te", "trailers"),
            ("connection", "te"),
        ]);
        assert_eq!(sent, expected);
        assert!(
            response_headers(&came, true)
                .get("transfer-encoding")
                .is_none()
        );
    }

    #[test]
    fn only_real_upgrades_are_followed() {
        let websocket = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert!(upgrade(&websocket).is_some());
        let h2c = headers(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
        ]);
        assert!(upgrade(&h2c).is_none());
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
    }
}
