//! Connections that switch protocols (WebSocket): bytes both ways, unrecorded.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use tapedeck_live::connect::Connection;
use tapedeck_live::tap::Stream;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use crate::headers::upgrade;
use crate::upload::UploadBody;

/// Asks upstream for the protocol that `headers` ask for.
pub(crate) fn ask(headers: &HeaderMap, outgoing: &mut HeaderMap) {
    if let Some(protocol) = upgrade(headers) {
        outgoing.insert(UPGRADE, protocol.clone());
        outgoing.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

/// Upstream's agreement as it goes to the client: all of it, for the switch is the
/// whole connection's.
pub(crate) fn answer(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
}

/// Carries bytes both ways until both sides have ended.
pub(crate) async fn carry(
    mut client: Stream,
    unread: Bytes,
    upstream: Connection<UploadBody>,
) -> io::Result<()> {
    let mut driver = upstream.driver;
    // hyper has yet to notice that its part is over.
    poll_fn(|cx| {
        upstream.tap.open_gate();
        driver.poll_without_shutdown(cx)
    })
    .await
    .map_err(io::Error::other)?;
    let parts = driver.into_parts();
    let server = parts.io.into_inner();
    let mut server = server.ok_or(io::ErrorKind::BrokenPipe)?;
    server.write_all(&unread).await?;
    client.write_all(&parts.read_buf).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Pin::new(&mut client).shutdown().await
}
