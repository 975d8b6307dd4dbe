//! The gzip container, byte by byte around the inflate engine.

use flate2::Crc;

use super::{DecodeError, Inflate, corrupt};

/// Bytes behind a member's data: CRC-32 and length, both little-endian.
const TRAILER_BYTES: usize = 8;

/// RFC 1952, any number of members. flate2's own reader pulls from a source and its
/// writer needs a sink that it owns; bytes that arrive need neither.
#[derive(Debug)]
pub(super) struct Gzip {
    part: Part,
    inflate: Inflate,
    crc: Crc,
    members: u64,
    any: bool,
}

/// Where in a member the next byte lies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// The ten fixed bytes; how many of them have passed.
    Fixed {
        seen: u8,
        flags: u8,
    },
    ExtraLen {
        flags: u8,
        low: Option<u8>,
    },
    Extra {
        flags: u8,
        left: u16,
    },
    Name {
        flags: u8,
    },
    Comment {
        flags: u8,
    },
    HeaderCrc {
        left: u8,
    },
    Data,
    Trailer {
        seen: u8,
        bytes: [u8; TRAILER_BYTES],
    },
    /// Zero bytes that tape formats put behind the last member.
    Padding,
}

const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Fixed { seen: 0, flags: 0 },
            inflate: Inflate::new(false),
            crc: Crc::new(),
            members: 0,
            any: false,
        }
    }

    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        out: &mut impl FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        while let Some((byte, rest)) = bytes.split_first() {
            self.any = true;
            if self.part != Part::Data {
                self.part = self.step(*byte)?;
                bytes = rest;
                continue;
            }
            let crc = &mut self.crc;
            let (used, ended) = self
                .inflate
                .run(bytes, &mut |piece: &[u8]| {
                    crc.update(piece);
                    out(piece);
                })
                .ok_or(corrupt("gzip", "bad data"))?;
            if ended {
                self.part = Part::Trailer {
                    seen: 0,
                    bytes: [0; TRAILER_BYTES],
                };
            } else if used < bytes.len() {
                return Err(corrupt("gzip", "bad data"));
            }
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Takes one byte outside the compressed data.
    fn step(&mut self, byte: u8) -> Result<Part, DecodeError> {
        Ok(match self.part {
            Part::Fixed { seen, flags } => return self.fixed(byte, seen, flags),
            Part::ExtraLen { flags, low: None } => Part::ExtraLen {
                flags,
                low: Some(byte),
            },
            Part::ExtraLen {
                flags,
                low: Some(low),
            } => match u16::from_le_bytes([low, byte]) {
                0 => after_header_field(flags & !FLAG_EXTRA),
                left => Part::Extra { flags, left },
            },
            Part::Extra { flags, left: 1 } => after_header_field(flags & !FLAG_EXTRA),
            Part::Extra { flags, left } => Part::Extra {
                flags,
                left: left - 1,
            },
            Part::Name { flags } if byte == 0 => after_header_field(flags & !FLAG_NAME),
            Part::Comment { flags } if byte == 0 => after_header_field(flags & !FLAG_COMMENT),
            Part::HeaderCrc { left: 2 } => Part::HeaderCrc { left: 1 },
            Part::HeaderCrc { .. } => Part::Data,
            Part::Trailer { seen, bytes } => return self.trailer(byte, seen, bytes),
            Part::Padding if byte != 0 => return Err(corrupt("gzip", "bytes after its end")),
            same @ (Part::Name { .. } | Part::Comment { .. } | Part::Data | Part::Padding) => same,
        })
    }

    fn fixed(&mut self, byte: u8, seen: u8, flags: u8) -> Result<Part, DecodeError> {
        match (seen, byte) {
            (0, 0) if self.members > 0 => return Ok(Part::Padding),
            (0, 0x1F) | (1, 0x8B) | (2, 8) => {}
            (0..=2, _) => return Err(corrupt("gzip", "bad header")),
            (3, flags) if flags & 0xE0 != 0 => return Err(corrupt("gzip", "reserved flags")),
            (3, flags) => return Ok(Part::Fixed { seen: 4, flags }),
            (9, _) => return Ok(after_header_field(flags)),
            _ => {}
        }
        Ok(Part::Fixed {
            seen: seen + 1,
            flags,
        })
    }

    fn trailer(
        &mut self,
        byte: u8,
        seen: u8,
        mut bytes: [u8; TRAILER_BYTES],
    ) -> Result<Part, DecodeError> {
        bytes[usize::from(seen)] = byte;
        if usize::from(seen) + 1 < TRAILER_BYTES {
            return Ok(Part::Trailer {
                seen: seen + 1,
                bytes,
            });
        }
        let [a, b, c, d, ..] = bytes;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(corrupt("gzip", "checksum differs"));
        }
        self.members += 1;
        self.crc.reset();
        self.inflate.engine.reset(false);
        Ok(Part::Fixed { seen: 0, flags: 0 })
    }

    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        let between_members = self.part == Part::Fixed { seen: 0, flags: 0 };
        if !self.any || between_members || self.part == Part::Padding {
            Ok(())
        } else {
            Err(DecodeError::Incomplete { encoding: "gzip" })
        }
    }
}

/// The next part of a header whose `flags` still to come are these.
fn after_header_field(flags: u8) -> Part {
    if flags & FLAG_EXTRA != 0 {
        Part::ExtraLen { flags, low: None }
    } else if flags & FLAG_NAME != 0 {
        Part::Name { flags }
    } else if flags & FLAG_COMMENT != 0 {
        Part::Comment { flags }
    } else if flags & FLAG_HEADER_CRC != 0 {
        Part::HeaderCrc { left: 2 }
    } else {
        Part::Data
    }
}
