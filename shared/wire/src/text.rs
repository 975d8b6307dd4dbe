//! Bytes → text for messages and names. Payloads never come through here: they
//! stay the bytes that arrived.

/// The longest error message kept, characters. Servers put whole prompts and
/// stack traces into theirs.
const MAX_MESSAGE_CHARS: usize = 4096;

/// How much of an answer that is no JSON stands for its error message.
const SNIPPET_CHARS: usize = 300;

/// `bytes` as text; what is not UTF-8 becomes U+FFFD.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for piece in bytes.utf8_chunks() {
        text.push_str(piece.valid());
        if !piece.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// The first 300 characters of `bytes`, trimmed.
pub(crate) fn snippet(bytes: &[u8]) -> String {
    let bytes = bytes.trim_ascii();
    // A character is at most four bytes.
    let head = &bytes[..bytes.len().min(4 * SNIPPET_CHARS)];
    lossy(head).chars().take(SNIPPET_CHARS).collect()
}

/// A server's own message, bounded.
pub(crate) fn message(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}
