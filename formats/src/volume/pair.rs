//! Pairs of a header (`.hdr`) and the file of its voxels (`.img`), either of them perhaps compressed.

use super::without_ending;
use crate::error::{Error, Problem, Result};
use crate::placeholder;
use std::path::{Path, PathBuf};

/// The file of a header's voxels: of the same name, `.img` or `.img.gz`, in the header's case or the other.
pub(super) fn voxels_of(header: &Path) -> Result<PathBuf> {
    let name = header.file_name().unwrap_or_default().to_string_lossy();
    let stem = without_ending(&name, ".hdr.gz").or_else(|| without_ending(&name, ".hdr")).unwrap_or(&name);
    let there = [".img", ".img.gz", ".IMG", ".IMG.GZ"].map(|ending| header.with_file_name(format!("{stem}{ending}")));
    // A link that was not fetched is reported when it is read.
    there.into_iter().find(|path| path.is_file() || placeholder::is_dangling(path)).ok_or_else(|| no_voxels(header))
}

/// A header without its voxels.
pub(super) fn no_voxels(header: &Path) -> Error {
    let problem = "it is the header of a pair, and the .img file of its voxels is not next to it";
    Problem::with_advice(problem, "put the .img file of the same name into the same folder").in_file(header, "NIfTI")
}
