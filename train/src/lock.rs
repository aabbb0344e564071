//! Locks that keep two processes from the same work. They are the operating system's, on an open file, so they end with their process.

use crate::error::{Result, io};
use sam_ladder_schemas::observer::Observer;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process has said that a file system lacks locks.
static SAID: AtomicBool = AtomicBool::new(false);

/// A lock that is held while the value lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    /// Why it locks nothing, on a file system without locks.
    lacking: Option<String>,
}

impl Lock {
    /// Locks the file `path`, which is created if necessary and stays; `None` if another process or thread holds the lock.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>> {
        Self::attempt_by(path, File::try_lock)
    }

    fn attempt_by(path: &Path, lock: impl Fn(&File) -> std::result::Result<(), TryLockError>) -> Result<Option<Self>> {
        let file = open(path)?;
        match lock(&file) {
            Ok(()) => Ok(Some(Lock { _file: file, lacking: None })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Ok(Some(Lock { _file: file, lacking: Some(error.to_string()) })),
        }
    }

    /// As [`Self::attempt`], but waits until the lock is free.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        let file = open(path)?;
        loop {
            match file.lock() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return Ok(Lock { _file: file, lacking: other.err().map(|error| error.to_string()) }),
            }
        }
    }

    /// Whether it keeps others out.
    pub(crate) fn is_real(&self) -> bool {
        self.lacking.is_none()
    }

    /// Says once per process that the file system of `folder` lacks locks, if it does.
    pub(crate) fn say_if_lacking(&self, folder: &Path, observer: &dyn Observer) {
        if let Some(reason) = &self.lacking
            && !SAID.swap(true, Ordering::Relaxed)
        {
            let folder = folder.display();
            observer.message(&format!(
                "{folder}: this file system has no locks ({reason}), so nothing stops a second process from writing here; start only one"
            ));
        }
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::observer::silent;

    #[test]
    fn a_lock_is_held_once_and_ends_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::attempt(&path).unwrap().unwrap();
        assert!(first.is_real() && Lock::attempt(&path).unwrap().is_none());
        drop(first);
        let second = Lock::wait(&path).unwrap();
        assert!(second.is_real() && Lock::attempt(&path).unwrap().is_none());
        let absent = Lock::attempt(&folder.path().join("absent/lock")).unwrap_err().to_string();
        assert!(absent.contains("absent/lock"), "{absent}");
    }

    #[test]
    fn a_file_system_without_locks_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let none = |_: &File| Err(TryLockError::Error(ErrorKind::Unsupported.into()));
        let lock = Lock::attempt_by(&folder.path().join("lock"), none).unwrap().unwrap();
        assert!(!lock.is_real());
        lock.say_if_lacking(folder.path(), &*silent());
        assert!(SAID.load(Ordering::Relaxed));
    }
}
