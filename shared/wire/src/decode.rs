//! Content-decoding of a copy of a compressed body, read by read.
//!
//! Everything that can be decoded from the bytes so far comes out at once, so the
//! events of a gzip stream that the server flushes keep their arrival instants.
//! Decoded bytes pass through one fixed buffer: a gzip bomb costs time, not memory.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};

mod gzip;

use gzip::Gzip;

/// Decoded bytes are handed out in pieces of at most this size.
const OUTPUT_BYTES: usize = 32 << 10;

/// Why a body cannot be decoded (any further).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// A content-encoding this crate does not know; nothing of the body is decoded.
    Unknown { encoding: String },
    /// The bytes are not what `content-encoding` says; those before were decoded.
    Corrupt {
        encoding: &'static str,
        reason: &'static str,
    },
    /// The body ended inside the compressed data; all that came was decoded.
    Incomplete { encoding: &'static str },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { encoding } => write!(
                f,
                "content-encoding {encoding} is not known, body kept as received\n\
                 hint: ask the server for `accept-encoding: identity`"
            ),
            Self::Corrupt { encoding, reason } => {
                write!(f, "body is not valid {encoding}: {reason}")
            }
            Self::Incomplete { encoding } => write!(f, "{encoding} body ended early"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl DecodeError {
    /// Whether all bytes that came were decoded, only too few came.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Incomplete { .. })
    }
}

/// Decodes one body. Holds the inflate window and one output buffer, about 80 KiB,
/// only where the body is compressed.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Identity,
    Gzip(Box<Gzip>),
    Deflate(Box<Deflate>),
}

impl Decoder {
    /// For the value of a `content-encoding` header.
    ///
    /// # Errors
    /// [`DecodeError::Unknown`] for all but `identity`, `gzip` and `deflate`.
    pub fn new(content_encoding: Option<&str>) -> Result<Self, DecodeError> {
        let encoding = content_encoding.unwrap_or("").trim().to_ascii_lowercase();
        let state = match encoding.as_str() {
            "" | "identity" => State::Identity,
            "gzip" | "x-gzip" => State::Gzip(Box::new(Gzip::new())),
            "deflate" => State::Deflate(Box::new(Deflate::new())),
            _ => return Err(DecodeError::Unknown { encoding }),
        };
        Ok(Self { state })
    }

    /// Whether bytes pass through as they are.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        matches!(self.state, State::Identity)
    }

    /// Decodes one read; `out` gets every piece of it. After an error the decoder
    /// must not be fed again.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`]; what lies before the damage has been handed out.
    pub fn feed(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) -> Result<(), DecodeError> {
        match &mut self.state {
            State::Identity => {
                out(bytes);
                Ok(())
            }
            State::Gzip(gzip) => gzip.feed(bytes, out),
            State::Deflate(deflate) => deflate.feed(bytes, out),
        }
    }

    /// Whether the body may end here.
    ///
    /// # Errors
    /// [`DecodeError::Incomplete`] inside compressed data. A body of no bytes at
    /// all is complete: servers label empty answers too.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match &self.state {
            State::Identity => Ok(()),
            State::Gzip(gzip) => gzip.finish(),
            State::Deflate(deflate) => deflate.finish(),
        }
    }
}

/// The inflate state and its output buffer.
#[derive(Debug)]
struct Inflate {
    engine: Decompress,
    buffer: Vec<u8>,
}

impl Inflate {
    fn new(zlib_header: bool) -> Self {
        Self {
            engine: Decompress::new(zlib_header),
            buffer: vec![0; OUTPUT_BYTES],
        }
    }

    /// Inflates until the input is used up or the stream ends; returns how many
    /// bytes were used and whether it ended. `None`: the data is corrupt.
    fn run(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) -> Option<(usize, bool)> {
        let mut used = 0;
        loop {
            let (before_in, before_out) = (self.engine.total_in(), self.engine.total_out());
            let status =
                self.engine
                    .decompress(&bytes[used..], &mut self.buffer, FlushDecompress::None);
            let consumed = (self.engine.total_in() - before_in) as usize;
            let produced = (self.engine.total_out() - before_out) as usize;
            used += consumed;
            if produced > 0 {
                out(&self.buffer[..produced]);
            }
            // Only now: what lies before the damage came out with the error.
            let status = status.ok()?;
            if status == Status::StreamEnd {
                return Some((used, true));
            }
            // A full buffer may hide more output; otherwise all input was decoded.
            let drained = used == bytes.len() && produced < self.buffer.len();
            if drained || (consumed == 0 && produced == 0) {
                return Some((used, false));
            }
        }
    }
}

/// A zlib stream, or the raw deflate some servers send under the same name.
#[derive(Debug)]
struct Deflate {
    /// The first byte, until the second tells which of the two it is.
    first: Option<u8>,
    inflate: Option<Inflate>,
    ended: bool,
}

impl Deflate {
    fn new() -> Self {
        Self {
            first: None,
            inflate: None,
            ended: false,
        }
    }

    fn feed(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) -> Result<(), DecodeError> {
        if self.inflate.is_none() {
            let Some((first, rest)) = self.head(bytes) else {
                return Ok(());
            };
            let inflate = Inflate::new(is_zlib_header(first, rest[0]));
            self.inflate = Some(inflate);
            self.inflate_bytes(&[first], out)?;
            return self.inflate_bytes(rest, out);
        }
        self.inflate_bytes(bytes, out)
    }

    /// The body's first byte and what follows it, at least one byte.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> Option<(u8, &'a [u8])> {
        let (first, rest) = match self.first {
            Some(first) => (first, bytes),
            None => {
                let (first, rest) = bytes.split_first()?;
                self.first = Some(*first);
                (*first, rest)
            }
        };
        (!rest.is_empty()).then_some((first, rest))
    }

    fn inflate_bytes(
        &mut self,
        bytes: &[u8],
        out: &mut impl FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        let Some(inflate) = &mut self.inflate else {
            return Ok(());
        };
        let mut used = 0;
        if !self.ended {
            let done = inflate
                .run(bytes, out)
                .ok_or(corrupt("deflate", "bad data"))?;
            (used, self.ended) = done;
        }
        if used < bytes.len() {
            return Err(corrupt("deflate", "bytes after its end"));
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), DecodeError> {
        if self.ended || self.first.is_none() {
            Ok(())
        } else {
            Err(DecodeError::Incomplete {
                encoding: "deflate",
            })
        }
    }
}

/// RFC 1950: method 8, a window of at most 32 KiB, and a check over both bytes.
fn is_zlib_header(first: u8, second: u8) -> bool {
    first & 0x0F == 8 && first >> 4 <= 7 && (u16::from(first) << 8 | u16::from(second)) % 31 == 0
}

fn corrupt(encoding: &'static str, reason: &'static str) -> DecodeError {
    DecodeError::Corrupt { encoding, reason }
}

#[cfg(test)]
mod tests;
