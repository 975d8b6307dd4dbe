//! What a sealed file says about itself, without its rows.

use std::fs::File;
use std::path::Path;

use parquet::file::metadata::FileMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::reader::ReadError;
use crate::schema::{FOOTER_FORMAT_VERSION, FOOTER_RECORDING_ID, FORMAT_VERSION};

/// The footer of a sealed file. Keys are `None` where the file has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    pub version: Option<u32>,
    pub recording_id: Option<String>,
    pub rows: i64,
}

impl Footer {
    /// Reads the footer of `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or is not Parquet.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io {
            path: path.to_owned(),
            source,
        })?;
        let reader = SerializedFileReader::new(file).map_err(|source| ReadError::Parquet {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::of(reader.metadata().file_metadata()))
    }

    pub(crate) fn of(metadata: &FileMetaData) -> Self {
        let value = |key: &str| {
            let mut pairs = metadata.key_value_metadata().into_iter().flatten();
            pairs.find(|kv| kv.key == key)?.value.clone()
        };
        Self {
            version: value(FOOTER_FORMAT_VERSION).and_then(|v| v.parse().ok()),
            recording_id: value(FOOTER_RECORDING_ID),
            rows: metadata.num_rows(),
        }
    }

    /// Refuses a format newer than this program's.
    ///
    /// # Errors
    /// With both versions.
    pub fn check_version(&self, path: &Path) -> Result<(), ReadError> {
        match self.version {
            Some(found) if found > FORMAT_VERSION => Err(ReadError::NewerSegment {
                path: path.to_owned(),
                found,
            }),
            _ => Ok(()),
        }
    }
}
