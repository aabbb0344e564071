//! Synthetic scans in the raw Synapse layout.
use std::path::PathBuf;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhantomConfig {
    /// Folder that gets `RawData/Training/{img,label}`; it must not hold any of the files yet.
    pub out: PathBuf,
    /// Number of scans, at least 1.
    pub cases: usize,
    /// Height and width of a slice, in pixels.
    pub size: usize,
    /// Slices of a scan.
    pub depth: usize,
    /// Seed: the same gives the same bytes.
    pub seed: u64,
}

/// What can go wrong while writing phantoms.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// Filled in below.
    #[error("x")]
    Placeholder,
}

/// Writes the scans.
pub fn write_phantom(_config: &PhantomConfig) -> Result<(), PhantomError> {
    unimplemented!()
}
