//! From a slice at the scan's resolution to what the networks and the loss see.
//!
//! The published chain, for training slices:
//!
//! ```text
//! slice [h, w] ──cubic──▶ [data, data] ──variant──▶ [data, data] ──cubic──▶ image [s, s]
//! label [h, w] ──nearest▶ [data, data] ──variant──▶ [data, data] ──nearest▶ [s, s] ──nearest▶ [s/4, s/4]
//! ```
//!
//! Labels at half the image's side, where they are wanted, take the same way to `[s/2, s/2]`, the
//! last step with SciPy's `mode="nearest"`: by the published one, rounding makes the last row and column of some sizes (such as 384) background.
//!
//! Test slices take the same way, with the identity as their only variant. Each zoom is SciPy's, and skipped where nothing changes;
//! its spline may leave [0, 1] a little, and so may the images.

use crate::augment;
use crate::draw::Draw;
use sam_ladder_ops::image::ndimage::{zoom_cubic, zoom_nearest, zoom_nearest_within};
use sam_ladder_schemas::variants::VariantKind;

/// A slice and its labels at data size, where the published code augments.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSlice {
    /// Of the scan, for its draws.
    case: String,
    slice: usize,
    size: usize,
    /// `[c, size, size]`
    image: Vec<f32>,
    label: Vec<u8>,
}

/// One variant of a slice, as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantTensors {
    /// `[c, s, s]`, what encoder and CNN see; s = image size.
    pub image: Vec<f32>,
    /// `[s/4, s/4]`, what the loss sees.
    pub label: Vec<u8>,
    /// `[s, s]`
    network_label: Vec<u8>,
}

impl VariantTensors {
    /// `[s/2, s/2]`, what the loss of logits at half the image's side sees.
    pub fn half_label(&self) -> Vec<u8> {
        let s = self.network_label.len().isqrt();
        zoom_nearest_within(&self.network_label, [s; 2], [s / 2; 2])
    }
}

impl DataSlice {
    /// Brings a slice of a scan, `image` `[c, h, w]` and `label` `[h, w]`, to `[data_size, data_size]`: once per slice, before its variants
    /// are made. Each channel is resampled by itself.
    ///
    /// # Panics
    /// When `label` does not have `h * w` elements, or `image` no multiple of them.
    pub fn new(image: &[f32], label: &[u8], shape: [usize; 2], data_size: usize) -> Self {
        let data = [data_size, data_size];
        let planes = image.chunks(shape[0] * shape[1]);
        let image = planes.flat_map(|plane| zoom_cubic(plane, shape, data)).collect();
        DataSlice { case: String::new(), slice: 0, size: data_size, image, label: zoom_nearest(label, shape, data) }
    }

    /// The same as a slice of a case, counted from 0: its draws are its own.
    pub fn of_case(self, case: &str, slice: usize) -> Self {
        DataSlice { case: case.into(), slice, ..self }
    }

    /// A variant of the slice for a network of `image_size`. Test slices have only [`VariantKind::Identity`].
    pub fn variant(&self, kind: VariantKind, image_size: usize) -> VariantTensors {
        let data = [self.size, self.size];
        let network = [image_size, image_size];
        let low_res = [image_size / 4, image_size / 4];
        let (moved, label): (Vec<f32>, Vec<u8>) = match kind {
            VariantKind::Draw { seed, number } => {
                let draw = Draw::of(seed, number, &self.case, self.slice);
                (draw.image(&self.image, self.size), draw.label(&self.label, self.size))
            }
            kind => {
                let planes = self.image.chunks(self.size * self.size);
                let moved = planes.flat_map(|plane| augment::apply(kind, plane, self.size)).collect();
                (moved, augment::apply(kind, &self.label, self.size))
            }
        };
        let image = moved.chunks(self.size * self.size).flat_map(|plane| zoom_cubic(plane, data, network)).collect();
        let network_label = zoom_nearest(&label, data, network);
        VariantTensors { image, label: zoom_nearest(&network_label, network, low_res), network_label }
    }

    /// The image at data size, `[c, data_size, data_size]`.
    pub fn image(&self) -> &[f32] {
        &self.image
    }

    /// The labels at data size, `[data_size, data_size]`.
    pub fn label(&self) -> &[u8] {
        &self.label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_resampled_where_sizes_agree() {
        let image: Vec<f32> = (0..64 * 64).map(|i| (i % 97) as f32 / 97.0).collect();
        let label: Vec<u8> = (0..64 * 64).map(|i| (i / 640) as u8).collect();
        let tensors = DataSlice::new(&image, &label, [64, 64], 64).variant(VariantKind::Identity, 64);
        assert_eq!(tensors.image, image);
        assert_eq!(tensors.label.len(), 16 * 16);
        // The endpoint grid keeps the corners.
        assert_eq!([tensors.label[0], tensors.label[255]], [label[0], label[64 * 64 - 1]]);
    }

    #[test]
    fn labels_pass_through_network_size_on_their_way_to_low_resolution() {
        let label: Vec<u8> = (0..30 * 30).map(|i| (i % 30) as u8).collect();
        let tensors = DataSlice::new(&[0.0; 900], &label, [30, 30], 30).variant(VariantKind::Identity, 64);
        let at_network = zoom_nearest(&label, [30, 30], [64, 64]);
        assert_eq!(tensors.label, zoom_nearest(&at_network, [64, 64], [16, 16]));
        assert_ne!(tensors.label, zoom_nearest(&label, [30, 30], [16, 16]), "the detour is visible here");
    }

    /// SciPy 1.17: `zoom(zoom(label, 8/6, order=0), 4/8, order=0, mode="nearest")`.
    #[test]
    fn half_labels_pass_through_network_size_too() {
        let label: Vec<u8> = (0..36).collect();
        let slice = DataSlice::new(&[0.0; 36], &label, [6, 6], 6);
        let found = slice.variant(VariantKind::Identity, 8).half_label();
        assert_eq!(found, [0, 1, 4, 5, 6, 7, 10, 11, 24, 25, 28, 29, 30, 31, 34, 35]);
    }

    #[test]
    fn channels_do_not_mix() {
        let image: Vec<f32> = (0..2 * 30 * 20).map(|i| (i * 7 % 97) as f32 / 97.0).collect();
        let label = [0u8; 600];
        let kind = VariantKind::Rotation { angle_degrees: 13 };
        let of = |image: &[f32]| DataSlice::new(image, &label, [30, 20], 24).variant(kind, 32).image;
        assert_eq!(of(&image), [of(&image[..600]), of(&image[600..])].concat());
    }

    #[test]
    fn image_and_labels_move_together() {
        let mut image = vec![0.0f32; 32 * 32];
        let mut label = vec![0u8; 32 * 32];
        for row in 4..12 {
            for column in 16..28 {
                image[row * 32 + column] = 1.0;
                label[row * 32 + column] = 3;
            }
        }
        let slice = DataSlice::new(&image, &label, [32, 32], 32);
        for variant in sam_ladder_schemas::variants::variants(sam_ladder_schemas::variants::AugmentPolicy::Reference, 1) {
            let tensors = slice.variant(variant.kind, 32);
            let shrunk = zoom_nearest(&tensors.image, [32, 32], [8, 8]);
            let agree = shrunk.iter().zip(&tensors.label).all(|(&value, &class)| (value > 0.5) == (class == 3));
            assert!(agree, "{}", variant.name());
        }
    }
}
