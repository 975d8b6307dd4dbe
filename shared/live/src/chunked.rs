//! A body in HTTP chunks, taken apart where it lies.
//!
//! hyper hands out one frame a chunk, through a copy, a channel and six reference
//! counts of its size line: two thirds of what a recorded chunk cost this process.
//! Servers of streams write `length CR LF data CR LF` and nothing else, so that is
//! all this knows; whatever else stands in place of a length (the last chunk and
//! its trailers, an extension, junk) is left to hyper, from there on.

/// Digits of the largest length, and a CR behind them.
const MAX_LINE_BYTES: usize = 17;

/// Where in the framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Length,
    /// So many bytes of data, then their line end.
    Data(u64),
    Cr,
    Lf,
}

/// What became of the bytes of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// All taken.
    All,
    /// From this index on they are for hyper, behind [`Chunked::unfinished`].
    Rest(usize),
    /// Data longer than its length.
    Broken,
}

/// Follows one body.
#[derive(Debug)]
pub(crate) struct Chunked {
    next: Next,
    /// The start of a length's line that a read cut off.
    line: Vec<u8>,
}

impl Chunked {
    pub(crate) fn new() -> Self {
        Self {
            next: Next::Length,
            line: Vec::new(),
        }
    }

    /// Takes one read; `out` gets the data in it, in order.
    pub(crate) fn feed(&mut self, bytes: &[u8], out: &mut impl FnMut(&[u8])) -> Fed {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.next {
                Next::Length => match self.length(rest) {
                    Line::Whole { length, used } => {
                        self.next = Next::Data(length);
                        at += used;
                    }
                    Line::CutOff => return Fed::All,
                    Line::Other => return Fed::Rest(at),
                },
                Next::Data(left) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    out(&rest[..len]);
                    at += len;
                    let left = left - len as u64;
                    self.next = if left > 0 { Next::Data(left) } else { Next::Cr };
                }
                Next::Cr | Next::Lf => {
                    let (expected, next) = match self.next {
                        Next::Cr => (b'\r', Next::Lf),
                        _ => (b'\n', Next::Length),
                    };
                    if rest[0] != expected {
                        return Fed::Broken;
                    }
                    self.next = next;
                    at += 1;
                }
            }
        }
        Fed::All
    }

    /// What was taken of a line that is for hyper.
    pub(crate) fn unfinished(&self) -> &[u8] {
        &self.line
    }

    fn length(&mut self, rest: &[u8]) -> Line {
        if self.line.is_empty() {
            return self.line_of(rest);
        }
        // The line's start was kept: only as much is added as a line can have.
        let kept = self.line.len();
        let added = rest.len().min(MAX_LINE_BYTES + 1 - kept);
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(&rest[..added]);
        let found = self.line_of(&line);
        match found {
            Line::Whole { length, used } => Line::Whole {
                length,
                used: used - kept,
            },
            Line::CutOff => Line::CutOff,
            Line::Other => {
                line.truncate(kept);
                self.line = line;
                Line::Other
            }
        }
    }

    fn line_of(&mut self, bytes: &[u8]) -> Line {
        let mut length = 0_u64;
        for (at, byte) in bytes.iter().take(MAX_LINE_BYTES).enumerate() {
            let Some(digit) = (*byte as char).to_digit(16) else {
                return match bytes.get(at..at + 2) {
                    // A length of 0 is the last chunk's.
                    Some(b"\r\n") if length > 0 => Line::Whole {
                        length,
                        used: at + 2,
                    },
                    None if *byte == b'\r' && length > 0 => self.cut_off(bytes),
                    _ => Line::Other,
                };
            };
            length = length << 4 | u64::from(digit);
        }
        if bytes.len() < MAX_LINE_BYTES {
            self.cut_off(bytes)
        } else {
            Line::Other
        }
    }

    fn cut_off(&mut self, bytes: &[u8]) -> Line {
        self.line = bytes.to_vec();
        Line::CutOff
    }
}

enum Line {
    Whole { length: u64, used: usize },
    CutOff,
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, how it ended, and what was left to hyper.
    fn fed<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Fed, Vec<u8>) {
        let mut chunked = Chunked::new();
        let (mut data, mut left) = (Vec::new(), Vec::new());
        let mut end = Fed::All;
        for read in reads {
            if end != Fed::All {
                left.extend_from_slice(read);
                continue;
            }
            end = chunked.feed(read, &mut |piece| data.extend_from_slice(piece));
            if let Fed::Rest(at) = end {
                left.extend_from_slice(chunked.unfinished());
                left.extend_from_slice(&read[at..]);
                end = Fed::Rest(0);
            }
        }
        (data, end, left)
    }

    fn cut<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = bytes;
        sizes.iter().cycle().map_while(move |size| {
            let (read, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            (!read.is_empty()).then_some(read)
        })
    }

    #[test]
    fn what_is_no_plain_length_is_left_to_hyper() {
        for tail in [
            "0\r\n\r\n",
            "00\r\n\r\n",
            "0\r\nx: y\r\n\r\n",
            "5;a=b\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5\nhello",
            "\r\n",
            "zz",
            "5\rx",
            "11111111111111111\r\nx",
            "fffffffffffffffff",
        ] {
            let body = format!("3\r\nabc\r\n{tail}");
            for size in 1..body.len() {
                let (data, end, left) = fed(cut(body.as_bytes(), &[size]));
                assert_eq!(data, b"abc", "{tail:?} in reads of {size}");
                assert_eq!(
                    (end, left.as_slice()),
                    (Fed::Rest(0), tail.as_bytes()),
                    "{tail:?} in reads of {size}"
                );
            }
        }
    }

    #[test]
    fn data_that_goes_on_behind_its_length_is_broken() {
        for body in ["3\r\nabcd\r\n", "3\r\nabc\n", "3\r\nabc\rx"] {
            assert_eq!(fed([body.as_bytes()]).1, Fed::Broken, "{body:?}");
        }
    }

    /// For every partition into reads the same data, and the same bytes for hyper.
    #[test]
    fn any_partition_gives_the_same_data() {
        let mut state = 7_u64;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) % limit) as usize
        };
        for _ in 0..2_000 {
            let (mut body, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..below(6) {
                let piece: Vec<u8> = (0..=below(300)).map(|_| below(256) as u8).collect();
                let length = match below(3) {
                    0 => format!("{:X}\r\n", piece.len()),
                    1 => format!("00{:x}\r\n", piece.len()),
                    _ => format!("{:x}\r\n", piece.len()),
                };
                body.extend_from_slice(length.as_bytes());
                body.extend_from_slice(&piece);
                body.extend_from_slice(b"\r\n");
                expected.extend_from_slice(&piece);
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let sizes: Vec<usize> = (0..20).map(|_| 1 + below(40)).collect();
            let (data, end, left) = fed(cut(&body, &sizes));
            assert_eq!(data, expected);
            assert_eq!((end, left.as_slice()), (Fed::Rest(0), &b"0\r\n\r\n"[..]));
        }
    }
}
