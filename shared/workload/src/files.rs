//! Opening data sets: plain or gzip, line by line with a bound.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::WorkloadError;

/// Longest line or record of a data set; a longer one is refused before it
/// fills memory.
pub(crate) const MAX_RECORD_BYTES: usize = 64 << 20;

/// Read at once from a file.
const READ_BYTES: usize = 256 << 10;

/// The text of `path`; gzip is recognised by its first bytes.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>, WorkloadError> {
    let read_error = |source| WorkloadError::read(path, source);
    let file = File::open(path).map_err(read_error)?;
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    let gzip = file
        .fill_buf()
        .map_err(read_error)?
        .starts_with(&[0x1f, 0x8b]);
    Ok(if gzip {
        let decoder = MultiGzDecoder::new(file);
        Box::new(BufReader::with_capacity(READ_BYTES, decoder))
    } else {
        Box::new(file)
    })
}

pub(crate) fn read_text(path: &Path) -> Result<String, WorkloadError> {
    let mut text = String::new();
    open(path)?
        .read_to_string(&mut text)
        .map_err(|source| WorkloadError::read(path, source))?;
    Ok(text)
}

/// The next line with its line feed, or `None` at the end.
pub(crate) fn read_line(reader: &mut dyn BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_RECORD_BYTES as u64)
        .read_until(b'\n', &mut bytes)?;
    if bytes.len() == MAX_RECORD_BYTES {
        let too_long = format!("a line is over {MAX_RECORD_BYTES} bytes");
        return Err(std::io::Error::other(too_long));
    }
    Ok((!bytes.is_empty()).then_some(bytes))
}

/// BLAKE3 of the file as it lies on the disk, 32 hex digits. Costs 0.1 s for
/// 125 MB.
pub(crate) fn hash(path: &Path) -> Result<String, WorkloadError> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(|source| WorkloadError::read(path, source))?;
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}
