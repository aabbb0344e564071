//! Rows of every Parquet table. A struct's fields are the columns, in the same order; an `Option` is a column that may have empty cells.

use crate::orientation::Turn;
use crate::variants::{Variant, VariantKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One row of `{train,test}/slices.parquet`: row `i` describes index `i` of the arrays' `slice` axis. The table has one column for each
/// axis of the spacing and the size, and one for each class (see [`voxels_column`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceRow {
    /// Index along the arrays' `slice` axis.
    pub row: u32,
    /// Case, as in the source file's name: `0005`.
    pub case: String,
    /// Slice within the case, from 0.
    pub slice_index: u32,
    /// Distance between voxel centres along depth, height and width, in millimetres; `None` if nothing says it.
    pub spacing_mm: Option<[f64; 3]>,
    /// Size of the slice in the scan, in pixels: height and width.
    pub size: [u32; 2],
    /// Voxels of each class from index 1, at the scan's own resolution.
    pub voxels: Vec<u64>,
    /// File that the slice was read from, relative to the scans' folder.
    pub source: String,
    /// SHA-256 of that file, in hexadecimal.
    pub source_sha256: String,
}

/// One row of `{train,test}/scans.parquet`: where a scan's voxels lie in space, and what its values are like.
///
/// The file's axes are those of the array that nibabel shows; a file of the published layout, which keeps such arrays transposed, counts as
/// `[width, height, depth]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanRow {
    /// Case, as in `slices.parquet`.
    pub case: String,
    /// Voxels along the file's three axes.
    pub shape: Vec<u32>,
    /// From voxel indices of the file to millimetres in RAS+: four rows of four numbers; `None` if the file has no affine.
    pub affine: Option<Vec<f64>>,
    /// The side of the body towards which each of the file's axes runs, as `nibabel.aff2axcodes` gives it: `LPS`.
    pub axis_codes: Option<String>,
    /// For width, height and depth of the store's slices and masks: the number of the file's axis, from 1, negative if it is reversed. `1, 2,
    /// 3` for a scan that is taken as it lies in the file.
    pub axes: Vec<i8>,
    /// Distance between voxel centres along the file's axes, in millimetres; `None` if nothing says it.
    pub spacing_mm: Option<Vec<f64>>,
    /// Where the spacing comes from.
    pub spacing_source: SpacingSource,
    /// [`PERCENTILES`] of each channel's values as the file has them, channel after channel.
    pub percentiles: Vec<f64>,
    /// For each channel, the share of voxels that the window, or the range between its percentiles, does not clip; where the image's channels are
    /// windows of one channel, for each window.
    pub in_window: Vec<f64>,
}

/// The percentiles that [`ScanRow`] keeps.
pub const PERCENTILES: [f64; 5] = [0.5, 5.0, 50.0, 95.0, 99.5];

/// The least and the largest of each of the [`PERCENTILES`] over some scans, of one channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueRange {
    /// The least.
    pub low: [f64; 5],
    /// The largest.
    pub high: [f64; 5],
}

impl ValueRange {
    /// Of each channel of the scans; empty if one of them says nothing of its values.
    pub fn of(scans: &[ScanRow]) -> Vec<Self> {
        let channels = scans.iter().map(|scan| scan.percentiles.len() / PERCENTILES.len()).min().unwrap_or(0);
        let over =
            |at: usize, pick: fn(f64, f64) -> f64| scans.iter().map(|scan| scan.percentiles[at]).reduce(pick).unwrap_or(f64::NAN);
        let range = |channel: usize| {
            let at = [0, 1, 2, 3, 4].map(|percentile| channel * PERCENTILES.len() + percentile);
            ValueRange { low: at.map(|at| over(at, f64::min)), high: at.map(|at| over(at, f64::max)) }
        };
        (0..channels).map(range).collect()
    }

    /// From the least of all to the largest.
    pub fn spread(&self) -> f64 {
        self.high[4] - self.low[0]
    }

