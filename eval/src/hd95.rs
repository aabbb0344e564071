//! The 95th percentile of the surface distances.

use crate::masks::MaskPair;
use crate::surface_distances::SurfaceDistances;

/// HD95 of a class: the 95th percentile of the Euclidean distances from each surface voxel of one mask to the nearest surface voxel of
/// the other, both directions pooled. `None` unless both masks have the class.
///
/// `spacing` is the distance between voxel centres along depth, height and width; the result has its unit: `[1.0; 3]` for voxels. Its values must be positive.
/// MedPy's `metric.binary.hd95` with connectivity 1, which the published code calls (with no spacing): surfaces by binary erosion, distances by
/// an exact Euclidean distance transform, the percentile by numpy's linear interpolation.
pub fn hd95(pair: &MaskPair, class: u8, spacing: [f64; 3]) -> Option<f64> {
    SurfaceDistances::of(pair, class, spacing).map(|distances| distances.hd95_pooled())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masks::Mask;

    const VOXELS: [f64; 3] = [1.0; 3];

    fn hd95_of(prediction: &[u8], reference: &[u8], shape: [usize; 3], spacing: [f64; 3]) -> Option<f64> {
        hd95(
            &MaskPair::new("0001", Mask { voxels: prediction, shape }, Mask { voxels: reference, shape }, 1).unwrap(),
            1,
            spacing,
        )
    }

    fn with(shape: [usize; 3], set: &[[usize; 3]]) -> Vec<u8> {
        let mut voxels = vec![0; shape.iter().product()];
        set.iter().for_each(|[z, y, x]| voxels[(z * shape[1] + y) * shape[2] + x] = 1);
        voxels
    }

    #[test]
    fn single_voxels_are_as_far_as_they_look() {
        let shape = [4, 5, 6];
        let (a, b) = (with(shape, &[[0, 0, 0]]), with(shape, &[[3, 4, 5]]));
        assert_eq!(hd95_of(&a, &b, shape, VOXELS), Some(50f64.sqrt()));
        assert_eq!(hd95_of(&a, &b, shape, [5.0, 0.5, 2.0]), Some((225.0 + 4.0 + 100.0f64).sqrt()));
        assert_eq!(hd95_of(&a, &a, shape, VOXELS), Some(0.0));
    }

    #[test]
    fn an_empty_mask_has_no_surface() {
        let shape = [2, 3, 4];
        let (empty, one) = (with(shape, &[]), with(shape, &[[1, 1, 1]]));
        assert_eq!(hd95_of(&empty, &one, shape, VOXELS), None);
        assert_eq!(hd95_of(&one, &empty, shape, VOXELS), None);
        assert_eq!(hd95_of(&empty, &empty, shape, VOXELS), None);
    }

    #[test]
    fn full_volumes_touch_every_border() {
        let shape = [3, 3, 3];
        let (full, centre) = (vec![1; 27], with(shape, &[[1, 1, 1]]));
        // Shell of 26 voxels at distances 1 (6), √2 (12), √3 (8) from the centre, and back 1 from the centre to the shell: 27 values, position 24.7.
        assert_eq!(hd95_of(&full, &centre, shape, VOXELS), Some(3f64.sqrt()));
        assert_eq!(hd95_of(&full, &full, shape, VOXELS), Some(0.0));
    }
}
