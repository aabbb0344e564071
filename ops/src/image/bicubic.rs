//! Bicubic resizing with antialiasing, as in PyTorch; timm uses it to resize tables of positions to other image sizes.

/// Resizes planes `[.., h, w]` to `[.., oh, ow]` as `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` does
/// (`_upsample_bicubic2d_aa`, `align_corners=False`): Keys' kernel with a = -0.5, stretched by the factor if the result is smaller, with
/// weights normalised to a sum of 1 at the border. Sums are in float64 and rounded once per axis.
///
/// # Panics
/// When `planes` is not a whole number of planes, or a side is 0.
pub fn resize_bicubic_antialiased(planes: &[f32], [h, w]: [usize; 2], [oh, ow]: [usize; 2]) -> Vec<f32> {
    assert!(h * w > 0 && oh * ow > 0 && planes.len().is_multiple_of(h * w), "expected planes of {h}x{w}, got {}", planes.len());
    let (rows, columns) = (windows(h, oh), windows(w, ow));
    let mut out = Vec::with_capacity(planes.len() / (h * w) * oh * ow);
    for plane in planes.chunks(h * w) {
        // PyTorch resizes the last axis first.
        let wide: Vec<f32> =
            plane.chunks(w).flat_map(|row| columns.iter().map(|window| window.weigh(|i| row[i])).collect::<Vec<_>>()).collect(); // [h, ow]
        out.extend(rows.iter().flat_map(|window| {
            let wide = &wide;
            (0..ow).map(move |x| window.weigh(|i| wide[i * ow + x]))
        }));
    }
    out
}

/// The inputs of one element of the result, with their weights.
struct Window {
    first: usize,
    weights: Vec<f64>,
}

impl Window {
    fn weigh(&self, value: impl Fn(usize) -> f32) -> f32 {
        self.weights.iter().enumerate().map(|(i, weight)| weight * f64::from(value(self.first + i))).sum::<f64>() as f32
    }
}

/// The windows of an axis that is resized from `from` to `to` elements.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let window = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let mut weights: Vec<f64> = (first..last).map(|j| keys((j as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Window { first, weights }
    };
    (0..to).map(window).collect()
}

/// Keys' cubic convolution kernel (1981), a = -0.5.
fn keys(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match x {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_and_constants_stay() {
        let plane: Vec<f32> = (0..12).map(|i| i as f32 * 0.3).collect();
        assert_eq!(resize_bicubic_antialiased(&plane, [3, 4], [3, 4]), plane);
        for size in [[2, 9], [7, 1]] {
            let resized = resize_bicubic_antialiased(&[2.5; 30], [5, 6], size);
            assert!(resized.len() == size[0] * size[1] && resized.iter().all(|&x| (x - 2.5).abs() < 1e-6));
        }
    }

    #[test]
    fn planes_do_not_mix() {
        let planes: Vec<f32> = (0..50).map(|i| (i * 7 % 11) as f32).collect();
        let of = |planes: &[f32]| resize_bicubic_antialiased(planes, [5, 5], [3, 8]);
        assert_eq!(of(&planes), [of(&planes[..25]), of(&planes[25..])].concat());
    }
}
