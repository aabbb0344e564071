//! Atomic writes: a file is written under a temporary name, synced and renamed, and its folder synced.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Suffix of files that are being written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// Attempts at a write whose temporary file disappears.
const ATTEMPTS: usize = 3;

/// Writes `bytes` to `path` atomically: a reader, or the next start after a crash or a power loss, sees either all of them or the old file.
///
/// An existing file is replaced. A failed write leaves nothing behind. Several threads or processes may write the same path at once:
/// each has its own temporary file, which it keeps locked (see [`tidy`]).
///
/// # Errors
/// [`Error::Io`] that names the file, also for a full disk.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with the bytes that `body` writes. `body` may be called again, with a new file.
///
/// # Errors
/// As [`write_atomic`], and those of `body`.
pub fn write_atomic_with(path: &Path, mut body: impl FnMut(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let (aside, file) = create_aside(path).map_err(Error::io("write", path))?;
        let mut file = BufWriter::new(file);
        outcome = body(&mut file)
            .and_then(|()| file.into_inner().map_err(|error| error.into_error()))
            // The file stays open, and so locked, until it has its name: nobody tidies it away before.
            .and_then(|file| file.sync_all().and_then(|()| std::fs::rename(&aside, path)));
        match &outcome {
            Ok(()) => return sync_folder(folder_of(path)),
            // A file system without locks: another process tidied it away.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !aside.exists() => {}
            Err(_) => {
                // The write's own error matters more than a failure to tidy up after it.
                std::fs::remove_file(&aside).ok();
                break;
            }
        }
    }
    outcome.map_err(Error::io("write", path))
}

/// The folder that contains a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new locked file in the folder of `path`, under a name that no other thread or process takes.
fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        // The standard library seeds each new hasher randomly.
        let random = RandomState::new().build_hasher().finish();
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        name.push(format!(".{random:016x}{TEMPORARY_SUFFIX}"));
        let aside = path.with_file_name(name);
        let file = match OpenOptions::new().write(true).create_new(true).open(&aside) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // A file system without locks works too, but what a crash leaves there must be removed by hand.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            // Another process may have tidied it away before it was locked.
            Ok(()) if !aside.exists() => {}
            Ok(()) | Err(TryLockError::Error(_)) => return Ok((aside, file)),
        }
    }
}

/// Whether `name` is a name of a temporary file for the file `of`.
pub fn is_temporary_of(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(TEMPORARY_SUFFIX))
}

/// Removes the temporary files that interrupted writes left directly in a folder. A file that a live process is writing is locked and
/// stays, also if the process runs on another machine and the file system's locks reach it.
///
/// # Errors
/// [`Error::Io`] that names the file or folder.
pub fn tidy(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            remove_if_stale(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_stale(path: &Path) -> Result<()> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let file = match OpenOptions::new().write(true).open(path) {
        Err(e) if gone(&e) || e.kind() == io::ErrorKind::IsADirectory => return Ok(()),
        other => other.map_err(Error::io("open", path))?,
    };
    if file.try_lock().is_err() {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(e) if !gone(&e) => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Syncs a folder, so that renames into it survive a power loss.
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
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.md");
        write_atomic(&path, b"old").unwrap();
        let error = write_atomic_with(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.is_disk_full() && error.to_string().contains("table.md"), "{error}");
        assert!(error.hint().unwrap().contains("free space"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn tidying_spares_what_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let (live, file) = create_aside(&path).unwrap();
        let (dead, _) = create_aside(&path).unwrap();
        std::fs::write(folder.path().join("b.bin.tmp"), b"of an older version").unwrap();
        std::fs::write(&path, b"whole").unwrap();
        tidy(folder.path()).unwrap();
        assert!(live.exists() && path.exists() && !dead.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        assert!(is_temporary_of(live.file_name().unwrap().to_str().unwrap(), "a.bin"));
        assert!(!is_temporary_of("a.bin", "a.bin") && !is_temporary_of("a.binary.tmp", "a.bin"));
        drop(file);
        tidy(folder.path()).unwrap();
        assert!(!live.exists());
    }

    #[test]
    fn writers_of_one_path_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let bytes = vec![7u8; 10_000];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        write_atomic(&path, &bytes).unwrap();
                        tidy(folder.path()).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_the_file_that_it_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("absent/a.bin"), b"x").unwrap_err();
        assert!(error.to_string().contains("absent/a.bin"), "{error}");
    }
}
