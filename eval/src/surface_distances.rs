//! Distances between the surfaces of a prediction and a reference, and what is made of them: HD95 by both definitions in use, and surface Dice.

use crate::distance::squared_distances;
use crate::masks::MaskPair;
use crate::surface::{Crop, Voxel, surface};

/// Surface voxels of a class in both masks; both have some.
pub(crate) struct Surfaces {
    predicted: Vec<Voxel>,
    reference: Vec<Voxel>,
    /// `[d, h, w]` of the box that holds both.
    shape: [usize; 3],
}

impl Surfaces {
    /// Of a class; `None` unless both masks have it.
    pub(crate) fn of(pair: &MaskPair, class: u8) -> Option<Surfaces> {
        let region = pair.region(class);
        if region.predicted_voxels == 0 || region.reference_voxels == 0 {
            return None;
        }
        let crop = Crop { start: region.start, end: region.end };
        let (predicted, reference) = rayon::join(
            || surface(pair.prediction, pair.shape, class, crop),
            || surface(pair.reference, pair.shape, class, crop),
        );
        Some(Surfaces { predicted, reference, shape: crop.shape() })
    }

    /// Distances in the unit of `spacing`, the distance between voxel centres along depth, height and width; its values must be positive.
    pub(crate) fn distances(&self, spacing: [f64; 3]) -> SurfaceDistances {
        let (to_reference, to_prediction) = rayon::join(
            || squared_distances(&self.predicted, &self.reference, self.shape, spacing),
            || squared_distances(&self.reference, &self.predicted, self.shape, spacing),
        );
        SurfaceDistances { to_reference, to_prediction }
    }
}

/// Squared distances from each surface voxel of one mask to the nearest of the other, in both directions; neither list is empty.
#[derive(Debug, Clone)]
pub struct SurfaceDistances {
    to_reference: Vec<f64>,
    to_prediction: Vec<f64>,
}

impl SurfaceDistances {
    /// Distances between the surfaces of a class, in the unit of `spacing` (`[1.0; 3]` for voxels), which must be positive. `None` unless both
    /// masks have the class.
    pub fn of(pair: &MaskPair, class: u8, spacing: [f64; 3]) -> Option<SurfaceDistances> {
        Surfaces::of(pair, class).map(|surfaces| surfaces.distances(spacing))
    }

    /// The 95th percentile of both directions in one list: MedPy's `metric.binary.hd95`.
    pub fn hd95_pooled(&self) -> f64 {
        let mut pooled = [self.to_reference.as_slice(), &self.to_prediction].concat();
        percentile_of_roots(&mut pooled, 0.95)
    }

    /// The larger of the two directions' own 95th percentiles: MONAI's `compute_hausdorff_distance(percentile=95)`. DeepMind's `surface-distance` takes
    /// the larger too, of percentiles weighted by the surface elements' areas.
    pub fn hd95_larger(&self) -> f64 {
        let [one, other] = [&self.to_reference, &self.to_prediction].map(|list| percentile_of_roots(&mut list.clone(), 0.95));
        one.max(other)
    }

    /// Surface Dice (NSD): the share of both surfaces' voxels that lie within `tolerance` of the other surface, in the unit of the spacing. MONAI's
    /// `compute_surface_dice` without subvoxels (Seidlitz et al. 2022): voxels are counted, not the areas of surface elements, as DeepMind does.
    pub fn surface_dice(&self, tolerance: f64) -> f64 {
        let within = |list: &[f64]| list.iter().filter(|squared| squared.sqrt() <= tolerance).count();
        let near = within(&self.to_reference) + within(&self.to_prediction);
        near as f64 / (self.to_reference.len() + self.to_prediction.len()) as f64
    }
}

/// Quantile of the values' square roots by linear interpolation between the two nearest, as `numpy.percentile` does. Reorders the values, of which there must be one.
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
    use crate::masks::Mask;

    fn distances(prediction: &[u8], reference: &[u8], shape: [usize; 3], spacing: [f64; 3]) -> Option<SurfaceDistances> {
        let mask = |voxels| Mask { voxels, shape };
        SurfaceDistances::of(&MaskPair::new("0001", mask(prediction), mask(reference), 1).unwrap(), 1, spacing)
    }

    #[test]
    fn the_definitions_differ_where_one_direction_is_far() {
        // Along a line: prediction 0 to 9, reference 0 alone. To the reference 0 to 9, back 0.
        let (prediction, mut reference) = ([1u8; 10], [0u8; 10]);
        reference[0] = 1;
        let found = distances(&prediction, &reference, [1, 1, 10], [1.0; 3]).unwrap();
        // numpy.percentile([0 … 9, 0], 95) is 8.5, that of [0 … 9] is 8.55.
        assert!((found.hd95_pooled() - 8.5).abs() < 1e-12, "{}", found.hd95_pooled());
        assert!((found.hd95_larger() - 8.55).abs() < 1e-12, "{}", found.hd95_larger());
        // Within 2: three of the prediction and the one of the reference, of eleven.
        assert_eq!(found.surface_dice(2.0), 4.0 / 11.0);
        assert_eq!((found.surface_dice(0.0), found.surface_dice(9.0)), (2.0 / 11.0, 1.0));
    }

    #[test]
    fn the_tolerance_has_the_unit_of_the_spacing() {
        let (a, b) = ([1, 0, 0, 0], [0, 1, 0, 0]);
        let found = distances(&a, &b, [4, 1, 1], [5.0, 1.0, 1.0]).unwrap();
        assert_eq!((found.surface_dice(4.999), found.surface_dice(5.0)), (0.0, 1.0));
        assert_eq!((found.hd95_pooled(), found.hd95_larger()), (5.0, 5.0));
    }

    #[test]
    fn an_empty_mask_has_no_surface() {
        assert!(distances(&[0, 0], &[0, 1], [1, 1, 2], [1.0; 3]).is_none());
        assert!(distances(&[0, 1], &[0, 0], [1, 1, 2], [1.0; 3]).is_none());
        assert!(distances(&[0, 0], &[0, 0], [1, 1, 2], [1.0; 3]).is_none());
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
