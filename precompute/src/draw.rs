//! Seeded draws of a wider augmentation than the published one: `precompute --augment seeded`.
//!
//! A draw turns a slice, changes its size and moves it, and may add noise and change contrast and gamma. Angle (nnU-Net's for three dimensions), size,
//! contrast and gamma have the ranges of nnU-Net's training; shift and noise are ours. A draw depends only on the store's seed, the case, the slice
//! and the draw's number, so that it is the same in whatever order images are made.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sam_ladder_ops::image::affine::{Affine, affine_cubic, affine_nearest};
use sha2::{Digest, Sha256};

/// Largest angle in either direction, in degrees.
const ANGLE_DEGREES: f64 = 30.0;
/// The body is drawn so many times as large: half of the draws from the first to 1, half from 1 to the second.
const FACTORS: [f64; 2] = [0.7, 1.4];
/// Largest shift along an axis, as a share of the side.
const SHIFT: f64 = 0.1;
/// Probability of each change of the values.
const CHANGES: f64 = 0.5;
/// Largest standard deviation of the noise; values are from 0 to 1.
const NOISE: f64 = 0.05;
/// Distances of values from their mean are multiplied by a number in this range.
const CONTRAST: [f64; 2] = [0.75, 1.25];
/// Values are raised to a power in this range.
const GAMMA: [f64; 2] = [0.7, 1.5];

/// One draw for one slice.
#[derive(Debug, Clone)]
pub struct Draw {
    angle_degrees: f64,
    factor: f64,
    /// Along rows and columns, as a share of the side.
    shift: [f64; 2],
    /// Standard deviation.
    noise: Option<f64>,
    contrast: Option<f64>,
    gamma: Option<f64>,
    /// For the noise.
    rng: ChaCha8Rng,
}

