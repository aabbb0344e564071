//! `steps.parquet` and `epochs.parquet`: rows in memory, written whole at each checkpoint.
//!
//! A step's row takes 40 bytes, so a run of the published length (some 18 000 steps) rewrites under a megabyte.

use crate::error::{Result, TrainError};
use crate::run::validation::Scores;
use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, Float64Type, Schema, UInt32Type, UInt64Type};
use sam_ladder_cache::table::{read_table, write_table};
use sam_ladder_schemas::tables::{EpochRow, StepRow, epochs_schema, steps_schema};
use sam_ladder_schemas::train::{EPOCHS_TABLE, STEPS_TABLE};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The rows of a run.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
    /// One row an optimizer step.
    pub steps: Vec<StepRow>,
    /// One row a whole epoch.
    pub epochs: Vec<EpochRow>,
}

impl Records {
    /// Those of a run that starts.
    pub fn new(folder: &Path) -> Self {
        Records { folder: folder.to_path_buf(), steps: Vec::new(), epochs: Vec::new() }
    }

    /// Those of a run that is resumed after `steps` steps and `epochs` whole epochs; rows beyond are dropped.
    ///
    /// # Errors
    /// When a table cannot be read or ends before that.
    pub fn resume(folder: &Path, steps: u64, epochs: u32) -> Result<Self> {
        let mut records = Records::new(folder);
        if steps > 0 {
            let path = folder.join(STEPS_TABLE);
            records.steps = read_steps(&path)?;
            check_length(&path, records.steps.len(), steps as usize)?;
            records.steps.truncate(steps as usize);
        }
        if epochs > 0 {
            let path = folder.join(EPOCHS_TABLE);
            records.epochs = read_epochs(&path)?;
            check_length(&path, records.epochs.len(), epochs as usize)?;
            records.epochs.truncate(epochs as usize);
        }
        Ok(records)
    }

    /// Writes both tables, each aside and renamed.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn save(&self) -> Result<()> {
        write_table(&self.folder.join(STEPS_TABLE), &steps_batch(&self.steps)?)?;
        write_table(&self.folder.join(EPOCHS_TABLE), &epochs_batch(&self.epochs)?)?;
        Ok(())
    }

    /// The epoch's row from the rows of its steps.
    pub(crate) fn close_epoch(&mut self, epoch: u32, scores: Scores, seconds: f64) -> EpochRow {
        let rows: Vec<&StepRow> = self.steps.iter().rev().take_while(|row| row.epoch == epoch).collect();
        let mean = |value: fn(&StepRow) -> f32| {
            rows.iter().rev().map(|row| f64::from(value(row))).sum::<f64>() / rows.len().max(1) as f64
        };
        let row = EpochRow {
            epoch,
            steps: self.steps.len() as u64,
            loss: mean(|row| row.loss),
            ce: mean(|row| row.ce),
            dice: mean(|row| row.dice),
            val_dice: scores.dice,
            val_hd95: scores.hd95,
            gate: rows.first().map_or(f32::NAN, |row| row.gate),
            seconds,
        };
        self.epochs.push(row);
        row
    }

    /// The highest validation Dice so far.
    pub fn best_val_dice(&self) -> Option<f64> {
        self.epochs.iter().filter_map(|row| row.val_dice).max_by(f64::total_cmp)
    }
}

fn check_length(path: &Path, found: usize, needed: usize) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    let reason = format!("has {found} rows, the checkpoint needs {needed}; put the table back or start the run anew");
    Err(TrainError::RunDamaged { path: path.to_path_buf(), reason })
}

fn batch(schema: Schema, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(Arc::new(schema), columns).map_err(|error| TrainError::Input(format!("table of a run: {error}")))
}

fn steps_batch(rows: &[StepRow]) -> Result<RecordBatch> {
    let float = |value: fn(&StepRow) -> f32| Arc::new(rows.iter().map(value).collect::<Float32Array>()) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.step).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|row| row.epoch).collect::<UInt32Array>()),
        Arc::new(rows.iter().map(|row| row.lr).collect::<Float64Array>()),
        float(|row| row.loss),
        float(|row| row.ce),
        float(|row| row.dice),
        float(|row| row.alpha),
        float(|row| row.gate),
    ];
    batch(steps_schema(), columns)
}