    /// Whether a scan's percentiles of this channel lie farther from the range than a quarter of its spread.
    pub fn is_far_from(&self, percentiles: &[f64]) -> bool {
        let margin = 0.25 * self.spread();
        let far = |(at, value): (usize, &f64)| *value < self.low[at] - margin || *value > self.high[at] + margin;
        percentiles.iter().enumerate().take(PERCENTILES.len()).any(far)
    }
}

/// An organ's volumes in the cases that a run was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRange {
    /// All cases.
    pub cases: u32,
    /// The cases whose reference has the organ.
    pub with_organ: u32,
    /// The least volume in these, in millilitres; `None` if there are none, or the spacing of one of all is unknown.
    pub low_ml: Option<f64>,
    /// The largest.
    pub high_ml: Option<f64>,
}

impl VolumeRange {
    /// Of each of the classes from 1, over the cases that `is_trained_on` names.
    pub fn of(slices: &[SliceRow], num_organs: usize, is_trained_on: impl Fn(&str) -> bool) -> Vec<Self> {
        let mut cases: BTreeMap<&str, (Option<[f64; 3]>, Vec<u64>)> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| is_trained_on(&slice.case)) {
            let (_, voxels) = cases.entry(&slice.case).or_insert_with(|| (slice.spacing_mm, vec![0; num_organs]));
            voxels.iter_mut().zip(&slice.voxels).for_each(|(sum, voxels)| *sum += voxels);
        }
        let voxel_ml: Option<Vec<f64>> = cases.values().map(|(spacing, _)| spacing.map(voxel_ml)).collect();
        let range = |organ: usize| {
            let voxels: Vec<u64> = cases.values().map(|(_, voxels)| voxels[organ]).collect();
            let volumes = voxel_ml.iter().flatten().zip(&voxels).filter(|(_, voxels)| **voxels > 0);
            let volumes: Vec<f64> = volumes.map(|(ml, &voxels)| ml * voxels as f64).collect();
            VolumeRange {
                cases: cases.len() as u32,
                with_organ: voxels.iter().filter(|voxels| **voxels > 0).count() as u32,
                low_ml: volumes.iter().copied().reduce(f64::min),
                high_ml: volumes.iter().copied().reduce(f64::max),
            }
        };
        (0..num_organs).map(range).collect()
    }

    /// Whether every case that was trained on has the organ.
    pub fn is_in_every_case(&self) -> bool {
        self.cases > 0 && self.with_organ == self.cases
    }
}

/// Millilitres of a voxel, from the distances between voxel centres in millimetres.
pub fn voxel_ml(spacing_mm: [f64; 3]) -> f64 {
    spacing_mm.iter().product::<f64>() / 1000.0
}

/// Where the spacing of a scan comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpacingSource {
    /// The file's header.
    Header,
    /// The user.
    Stated,
    /// Nothing: it is unknown.
    None,
}

impl ScanRow {
    /// A scan of this depth, height and width that is taken as it lies, with this spacing along the same axes. Nothing is known of its place
    /// in space and of its values.
    pub fn of_array(case: &str, shape: [usize; 3], spacing_mm: Option<[f64; 3]>) -> Self {
        let reversed = |[z, y, x]: [f64; 3]| vec![x, y, z];
        ScanRow {
            case: case.into(),
            shape: shape.iter().rev().map(|&side| side as u32).collect(),
            affine: None,
            axis_codes: None,
            axes: Turn::NONE.axes().to_vec(),
            spacing_mm: spacing_mm.map(reversed),
            spacing_source: if spacing_mm.is_some() { SpacingSource::Stated } else { SpacingSource::None },
            percentiles: Vec::new(),
            in_window: Vec::new(),
        }
    }

    /// The turn from the file's array to the store's slices; `None` for axes that are none.
    pub fn turn(&self) -> Option<Turn> {
        Turn::new(self.axes.as_slice().try_into().ok()?)
    }

