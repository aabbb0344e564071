//! Where a scan's voxels lie in space, and how they are turned so that slices are taken as they were for training.

use super::error::ScanError;
use sam_ladder_formats::nifti::Geometry;
use sam_ladder_formats::volume::read_geometry;
use sam_ladder_schemas::orientation::{Orientation, Turn};
use sam_ladder_schemas::tables::{ScanRow, SpacingSource};
use std::path::Path;

/// Grids whose corners are closer than this part of a voxel's shortest side are the same: headers round their numbers.
pub(super) const SAME_GRID: f64 = 1e-3;

/// A scan's grid of voxels: as its file has it, and the turn to the orientation in which its slices are taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// The file's.
    pub geometry: Geometry,
    /// From the file's array to the one whose slices the network sees.
    pub turn: Turn,
}

impl Grid {
    /// A grid that is turned to an orientation; as it lies, if none is wanted or the file has no affine.
    pub fn new(geometry: Geometry, wanted: Option<Orientation>) -> Self {
        let turn = match (orientation_of(&geometry), wanted) {
            (Some(found), Some(wanted)) => Turn::between(found, wanted),
            _ => Turn::NONE,
        };
        Grid { geometry, turn }
    }

    /// Reads it from a file's header.
    ///
    /// # Errors
    /// When the header cannot be read.
    pub fn read(path: &Path, wanted: Option<Orientation>) -> Result<Self, ScanError> {
        Ok(Grid::new(read_geometry(path)?, wanted))
    }

    /// How the file's axes lie in the body; `None` without an affine.
    pub fn orientation(&self) -> Option<Orientation> {
        orientation_of(&self.geometry)
    }

    /// Depth, height and width as the network sees them.
    pub fn shape(&self) -> [usize; 3] {
        self.turn.of_reversed(self.geometry.shape)
    }

    /// Distance between voxel centres along these axes, in millimetres; `None` if the affine is sheared: its columns' lengths measure nothing.
    pub fn spacing_mm(&self) -> Option<[f64; 3]> {
        Some(self.turn.of_reversed(self.file_spacing_mm()?))
    }

    /// The same along the file's axes.
    fn file_spacing_mm(&self) -> Option<[f64; 3]> {
        self.geometry.sheared_to_deg().is_none().then(|| self.geometry.spacing_mm())
    }

    /// What the store records of it, without the values' percentiles.
    pub(super) fn row(&self, case: &str) -> ScanRow {
        let affine = self.geometry.world_affine().map(|rows| {
            let last = [0.0, 0.0, 0.0, 1.0];
            rows.into_iter().chain([last]).flatten().collect()
        });
        let spacing_mm = self.file_spacing_mm();
        ScanRow {
            affine,
            axis_codes: self.orientation().map(|codes| codes.to_string()),
            axes: self.turn.axes().to_vec(),
            spacing_source: if spacing_mm.is_some() { SpacingSource::Header } else { SpacingSource::None },
            ..ScanRow::of_array(case, self.geometry.shape, spacing_mm)
        }
    }
}

fn orientation_of(geometry: &Geometry) -> Option<Orientation> {
    let (axes, positive) = geometry.body_axes()?;
    Orientation::new(axes, positive)
}

/// An error unless two files of a case have the same shape and lie in the same place. Where a file has no affine, only the spacings are
/// compared.
///
/// # Errors
/// [`ScanError::Shape`] or [`ScanError::Grid`], which name both files.
pub fn same_grid(path: &Path, found: &Geometry, other: &Path, expected: &Geometry) -> Result<(), ScanError> {
    if found.shape != expected.shape {
        let (found, expected) = (found.shape.to_vec(), expected.shape.to_vec());
        return Err(ScanError::Shape { path: path.into(), found, other: other.into(), expected });
    }
    let shortest = expected.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
    let distance_mm = found.corner_distance_mm(expected).unwrap_or_else(|| corner_distance_by_spacing(found, expected));
    if distance_mm > SAME_GRID * shortest {
        return Err(ScanError::Grid { path: path.into(), other: other.into(), distance_mm });
    }
    Ok(())
}

/// How far apart the last voxels of two grids are whose first voxels and directions are the same.
fn corner_distance_by_spacing(found: &Geometry, expected: &Geometry) -> f64 {
    let (a, b) = (found.spacing_mm(), expected.spacing_mm());
    let along = |axis: usize| (a[axis] - b[axis]) * (expected.shape[axis] - 1) as f64;
    (0..3).map(|axis| along(axis).powi(2)).sum::<f64>().sqrt()
}
