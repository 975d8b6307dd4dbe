//! Files that appear whole or not at all: written beside, synced, renamed.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Recordings hold prompts: nobody else on the machine may read them.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// End of the name of a file that is not finished; readers pass over it.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Creates `dir` and its missing parents for the owner only.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)
}

/// Creates `dir`, which must not be there yet, for the owner only.
pub(crate) fn create_new_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(dir)
}

/// Creates an empty file for the owner only, in place of what has its name.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)
}

/// Takes an existing folder from everybody but the owner.
pub(crate) fn restrict_dir(dir: &Path) -> io::Result<()> {
    std::fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
}

/// A file that takes its name only in [`Pending::commit`].
#[derive(Debug)]
pub(crate) struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
}

impl Pending {
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(TEMPORARY);
        let temporary = target.with_file_name(name);
        let file = create_file(&temporary)?;
        Ok(Self {
            file,
            temporary,
            target: target.to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the content, gives the file its name and syncs the folder.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.file.sync_all()?;
        crash_point!("seal::before_rename", &self.target);
        std::fs::rename(&self.temporary, &self.target)?;
        crash_point!("seal::after_rename", &self.target);
        sync_dir(self.target.parent().unwrap_or(Path::new(".")))
    }
}

/// Replaces `target` with `content` atomically.
pub(crate) fn replace(target: &Path, content: &[u8]) -> io::Result<()> {
    let pending = Pending::create(target)?;
    pending.file().write_all(content)?;
    pending.commit()
}

/// Makes names in `dir` as durable as what they name.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
