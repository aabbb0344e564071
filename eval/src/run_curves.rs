//! A run's learning curves, from the tables that training wrote.

use crate::error::{EvalError, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, UInt32Type, UInt64Type};
use sam_ladder_schemas::train::{EPOCHS_TABLE, STEPS_TABLE};
use std::path::{Path, PathBuf};

/// Points of a curve, `[x, y]`.
pub type Curve = Vec<[f64; 2]>;

/// Curves over the optimizer steps. A curve is empty if the run's tables lack its column.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunCurves {
    /// Total loss of each step.
    pub loss: Curve,
    /// Cross-entropy of each step.
    pub ce: Curve,
    /// Dice loss of each step.
    pub dice: Curve,
    /// Learning rate of each step.
    pub lr: Curve,
    /// SAM's share of the embeddings after each step.
    pub gate: Curve,
    /// Mean loss of each epoch, at its last step.
    pub epoch_loss: Curve,
    /// Dice over the validation cases at the end of each epoch that was validated.
    pub val_dice: Curve,
}

impl RunCurves {
    /// Reads `steps.parquet` and `epochs.parquet` of a run's folder.
    ///
    /// # Errors
    /// If one of them cannot be read, or lacks the steps.
    pub fn read(run: &Path) -> Result<RunCurves> {
        let steps = Table::read(run.join(STEPS_TABLE))?;
        let epochs = Table::read(run.join(EPOCHS_TABLE))?;
        let by_step = |name: &str| steps.curve("step", name);
        let by_epoch = |name: &str| epochs.curve("steps", name);
        Ok(RunCurves {
            loss: by_step("loss")?,
            ce: by_step("ce")?,
            dice: by_step("dice")?,
            lr: by_step("lr")?,
            gate: by_step("gate")?,
            epoch_loss: by_epoch("loss")?,
            val_dice: by_epoch("val_dice")?,
        })
    }
}

struct Table {
    path: PathBuf,
    rows: RecordBatch,
}

impl Table {
    fn read(path: PathBuf) -> Result<Table> {
        let rows = sam_ladder_formats::table::read_table(&path)
            .map_err(|error| EvalError::Unreadable { path: path.clone(), reason: error.to_string() })?;
        Ok(Table { path, rows })
    }

    /// A column's numbers; none where there is no such column, or it holds no numbers.
    fn numbers(&self, name: &str) -> Vec<Option<f64>> {
        let Some(column) = self.rows.column_by_name(name) else { return Vec::new() };
        match column.data_type() {
            DataType::Float32 => column.as_primitive::<Float32Type>().iter().map(|value| value.map(f64::from)).collect(),
            DataType::Float64 => column.as_primitive::<Float64Type>().iter().collect(),
            DataType::UInt32 => column.as_primitive::<UInt32Type>().iter().map(|value| value.map(f64::from)).collect(),
            DataType::UInt64 => column.as_primitive::<UInt64Type>().iter().map(|value| value.map(|value| value as f64)).collect(),
            _ => Vec::new(),
        }
    }

    fn curve(&self, x: &str, y: &str) -> Result<Curve> {
        let steps = self.numbers(x);
        if steps.is_empty() && self.rows.num_rows() > 0 {
            let reason = format!("has no column {x} of numbers; it is not a table that train wrote");
            return Err(EvalError::Unreadable { path: self.path.clone(), reason });
        }
        Ok(steps.iter().zip(self.numbers(y)).filter_map(|(x, y)| Some([(*x)?, y?])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float32Array, Float64Array, UInt64Array};
    use std::sync::Arc;

    fn write(folder: &Path, name: &str, columns: Vec<(&str, ArrayRef)>) {
        sam_ladder_formats::table::write_table(&folder.join(name), &RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    }

    #[test]
    fn curves_of_the_columns_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let steps: ArrayRef = Arc::new(UInt64Array::from(vec![0, 1, 2]));
        let loss: ArrayRef = Arc::new(Float32Array::from(vec![1.0, 0.5, 0.25]));
        write(dir.path(), STEPS_TABLE, vec![("step", steps), ("loss", loss)]);
        let ends: ArrayRef = Arc::new(UInt64Array::from(vec![1, 3]));
        let dice: ArrayRef = Arc::new(Float64Array::from(vec![None, Some(0.75)]));
        write(dir.path(), EPOCHS_TABLE, vec![("steps", ends), ("val_dice", dice)]);
        let curves = RunCurves::read(dir.path()).unwrap();
        assert_eq!((curves.loss, curves.val_dice), (vec![[0.0, 1.0], [1.0, 0.5], [2.0, 0.25]], vec![[3.0, 0.75]]));
        assert!(curves.gate.is_empty() && curves.epoch_loss.is_empty());
    }

    #[test]
    fn what_is_not_a_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunCurves::read(dir.path()).unwrap_err().to_string().contains(STEPS_TABLE));
        let other: ArrayRef = Arc::new(UInt64Array::from(vec![1]));
        write(dir.path(), STEPS_TABLE, vec![("something", other.clone())]);
        write(dir.path(), EPOCHS_TABLE, vec![("steps", other)]);
        assert!(RunCurves::read(dir.path()).unwrap_err().to_string().contains("no column step"));
    }
}
