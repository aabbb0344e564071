//! Rows of every Parquet table. A struct's fields are the columns, in the same order; an `Option` is a column that may have empty cells.

use crate::variants::{Variant, VariantKind};
use serde::{Deserialize, Serialize};

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
    /// Distance between voxel centres along depth, height and width, in millimetres.
    pub spacing_mm: [f64; 3],
    /// Size of the slice in the scan, in pixels: height and width.
    pub size: [u32; 2],
    /// Voxels of each class from index 1, at the scan's own resolution.
    pub voxels: Vec<u64>,
    /// File that the slice was read from, relative to the scans' folder.
    pub source: String,
    /// SHA-256 of that file, in hexadecimal.
    pub source_sha256: String,
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
    /// `identity`, `reflection` or `rotation`.
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
    /// Share of both surfaces within the tolerance of each other; 0 if one mask lacks the organ, `None` if both lack it.
    pub surface_dice: Option<f64>,
    /// Predicted minus reference volume, in millilitres; 0 in tables of older versions, which lack the column.
    #[serde(default)]
    pub volume_difference_ml: f64,
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
    /// Cases of each evaluation; `None` for published numbers.
    pub cases: Option<u32>,
    /// Dice from 0 to 1, mean over seeds of means over cases.
    pub dice: Option<f64>,
    /// Standard deviation of Dice over the seeds (n - 1); `None` for fewer than two.
    pub dice_sd: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `dice`, over cases.
    pub dice_low: Option<f64>,
    /// Upper end.
    pub dice_high: Option<f64>,
    /// HD95 in the unit of the evaluations, mean over seeds of means over cases.
    pub hd95: Option<f64>,
    /// Standard deviation of HD95 over the seeds.
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
}
