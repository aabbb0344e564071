//! The variants of the published augmentation, applied to a square slice at data size (`random_rot_flip` and `random_rotate` of
//! the published `dataset_synapse.py`, without their dice).

use crate::draw::Draw;
use sam_ladder_ops::image::ndimage::{flip, rot90, rotate_nearest};
use sam_ladder_schemas::variants::VariantKind;

/// A variant of a square slice `[size, size]`, image or labels: same shape, values moved or, at a rotation's border, 0. A draw is that of labels of
/// no case.
///
/// # Panics
/// When `slice` does not have `size * size` elements.
pub fn apply<T: Copy + Default>(kind: VariantKind, slice: &[T], size: usize) -> Vec<T> {
    match kind {
        VariantKind::Identity => slice.to_vec(),
        VariantKind::Reflection { k, axis } => {
            let (turned, shape) = rot90(slice, [size, size], k.into());
            flip(&turned, shape, axis.into())
        }
        VariantKind::Rotation { angle_degrees } => rotate_nearest(slice, [size, size], angle_degrees.into()),
        VariantKind::Draw { seed, number } => Draw::of(seed, number, "", 0).label(slice, size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::variants::{AugmentPolicy, variants};

    #[test]
    fn four_reflections_stand_for_all_eight_turns_and_flips() {
        let slice: Vec<u8> = (0..25).collect();
        let stored: Vec<Vec<u8>> =
            variants(AugmentPolicy::Flips, 1)[1..].iter().map(|variant| apply(variant.kind, &slice, 5)).collect();
        for k in 0..4 {
            for axis in 0..2 {
                let drawn = apply(VariantKind::Reflection { k, axis }, &slice, 5);
                assert_eq!(stored.iter().filter(|&image| *image == drawn).count(), 1, "rot90 {k} times, flip {axis}");
            }
        }
    }

    #[test]
    fn all_variants_differ() {
        let slice: Vec<u32> = (1..=96 * 96).collect();
        let all = variants(AugmentPolicy::Reference, 1);
        let images: std::collections::HashSet<Vec<u32>> = all.iter().map(|variant| apply(variant.kind, &slice, 96)).collect();
        assert_eq!(images.len(), 44);
    }
}
