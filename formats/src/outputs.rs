//! What a command may replace: nothing without being asked, and with `--force` only what is recognisably its own output.
//!
//! Every command that writes to a place of the user's asks here first. How it recognises its own output is its own affair; the rule and the
//! words are the same for all.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Refuses to write `files` where one of them is there already, unless `force` is set and `is_ours` recognises what is there as an earlier
/// output of the same command; `what` is what was expected, for the message: `a table of sam-ladder`.
///
/// # Errors
/// [`Error::Exists`] or [`Error::Foreign`], which name the first file that is there.
pub fn may_write(files: &[PathBuf], force: bool, what: &'static str, is_ours: impl FnOnce() -> bool) -> Result<()> {
    let Some(first) = files.iter().find(|path| is_there(path)) else { return Ok(()) };
    if !force {
        return Err(Error::Exists { path: first.clone() });
    }
    if is_ours() { Ok(()) } else { Err(Error::Foreign { path: first.clone(), what }) }
}

/// Whether a path names anything, a dangling link included.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether a path names a file itself, and no link.
pub fn is_regular_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file())
}

/// Whether a path names a folder itself, and no link.
pub fn is_real_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// A folder that one process writes; the lock ends with the value, or with its process.
#[derive(Debug)]
pub struct FolderLock {
    /// `None` on a file system without locks.
    _folder: Option<File>,
}

/// Locks a folder, which must exist, against other processes that do the same.
///
/// # Errors
/// [`Error::InUse`] if another process has it; [`Error::Io`].
pub fn lock_folder(path: &Path) -> Result<FolderLock> {
    let folder = File::open(path).map_err(Error::io("open", path))?;
    match folder.try_lock() {
        Ok(()) => Ok(FolderLock { _folder: Some(folder) }),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.into() }),
        // Some network file systems lock no folders.
        Err(TryLockError::Error(_)) => Ok(FolderLock { _folder: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced_unless_it_is_ours_and_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["table.md", "table.tex"].map(|name| folder.path().join(name));
        let ask = |force, ours| may_write(&files, force, "a table", || ours).map_err(|error| error.to_string());
        assert_eq!(ask(false, false), Ok(()), "nothing is there");
        std::fs::write(&files[1], "mine").unwrap();
        assert!(ask(false, true).unwrap_err().ends_with("table.tex exists"));
        assert!(ask(true, false).unwrap_err().ends_with("table.tex is not a table, and is not replaced"));
        assert_eq!(ask(true, true), Ok(()));
        std::fs::remove_file(&files[1]).unwrap();
        std::os::unix::fs::symlink("nowhere", &files[0]).unwrap();
        assert!(ask(false, true).unwrap_err().ends_with("table.md exists"), "a dangling link is something");
    }

    #[test]
    fn a_folder_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock_folder(folder.path()).unwrap();
        let error = lock_folder(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::InUse { .. }) && error.hint().is_some(), "{error}");
        drop(first);
        lock_folder(folder.path()).unwrap();
    }
}
