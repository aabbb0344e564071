//! The tables of an evaluation as Arrow record batches, written and read.

use crate::error::{EvalError, Result};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Float64Type, Schema, UInt32Type, UInt64Type};
use sam_ladder_schemas::tables::{
    CaseRow, ComparisonRow, ResultRow, SummaryRow, cases_schema, comparison_schema, results_schema, summary_schema,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of `cases.parquet`, as a batch of [`cases_schema`].
pub fn cases_batch(rows: &[CaseRow]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    batch(
        cases_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.case))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.organ))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.dice))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.reference_voxels))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.predicted_voxels))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95_voxels))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95_mm))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95_larger_voxels))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95_larger_mm))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.surface_dice))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.volume_difference_ml))),
        ],
    )
}

/// Rows of `summary.parquet`, as a batch of [`summary_schema`].
pub fn summary_batch(rows: &[SummaryRow]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let counts = |count: fn(&SummaryRow) -> u32| Arc::new(UInt32Array::from_iter_values(rows.iter().map(count)));
    let numbers = |number: fn(&SummaryRow) -> Option<f64>| Arc::new(Float64Array::from_iter(rows.iter().map(number)));
    batch(
        summary_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.organ))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.dice))),
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.hd95))),
            counts(|row| row.dice_cases),
            counts(|row| row.hd95_cases),
            counts(|row| row.missed),
            counts(|row| row.invented),
            numbers(|row| row.dice_sd),
            numbers(|row| row.hd95_sd),
            numbers(|row| row.dice_low),
            numbers(|row| row.dice_high),
            numbers(|row| row.hd95_low),
            numbers(|row| row.hd95_high),
            numbers(|row| row.hd95_voxels),
            numbers(|row| row.hd95_mm),
            numbers(|row| row.hd95_larger_voxels),
            numbers(|row| row.hd95_larger_mm),
            numbers(|row| row.surface_dice),
            numbers(|row| row.volume_difference_ml),
        ],
    )
}

/// Rows of a results table, as a batch of [`results_schema`].
pub fn results_batch(rows: &[ResultRow]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let numbers = |number: fn(&ResultRow) -> Option<f64>| Arc::new(Float64Array::from_iter(rows.iter().map(number)));
    let counts = |count: fn(&ResultRow) -> Option<u32>| Arc::new(UInt32Array::from_iter(rows.iter().map(count)));
    batch(
        results_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.method))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.organ))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.source.as_ref()))),
            counts(|row| row.seeds),
            counts(|row| row.cases),
            numbers(|row| row.dice),
            numbers(|row| row.dice_sd),
            numbers(|row| row.dice_low),
            numbers(|row| row.dice_high),
            numbers(|row| row.hd95),
            numbers(|row| row.hd95_sd),
            numbers(|row| row.hd95_low),
            numbers(|row| row.hd95_high),
            counts(|row| row.missed),
            counts(|row| row.invented),
        ],
    )
}

/// Rows of a comparison, as a batch of [`comparison_schema`].
pub fn comparison_batch(rows: &[ComparisonRow]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let numbers = |number: fn(&ComparisonRow) -> Option<f64>| Arc::new(Float64Array::from_iter(rows.iter().map(number)));
    batch(
        comparison_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.organ))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.metric))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.pairs))),
            numbers(|row| row.first),
            numbers(|row| row.second),
            numbers(|row| row.difference),
            numbers(|row| row.difference_low),
            numbers(|row| row.difference_high),
            numbers(|row| row.wilcoxon_p),
            numbers(|row| row.permutation_p),
        ],
    )
}

/// Columns of a table, by name; a nullable one that an older file lacks is all null.
struct Columns {
    table: RecordBatch,
    path: PathBuf,
}

impl Columns {
    fn read(path: &Path) -> Result<Columns> {
        let table = sam_ladder_formats::table::read_table(path)?;
        Ok(Columns { table, path: path.into() })
    }

    fn column(&self, name: &str, data_type: &DataType) -> Result<&ArrayRef> {
        let column = self.table.column_by_name(name).filter(|column| column.data_type() == data_type);
        let reason = || format!("has no column {name} of type {data_type}; it is not the table of an evaluation");
        column.ok_or_else(|| EvalError::Unreadable { path: self.path.clone(), reason: reason() })
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        Ok(self
            .column(name, &DataType::Utf8)?
            .as_string::<i32>()
            .iter()
            .map(|text| text.unwrap_or_default().to_string())
            .collect())
    }

    fn numbers(&self, name: &str) -> Result<Vec<Option<f64>>> {
        if self.table.column_by_name(name).is_none() {
            return Ok(vec![None; self.table.num_rows()]);
        }
        Ok(self.column(name, &DataType::Float64)?.as_primitive::<Float64Type>().iter().collect())
    }