impl Draw {
    /// The draw with a number, of the store's `seed`, of a slice of a case, counted from 0.
    pub fn of(seed: u64, number: u32, case: &str, slice: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(number.to_le_bytes());
        hash.update((slice as u64).to_le_bytes());
        hash.update(case.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut within = |[low, high]: [f64; 2]| low + (high - low) * unit();
        let angle_degrees = within([-ANGLE_DEGREES, ANGLE_DEGREES]);
        let factor = if within([0.0, 1.0]) < 0.5 { within([FACTORS[0], 1.0]) } else { within([1.0, FACTORS[1]]) };
        let shift = [within([-SHIFT, SHIFT]), within([-SHIFT, SHIFT])];
        let mut change = |range: [f64; 2]| {
            let (happens, value) = (within([0.0, 1.0]) < CHANGES, within(range));
            happens.then_some(value)
        };
        let [noise, contrast, gamma] = [change([0.0, NOISE]), change(CONTRAST), change(GAMMA)];
        Draw { angle_degrees, factor, shift, noise, contrast, gamma, rng }
    }

    fn affine(&self, size: usize) -> Affine {
        Affine::about_centre([size, size], self.angle_degrees, self.factor, self.shift.map(|share| share * size as f64))
    }

    /// The labels `[size, size]`, by the nearest pixel.
    ///
    /// # Panics
    /// When `label` does not have `size * size` elements.
    pub fn label<T: Copy + Default>(&self, label: &[T], size: usize) -> Vec<T> {
        affine_nearest(label, [size, size], self.affine(size))
    }

    /// The image `[c, size, size]`, by cubic splines; noise is each channel's own. Where values are changed, they are kept within [0, 1].
    ///
    /// # Panics
    /// When `image` does not have a multiple of `size * size` elements.
    pub fn image(&self, image: &[f32], size: usize) -> Vec<f32> {
        let mut rng = self.rng.clone();
        let planes = image.chunks(size * size);
        planes.flat_map(|plane| self.changed(affine_cubic(plane, [size, size], self.affine(size)), &mut rng)).collect()
    }

    /// Noise, contrast and gamma, in nnU-Net's order.
    fn changed(&self, mut plane: Vec<f32>, rng: &mut ChaCha8Rng) -> Vec<f32> {
        if let Some(deviation) = self.noise {
            let mut normal = || <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng);
            plane.iter_mut().for_each(|value| *value = (f64::from(*value) + deviation * normal()).clamp(0.0, 1.0) as f32);
        }
        if let Some(contrast) = self.contrast {
            let mean = plane.iter().map(|&value| f64::from(value)).sum::<f64>() / plane.len().max(1) as f64;
            let moved = |value: f32| (mean + contrast * (f64::from(value) - mean)).clamp(0.0, 1.0) as f32;
            plane.iter_mut().for_each(|value| *value = moved(*value));
        }
        if let Some(gamma) = self.gamma {
            plane.iter_mut().for_each(|value| *value = f64::from(value.clamp(0.0, 1.0)).powf(gamma) as f32);
        }
        plane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws() -> Vec<Draw> {
        (0..2000).map(|number| Draw::of(7, number, "0005", 3)).collect()
    }

    #[test]
    fn values_have_the_ranges_and_probabilities_that_are_documented() {
        let draws = draws();
        let share = |is: &dyn Fn(&Draw) -> bool| draws.iter().filter(|draw| is(draw)).count() as f64 / draws.len() as f64;
        // Four standard deviations of a share of one half.
        let half = |share: f64| (share - 0.5).abs() < 4.0 * 0.5 / 2000f64.sqrt();
        for (found, what) in [
            (share(&|draw| draw.angle_degrees > 0.0), "angle"),
            (share(&|draw| draw.factor > 1.0), "factor"),
            (share(&|draw| draw.shift[0] > 0.0), "shift along rows"),
            (share(&|draw| draw.shift[1] > 0.0), "shift along columns"),
            (share(&|draw| draw.noise.is_some()), "noise"),
            (share(&|draw| draw.contrast.is_some()), "contrast"),
            (share(&|draw| draw.gamma.is_some()), "gamma"),
        ] {
            assert!(half(found), "{what}: {found}");
        }
        let extremes = |of: &dyn Fn(&Draw) -> Option<f64>| {
            let values = || draws.iter().filter_map(of);
            [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
        };
        for (found, [low, high], what) in [
            (extremes(&|draw| Some(draw.angle_degrees)), [-30.0, 30.0], "angle"),
            (extremes(&|draw| Some(draw.factor)), [0.7, 1.4], "factor"),
            (extremes(&|draw| Some(draw.shift[0])), [-0.1, 0.1], "shift"),
            (extremes(&|draw| draw.noise), [0.0, 0.05], "noise"),
            (extremes(&|draw| draw.contrast), [0.75, 1.25], "contrast"),
            (extremes(&|draw| draw.gamma), [0.7, 1.5], "gamma"),
        ] {
            // Of a thousand or more draws the outermost lie within a hundredth of the range from its ends.
            let near = (high - low) / 100.0;
            assert!(found[0] >= low && found[0] < low + near && found[1] <= high && found[1] > high - near, "{what}: {found:?}");
        }
    }

    #[test]
    fn a_draw_is_its_slices_own_and_always_the_same() {
        let image: Vec<f32> = (0..2 * 24 * 24).map(|i| (i % 97) as f32 / 97.0).collect();
        let of = |seed, number, case, slice| Draw::of(seed, number, case, slice).image(&image, 24);
        let first = of(1, 0, "a", 0);
        assert_eq!(of(1, 0, "a", 0), first);
        for other in [of(2, 0, "a", 0), of(1, 1, "a", 0), of(1, 0, "b", 0), of(1, 0, "a", 1)] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn image_and_labels_move_together() {
        let organ = |at: usize| (20..44).contains(&(at / 64)) && (24..36).contains(&(at % 64));
        let label: Vec<u8> = (0..64 * 64).map(|at| u8::from(organ(at))).collect();
        let image: Vec<f32> = label.iter().map(|&class| f32::from(class)).collect();
        for draw in draws().into_iter().take(50) {
            let plain = Draw { noise: None, contrast: None, gamma: None, ..draw };
            let (image, label) = (plain.image(&image, 64), plain.label(&label, 64));
            let differing = image.iter().zip(&label).filter(|&(&value, &class)| (value > 0.5) != (class == 1)).count();
            // The spline and the nearest pixel part along the edges only.
            assert!(
                label.contains(&1) && differing * 8 < label.iter().filter(|&&class| class == 1).count(),
                "{differing} {plain:?}"
            );
        }
    }

    /// The formulas, for a plane that no geometry changes.
    #[test]
    fn noise_contrast_and_gamma_are_what_they_say() {
        let still = Draw {
            angle_degrees: 0.0,
            factor: 1.0,
            shift: [0.0; 2],
            noise: None,
            contrast: None,
            gamma: None,
            ..draws()[0].clone()
        };
        let image: Vec<f32> = (0..100 * 100).map(|i| 0.25 + 0.5 * (i % 2) as f32).collect();
        let close = |found: &[f32], expected: [f32; 2]| {
            found.chunks(2).all(|pair| pair.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5))
        };
        assert!(close(&still.image(&image, 100), [0.25, 0.75]));
        assert!(close(&Draw { contrast: Some(1.2), ..still.clone() }.image(&image, 100), [0.2, 0.8]));
        assert!(close(&Draw { gamma: Some(1.5), ..still.clone() }.image(&image, 100), [0.125, 0.75f32.powf(1.5)]));
        let noisy = Draw { noise: Some(0.04), ..still }.image(&image, 100);
        let noise: Vec<f64> = noisy.iter().zip(&image).map(|(a, b)| f64::from(a - b)).collect();
        let mean = noise.iter().sum::<f64>() / 1e4;
        let deviation = (noise.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e4).sqrt();
        assert!(mean.abs() < 4.0 * 0.04 / 100.0 && (deviation - 0.04).abs() < 0.0015, "{mean} {deviation}");
    }
}
