//! What `inspect` finds in a folder of scans, before anything is computed.

use crate::classes::Split;
use crate::tables::PERCENTILES;
use serde::Serialize;

/// A folder of scans.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The folder, as it was named.
    pub folder: String,
    /// Its layout, in words.
    pub layout: String,
    /// Names of the classes from 1.
    pub class_names: Vec<String>,
    /// The channels that are taken, and how their values become [0, 1].
    pub channels: Vec<String>,
    /// The orientation in which slices are taken, if anything says it.
    pub orientation: Option<String>,
    /// Every case: train before test, each by name.
    pub cases: Vec<InspectedCase>,
    /// What should be looked at before the scans are used.
    pub warnings: Vec<String>,
    /// What else is said: files that are passed over, scans that are turned.
    pub remarks: Vec<String>,
    /// What `precompute` costs.
    pub costs: Vec<InspectedCost>,
}

/// A case, by its files' headers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectedCase {
    /// Its name.
    pub case: String,
    /// Which half of the data it belongs to.
    pub split: Split,
    /// Its first file, below the folder.
    pub file: String,
    /// Number of slices.
    pub slices: usize,
    /// Height and width of a slice in voxels; `None` where only the voxels say it.
    pub plane: Option<[usize; 2]>,
    /// Distance between voxel centres along depth, height and width in millimetres; `None` if nothing says it.
    pub spacing_mm: Option<[f64; 3]>,
    /// How the file's axes lie in the body, as nibabel's axis codes; `None` without an affine.
    pub orientation: Option<String>,
    /// What its voxels are; `None` if they were not read.
    pub voxels: Option<InspectedVoxels>,
}

/// What the voxels of a case are.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InspectedVoxels {
    /// They can be used.
    Usable {
        /// [`PERCENTILES`] of each channel's values, as the file has them.
        percentiles: Vec<[f64; PERCENTILES.len()]>,
        /// For each channel, the share of voxels that the window, or the range between its percentiles, does not clip; where the image's channels are
        /// windows of one channel, for each window.
        in_window: Vec<f64>,
        /// Voxels of each class, from class 1.
        organ_voxels: Vec<u64>,
    },
    /// They cannot, and why.
    Unusable(String),
}

/// What one way to run `precompute` costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectedCost {
    /// Its options.
    pub options: String,
    /// Images to encode.
    pub images: usize,
    /// Bytes of the store, at most.
    pub bytes: u64,
    /// Seconds of encoding on this machine; `None` if none was measured.
    pub seconds: Option<f64>,
}

impl InspectedCase {
    /// Volume of a voxel in millilitres.
    pub fn voxel_ml(&self) -> Option<f64> {
        self.spacing_mm.map(|[z, y, x]| z * y * x / 1000.0)
    }

    /// Voxels of each class from 1, if they were read.
    pub fn organ_voxels(&self) -> Option<&[u64]> {
        match &self.voxels {
            Some(InspectedVoxels::Usable { organ_voxels, .. }) => Some(organ_voxels),
            _ => None,
        }
    }
}
