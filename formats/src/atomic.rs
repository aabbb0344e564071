//! Files that are there whole or not at all: written aside, synced, renamed, and the folder synced.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Ending of files that are being written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// Times that a file whose temporary one was taken away is written again.
const ATTEMPTS: usize = 3;

/// Writes `bytes` to `path` so that a reader, or the next start after a crash or a loss of power, sees all of them or the file as it
/// was before.
///
/// An existing file is replaced; callers that must not do that check first. A failed write leaves nothing behind. Several threads or
/// processes may write the same path at once: each has a temporary file of its own, which it holds locked (see [`tidy`]).
///
/// # Errors
/// [`Error::Io`] that names the file, a full disk included.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], of what `body` writes. `body` may be called again, with a new file.
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
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&aside, path));
        match &outcome {
            Ok(()) => return sync_folder(folder_of(path)),
            // Tidied away in the moment between its creation and its lock.
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

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new locked file in the folder of `path`, under a name that no other thread or process takes.
fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        // A hasher of the standard library starts from a number drawn anew for each.
        let random = RandomState::new().build_hasher().finish();
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        name.push(format!(".{random:016x}{TEMPORARY_SUFFIX}"));
        let aside = path.with_file_name(name);
        let file = match OpenOptions::new().write(true).create_new(true).open(&aside) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // A file system without locks works as well; only what is left there by a crash has to be removed by hand.
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            Ok(()) | Err(TryLockError::Error(_)) => return Ok((aside, file)),
        }
    }
}

/// Whether `name` is that of a temporary file of the file called `of`.
pub fn is_temporary_of(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(TEMPORARY_SUFFIX))
}

/// Removes the temporary files that interrupted writes left directly in a folder. One that a live process is writing is locked
/// and stays, on whichever machine that runs, as far as the file system's locks reach.
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