fn epochs_batch(rows: &[EpochRow]) -> Result<RecordBatch> {
    let double = |value: fn(&EpochRow) -> f64| Arc::new(rows.iter().map(value).collect::<Float64Array>()) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.epoch).collect::<UInt32Array>()),
        Arc::new(rows.iter().map(|row| row.steps).collect::<UInt64Array>()),
        double(|row| row.loss),
        double(|row| row.ce),
        double(|row| row.dice),
        Arc::new(rows.iter().map(|row| row.val_dice).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.val_hd95).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.gate).collect::<Float32Array>()),
        double(|row| row.seconds),
    ];
    batch(epochs_schema(), columns)
}

/// A column's values; nulls become `None`.
fn column<T: ArrowPrimitiveType>(path: &Path, batch: &RecordBatch, name: &str) -> Result<Vec<Option<T::Native>>> {
    let values = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<T>());
    let values = values.ok_or_else(|| TrainError::RunDamaged {
        path: path.to_path_buf(),
        reason: format!("has no column {name} of the expected type; put the table back or start the run anew"),
    })?;
    Ok((0..values.len()).map(|index| values.is_valid(index).then(|| values.value(index))).collect())
}

/// A column without nulls.
fn full_column<T: ArrowPrimitiveType>(path: &Path, batch: &RecordBatch, name: &str) -> Result<Vec<T::Native>> {
    column::<T>(path, batch, name)?.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| TrainError::RunDamaged {
        path: path.to_path_buf(),
        reason: format!("column {name} has an empty cell; put the table back or start the run anew"),
    })
}

/// Reads a run's `steps.parquet`.
///
/// # Errors
/// When it cannot be read or is another table.
pub fn read_steps(path: &Path) -> Result<Vec<StepRow>> {
    let batch = read_table(path)?;
    let step = full_column::<UInt64Type>(path, &batch, "step")?;
    let epoch = full_column::<UInt32Type>(path, &batch, "epoch")?;
    let lr = full_column::<Float64Type>(path, &batch, "lr")?;
    let float = |name| full_column::<Float32Type>(path, &batch, name);
    let (loss, ce, dice, alpha, gate) = (float("loss")?, float("ce")?, float("dice")?, float("alpha")?, float("gate")?);
    let row = |i: usize| StepRow {
        step: step[i],
        epoch: epoch[i],
        lr: lr[i],
        loss: loss[i],
        ce: ce[i],
        dice: dice[i],
        alpha: alpha[i],
        gate: gate[i],
    };
    Ok((0..step.len()).map(row).collect())
}

/// Reads a run's `epochs.parquet`.
///
/// # Errors
/// When it cannot be read or is another table.
pub fn read_epochs(path: &Path) -> Result<Vec<EpochRow>> {
    let batch = read_table(path)?;
    let epoch = full_column::<UInt32Type>(path, &batch, "epoch")?;
    let steps = full_column::<UInt64Type>(path, &batch, "steps")?;
    let double = |name| full_column::<Float64Type>(path, &batch, name);
    let (loss, ce, dice, seconds) = (double("loss")?, double("ce")?, double("dice")?, double("seconds")?);
    let val_dice = column::<Float64Type>(path, &batch, "val_dice")?;
    // Runs from before HD95 was measured have no such column.
    let val_hd95 = match batch.column_by_name("val_hd95") {
        Some(_) => column::<Float64Type>(path, &batch, "val_hd95")?,
        None => vec![None; epoch.len()],
    };
    let gate = full_column::<Float32Type>(path, &batch, "gate")?;
    let row = |i: usize| EpochRow {
        epoch: epoch[i],
        steps: steps[i],
        loss: loss[i],
        ce: ce[i],
        dice: dice[i],
        val_dice: val_dice[i],
        val_hd95: val_hd95[i],
        gate: gate[i],
        seconds: seconds[i],
    };
    Ok((0..epoch.len()).map(row).collect())
}
