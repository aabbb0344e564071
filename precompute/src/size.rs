//! Sizes in words.

/// Bytes as MB, GB or TB.
pub(crate) fn in_words(bytes: u64) -> String {
    let bytes = bytes as f64;
    let (size, unit) = match bytes {
        ..1e9 => (bytes / 1e6, "MB"),
        ..1e12 => (bytes / 1e9, "GB"),
        _ => (bytes / 1e12, "TB"),
    };
    format!("{size:.1} {unit}")
}
