//! From stored labels to classes.

use super::error::ScanError;
use std::path::Path;

/// A label may be this far from a whole number: scaling by a slope rounds, and so do other programs.
const ROUNDING: f32 = 1e-3;

/// Classes of stored labels `[d, h, w]`. `scaling` is the slope and intercept that they were scaled by, for messages.
pub(super) fn map_labels(
    path: &Path,
    labels: &[f32],
    [_, h, w]: [usize; 3],
    map: &[u8],
    scaling: Option<(f64, f64)>,
) -> Result<Vec<u8>, ScanError> {
    labels
        .iter()
        .enumerate()
        .map(|(at, &value)| {
            let whole = value.round();
            match map.get(whole as usize) {
                Some(&class) if (value - whole).abs() <= ROUNDING && whole >= 0.0 => Ok(class),
                _ => {
                    let largest = map.len().saturating_sub(1);
                    Err(ScanError::Label { path: path.into(), value, slice: at / (h * w), largest, scaling })
                }
            }
        })
        .collect()
}
