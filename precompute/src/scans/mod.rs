//! CT scans with their reference segmentations, from the raw Synapse layout or the published preprocessed one.

use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::Preprocessing;
use sam_ladder_schemas::store::SourceFile;
use std::path::{Path, PathBuf};

/// A scan ready for the network: windowed, transposed, labels mapped to classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// Case, as in the source file's name: `0005`.
    pub case: String,
    /// Which half of the data it belongs to.
    pub split: Split,
    /// Depth, height, width: `[axis 2, axis 1, axis 0]` of the NIfTI array.
    pub shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width, in millimetres. The published layout has none: 1.
    pub spacing_mm: [f64; 3],
    /// `[d, h, w]`, the Hounsfield window as [0, 1].
    pub image: Vec<f32>,
    /// `[d, h, w]`, classes.
    pub label: Vec<u8>,
    /// The file that each slice was read from, one a slice.
    pub slice_sources: Vec<SourceFile>,
}

/// A case that a folder holds, before its voxels are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseEntry {
    /// Case, as in the source file's name: `0005`.
    pub case: String,
    /// Which half of the data it belongs to.
    pub split: Split,
    /// Slices of the scan.
    pub num_slices: usize,
    /// Its files: image and label in the raw layout, one a slice or one in all in the published layout.
    pub files: Vec<PathBuf>,
}

/// A folder of scans in either layout.
#[derive(Debug, Clone)]
pub struct ScanSource {
    cases: Vec<CaseEntry>,
}

/// What can be wrong with scans, each a line that names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Filled in below.
    #[error("x")]
    Placeholder,
}

impl ScanSource {
    /// Finds out the layout and the cases of a folder; reads headers, no voxels.
    pub fn open(_dir: &Path, _preprocessing: &Preprocessing) -> Result<Self, ScanError> {
        unimplemented!()
    }

    /// The cases: train before test, each sorted by case.
    pub fn cases(&self) -> &[CaseEntry] {
        &self.cases
    }

    /// Every file with its SHA-256, sorted by path.
    pub fn sources(&self) -> Result<Vec<SourceFile>, ScanError> {
        unimplemented!()
    }

    /// Reads a case.
    pub fn read(&self, _case: &CaseEntry) -> Result<Scan, ScanError> {
        unimplemented!()
    }
}
