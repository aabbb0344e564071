//! Distances between the surfaces of a class in a prediction and a reference, for HD95 and surface Dice.

use crate::distance_transform::squared_distances;
use crate::masks::MaskPair;
use crate::surface_voxels::{Crop, Voxel, surface_voxels};

/// Surface voxels of a class in both masks; neither list is empty.
pub(crate) struct Surfaces {
    predicted: Vec<Voxel>,
    reference: Vec<Voxel>,
    /// `[d, h, w]` of the box that contains both.
    shape: [usize; 3],
}

impl Surfaces {
    /// Surfaces of a class; `None` unless both masks have it.
    pub fn of(pair: &MaskPair, class: u8) -> Option<Surfaces> {
        let region = pair.region(class);
        if region.predicted_voxels == 0 || region.reference_voxels == 0 {
            return None;
        }
        let crop = Crop { start: region.start, end: region.end };
        let (predicted, reference) = rayon::join(
            || surface_voxels(pair.prediction, pair.shape, class, crop),
            || surface_voxels(pair.reference, pair.shape, class, crop),
        );
        Some(Surfaces { predicted, reference, shape: crop.shape() })
    }

    /// Distances in the unit of `spacing`, the distance between voxel centres along depth, height and width, which must be
    /// positive.
    pub fn distances(&self, spacing: [f64; 3]) -> SurfaceDistances {
        let (to_reference, to_prediction) = rayon::join(
            || squared_distances(&self.predicted, &self.reference, self.shape, spacing),
            || squared_distances(&self.reference, &self.predicted, self.shape, spacing),
        );
        SurfaceDistances { to_reference, to_prediction }
    }
}

/// Squared distances from each surface voxel of one mask to the nearest one of the other, in both directions; neither list is empty.
#[derive(Debug, Clone)]
pub(crate) struct SurfaceDistances {
    to_reference: Vec<f64>,
    to_prediction: Vec<f64>,
}

impl SurfaceDistances {
    /// Distances between the surfaces of a class, in the unit of `spacing` (`[1.0; 3]` for voxels), which must be positive.
    /// `None` unless both masks have the class.
    pub fn of(pair: &MaskPair, class: u8, spacing: [f64; 3]) -> Option<SurfaceDistances> {
        Surfaces::of(pair, class).map(|surfaces| surfaces.distances(spacing))
    }

    /// The squared distances to the reference's surface, and those to the prediction's.
    pub fn squared(&self) -> [&[f64]; 2] {
        [&self.to_reference, &self.to_prediction]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masks::MaskView;

    #[test]
    fn an_empty_mask_has_no_surface() {
        let found = |prediction: &[u8], reference: &[u8]| {
            let mask = |voxels| MaskView { voxels, shape: [1, 1, 2] };
            SurfaceDistances::of(&MaskPair::new("0001", mask(prediction), mask(reference), 1).unwrap(), 1, [1.0; 3]).is_some()
        };
        assert!(!found(&[0, 0], &[0, 1]));
        assert!(!found(&[0, 1], &[0, 0]));
        assert!(!found(&[0, 0], &[0, 0]));
        assert!(found(&[0, 1], &[1, 0]));
    }
}
