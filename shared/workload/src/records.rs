//! Cuts JSON records out of a file, one batch at a time: elements of an array,
//! or lines. It finds where records begin and end and leaves what is in them to
//! a parser, so a file of any size costs one batch of memory, and a file that
//! breaks off gives all records before the break.

use std::io::{self, BufRead, ErrorKind};
use std::ops::Range;
use std::path::Path;

use memchr::memchr2;

use crate::error::WorkloadError;
use crate::files::{MAX_RECORD_BYTES, open, read_line};

/// Text parsed at once; a batch holds one record more than fits.
const BATCH_BYTES: usize = 4 << 20;

/// Records as one JSON array, but for the closing bracket.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) text: Vec<u8>,
    pub(crate) records: Vec<Record>,
}

/// Where a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// From 1.
    pub(crate) number: u64,
    /// Of its first byte, in the decompressed text.
    pub(crate) offset: u64,
    /// In the batch's text.
    pub(crate) range: Range<usize>,
}

/// How far a file has been read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    End,
    /// It breaks off, or goes on with what is no record.
    Broken(String),
}

/// A file being read.
pub(crate) struct Records<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    is_array: bool,
    offset: u64,
    number: u64,
}

/// Why there is no further record.
enum Stop {
    End,
    Broken(String),
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        // The only reader here that knows where it should end is gzip's.
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Broken("the gzip stream is cut off".to_owned()),
            ErrorKind::InvalidInput | ErrorKind::InvalidData => {
                Self::Broken("the gzip stream is damaged".to_owned())
            }
            _ => Self::Io(error),
        }
    }
}

impl<'a> Records<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self, WorkloadError> {
        Self::new(path, open(path)?)
    }

    fn new(path: &'a Path, reader: Box<dyn BufRead>) -> Result<Self, WorkloadError> {
        let mut records = Self {
            path,
            reader,
            is_array: false,
            offset: 0,
            number: 0,
        };
        match records.begin() {
            Ok(()) | Err(Stop::End | Stop::Broken(_)) => Ok(records),
            Err(Stop::Io(source)) => Err(WorkloadError::read(path, source)),
        }
    }

    /// Passes a byte order mark and white space, and sees what follows.
    fn begin(&mut self) -> Result<(), Stop> {
        if self.reader.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
            self.pass(3);
        }
        if self.skip(|byte| byte.is_ascii_whitespace())? == Some(b'[') {
            self.is_array = true;
            self.pass(1);
        }
        Ok(())
    }

    /// Replaces what is in `batch` by the next records.
    pub(crate) fn fill(&mut self, batch: &mut Batch) -> Result<Progress, WorkloadError> {
        batch.text.clear();
        batch.text.push(b'[');
        batch.records.clear();
        while batch.text.len() < BATCH_BYTES {
            match self.next(&mut batch.text) {
                Ok(record) => batch.records.push(record),
                Err(Stop::End) => return Ok(Progress::End),
                Err(Stop::Broken(how)) => return Ok(Progress::Broken(how)),
                Err(Stop::Io(source)) => return Err(WorkloadError::read(self.path, source)),
            }
        }
        Ok(Progress::More)
    }

    /// Appends the next record to `text`, or nothing.
    fn next(&mut self, text: &mut Vec<u8>) -> Result<Record, Stop> {
        let before = text.len();
        if before > 1 {
            text.push(b',');
        }
        let start = text.len();
        let found = if self.is_array {
            self.next_element(text)
        } else {
            self.next_line(text)
        };
        match found {
            Ok(offset) => {
                self.number += 1;
                Ok(Record {
                    number: self.number,
                    offset,
                    range: start..text.len(),
                })
            }
            Err(stop) => {
                text.truncate(before);
                Err(stop)
            }
        }
    }

    fn next_element(&mut self, text: &mut Vec<u8>) -> Result<u64, Stop> {
        let is_between = |byte: u8| byte.is_ascii_whitespace() || byte == b',';
        let offset = match self.skip(is_between)? {
            Some(b'{') => self.offset,
            Some(b']') => return Err(self.after_the_array()?),
            Some(byte) => {
                let found = char::from(byte).escape_default();
                let at = self.offset;
                let how = format!("byte {at} begins no record: {found} where {{ should be");
                return Err(Stop::Broken(how));
            }
            None => {
                let how = format!("the file ends at byte {}, without a ]", self.offset);
                return Err(Stop::Broken(how));
            }
        };
        let start = text.len();
        let mut boundary = Boundary::default();
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                let how = format!(
                    "the file ends at byte {}, inside the record that begins at byte {offset}",
                    self.offset
                );
                return Err(Stop::Broken(how));
            }
            let end = boundary.find(buffer);
            let taken = end.unwrap_or(buffer.len());
            text.extend_from_slice(&buffer[..taken]);
            self.pass(taken);
            if end.is_some() {
                return Ok(offset);
            }
            if text.len() - start > MAX_RECORD_BYTES {
                let how = format!(
                    "the record that begins at byte {offset} is over {MAX_RECORD_BYTES} bytes"
                );
                return Err(Stop::Broken(how));
            }
        }
    }

    /// What lies behind the closing bracket: nothing, in a whole file.
    fn after_the_array(&mut self) -> Result<Stop, Stop> {
        self.pass(1);
        Ok(match self.skip(|byte| byte.is_ascii_whitespace())? {
            None => Stop::End,
            Some(_) => {
                let at = self.offset;
                Stop::Broken(format!("the file goes on at byte {at}, behind its ]"))
            }
        })
    }

    fn next_line(&mut self, text: &mut Vec<u8>) -> Result<u64, Stop> {
        while let Some(line) = read_line(&mut *self.reader)? {
            let content = line.trim_ascii();
            let indent = line.len() - line.trim_ascii_start().len();
            let offset = self.offset + indent as u64;
            self.offset += line.len() as u64;
            if !content.is_empty() {
                text.extend_from_slice(content);
                return Ok(offset);
            }
        }
        Err(Stop::End)
    }

    /// Passes bytes that `is_skipped` and returns the next, without taking it.
    fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) -> Result<Option<u8>, Stop> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let other = buffer.iter().position(|byte| !is_skipped(*byte));
            let found = other.map(|at| buffer[at]);
            let passed = other.unwrap_or(buffer.len());
            self.pass(passed);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn pass(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.offset += bytes as u64;
    }
}

