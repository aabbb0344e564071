//! From a scan's stored values to [0, 1].

use super::error::ScanError;
use sam_ladder_schemas::precompute::{Intensity, Preprocessing};
use std::path::Path;

/// Brings a channel `[d, h, w]` to [0, 1] in the way that its intensity says.
pub(super) fn apply(
    path: &Path,
    image: &mut [f32],
    shape: [usize; 3],
    intensity: Intensity,
    preprocessing: &Preprocessing,
) -> Result<(), ScanError> {
    match intensity {
        Intensity::Window => apply_window(path, image, shape, preprocessing.window_hu),
        Intensity::Percentiles { low, high } => {
            refuse_nan(path, image, shape)?;
            let [low, high] = percentiles(image, [low, high]);
            if !(low.is_finite() && high.is_finite()) {
                return Err(ScanError::Infinite { path: path.into(), low, high });
            }
            if low == high {
                // A scan, or nearly all of it, of one value holds no information.
                image.fill(0.0);
            } else {
                clip_and_scale(image, [low, high]);
            }
            Ok(())
        }
    }
}

/// Clips `[d, h, w]` to the window and scales the window to [0, 1], in float32 as NumPy does.
///
/// # Errors
/// When a value is NaN; `path` is for the message.
pub fn apply_window(path: &Path, image: &mut [f32], shape: [usize; 3], window: [f32; 2]) -> Result<(), ScanError> {
    refuse_nan(path, image, shape)?;
    clip_and_scale(image, window);
    Ok(())
}

fn clip_and_scale(image: &mut [f32], [low, high]: [f32; 2]) {
    for value in image.iter_mut() {
        *value = (value.max(low).min(high) - low) / (high - low);
    }
}

/// An error for the first NaN of `[d, h, w]`.
pub(super) fn refuse_nan(path: &Path, image: &[f32], [_, h, w]: [usize; 3]) -> Result<(), ScanError> {
    match image.iter().position(|value| value.is_nan()) {
        None => Ok(()),
        Some(at) => Err(ScanError::NotANumber { path: path.into(), slice: at / (h * w), row: at / w % h, column: at % w }),
    }
}

/// Two percentiles of all values, linear between neighbours: `np.percentile(image.astype(np.float64), percents)`, as float32.
fn percentiles(image: &[f32], percents: [f64; 2]) -> [f32; 2] {
    let mut sorted = image.to_vec();
    percents.map(|percent| {
        let position = percent / 100.0 * (sorted.len() - 1) as f64;
        let fraction = position.fract();
        let (_, &mut below, above) = sorted.select_nth_unstable_by(position as usize, f32::total_cmp);
        let below = f64::from(below);
        // The next in order is the least of those above; at the very end there is none, and the fraction is 0.
        let above = above.iter().copied().min_by(f32::total_cmp).map_or(below, f64::from);
        // NumPy goes from the nearer end, so that equal neighbours stay what they are.
        let step = above - below;
        (if step == 0.0 || fraction == 0.0 {
            below
        } else if fraction < 0.5 {
            below + step * fraction
        } else {
            above - step * (1.0 - fraction)
        }) as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(values: &[f32], [low, high]: [f64; 2]) -> Result<Vec<f32>, ScanError> {
        let mut image = values.to_vec();
        let intensity = Intensity::Percentiles { low, high };
        let shape = [1, 1, values.len()];
        apply(Path::new("MR_0000.nii.gz"), &mut image, shape, intensity, &Preprocessing::default())?;
        Ok(image)
    }

    #[test]
    fn percentiles_are_numpys() {
        // np.percentile([7, 1, 3, 9, 4, 4, -2], q), NumPy 2.4
        let values = [7.0, 1.0, 3.0, 9.0, 4.0, 4.0, -2.0];
        let expected =
            [(0.0, -2.0), (0.5, -1.91), (10.0, -0.2), (50.0, 4.0), (60.0, 4.0), (75.0, 5.5), (99.5, 8.94), (100.0, 9.0)];
        for (percent, value) in expected {
            let found = percentiles(&values, [percent, percent]);
            assert_eq!(found, [value; 2], "{percent}");
        }
        assert_eq!(percentiles(&[5.0], [0.5, 99.5]), [5.0; 2]);
    }

    #[test]
    fn a_scan_fills_zero_to_one_and_outliers_are_clipped() {
        let mut values: Vec<f32> = (0..=200).map(|i| i as f32).collect();
        values.reverse();
        let image = scaled(&values, [0.5, 99.5]).unwrap();
        assert_eq!((image[0], image[1], image[199], image[200]), (1.0, 1.0, 0.0, 0.0));
        assert_eq!(image[100], 0.5);
    }

    #[test]
    fn one_value_everywhere_is_nothing_and_values_that_are_none_are_refused() {
        assert_eq!(scaled(&[300.0; 5], [0.5, 99.5]).unwrap(), [0.0; 5]);
        let message = scaled(&[0.0, f32::INFINITY, f32::INFINITY], [0.5, 99.5]).unwrap_err().to_string();
        assert!(message.contains("MR_0000.nii.gz") && message.contains("inf"), "{message}");
        let message = scaled(&[0.0, f32::NAN, 1.0], [0.5, 99.5]).unwrap_err().to_string();
        assert!(message.contains("NaN in slice 0, row 0, column 1"), "{message}");
    }
}