    /// Depth, height and width of the file's array.
    pub fn file_shape(&self) -> Option<[usize; 3]> {
        let [width, height, depth] = self.shape.as_slice().try_into().ok()?;
        Some([depth, height, width].map(|side: u32| side as usize))
    }

    /// Depth, height and width of the store's slices.
    pub fn turned_shape(&self) -> Option<[usize; 3]> {
        Some(self.turn()?.of_reversed(self.file_shape()?))
    }

    /// The affine's first three rows.
    pub fn affine_rows(&self) -> Option<[[f64; 4]; 3]> {
        let affine = self.affine.as_deref().filter(|affine| affine.len() == 16)?;
        Some(std::array::from_fn(|row| std::array::from_fn(|column| affine[4 * row + column])))
    }
}

/// Column of `slices.parquet` with an organ's voxel count; spaces in the organ's name become underscores.
pub fn voxels_column(class_name: &str) -> String {
    format!("voxels_{}", class_name.replace(' ', "_"))
}

/// One row of `variants.parquet`: row `i` describes index `i` of the arrays' `variant` axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantRow {
    /// Index along the arrays' `variant` axis.
    pub variant: u32,
    /// See [`Variant::name`].
    pub name: String,
    /// `identity`, `reflection`, `rotation` or `draw`.
    pub kind: String,
    /// Quarter turns of a reflection.
    pub k: Option<u8>,
    /// Axis of a reflection's flip.
    pub axis: Option<u8>,
    /// Angle of a rotation.
    pub angle_degrees: Option<i32>,
    /// Probability with which training draws it.
    pub probability: f64,
}

impl VariantRow {
    /// The row of the variant with this index.
    pub fn new(index: usize, variant: &Variant) -> Self {
        let (kind, reflection, angle_degrees) = match variant.kind {
            VariantKind::Identity => ("identity", None, None),
            VariantKind::Reflection { k, axis } => ("reflection", Some((k, axis)), None),
            VariantKind::Rotation { angle_degrees } => ("rotation", None, Some(angle_degrees)),
            VariantKind::Draw { .. } => ("draw", None, None),
        };
        let (k, axis) = reflection.unzip();
        let (variant, name, probability) = (index as u32, variant.name(), variant.probability);
        VariantRow { variant, name, kind: kind.into(), k, axis, angle_degrees, probability }
    }
}

/// One row of a run's `steps.parquet`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Optimizer step, from 0.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Learning rate that the step used.
    pub lr: f64,
    /// Total loss.
    pub loss: f32,
    /// Cross-entropy.
    pub ce: f32,
    /// Dice loss of the step's batch, as the progress bar shows it: 1 minus a soft Dice.
    pub dice: f32,
    /// Gate parameter after the step.
    pub alpha: f32,
    /// `sigmoid(alpha)` after the step: SAM's share of the embeddings.
    pub gate: f32,
}

/// Start of the names of the columns that `steps.parquet` of a run with `ladder = gated` has in addition, float32: `gate_block_5` is the
/// gate, after the step, of the rung after block 5 of the encoder: the rung's share where it is mixed.
pub const RUNG_GATE: &str = "gate_block_";

/// One row of a run's `epochs.parquet`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// Epoch, from 0.
    pub epoch: u32,
    /// Optimizer steps taken by its end.
    pub steps: u64,
    /// Mean total loss over the epoch's steps.
    pub loss: f64,
    /// Mean cross-entropy.
    pub ce: f64,
    /// Mean Dice loss.
    pub dice: f64,
    /// Dice over the validation cases at low resolution, mean over organs; null without validation cases.
    pub val_dice: Option<f64>,
    /// HD95 over the validation cases at low resolution in millimetres, mean over organs; measured only in sweeps with this objective.
    pub val_hd95: Option<f64>,
    /// Gate at the end of the epoch.
    pub gate: f32,
    /// Wall time of the epoch, in seconds.
    pub seconds: f64,
}

