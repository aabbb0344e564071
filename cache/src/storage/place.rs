//! Parses the place of a store as typed.

use std::path::Path;

/// What a place in a bucket starts with.
const SCHEME: &str = "s3://";

/// Whether a store's place, or one of its files, is in a bucket: `s3://bucket/key`.
pub fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// Bucket and key of a place; the error is in words.
pub(super) fn parse(path: &Path) -> Result<(String, String), String> {
    let text = path.to_str().unwrap_or_default();
    let (bucket, key) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).unwrap_or_default();
    let key = key.trim_end_matches('/');
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    if !plain(bucket) || !key.split('/').all(plain) {
        return Err(format!("expected s3://BUCKET/KEY, such as s3://lab/synapse.zarr, found {text}"));
    }
    Ok((bucket.into(), key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed() {
        assert!(
            is_remote(Path::new("s3://lab/a/s.zarr")) && !is_remote(Path::new("s3/lab")) && !is_remote(Path::new("/s3:/lab"))
        );
        assert_eq!(parse(Path::new("s3://lab/a/s.zarr/")), Ok(("lab".into(), "a/s.zarr".into())));
        for wrong in ["s3://", "s3://lab", "s3://lab/", "s3:///key", "s3://lab/a//b", "s3://lab/../b", "s3://lab/a\n"] {
            assert!(parse(Path::new(wrong)).unwrap_err().contains("s3://BUCKET/KEY"), "{wrong}");
        }
    }

    /// Paths under a place keep its text, since messages show it and keys are made from it.
    #[test]
    fn paths_below_a_place_stay_as_they_are_written() {
        let path = Path::new("s3://lab/s.zarr").join("train/zarr.json");
        assert_eq!(path.to_str(), Some("s3://lab/s.zarr/train/zarr.json"));
        assert_eq!(parse(&path), Ok(("lab".into(), "s.zarr/train/zarr.json".into())));
    }
}
