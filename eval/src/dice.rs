//! The Dice coefficient.

use crate::masks::Region;

/// Dice coefficient 2·|P ∩ R| / (|P| + |R|) of a class: in [0, 1], and `None` if neither mask has the class.
///
/// As MedPy's `metric.binary.dc`, which the published code calls, except that MedPy returns 0 for two empty masks.
pub fn dice(region: &Region) -> Option<f64> {
    let sum = region.predicted_voxels + region.reference_voxels;
    (sum > 0).then(|| 2.0 * region.shared_voxels as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masks::{MaskPair, MaskView};

    fn dice_of(prediction: &[u8], reference: &[u8]) -> Option<f64> {
        let shape = [1, 1, prediction.len()];
        let pair =
            MaskPair::new("0001", MaskView { voxels: prediction, shape }, MaskView { voxels: reference, shape }, 1).unwrap();
        dice(&pair.region(1))
    }

    #[test]
    fn perfect_none_partial_empty() {
        assert_eq!(dice_of(&[0, 1, 1, 0], &[0, 1, 1, 0]), Some(1.0));
        assert_eq!(dice_of(&[1, 0, 0, 0], &[0, 1, 1, 0]), Some(0.0));
        assert_eq!(dice_of(&[1, 1, 0, 0], &[0, 1, 1, 1]), Some(0.4));
        assert_eq!(dice_of(&[0, 0, 0, 0], &[0, 1, 1, 0]), Some(0.0));
        assert_eq!(dice_of(&[0, 1, 1, 0], &[0, 0, 0, 0]), Some(0.0));
        assert_eq!(dice_of(&[0, 0, 0, 0], &[0, 0, 0, 0]), None);
    }
}
