//! From stored labels to classes.

use super::Layout;
use super::error::ScanError;
use sam_ladder_formats::Array;
use sam_ladder_formats::nifti::NiftiImage;
use std::path::Path;

/// A label may be this far from a whole number: scaling by a slope rounds, and so do other programs.
const ROUNDING: f32 = 1e-3;
/// From here on, a label in float32 may be another than the stored one.
const INEXACT: f32 = (1 << f32::MANTISSA_DIGITS) as f32;

/// Labels as a file stores them.
pub(super) struct StoredLabels<'a> {
    path: &'a Path,
    /// `[d, h, w]`.
    values: &'a [f32],
    shape: [usize; 3],
    /// The slope and intercept that they were scaled by, for messages.
    scaling: Option<(f64, f64)>,
    /// The first that float32 does not hold, and its value in words.
    inexact: Option<&'a (usize, String)>,
}

impl<'a> StoredLabels<'a> {
    pub(super) fn of_volume(path: &'a Path, image: &'a NiftiImage) -> Self {
        let (values, shape) = (image.voxels.as_slice(), image.geometry.shape);
        StoredLabels { path, values, shape, scaling: image.scaling, inexact: image.inexact.as_ref() }
    }

    pub(super) fn of_array(path: &'a Path, array: &'a Array) -> Self {
        StoredLabels { path, values: &array.values, shape: array.shape, scaling: None, inexact: None }
    }

    /// Their classes `[d, h, w]` by the map of a layout.
    pub(super) fn classes(&self, map: &[u8], layout: Layout) -> Result<Vec<u8>, ScanError> {
        let class = |(at, &value): (usize, &f32)| {
            let whole = value.round();
            match map.get(whole as usize) {
                Some(&class) if (value - whole).abs() <= ROUNDING && whole >= 0.0 => Ok(class),
                _ => Err(self.refused(at, map.len().saturating_sub(1), layout)),
            }
        };
        self.values.iter().enumerate().map(class).collect()
    }

    fn refused(&self, at: usize, largest: usize, layout: Layout) -> ScanError {
        let value = self.values[at];
        let value = match self.inexact {
            Some((first, words)) if *first == at => words.clone(),
            _ if value.abs() >= INEXACT && value.is_finite() => format!("{value:e}"),
            _ => value.to_string(),
        };
        let [_, h, w] = self.shape;
        ScanError::Label {
            path: self.path.into(),
            value,
            slice: at / (h * w),
            largest,
            scaling: self.scaling,
            classes_from: match layout {
                Layout::NnUnet => "the classes in nnU-Net's dataset.json",
                Layout::Published => "state the classes with --classes",
                Layout::RawSynapse | Layout::Unlabelled => {
                    "bring the scans into nnU-Net's layout, whose dataset.json names the classes"
                }
            },
        }
    }
}
