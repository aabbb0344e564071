//! A predicted and a reference mask: checks them, counts each class and finds its bounding box, in one pass.

use crate::error::{EvalError, Result};
use rayon::prelude::*;

/// Longest axis that a mask may have: the longest that a NIfTI-1 header can hold.
pub(crate) const MAX_AXIS: usize = i16::MAX as usize;

/// A borrowed segmentation at the scan's own resolution.
#[derive(Debug, Clone, Copy)]
pub struct MaskView<'a> {
    /// Classes `[d, h, w]` in C order; 0 is background.
    pub voxels: &'a [u8],
    /// `[d, h, w]`.
    pub shape: [usize; 3],
}

/// Prediction and reference of one case, of the same shape, with every class's [`Region`].
#[derive(Debug)]
pub struct MaskPair<'a> {
    pub(crate) prediction: &'a [u8],
    pub(crate) reference: &'a [u8],
    /// `[d, h, w]`.
    pub(crate) shape: [usize; 3],
    regions: Vec<Region>,
}

/// Bounding box and voxel counts of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Voxels in the prediction.
    pub predicted_voxels: u64,
    /// Voxels in the reference.
    pub reference_voxels: u64,
    /// Voxels in both.
    pub shared_voxels: u64,
    /// First index along each axis at which either mask has the class.
    pub(crate) start: [usize; 3],
    /// One past the last such index. Like `start`, meaningless if both masks are empty.
    pub(crate) end: [usize; 3],
}

impl Region {
    const EMPTY: Region =
        Region { predicted_voxels: 0, reference_voxels: 0, shared_voxels: 0, start: [usize::MAX; 3], end: [0; 3] };

    fn merge(&mut self, other: &Region) {
        self.predicted_voxels += other.predicted_voxels;
        self.reference_voxels += other.reference_voxels;
        self.shared_voxels += other.shared_voxels;
        for axis in 0..3 {
            self.start[axis] = self.start[axis].min(other.start[axis]);
            self.end[axis] = self.end[axis].max(other.end[axis]);
        }
    }

    /// Whether neither mask has the class.
    pub fn both_empty(&self) -> bool {
        self.predicted_voxels == 0 && self.reference_voxels == 0
    }

    /// Whether the reference has the class and the prediction lacks it.
    pub fn missed(&self) -> bool {
        self.predicted_voxels == 0 && self.reference_voxels > 0
    }

    /// Whether the prediction has the class and the reference lacks it.
    pub fn invented(&self) -> bool {
        self.predicted_voxels > 0 && self.reference_voxels == 0
    }
}

impl<'a> MaskPair<'a> {
    /// Checks two masks and counts their classes.
    ///
    /// # Errors
    /// Names `case` if the shapes differ, a mask does not fill its shape, an axis is empty or longer than a NIfTI-1 header can hold,
    /// or a class is above `num_classes` (organs, without the background).
    pub fn new(case: &str, prediction: MaskView<'a>, reference: MaskView<'a>, num_classes: usize) -> Result<Self> {
        let shape = reference.shape;
        if prediction.shape != shape {
            return Err(EvalError::ShapesDiffer { case: case.into(), prediction: prediction.shape, reference: shape });
        }
        if shape.iter().any(|&length| length == 0 || length > MAX_AXIS) {
            return Err(EvalError::Axis { case: case.into(), shape, limit: MAX_AXIS });
        }
        let expected = shape.iter().product();
        for (mask, voxels) in [("prediction", prediction.voxels), ("reference", reference.voxels)] {
            if voxels.len() != expected {
                return Err(EvalError::VoxelCount { case: case.into(), mask, shape, expected, found: voxels.len() });
            }
        }
        let mut regions = count(prediction.voxels, reference.voxels, shape);
        let unnamed = regions.iter().enumerate().skip(num_classes + 1).find(|(_, region)| !region.both_empty());
        if let Some((class, region)) = unnamed {
            let mask = if region.predicted_voxels > 0 { "prediction" } else { "reference" };
            return Err(EvalError::Class { case: case.into(), mask, found: class as u8, classes: num_classes });
        }
        regions.truncate(num_classes + 1);
        Ok(MaskPair { prediction: prediction.voxels, reference: reference.voxels, shape, regions })
    }

