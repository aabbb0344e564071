//! Surface Dice: the share of two surfaces that lies within a tolerance of each other.

use crate::surface_distances::SurfaceDistances;

/// Surface Dice (NSD): the share of both surfaces' voxels that lie within `tolerance` of the other surface, in the unit of
/// the spacing.
///
/// MONAI's `compute_surface_dice` without subvoxels (Seidlitz et al. 2022): it counts voxels, whereas DeepMind's `surface-distance` adds the
/// areas of surface elements.
pub(crate) fn surface_dice(distances: &SurfaceDistances, tolerance: f64) -> f64 {
    let lists = distances.squared();
    let near: usize = lists.iter().map(|list| list.iter().filter(|squared| squared.sqrt() <= tolerance).count()).sum();
    near as f64 / lists.iter().map(|list| list.len()).sum::<usize>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masks::{MaskPair, MaskView};

    fn distances(prediction: &[u8], reference: &[u8], shape: [usize; 3], spacing: [f64; 3]) -> SurfaceDistances {
        let mask = |voxels| MaskView { voxels, shape };
        SurfaceDistances::of(&MaskPair::new("0001", mask(prediction), mask(reference), 1).unwrap(), 1, spacing).unwrap()
    }

    #[test]
    fn voxels_within_the_tolerance_are_counted() {
        // Along a line: the prediction is at 0 to 9, the reference at 0. Distances are 0 to 9 to the reference, and 0 back.
        let (prediction, mut reference) = ([1u8; 10], [0u8; 10]);
        reference[0] = 1;
        let found = distances(&prediction, &reference, [1, 1, 10], [1.0; 3]);
        // Within 2: three voxels of the prediction and the reference's only one, of eleven.
        assert_eq!(surface_dice(&found, 2.0), 4.0 / 11.0);
        assert_eq!((surface_dice(&found, 0.0), surface_dice(&found, 9.0)), (2.0 / 11.0, 1.0));
    }

    #[test]
    fn the_tolerance_has_the_unit_of_the_spacing() {
        let found = distances(&[1, 0, 0, 0], &[0, 1, 0, 0], [4, 1, 1], [5.0, 1.0, 1.0]);
        assert_eq!((surface_dice(&found, 4.999), surface_dice(&found, 5.0)), (0.0, 1.0));
    }
}
