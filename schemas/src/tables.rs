//! Arrow schemas of every Parquet table, and one plain struct a row.

use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

/// One row of `{train,test}/slices.parquet`: row `i` describes index `i` of the arrays' `slice` axis.
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

/// Schema of [`SliceRow`]: spacing and size as one column an axis, one `voxels_<organ>` column a class
/// (blanks in the organ's name become underscores).
pub fn slices_schema(class_names: &[String]) -> Schema {
    let mut fields = vec![
        field("row", DataType::UInt32),
        field("case", DataType::Utf8),
        field("slice_index", DataType::UInt32),
        field("spacing_depth_mm", DataType::Float64),
        field("spacing_height_mm", DataType::Float64),
        field("spacing_width_mm", DataType::Float64),
        field("height", DataType::UInt32),
        field("width", DataType::UInt32),
    ];
    fields.extend(class_names.iter().map(|name| field(&voxels_column(name), DataType::UInt64)));
    fields.push(field("source", DataType::Utf8));
    fields.push(field("source_sha256", DataType::Utf8));
    Schema::new(fields)
}

/// Column of [`slices_schema`] that counts an organ's voxels.
pub fn voxels_column(class_name: &str) -> String {
    format!("voxels_{}", class_name.replace(' ', "_"))
}

/// Schema of `variants.parquet`: `k`, `axis` and `angle_degrees` are null where the kind has none.
pub fn variants_schema() -> Schema {
    Schema::new(vec![
        field("variant", DataType::UInt32),
        field("name", DataType::Utf8),
        field("kind", DataType::Utf8),
        Field::new("k", DataType::UInt8, true),
        Field::new("axis", DataType::UInt8, true),
        Field::new("angle_degrees", DataType::Int32, true),
        field("probability", DataType::Float64),
    ])
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
    /// Dice loss.
    pub dice: f32,
    /// Gate parameter after the step.
    pub alpha: f32,
    /// `sigmoid(alpha)` after the step: SAM's share of the embeddings.
    pub gate: f32,
}

/// Schema of [`StepRow`].
pub fn steps_schema() -> Schema {
    Schema::new(vec![
        field("step", DataType::UInt64),
        field("epoch", DataType::UInt32),
        field("lr", DataType::Float64),
        field("loss", DataType::Float32),
        field("ce", DataType::Float32),
        field("dice", DataType::Float32),
        field("alpha", DataType::Float32),
        field("gate", DataType::Float32),
    ])
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
    /// HD95 over the validation cases at low resolution in millimetres, mean over organs; only a sweep that asks for it measures it.
    pub val_hd95: Option<f64>,
    /// Gate at the end of the epoch.
    pub gate: f32,
    /// Wall time of the epoch, in seconds.
    pub seconds: f64,
}

/// Schema of [`EpochRow`].
pub fn epochs_schema() -> Schema {
    Schema::new(vec![
        field("epoch", DataType::UInt32),
        field("steps", DataType::UInt64),
        field("loss", DataType::Float64),
        field("ce", DataType::Float64),
        field("dice", DataType::Float64),
        Field::new("val_dice", DataType::Float64, true),
        Field::new("val_hd95", DataType::Float64, true),
        field("gate", DataType::Float32),
        field("seconds", DataType::Float64),
    ])
}

/// One row of an evaluation's `cases.parquet`: one case and organ.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CaseRow {
    /// Case, as in the store.
    pub case: String,
    /// Organ's name.
    pub organ: String,
    /// Dice coefficient; `None` where the protocol leaves it undefined.
    pub dice: Option<f64>,
    /// 95th percentile of the surface distances, in voxels (`published`) or millimetres (`standard`); `None` where undefined.
    pub hd95: Option<f64>,
    /// Voxels of the organ in the reference.
    pub reference_voxels: u64,
    /// Voxels of the organ in the prediction.
    pub predicted_voxels: u64,
    /// HD95 of both directions in one list (MedPy), in voxels; this and the columns after it know no rule for empty masks. `None` unless both masks
    /// have the organ.
    pub hd95_voxels: Option<f64>,
    /// The same in millimetres.
    pub hd95_mm: Option<f64>,
    /// The larger of the two directions' HD95 (MONAI), in voxels.
    pub hd95_larger_voxels: Option<f64>,
    /// The same in millimetres.
    pub hd95_larger_mm: Option<f64>,
    /// Share of both surfaces within the tolerance of each other; 0 where one mask has not the organ, `None` where neither has.
    pub surface_dice: Option<f64>,
    /// Predicted less reference volume, in millilitres.
    pub volume_difference_ml: f64,
}

