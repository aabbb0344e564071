//! Files written aside, flushed to the disk and renamed: a reader sees a whole file or none.

use crate::error::{EvalError, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Fills `path` by `body`, through a `.tmp` sibling that is removed when something fails.
pub(crate) fn write_atomically(path: &Path, body: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".tmp");
    let aside = path.with_file_name(name);
    let write = || {
        let mut file = BufWriter::new(File::create(&aside)?);
        body(&mut file)?;
        file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&aside);
        EvalError::Io { path: path.into(), action: "write", source }
    })
}

/// Writes these bytes.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| file.write_all(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.md");
        write_bytes(&path, b"old").unwrap();
        let error = write_atomically(&path, |file| {
            file.write_all(b"ne")?;
            Err(std::io::Error::other("disk full"))
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("table.md") && error.contains("disk full"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