/// One row of an evaluation's `cases.parquet`: one case and organ.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CaseRow {
    /// Case, as in the store.
    pub case: String,
    /// Organ's name.
    pub organ: String,
    /// Dice coefficient; `None` if the protocol leaves it undefined.
    pub dice: Option<f64>,
    /// 95th percentile of the surface distances, in voxels (`published`) or millimetres (`standard`); `None` if undefined.
    pub hd95: Option<f64>,
    /// Voxels of the organ in the reference.
    pub reference_voxels: u64,
    /// Voxels of the organ in the prediction.
    pub predicted_voxels: u64,
    /// 95th percentile over the distances of both directions (MedPy), in voxels. This and the next three columns have no rule for empty masks:
    /// they are `None` unless both masks have the organ.
    pub hd95_voxels: Option<f64>,
    /// The same in millimetres.
    pub hd95_mm: Option<f64>,
    /// The larger of the two directions' HD95 (MONAI), in voxels.
    pub hd95_larger_voxels: Option<f64>,
    /// The same in millimetres.
    pub hd95_larger_mm: Option<f64>,
    /// Share of both surfaces within the tolerance of each other; 0 if one mask lacks the organ, `None` if both lack it or the spacing is
    /// unknown.
    pub surface_dice: Option<f64>,
    /// Predicted minus reference volume, in millilitres; `None` if the scan's spacing is unknown, as are all columns in millimetres, and in
    /// tables of older versions, which lack the column.
    pub volume_difference_ml: Option<f64>,
}

/// One row of an evaluation's `summary.parquet`: an organ, or `mean` over the organs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SummaryRow {
    /// Organ's name, or `mean`.
    pub organ: String,
    /// Mean Dice over the cases where it is defined.
    pub dice: Option<f64>,
    /// Mean HD95 over the cases where it is defined.
    pub hd95: Option<f64>,
    /// Cases whose Dice counts in the mean.
    pub dice_cases: u32,
    /// Cases whose HD95 counts in the mean.
    pub hd95_cases: u32,
    /// Cases in which the reference has the organ and the prediction has not.
    pub missed: u32,
    /// Cases in which the prediction has the organ and the reference has not.
    pub invented: u32,
    /// Standard deviation of Dice over those cases (n - 1); `None` for fewer than two, and in the row `mean`.
    pub dice_sd: Option<f64>,
    /// Standard deviation of HD95 over those cases.
    pub hd95_sd: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `dice`, over cases.
    pub dice_low: Option<f64>,
    /// Upper end.
    pub dice_high: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `hd95`, over cases.
    pub hd95_low: Option<f64>,
    /// Upper end.
    pub hd95_high: Option<f64>,
    /// Mean of the cases' `hd95_voxels`, where defined.
    pub hd95_voxels: Option<f64>,
    /// Mean of the cases' `hd95_mm`.
    pub hd95_mm: Option<f64>,
    /// Mean of the cases' `hd95_larger_voxels`.
    pub hd95_larger_voxels: Option<f64>,
    /// Mean of the cases' `hd95_larger_mm`.
    pub hd95_larger_mm: Option<f64>,
    /// Mean of the cases' `surface_dice`.
    pub surface_dice: Option<f64>,
    /// Mean of the cases' `volume_difference_ml`.
    pub volume_difference_ml: Option<f64>,
}