    /// The region of a class, from 1; empty for a class that no mask has.
    pub fn region(&self, class: u8) -> Region {
        self.regions.get(class as usize).copied().unwrap_or(Region::EMPTY)
    }
}

/// Regions of all 256 classes; that of class 0 stays empty.
fn count(prediction: &[u8], reference: &[u8], [_, height, width]: [usize; 3]) -> Vec<Region> {
    let plane = height * width;
    (prediction.par_chunks(plane).zip(reference.par_chunks(plane)).enumerate())
        .fold(
            || vec![Region::EMPTY; 256],
            |mut regions, (z, (prediction, reference))| {
                for (y, (prediction, reference)) in prediction.chunks_exact(width).zip(reference.chunks_exact(width)).enumerate()
                {
                    count_row(&mut regions, prediction, reference, z, y);
                }
                regions
            },
        )
        .reduce(
            || vec![Region::EMPTY; 256],
            |mut total, part| {
                total.iter_mut().zip(&part).for_each(|(total, part)| total.merge(part));
                total
            },
        )
}

/// Adds one row to the regions. Rows are mostly background, so runs of equal voxels are counted together.
fn count_row(regions: &mut [Region], prediction: &[u8], reference: &[u8], z: usize, y: usize) {
    let width = prediction.len();
    let mut x = 0;
    while x < width {
        let (p, r) = (prediction[x], reference[x]);
        let run = prediction[x..].iter().zip(&reference[x..]).take_while(|&(&a, &b)| a == p && b == r).count();
        let end = x + run;
        let mut grow = |class: u8| {
            let region = &mut regions[class as usize];
            region.start = [region.start[0].min(z), region.start[1].min(y), region.start[2].min(x)];
            region.end = [region.end[0].max(z + 1), region.end[1].max(y + 1), region.end[2].max(end)];
            region.predicted_voxels += if class == p { run as u64 } else { 0 };
            region.reference_voxels += if class == r { run as u64 } else { 0 };
            region.shared_voxels += if p == r { run as u64 } else { 0 };
        };
        if p > 0 {
            grow(p);
        }
        if r > 0 && r != p {
            grow(r);
        }
        x = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(prediction: &'a [u8], reference: &'a [u8], shape: [usize; 3]) -> Result<MaskPair<'a>> {
        MaskPair::new("0001", MaskView { voxels: prediction, shape }, MaskView { voxels: reference, shape }, 2)
    }

    #[test]
    fn counts_and_bounds() {
        // [1, 2, 5]
        let prediction = [0, 1, 1, 0, 2, 0, 0, 1, 0, 0];
        let reference = [0, 0, 1, 1, 0, 0, 0, 0, 0, 0];
        let pair = pair(&prediction, &reference, [1, 2, 5]).unwrap();
        let one = pair.region(1);
        assert_eq!((one.predicted_voxels, one.reference_voxels, one.shared_voxels), (3, 2, 1));
        assert_eq!((one.start, one.end), ([0, 0, 1], [1, 2, 4]));
        let two = pair.region(2);
        assert!(two.invented() && !two.missed());
        assert_eq!((two.start, two.end), ([0, 0, 4], [1, 1, 5]));
        assert!(pair.region(7).both_empty());
    }

    #[test]
    fn bad_masks_are_named() {
        let zeros = [0u8; 8];
        let mask = |shape| MaskView { voxels: &zeros, shape };
        let different = MaskPair::new("0042", mask([2, 2, 2]), mask([1, 4, 2]), 1).unwrap_err().to_string();
        assert!(
            different.contains("case 0042") && different.contains("[2, 2, 2]") && different.contains("[1, 4, 2]"),
            "{different}"
        );
        let short = pair(&zeros, &zeros, [3, 2, 2]).unwrap_err().to_string();
        assert!(short.contains("prediction holds 8 voxels") && short.contains("needs 12"), "{short}");
        assert!(pair(&[], &[], [0, 2, 2]).unwrap_err().to_string().contains("axis"));
        let class = pair(&zeros, &[0, 0, 3, 0, 0, 0, 0, 0], [2, 2, 2]).unwrap_err().to_string();
        assert!(class.contains("reference holds class 3 but only 2 organs"), "{class}");
    }
}