/// Schema of [`CaseRow`].
pub fn cases_schema() -> Schema {
    Schema::new(vec![
        field("case", DataType::Utf8),
        field("organ", DataType::Utf8),
        Field::new("dice", DataType::Float64, true),
        Field::new("hd95", DataType::Float64, true),
        field("reference_voxels", DataType::UInt64),
        field("predicted_voxels", DataType::UInt64),
        Field::new("hd95_voxels", DataType::Float64, true),
        Field::new("hd95_mm", DataType::Float64, true),
        Field::new("hd95_larger_voxels", DataType::Float64, true),
        Field::new("hd95_larger_mm", DataType::Float64, true),
        Field::new("surface_dice", DataType::Float64, true),
        field("volume_difference_ml", DataType::Float64),
    ])
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
    /// Standard deviation of Dice over those cases (n - 1); `None` of fewer than two, and in the row `mean`.
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

/// Schema of [`SummaryRow`].
pub fn summary_schema() -> Schema {
    Schema::new(vec![
        field("organ", DataType::Utf8),
        Field::new("dice", DataType::Float64, true),
        Field::new("hd95", DataType::Float64, true),
        field("dice_cases", DataType::UInt32),
        field("hd95_cases", DataType::UInt32),
        field("missed", DataType::UInt32),
        field("invented", DataType::UInt32),
        Field::new("dice_sd", DataType::Float64, true),
        Field::new("hd95_sd", DataType::Float64, true),
        Field::new("dice_low", DataType::Float64, true),
        Field::new("dice_high", DataType::Float64, true),
        Field::new("hd95_low", DataType::Float64, true),
        Field::new("hd95_high", DataType::Float64, true),
        Field::new("hd95_voxels", DataType::Float64, true),
        Field::new("hd95_mm", DataType::Float64, true),
        Field::new("hd95_larger_voxels", DataType::Float64, true),
        Field::new("hd95_larger_mm", DataType::Float64, true),
        Field::new("surface_dice", DataType::Float64, true),
        Field::new("volume_difference_ml", DataType::Float64, true),
    ])
}

/// One row of a results table's Parquet file (`table1.parquet`, `table2.parquet`): a method and an organ, or `mean` over the organs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ResultRow {
    /// Name of the method, as in the table.
    pub method: String,
    /// Organ's name, or `mean`.
    pub organ: String,
    /// Where a published number was read; `None` for our own evaluations.
    pub source: Option<String>,
    /// Evaluations of different seeds behind the numbers; `None` for published ones.
    pub seeds: Option<u32>,
    /// Cases of each; `None` for published numbers.
    pub cases: Option<u32>,
    /// Dice from 0 to 1, mean over seeds of means over cases.
    pub dice: Option<f64>,
    /// Standard deviation of Dice over the seeds (n - 1); `None` of fewer than two.
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

/// Schema of [`ResultRow`].
pub fn results_schema() -> Schema {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    let count = |name: &str| Field::new(name, DataType::UInt32, true);
    Schema::new(vec![
        field("method", DataType::Utf8),
        field("organ", DataType::Utf8),
        Field::new("source", DataType::Utf8, true),
        count("seeds"),
        count("cases"),
        number("dice"),
        number("dice_sd"),
        number("dice_low"),
        number("dice_high"),
        number("hd95"),
        number("hd95_sd"),
        number("hd95_low"),
        number("hd95_high"),
        count("missed"),
        count("invented"),
    ])
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
    /// Second less first.
    pub difference: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of the difference, over cases.
    pub difference_low: Option<f64>,
    /// Upper end.
    pub difference_high: Option<f64>,
    /// Two-sided p of Wilcoxon's signed-rank test; `None` where every pair is equal.
    pub wilcoxon_p: Option<f64>,
    /// Two-sided p of the paired permutation test of the mean difference.
    pub permutation_p: Option<f64>,
}

/// Schema of [`ComparisonRow`].
pub fn comparison_schema() -> Schema {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    Schema::new(vec![
        field("organ", DataType::Utf8),
        field("metric", DataType::Utf8),
        field("pairs", DataType::UInt32),
        number("first"),
        number("second"),
        number("difference"),
        number("difference_low"),
        number("difference_high"),
        number("wilcoxon_p"),
        number("permutation_p"),
    ])
}