    /// Several columns of numbers.
    fn all_numbers<const N: usize>(&self, names: [&str; N]) -> Result<[Vec<Option<f64>>; N]> {
        let mut columns = std::array::from_fn(|_| Vec::new());
        for (column, name) in columns.iter_mut().zip(names) {
            *column = self.numbers(name)?;
        }
        Ok(columns)
    }

    fn counts(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.column(name, &DataType::UInt32)?.as_primitive::<UInt32Type>().values().to_vec())
    }

    fn voxels(&self, name: &str) -> Result<Vec<u64>> {
        Ok(self.column(name, &DataType::UInt64)?.as_primitive::<UInt64Type>().values().to_vec())
    }
}

/// Reads `summary.parquet` back; columns that an older version did not write are `None`.
///
/// # Errors
/// Where the file cannot be read, or is not such a table.
pub fn read_summary(path: &Path) -> Result<Vec<SummaryRow>> {
    let table = Columns::read(path)?;
    let (organs, dice, hd95) = (table.texts("organ")?, table.numbers("dice")?, table.numbers("hd95")?);
    let (dice_cases, hd95_cases) = (table.counts("dice_cases")?, table.counts("hd95_cases")?);
    let (missed, invented) = (table.counts("missed")?, table.counts("invented")?);
    let names = ["dice_sd", "hd95_sd", "dice_low", "dice_high", "hd95_low", "hd95_high"];
    let [dice_sd, hd95_sd, dice_low, dice_high, hd95_low, hd95_high] = &table.all_numbers(names)?;
    let names = ["hd95_voxels", "hd95_mm", "hd95_larger_voxels", "hd95_larger_mm", "surface_dice", "volume_difference_ml"];
    let [hd95_voxels, hd95_mm, hd95_larger_voxels, hd95_larger_mm, surface_dice, volume_difference_ml] =
        &table.all_numbers(names)?;
    let row = |(index, organ): (usize, String)| SummaryRow {
        organ,
        dice: dice[index],
        hd95: hd95[index],
        dice_cases: dice_cases[index],
        hd95_cases: hd95_cases[index],
        missed: missed[index],
        invented: invented[index],
        dice_sd: dice_sd[index],
        hd95_sd: hd95_sd[index],
        dice_low: dice_low[index],
        dice_high: dice_high[index],
        hd95_low: hd95_low[index],
        hd95_high: hd95_high[index],
        hd95_voxels: hd95_voxels[index],
        hd95_mm: hd95_mm[index],
        hd95_larger_voxels: hd95_larger_voxels[index],
        hd95_larger_mm: hd95_larger_mm[index],
        surface_dice: surface_dice[index],
        volume_difference_ml: volume_difference_ml[index],
    };
    Ok(organs.into_iter().enumerate().map(row).collect())
}

/// Reads `cases.parquet` back; columns that an older version did not write are `None`, or 0.
///
/// # Errors
/// Where the file cannot be read, or is not such a table.
pub fn read_cases(path: &Path) -> Result<Vec<CaseRow>> {
    let table = Columns::read(path)?;
    let (cases, organs) = (table.texts("case")?, table.texts("organ")?);
    let (reference, predicted) = (table.voxels("reference_voxels")?, table.voxels("predicted_voxels")?);
    let names = [
        "dice",
        "hd95",
        "hd95_voxels",
        "hd95_mm",
        "hd95_larger_voxels",
        "hd95_larger_mm",
        "surface_dice",
        "volume_difference_ml",
    ];
    let [dice, hd95, hd95_voxels, hd95_mm, hd95_larger_voxels, hd95_larger_mm, surface_dice, volume] =
        &table.all_numbers(names)?;
    let row = |(index, (case, organ)): (usize, (String, String))| CaseRow {
        case,
        organ,
        dice: dice[index],
        hd95: hd95[index],
        reference_voxels: reference[index],
        predicted_voxels: predicted[index],
        hd95_voxels: hd95_voxels[index],
        hd95_mm: hd95_mm[index],
        hd95_larger_voxels: hd95_larger_voxels[index],
        hd95_larger_mm: hd95_larger_mm[index],
        surface_dice: surface_dice[index],
        volume_difference_ml: volume[index].unwrap_or(0.0),
    };
    Ok(cases.into_iter().zip(organs).enumerate().map(row).collect())
}

fn batch(schema: Schema, columns: Vec<ArrayRef>) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// Writes a batch as Parquet.
pub(crate) fn write(path: &Path, batch: std::result::Result<RecordBatch, arrow::error::ArrowError>) -> Result<()> {
    let failed = |reason: String| EvalError::Table { path: path.into(), reason };
    let batch = batch.map_err(|error| failed(error.to_string()))?;
    sam_ladder_formats::table::write_table(path, &batch).map_err(|error| failed(error.to_string()))
}
