//! What a sealed file says about itself, without reading its rows.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use tapedeck_recording::schema::{FOOTER_FORMAT_VERSION, FOOTER_RECORDING_ID};

/// A file whose footer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FooterError {
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a sealed segment", path.display())]
    Parquet {
        path: PathBuf,
        #[source]
        source: parquet::errors::ParquetError,
    },
}

/// The footer of a sealed file. Keys are `None` where the file has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) version: Option<u32>,
    pub(crate) recording_id: Option<String>,
    pub(crate) rows: i64,
}

impl Footer {
    pub(crate) fn read(path: &Path) -> Result<Self, FooterError> {
        let file = File::open(path).map_err(|source| FooterError::Io {
            path: path.to_owned(),
            source,
        })?;
        let reader = SerializedFileReader::new(file).map_err(|source| FooterError::Parquet {
            path: path.to_owned(),
            source,
        })?;
        let metadata = reader.metadata().file_metadata();
        let pairs = metadata.key_value_metadata();
        let value = |key: &str| {
            let mut pairs = pairs.into_iter().flatten();
            pairs.find(|kv| kv.key == key)?.value.clone()
        };
        Ok(Self {
            version: value(FOOTER_FORMAT_VERSION).and_then(|v| v.parse().ok()),
            recording_id: value(FOOTER_RECORDING_ID),
            rows: metadata.num_rows(),
        })
    }
}
