//! HD95: the 95th percentile of the distances between two surfaces, by both definitions in use.

use crate::masks::MaskPair;
use crate::surface_distances::SurfaceDistances;

/// HD95 of a class: the 95th percentile of the Euclidean distances from each surface voxel of one mask to the nearest
/// surface voxel of the other, both directions pooled. `None` unless both masks have the class.
///
/// `spacing` is the distance between voxel centres along depth, height and width; the result has its unit: `[1.0; 3]` for
/// voxels. Its values must be positive.
///
/// MedPy's `metric.binary.hd95` with connectivity 1, which the published code calls (with no spacing): surfaces by binary
/// erosion, distances by an exact Euclidean distance transform, the percentile by numpy's linear interpolation.
pub fn hd95(pair: &MaskPair, class: u8, spacing: [f64; 3]) -> Option<f64> {
    SurfaceDistances::of(pair, class, spacing).map(|distances| pooled(&distances))
}

/// The 95th percentile over the distances of both directions together: MedPy's `metric.binary.hd95`.
pub(crate) fn pooled(distances: &SurfaceDistances) -> f64 {
    percentile_of_roots(&mut distances.squared().concat(), 0.95)
}

/// The larger of the two directions' 95th percentiles: MONAI's `compute_hausdorff_distance(percentile=95)`. DeepMind's
/// `surface-distance` also takes the larger one, but weights percentiles by the areas of the surface elements.
pub(crate) fn larger(distances: &SurfaceDistances) -> f64 {
    let [one, other] = distances.squared().map(|list| percentile_of_roots(&mut list.to_vec(), 0.95));
    one.max(other)
}

/// Quantile of the values' square roots by linear interpolation between the two nearest, as `numpy.percentile` does. Needs at
/// least one value, and reorders them.
fn percentile_of_roots(squared: &mut [f64], quantile: f64) -> f64 {
    let position = quantile * (squared.len() - 1) as f64;
    let (index, fraction) = (position.floor() as usize, position.fract());
    let (_, low, above) = squared.select_nth_unstable_by(index, f64::total_cmp);
    let low = low.sqrt();
    let high = above.iter().copied().min_by(f64::total_cmp).map_or(low, f64::sqrt);
    if fraction < 0.5 { low + (high - low) * fraction } else { high - (high - low) * (1.0 - fraction) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masks::MaskView;

    const VOXELS: [f64; 3] = [1.0; 3];

    fn hd95_of(prediction: &[u8], reference: &[u8], shape: [usize; 3], spacing: [f64; 3]) -> Option<f64> {
        hd95(
            &MaskPair::new("0001", MaskView { voxels: prediction, shape }, MaskView { voxels: reference, shape }, 1).unwrap(),
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

    #[test]
    fn the_definitions_differ_where_one_direction_is_far() {
        // Along a line: the prediction is at 0 to 9, the reference at 0. Distances are 0 to 9 to the reference, and 0 back.
        let (prediction, reference) = (vec![1; 10], with([1, 1, 10], &[[0, 0, 0]]));
        let mask = |voxels| MaskView { voxels, shape: [1, 1, 10] };
        let pair = MaskPair::new("0001", mask(&prediction), mask(&reference), 1).unwrap();
        let found = SurfaceDistances::of(&pair, 1, VOXELS).unwrap();
        // numpy.percentile([0 … 9, 0], 95) is 8.5, that of [0 … 9] is 8.55.
        assert!((pooled(&found) - 8.5).abs() < 1e-12, "{}", pooled(&found));
        assert!((larger(&found) - 8.55).abs() < 1e-12, "{}", larger(&found));
    }

    #[test]
    fn both_definitions_have_the_unit_of_the_spacing() {
        let (a, b) = ([1, 0, 0, 0], [0, 1, 0, 0]);
        let mask = |voxels| MaskView { voxels, shape: [4, 1, 1] };
        let pair = MaskPair::new("0001", mask(&a), mask(&b), 1).unwrap();
        let found = SurfaceDistances::of(&pair, 1, [5.0, 1.0, 1.0]).unwrap();
        assert_eq!((pooled(&found), larger(&found)), (5.0, 5.0));
    }

    #[test]
    fn the_percentile_interpolates() {
        let roots: Vec<f64> = (0..=10).map(f64::from).collect();
        let mut squared: Vec<f64> = roots.iter().rev().map(|root| root * root).collect();
        assert_eq!(percentile_of_roots(&mut squared, 0.95), 9.5);
        assert!((percentile_of_roots(&mut squared, 0.93) - 9.3).abs() < 1e-12);
        assert_eq!(percentile_of_roots(&mut [4.0], 0.95), 2.0);
    }
}