/// Finds the end of a record that comes in pieces.
#[derive(Debug, Default)]
struct Boundary {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Boundary {
    /// Index just behind the record's end, or `None` when it goes on beyond
    /// `piece`.
    fn find(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                at += memchr2(b'"', b'\\', &piece[at..])?;
                self.escaped = piece[at] == b'\\';
                self.in_string = self.escaped;
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                if self.depth == 0 {
                    return Some(at + 1);
                }
            }
            at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::io::Cursor;

    /// Hands out at most `step` bytes at a time.
    struct Steps(Cursor<Vec<u8>>, usize);

    impl io::Read for Steps {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = into.len().min(self.1);
            self.0.read(&mut into[..n])
        }
    }

    impl BufRead for Steps {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            let left = self.0.fill_buf()?;
            Ok(&left[..left.len().min(self.1)])
        }

        fn consume(&mut self, n: usize) {
            self.0.consume(n);
        }
    }

    /// Records of `text` as they stand in it, and how it ended.
    fn cut(text: &str, step: usize) -> (Vec<String>, Progress) {
        let reader = Box::new(Steps(Cursor::new(text.as_bytes().to_vec()), step));
        let mut records = Records::new(Path::new("f"), reader).unwrap();
        let mut batch = Batch::default();
        let mut found = Vec::new();
        loop {
            let progress = records.fill(&mut batch).unwrap();
            for record in &batch.records {
                let bytes = batch.text[record.range.clone()].to_vec();
                let at = usize::try_from(record.offset).unwrap();
                assert_eq!(&text.as_bytes()[at..at + bytes.len()], bytes);
                found.push(String::from_utf8(bytes).unwrap());
            }
            if progress != Progress::More {
                return (found, progress);
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(|n| json!(n)),
            "[a-z\"\\\\{}\\[\\],é\n]{0,8}".prop_map(|s| json!(s)),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::vec(("[a-z\"}]{0,3}", inner), 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_record_comes_out_whole_however_the_file_is_read(
            values in prop::collection::vec(value(), 0..6),
            pretty: bool,
            step in 1_usize..9,
            cut_at in 0.0..1.0_f64,
        ) {
            let records: Vec<Value> = values.into_iter().map(|v| json!({"v": v})).collect();
            let print = |value: &Value| if pretty { format!("{value:#}") } else { value.to_string() };
            let texts: Vec<String> = records.iter().map(print).collect();
            let file = format!("[\n{}\n]", texts.join(",\n"));
            prop_assert_eq!(cut(&file, step), (texts.clone(), Progress::End));

            // Whatever is cut off, the records before the cut are all there.
            let mut at = (file.len() as f64 * cut_at) as usize;
            while !file.is_char_boundary(at) {
                at -= 1;
            }
            let (found, end) = cut(&file[..at], step);
            prop_assert!(texts.starts_with(&found));
            let whole = texts.iter().scan(2, |end, text| {
                *end += text.len() + 2;
                Some(*end - 2)
            });
            prop_assert_eq!(found.len(), whole.filter(|end| *end <= at).count());
            if at > 0 {
                prop_assert!(matches!(end, Progress::Broken(_)));
            }
        }
    }

    #[test]
    fn lines_are_records_too() {
        let (found, end) = cut("\u{feff}\n{\"a\": 1}\r\n\n {\"b\": 2}", 3);
        assert_eq!(found, ["{\"a\": 1}", "{\"b\": 2}"]);
        assert_eq!(end, Progress::End);
    }

    #[test]
    fn a_break_says_where_it_is() {
        let (found, end) = cut("[{\"a\": \"x]\"}, {\"b\": \"\\\"", 4);
        assert_eq!(found.len(), 1);
        let Progress::Broken(how) = end else {
            panic!("{end:?}")
        };
        assert_eq!(
            how,
            "the file ends at byte 23, inside the record that begins at byte 14"
        );
        let (_, end) = cut("[{}, 7, {}]", 4);
        let Progress::Broken(how) = end else {
            panic!("{end:?}")
        };
        assert_eq!(how, "byte 5 begins no record: 7 where { should be");
        let (found, end) = cut("[{}]\n[{}, {}]", 4);
        assert_eq!(found, ["{}"]);
        let Progress::Broken(how) = end else {
            panic!("{end:?}")
        };
        assert_eq!(how, "the file goes on at byte 5, behind its ]");
    }
}
