//! What a command may replace: nothing without being asked, and with `--force` only what is recognisably its own output.
//!
//! Every command that writes to a place of the user's asks here first. How it recognises its own output is its own affair; the rule and the
//! words are the same for all.

use crate::error::{Error, Result};
use crate::hash::sha256_hex;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Whose a file is that is in the way of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// As this program wrote it.
    Ours,
    /// Written by this program, and changed by someone since.
    Changed,
    /// Of another origin.
    Foreign,
}

impl Origin {
    /// [`Origin::Ours`] or [`Origin::Foreign`], of a file that nobody edits by hand.
    pub fn ours_if(is_ours: bool) -> Self {
        if is_ours { Origin::Ours } else { Origin::Foreign }
    }

    /// Whether a file of this origin may be replaced; `what` is what was expected, for the message: `a table of sam-ladder`.
    ///
    /// # Errors
    /// [`Error::Foreign`] or [`Error::Changed`], which name the file.
    pub fn may_replace(self, path: &Path, what: &'static str) -> Result<()> {
        match self {
            Origin::Ours => Ok(()),
            Origin::Changed => Err(Error::Changed { path: path.into() }),
            Origin::Foreign => Err(Error::Foreign { path: path.into(), what }),
        }
    }
}

/// How a sealed text's last line begins and ends: so that its format takes it for a comment.
#[derive(Debug, Clone, Copy)]
pub struct Comment {
    /// The beginning: `# `.
    pub open: &'static str,
    /// The end: nothing, or ` -->`.
    pub close: &'static str,
}

/// In scripts and many tables.
pub const HASH_COMMENT: Comment = Comment { open: "# ", close: "" };
/// In LaTeX.
pub const LATEX_COMMENT: Comment = Comment { open: "% ", close: "" };
/// In Markdown and HTML.
pub const HTML_COMMENT: Comment = Comment { open: "<!-- ", close: " -->" };
/// What the last line of a sealed text says; the hash of the lines above it follows.
const SEAL: &str = "A file that was changed is not replaced: SHA-256 ";

/// A text with its seal, a last line by which [`origin_of_text`] recognises it as long as nobody changes it.
pub fn sealed(text: &str, Comment { open, close }: Comment) -> String {
    let text = if text.is_empty() || text.ends_with('\n') { text.to_string() } else { format!("{text}\n") };
    let hash = sha256_hex(text.as_bytes());
    format!("{text}{open}{SEAL}{hash}{close}\n")
}

/// The origin of a file whose text was [`sealed`]; links and what cannot be read are foreign.
pub fn origin_of_text(path: &Path, comment: Comment) -> Origin {
    let text = if is_regular_file(path) { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    match text.rfind(&format!("{}{SEAL}", comment.open)) {
        Some(at) if text == sealed(&text[..at], comment) => Origin::Ours,
        Some(_) => Origin::Changed,
        None => Origin::Foreign,
    }
}

/// Refuses to write `files` where one of them is there already, unless `force` is set and `origin` says that each that is there is an earlier
/// output of the same command, unchanged; `what` is what was expected, for the message: `a table of sam-ladder`.
///
/// # Errors
/// [`Error::Exists`], which names the first file that is there; [`Error::Foreign`] or [`Error::Changed`], which name the first such file.
pub fn may_write(files: &[PathBuf], force: bool, what: &'static str, origin: impl Fn(&Path) -> Origin) -> Result<()> {
    let Some(first) = files.iter().find(|path| is_there(path)) else { return Ok(()) };
    if !force {
        return Err(Error::Exists { path: first.clone() });
    }
    files.iter().filter(|path| is_there(path)).try_for_each(|path| origin(path).may_replace(path, what))
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
        let ask = |force, ours| may_write(&files, force, "a table", |_| Origin::ours_if(ours)).map_err(|error| error.to_string());
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
    fn a_sealed_text_is_known_until_it_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        for comment in [HASH_COMMENT, LATEX_COMMENT, HTML_COMMENT] {
            let text = sealed("Dice 81.2\nHD95 4.5\n", comment);
            let changes = [
                (text.clone(), Origin::Ours),
                (text.replace("81.2", "91.2"), Origin::Changed),
                (format!("{text}a note\n"), Origin::Changed),
                ("Dice 81.2\nHD95 4.5\n".into(), Origin::Foreign),
                (String::new(), Origin::Foreign),
            ];
            for (text, expected) in changes {
                std::fs::write(&path, &text).unwrap();
                assert_eq!(origin_of_text(&path, comment), expected, "{text}");
            }
        }
        let error = Origin::Changed.may_replace(&path, "a table").unwrap_err();
        assert!(error.to_string().ends_with("table has been changed since sam-ladder wrote it, and is not replaced"), "{error}");
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
