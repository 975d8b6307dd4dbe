//! A capped copy of a body with its true length.

use bytes::Bytes;

/// How much of one body is kept.
pub const MAX_BODY_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct BodyCopy {
    kept: Vec<u8>,
    /// Bytes offered to the copy.
    offered: u64,
    /// Bytes of the answer, copied or not.
    seen: u64,
}

impl BodyCopy {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.count(bytes);
        self.offered += bytes.len() as u64;
        let room = MAX_BODY_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Counts bytes that are kept elsewhere, as chunks.
    pub(super) fn count(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
    }

    pub(super) fn drop_copy(&mut self) {
        self.kept = Vec::new();
        self.offered = 0;
    }

    pub(super) fn copy(&self) -> &[u8] {
        &self.kept
    }

    pub(super) fn into_copy(self) -> Option<Bytes> {
        (!self.kept.is_empty()).then(|| Bytes::from(self.kept))
    }

    pub(super) fn true_len(&self) -> i64 {
        i64::try_from(self.seen).unwrap_or(i64::MAX)
    }

    pub(super) fn truncated(&self) -> bool {
        self.offered > self.kept.len() as u64
    }

    pub(super) fn is_blank(&self) -> bool {
        self.kept.trim_ascii().is_empty()
    }
}
