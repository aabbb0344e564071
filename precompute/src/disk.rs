//! Sizes in words, and what is free on a disk.

use std::path::Path;

/// Bytes as MB, GB or TB.
pub fn in_words(bytes: u64) -> String {
    let bytes = bytes as f64;
    let (size, unit) = match bytes {
        ..1e9 => (bytes / 1e6, "MB"),
        ..1e12 => (bytes / 1e9, "GB"),
        _ => (bytes / 1e12, "TB"),
    };
    format!("{size:.1} {unit}")
}

/// Bytes that are free for us in the file system of the nearest folder that is there.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let folder = absolute.ancestors().find(|folder| folder.exists())?;
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Unknown.
#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}
