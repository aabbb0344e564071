//! Brings planes at the network's resolution to a scan's grid, one slice at a time.

use rayon::prelude::*;
use sam_ladder_ops::image::ndimage::{zoom_linear, zoom_nearest};
use sam_ladder_schemas::eval::Resample;

/// Planes `[C, side, side]` on the grid `[h, w]`: `[C, h, w]`. The corners' centres lie on one another, as where slices are brought to the network's
/// resolution. By `Published` each pixel takes its nearest, by `Logits` a bilinear mean.
pub(crate) fn on_grid(planes: &[f32], side: usize, size: [usize; 2], resample: Resample) -> Vec<f32> {
    let [h, w] = size;
    let classes = planes.len() / (side * side).max(1);
    let mut out = vec![0.0f32; classes * h * w];
    let of_class = |(out, plane): (&mut [f32], &[f32])| {
        let found = match resample {
            Resample::Published => zoom_nearest(plane, [side, side], size),
            Resample::Logits => zoom_linear(plane, [side, side], size),
        };
        out.copy_from_slice(&found);
    };
    out.par_chunks_mut((h * w).max(1)).zip(planes.par_chunks((side * side).max(1))).for_each(of_class);
    out
}

/// The class with the highest value per pixel of `[C, pixels]`, the first in a tie.
pub(crate) fn largest_class(values: &[f32], pixels: usize) -> Vec<u8> {
    let mut classes = vec![0u8; pixels];
    let mut best = values[..pixels].to_vec();
    for (class, plane) in values.chunks_exact(pixels.max(1)).enumerate().skip(1) {
        for ((found, best), &value) in classes.iter_mut().zip(&mut best).zip(plane) {
            if value > *best {
                *best = value;
                *found = class as u8;
            }
        }
    }
    classes
}

/// The entropy of each pixel's probabilities `[C, pixels]`, as a share of the largest that C classes can have: -Σ p·ln p / ln C.
pub(crate) fn relative_entropy(probabilities: &[f32], pixels: usize) -> Vec<f32> {
    let mut entropy = vec![0.0f32; pixels];
    let planes = probabilities.chunks_exact(pixels.max(1));
    let classes = planes.len().max(2);
    for plane in planes {
        for (entropy, &p) in entropy.iter_mut().zip(plane) {
            *entropy -= if p > 0.0 { p * p.ln() } else { 0.0 };
        }
    }
    let most = (classes as f32).ln();
    entropy.iter_mut().for_each(|entropy| *entropy = (*entropy / most).clamp(0.0, 1.0));
    entropy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_a_share_of_the_largest() {
        // Four classes, three pixels: sure, even, and half of each of two.
        let p = [1.0, 0.25, 0.5, 0.0, 0.25, 0.5, 0.0, 0.25, 0.0, 0.0, 0.25, 0.0f32];
        let found = relative_entropy(&p, 3);
        for (found, expected) in found.iter().zip([0.0, 1.0, 0.5]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// Between two pixels, one sure of class 0 and one leaning to class 1: the nearest pixel's class changes half way, that of the mean of the
    /// probabilities where they are equal.
    #[test]
    fn probabilities_decide_between_the_pixels() {
        // [2, 2, 2]: class 0 has 1.0 on the left and 0.4 on the right.
        let planes = [1.0, 0.4, 1.0, 0.4, 0.0, 0.6, 0.0, 0.6f32];
        let mask = |resample| largest_class(&on_grid(&planes, 2, [1, 11], resample), 11);
        assert_eq!(mask(Resample::Published), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        // 1 - 0.6·t = 0.6·t at t = 0.83.
        assert_eq!(mask(Resample::Logits), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