/// One row of a results table's Parquet file (`table1.parquet`, `table2.parquet`): a method and an organ, or `mean` over the organs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ResultRow {
    /// Name of the method, as in the table.
    pub method: String,
    /// Organ's name, or `mean`.
    pub organ: String,
    /// Source of a published number; `None` for our own evaluations.
    pub source: Option<String>,
    /// Number of evaluations with different seeds; `None` for published numbers.
    pub seeds: Option<u32>,
    /// Folds of a cross-validation whose cases the row is over; `None` for evaluations of test scans and for published numbers.
    pub folds: Option<u32>,
    /// Cases of each evaluation, or of all folds; `None` for published numbers.
    pub cases: Option<u32>,
    /// Dice from 0 to 1, mean over seeds of means over cases.
    pub dice: Option<f64>,
    /// Standard deviation of Dice over the seeds (n - 1); `None` for fewer than two. Of a cross-validation with one seed it is over the cases: in
    /// the row `mean`, of each case's mean over its organs.
    pub dice_sd: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `dice`, over cases.
    pub dice_low: Option<f64>,
    /// Upper end.
    pub dice_high: Option<f64>,
    /// HD95 in the unit of the evaluations, mean over seeds of means over cases.
    pub hd95: Option<f64>,
    /// Standard deviation of HD95, over the same as that of Dice.
    pub hd95_sd: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `hd95`, over cases.
    pub hd95_low: Option<f64>,
    /// Upper end.
    pub hd95_high: Option<f64>,
    /// Cases in which the reference has the organ and the prediction has not, summed over seeds.
    pub missed: Option<u32>,
    /// Cases in which the prediction has the organ and the reference has not, summed over seeds.
    pub invented: Option<u32>,
}

/// One row of `encoders.parquet`: a store, what it and its runs cost, and the runs' mean scores over organs. Differences and tests are against
/// the first row, which has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncoderRow {
    /// Name of the store in the table.
    pub name: String,
    /// The store.
    pub store: String,
    /// The encoder that made it: `vit_b`.
    pub encoder: String,
    /// Channels of its embeddings.
    pub channels: u32,
    /// Pixels of the image along the side of one embedding.
    pub stride: u32,
    /// Side of the image in pixels.
    pub image_size: u32,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// Numbers that a run trains.
    pub trained_parameters: u64,
    /// Median wall time of an epoch, with its validation, over all epochs of all runs.
    pub seconds_per_epoch: Option<f64>,
    /// Number of seeds.
    pub seeds: u32,
    /// Folds of each seed.
    pub folds: u32,
    /// Held-out cases of all folds.
    pub cases: u32,
    /// Dice from 0 to 1, mean over seeds of means over cases.
    pub dice: Option<f64>,
    /// Standard deviation of Dice over the seeds (n - 1); of a cross-validation with one seed, over the cases.
    pub dice_sd: Option<f64>,
    /// HD95 in the unit of the evaluations.
    pub hd95: Option<f64>,
    /// Standard deviation of HD95, over the same as that of Dice.
    pub hd95_sd: Option<f64>,
    /// Mean over the cases of Dice minus the first row's.
    pub dice_gain: Option<f64>,
    /// Lower end of its 95 % bootstrap interval, over cases.
    pub dice_gain_low: Option<f64>,
    /// Upper end.
    pub dice_gain_high: Option<f64>,
    /// Two-sided p of Wilcoxon's signed-rank test.
    pub dice_wilcoxon_p: Option<f64>,
    /// Two-sided p of the paired permutation test.
    pub dice_permutation_p: Option<f64>,
    /// Mean over the cases of HD95 minus the first row's; a fall is better.
    pub hd95_change: Option<f64>,
    /// Lower end of its 95 % bootstrap interval, over cases.
    pub hd95_change_low: Option<f64>,
    /// Upper end.
    pub hd95_change_high: Option<f64>,
    /// Two-sided p of Wilcoxon's signed-rank test.
    pub hd95_wilcoxon_p: Option<f64>,
    /// Two-sided p of the paired permutation test.
    pub hd95_permutation_p: Option<f64>,
}

