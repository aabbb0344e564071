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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    ])
}

/// One row of an evaluation's `summary.parquet`: an organ, or `mean` over the organs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    ])
}
