//! Files that are there whole or not at all: written aside, synced, renamed.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Ending of files that are being written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// The sibling that [`write_atomic`] writes before it renames it to `path`.
pub fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(TEMPORARY_SUFFIX);
    path.with_file_name(name)
}

/// Writes `bytes` to `path` so that a reader, or the next start after a crash, sees all of them or the file as it was before.
///
/// An existing file is replaced; callers that must not do that check first. A failed write leaves nothing behind.
///
/// # Errors
/// [`Error::Io`] that names the file, a full disk included.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = temporary_path(path);
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&aside, path)).map_err(|source| {
        // The write's own error matters more than a failure to tidy up after it.
        std::fs::remove_file(&aside).ok();
        Error::Io { action: "write", path: path.to_path_buf(), source }
    })
}

/// Syncs a folder, so that the names of the files renamed into it survive a loss of power.
///
/// # Errors
/// [`Error::Io`] that names the folder.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_the_file_that_it_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("absent/a.bin"), b"x").unwrap_err();
        assert!(error.to_string().contains("absent/a.bin"), "{error}");
    }
}
