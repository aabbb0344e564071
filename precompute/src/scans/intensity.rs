//! From a scan's stored values to [0, 1].

use super::error::ScanError;
use sam_ladder_schemas::preprocessing::{Channel, Intensity, Preprocessing};
use sam_ladder_schemas::tables::PERCENTILES;
use std::path::Path;

/// What a scan's values must spread over at least, as part of the window's width: (HU + 1024) / 4095 spreads over a four-hundredth of the
/// published one.
const SMALLEST_SPREAD: f64 = 0.02;
/// Where the values of a preprocessed image may lie: resampling by splines leaves [0, 1], in real sets to -0.15 and 1.19.
const UNIT_RANGE: [f32; 2] = [-0.5, 1.5];

/// The largest value that scanners give without an extended scale: 12 bits from -1024.
const LARGEST_HU: f32 = 3071.0;
/// Only dense bone and metal lie above; [`MOST_DENSE`] of a scan never do.
const DENSE_HU: f32 = 500.0;
const MOST_DENSE: f64 = 0.25;
/// Air is -1000 HU, and what lies below it by more than noise is the padding around the scanner's circle: one value, and little of it where
/// resampling has smeared it.
const BELOW_AIR_HU: f32 = -1100.0;
const MOST_BELOW_AIR: f64 = 0.05;

/// What a channel's values are like, before they become [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ChannelValues {
    /// The least and the largest.
    pub(super) range: [f32; 2],
    /// [`PERCENTILES`] of them.
    pub(super) percentiles: [f64; 5],
    /// The values that become 0 and 1.
    pub(super) window: [f32; 2],
    /// Share of the voxels that the window does not clip.
    pub(super) in_window: f64,
    /// Share above [`DENSE_HU`].
    dense: f64,
    /// Share below [`BELOW_AIR_HU`], without the least value, which may be padding.
    below_air: f64,
}

impl ChannelValues {
    /// Of `values`, at least one and all of them finite.
    pub(super) fn of(values: &[f32], window: [f32; 2]) -> Self {
        let range = values.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[least, most], &v| [least.min(v), most.max(v)]);
        let share = |of: &dyn Fn(f32) -> bool| share(values, of);
        ChannelValues {
            range,
            percentiles: percentiles(values, PERCENTILES).map(f64::from),
            window,
            in_window: part_in(values, window),
            dense: share(&|value| value > DENSE_HU),
            below_air: share(&|value| value < BELOW_AIR_HU && value > range[0]),
        }
    }

    /// What is strange about the values of a channel, in words, if anything is. Scans that are scaled between their own percentiles may have any
    /// values, except those of a CT that is not called one.
    pub(super) fn strange_for(&self, channel: &Channel) -> Option<String> {
        let is_ct = channel.name.eq_ignore_ascii_case("CT");
        if channel.intensity != Intensity::Window {
            return self.is_like_ct().then(|| {
                format!(
                    "these look like Hounsfield units, but the channel is called {:?}, so each scan is scaled between its own percentiles; if it \
                     is CT, call it CT in dataset.json, or state --window. {}",
                    channel.name,
                    self.described()
                )
            });
        }
        let why = self.unlike_a_window(is_ct).or_else(|| if is_ct { self.unlike_hounsfield_units() } else { None })?;
        let unit = if is_ct { "Hounsfield units" } else { "values in the window's unit" };
        Some(format!("these do not look like {unit}: {why}. {}", self.described()))
    }

    /// Why the values cannot be meant for the window.
    fn unlike_a_window(&self, is_ct: bool) -> Option<String> {
        let ([least, most], [low, high]) = (self.range, self.window);
        let spread = self.percentiles[4] - self.percentiles[0];
        if self.in_window == 0.0 || most <= low || least >= high {
            Some("no voxel lies within the window".into())
        } else if is_ct && low < 0.0 && least >= 0.0 {
            Some("no value is below 0 (air is -1000 HU, fat about -100 HU)".into())
        } else if spread < SMALLEST_SPREAD * f64::from(high - low) {
            Some("its values hardly differ".into())
        } else {
            None
        }
    }

    /// Why the values are no Hounsfield units, though some lie in the window: ten times as large, twice scaled, turned around, padded with a
    /// large value.
    fn unlike_hounsfield_units(&self) -> Option<String> {
        let percent = |share: f64| format!("{:.1} % of the voxels lie", 100.0 * share);
        if self.percentiles[4] > f64::from(LARGEST_HU) {
            Some(format!("more than 0.5 % of the voxels lie above {LARGEST_HU}, as only metal does"))
        } else if self.below_air > MOST_BELOW_AIR {
            Some(format!("{} below {BELOW_AIR_HU}, and air is -1000 HU", percent(self.below_air)))
        } else if self.dense > MOST_DENSE {
            Some(format!("{} above {DENSE_HU}, as only dense bone does", percent(self.dense)))
        } else {
            None
        }
    }

    /// Whether they are from air to bone in Hounsfield units; no other image has such values below 0.
    fn is_like_ct(&self) -> bool {
        let [least, .., most] = self.percentiles;
        (-3100.0..=-900.0).contains(&least) && (100.0..=f64::from(LARGEST_HU)).contains(&most)
    }

    /// What is strange about an image that should be in [0, 1] already.
    pub(super) fn strange_in_unit_range(&self) -> Option<String> {
        let [least, most] = self.range;
        let [low, high] = UNIT_RANGE;
        let inside = least >= low && most <= high && most > 0.0 && least < 1.0;
        (!inside).then(|| format!("expected values in [0, 1], as the published layout has them. {}", self.described()))
    }

    fn described(&self) -> String {
        let ([least, most], [low, high]) = (self.range, self.window);
        let share = 100.0 * self.in_window;
        format!("Values from {least} to {most}; {share:.1} % of the voxels lie in the window from {low} to {high}")
    }
}