/// One row of a comparison's `comparison.parquet`: an organ, or `mean` over the organs, and a metric.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// Organ's name, or `mean`.
    pub organ: String,
    /// `dice` or `hd95`.
    pub metric: String,
    /// Cases in which both evaluations have a value.
    pub pairs: u32,
    /// Mean of the first evaluation over them.
    pub first: Option<f64>,
    /// Mean of the second.
    pub second: Option<f64>,
    /// Second minus first.
    pub difference: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of the difference, over cases.
    pub difference_low: Option<f64>,
    /// Upper end.
    pub difference_high: Option<f64>,
    /// Two-sided p of Wilcoxon's signed-rank test; `None` if every pair is equal.
    pub wilcoxon_p: Option<f64>,
    /// Two-sided p of the paired permutation test of the mean difference.
    pub permutation_p: Option<f64>,
    /// Organs of cases that the first evaluation lacks and the reference has, over all cases, summed over seeds.
    #[serde(default)]
    pub first_missed: u32,
    /// Organs of cases that the first evaluation has and the reference lacks.
    #[serde(default)]
    pub first_invented: u32,
    /// As `first_missed`, of the second evaluation.
    #[serde(default)]
    pub second_missed: u32,
    /// As `first_invented`, of the second evaluation.
    #[serde(default)]
    pub second_invented: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_far_from_the_training_scans_are_found() {
        let scan = |shift: f64| ScanRow {
            percentiles: [-1024.0, -1000.0, -50.0, 200.0, 976.0].map(|value| value + shift).to_vec(),
            ..ScanRow::of_array("a", [1; 3], None)
        };
        let [range] = &ValueRange::of(&[scan(0.0), scan(40.0), scan(-20.0)])[..] else { panic!("one channel") };
        assert_eq!((range.low[0], range.high[0], range.low[4], range.high[4]), (-1044.0, -984.0, 956.0, 1016.0));
        for (shift, far) in [(0.0, false), (400.0, false), (-400.0, false), (1024.0, true), (-1024.0, true)] {
            assert_eq!(range.is_far_from(&scan(shift).percentiles), far, "{shift}");
        }
        assert!(ValueRange::of(&[ScanRow::of_array("a", [1; 3], None)]).is_empty() && ValueRange::of(&[]).is_empty());
    }

    #[test]
    fn volumes_are_those_of_the_cases_that_were_trained_on() {
        let slice = |case: &str, voxels: [u64; 2], spacing_mm| SliceRow {
            row: 0,
            case: case.into(),
            slice_index: 0,
            spacing_mm,
            size: [10, 10],
            voxels: voxels.to_vec(),
            source: String::new(),
            source_sha256: String::new(),
        };
        // Voxels of 2 and of 4 microlitres; the second organ is only in the case b, and c is held out.
        let (fine, thick) = (Some([2.0, 1.0, 1.0]), Some([4.0, 1.0, 1.0]));
        let mut slices =
            vec![slice("a", [500, 0], fine), slice("b", [100, 7], thick), slice("a", [1000, 0], fine), slice("c", [9, 9], None)];
        let of = |slices: &[SliceRow], held_out: &str| VolumeRange::of(slices, 2, |case| case != held_out);
        let expected = [(2, Some(0.4), Some(3.0)), (1, Some(0.028), Some(0.028))];
        let found = of(&slices, "c");
        assert_eq!([0, 1].map(|organ| (found[organ].with_organ, found[organ].low_ml, found[organ].high_ml)), expected);
        assert!(found[0].is_in_every_case() && !found[1].is_in_every_case());
        // A case whose spacing is unknown leaves only the counts.
        let found = of(&slices, "");
        assert_eq!((found[0].cases, found[0].with_organ, found[0].low_ml, found[0].high_ml), (3, 3, None, None));
        slices.clear();
        assert!(!of(&slices, "")[0].is_in_every_case(), "of no case nothing is known");
    }

    #[test]
    fn a_row_says_how_its_slices_lie() {
        let row = ScanRow { axes: vec![-2, 3, 1], ..ScanRow::of_array("a", [4, 3, 2], Some([3.0, 0.8, 0.7])) };
        assert_eq!((row.shape.as_slice(), row.spacing_mm.as_deref()), (&[2, 3, 4][..], Some(&[0.7, 0.8, 3.0][..])));
        assert_eq!((row.file_shape(), row.turned_shape()), (Some([4, 3, 2]), Some([2, 4, 3])));
        let damaged = ScanRow { axes: vec![1, 1, 2], shape: vec![2, 3], affine: Some(vec![0.0; 15]), ..row };
        assert_eq!((damaged.turn(), damaged.file_shape(), damaged.affine_rows()), (None, None, None));
    }
}
