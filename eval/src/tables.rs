//! `cases.parquet` and `summary.parquet` as Arrow record batches.

use crate::error::{EvalError, Result};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{Float64Type, Schema, UInt32Type};
use sam_ladder_schemas::tables::{CaseRow, SummaryRow, cases_schema, summary_schema};
use std::path::Path;
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
        ],
    )
}

/// Rows of `summary.parquet`, as a batch of [`summary_schema`].
pub fn summary_batch(rows: &[SummaryRow]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let counts = |count: fn(&SummaryRow) -> u32| Arc::new(UInt32Array::from_iter_values(rows.iter().map(count)));
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
        ],
    )
}

/// Reads `summary.parquet` back.
///
/// # Errors
/// Where the file cannot be read, or is not such a table.
pub fn read_summary(path: &Path) -> Result<Vec<SummaryRow>> {
    let failed = |reason: String| EvalError::Table { path: path.into(), reason };
    let table = sam_ladder_cache::table::read_table(path).map_err(|error| failed(error.to_string()))?;
    if *table.schema() != summary_schema() {
        return Err(failed("it is not the summary of an evaluation".into()));
    }
    let column = |name: &str| table.column_by_name(name).ok_or_else(|| failed(format!("it has no column {name}")));
    let organs = column("organ")?.as_string::<i32>();
    let scores = |name: &str| column(name).map(|array| array.as_primitive::<Float64Type>());
    let counts = |name: &str| column(name).map(|array| array.as_primitive::<UInt32Type>());
    let (dice, hd95) = (scores("dice")?, scores("hd95")?);
    let (dice_cases, hd95_cases, missed, invented) =
        (counts("dice_cases")?, counts("hd95_cases")?, counts("missed")?, counts("invented")?);
    let row = |index: usize| SummaryRow {
        organ: organs.value(index).to_string(),
        dice: dice.is_valid(index).then(|| dice.value(index)),
        hd95: hd95.is_valid(index).then(|| hd95.value(index)),
        dice_cases: dice_cases.value(index),
        hd95_cases: hd95_cases.value(index),
        missed: missed.value(index),
        invented: invented.value(index),
    };
    Ok((0..table.num_rows()).map(row).collect())
}

fn batch(schema: Schema, columns: Vec<ArrayRef>) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// Writes a batch as Parquet.
pub(crate) fn write(path: &Path, batch: std::result::Result<RecordBatch, arrow::error::ArrowError>) -> Result<()> {
    let failed = |reason: String| EvalError::Table { path: path.into(), reason };
    let batch = batch.map_err(|error| failed(error.to_string()))?;
    sam_ladder_cache::table::write_table(path, &batch).map_err(|error| failed(error.to_string()))
}