/// Brings a channel `[d, h, w]` to [0, 1] in the way that its intensity says; what its values were like.
pub(super) fn apply(
    path: &Path,
    image: &mut [f32],
    shape: [usize; 3],
    intensity: Intensity,
    preprocessing: &Preprocessing,
) -> Result<ChannelValues, ScanError> {
    refuse_not_finite(path, image, shape)?;
    match intensity {
        Intensity::Window => {
            let values = ChannelValues::of(image, preprocessing.window_hu);
            clip_and_scale(image, preprocessing.window_hu);
            Ok(values)
        }
        Intensity::Percentiles { low, high } => {
            let [low, high] = percentiles(image, [low, high]);
            let values = ChannelValues::of(image, [low, high]);
            if low == high {
                // A scan, or nearly all of it, of one value holds no information.
                image.fill(0.0);
            } else {
                clip_and_scale(image, [low, high]);
            }
            Ok(values)
        }
    }
}

/// A channel `[d, h, w]` in three windows, each brought to [0, 1]; what its values were like, with the range that the windows cover together for
/// a window.
pub(super) fn in_windows(
    path: &Path,
    image: &[f32],
    shape: [usize; 3],
    windows: &[[f32; 2]; 3],
) -> Result<(ChannelValues, [Vec<f32>; 3]), ScanError> {
    refuse_not_finite(path, image, shape)?;
    let covered = windows.iter().fold(windows[0], |[least, most], [low, high]| [least.min(*low), most.max(*high)]);
    let windowed = windows.map(|window| {
        let mut values = image.to_vec();
        clip_and_scale(&mut values, window);
        values
    });
    Ok((ChannelValues::of(image, covered), windowed))
}

/// Share of the values that a window does not clip.
pub(super) fn part_in(values: &[f32], [low, high]: [f32; 2]) -> f64 {
    share(values, &|value| (low..=high).contains(&value))
}

fn share(values: &[f32], of: &dyn Fn(f32) -> bool) -> f64 {
    values.iter().filter(|value| of(**value)).count() as f64 / values.len() as f64
}

/// Clips to the window and scales the window to [0, 1], in float32 as NumPy does.
fn clip_and_scale(image: &mut [f32], [low, high]: [f32; 2]) {
    for value in image.iter_mut() {
        *value = (value.max(low).min(high) - low) / (high - low);
    }
}

/// An error for the first NaN of `[d, h, w]`, or for infinite values.
pub(super) fn refuse_not_finite(path: &Path, image: &[f32], [_, h, w]: [usize; 3]) -> Result<(), ScanError> {
    match image.iter().position(|value| value.is_nan()) {
        None => match image.iter().filter(|value| value.is_infinite()).count() {
            0 => Ok(()),
            count => Err(ScanError::Infinite { path: path.into(), count, voxels: image.len() }),
        },
        Some(at) => Err(ScanError::NotANumber { path: path.into(), slice: at / (h * w), row: at / w % h, column: at % w }),
    }
}

/// Percentiles of all values, linear between neighbours: `np.percentile(image.astype(np.float64), percents)`, as float32.
fn percentiles<const N: usize>(image: &[f32], percents: [f64; N]) -> [f32; N] {
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
        for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
            let message = scaled(&[0.0, infinite, 4.0, 5.0, infinite], [0.5, 99.5]).unwrap_err().to_string();
            assert_eq!(message, "MR_0000.nii.gz: holds infinite values: 2 of 5 voxels");
            let window = apply(Path::new("a"), &mut [0.0, infinite], [1, 1, 2], Intensity::Window, &Preprocessing::default());
            assert!(window.unwrap_err().to_string().contains("1 of 2 voxels"), "a window, too");
        }
        let message = scaled(&[0.0, f32::NAN, 1.0], [0.5, 99.5]).unwrap_err().to_string();
        assert!(message.contains("NaN in slice 0, row 0, column 1"), "{message}");
    }
}
