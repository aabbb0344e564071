//! `steps.parquet` and `epochs.parquet`: rows are kept in memory and written as a whole at each checkpoint.
//!
//! A step's row takes 40 bytes, so a run of the published length (about 18 000 steps) rewrites less than a megabyte.

use crate::error::{Result, TrainError};
use crate::run::validation::Scores;
use sam_ladder_formats::rows::{ExtraColumns, read_rows, read_rows_with, write_rows, write_rows_with};
use sam_ladder_schemas::tables::{EpochRow, RUNG_GATE, StepRow};
use sam_ladder_schemas::train::{EPOCHS_TABLE, STEPS_TABLE};
use std::path::{Path, PathBuf};

/// The rows of a run.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
    /// One row per optimizer step.
    pub steps: Vec<StepRow>,
    /// With a ladder, the gates of each rung, a column of `steps` each.
    pub rung_gates: ExtraColumns,
    /// One row per whole epoch.
    pub epochs: Vec<EpochRow>,
}

impl Records {
    /// Records of a new run, whose side network takes the rungs after these blocks of the encoder.
    pub fn new(folder: &Path, blocks: impl IntoIterator<Item = usize>) -> Self {
        let rung_gates = blocks.into_iter().map(|block| (format!("{RUNG_GATE}{block}"), Vec::new())).collect();
        Records { folder: folder.to_path_buf(), steps: Vec::new(), rung_gates, epochs: Vec::new() }
    }

    /// Adds a step.
    pub(crate) fn push(&mut self, row: StepRow, rung_gates: &[f32]) {
        self.steps.push(row);
        for ((_, column), gate) in self.rung_gates.iter_mut().zip(rung_gates) {
            column.push(*gate);
        }
    }

    /// The gate of each rung after the last step, by the encoder's block.
    pub(crate) fn last_rung_gates(&self) -> Vec<f32> {
        self.rung_gates.iter().filter_map(|(_, column)| column.last().copied()).collect()
    }

    /// Records of a run that is resumed after `steps` steps and `epochs` whole epochs; later rows are dropped.
    ///
    /// # Errors
    /// If a table cannot be read or has too few rows.
    pub fn resume(folder: &Path, blocks: impl IntoIterator<Item = usize>, (steps, epochs): (u64, u32)) -> Result<Self> {
        let mut records = Records::new(folder, blocks);
        if steps > 0 {
            let path = folder.join(STEPS_TABLE);
            let (rows, rung_gates) = read_rows_with(&path, RUNG_GATE)?;
            let names = |columns: &ExtraColumns| columns.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>().join(", ");
            let [found, expected] = [&rung_gates, &records.rung_gates].map(names);
            if found != expected {
                let reason = format!("has the gates {found:?}, expected {expected:?}");
                return Err(TrainError::RunDamaged { path, reason });
            }
            (records.steps, records.rung_gates) = (rows, rung_gates);
            check_length(&path, records.steps.len(), steps as usize)?;
            records.steps.truncate(steps as usize);
            records.rung_gates.iter_mut().for_each(|(_, column)| column.truncate(steps as usize));
        }
        if epochs > 0 {
            let path = folder.join(EPOCHS_TABLE);
            records.epochs = read_rows(&path)?;
            check_length(&path, records.epochs.len(), epochs as usize)?;
            records.epochs.truncate(epochs as usize);
        }
        Ok(records)
    }

    /// Writes both tables, each atomically.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn save(&self) -> Result<()> {
        write_rows_with(&self.folder.join(STEPS_TABLE), &self.steps, &self.rung_gates)?;
        write_rows(&self.folder.join(EPOCHS_TABLE), &self.epochs)?;
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

    /// Number of the first epoch with that Dice, from 1: the one that the best model is of.
    pub fn best_epoch(&self) -> Option<u32> {
        let best = self.best_val_dice()?;
        self.epochs.iter().find(|row| row.val_dice == Some(best)).map(|row| row.epoch + 1)
    }

    /// Epochs since the one that [`Self::best_epoch`] names; all of them if none was scored.
    pub(crate) fn epochs_without_better(&self) -> usize {
        self.epochs.len() - self.best_epoch().map_or(0, |best| best as usize)
    }
}

fn check_length(path: &Path, found: usize, needed: usize) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    let reason = format!("has {found} rows, the checkpoint needs {needed}");
    Err(TrainError::RunDamaged { path: path.to_path_buf(), reason })
}
