//! A run's learning curves, from the tables that training wrote.

use crate::error::Result;
use sam_ladder_formats::rows::{read_rows, read_rows_with};
use sam_ladder_schemas::tables::{EpochRow, RUNG_GATE, StepRow};
use sam_ladder_schemas::train::{EPOCHS_TABLE, STEPS_TABLE};
use std::path::Path;

/// Points of a curve, `[x, y]`.
pub type Curve = Vec<[f64; 2]>;

/// Curves over the optimizer steps.
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
    /// With a ladder, the gate of each rung after each step, with the encoder's block.
    pub rung_gates: Vec<(String, Curve)>,
    /// Mean loss of each epoch, at its last step.
    pub epoch_loss: Curve,
    /// Dice over the validation cases at the end of each epoch that was validated.
    pub val_dice: Curve,
}

impl RunCurves {
    /// Reads `steps.parquet` and `epochs.parquet` of a run's folder.
    ///
    /// # Errors
    /// If one of them cannot be read or has other columns.
    pub fn read(run: &Path) -> Result<RunCurves> {
        let (steps, rung_gates): (Vec<StepRow>, _) = read_rows_with(&run.join(STEPS_TABLE), RUNG_GATE)?;
        let epochs: Vec<EpochRow> = read_rows(&run.join(EPOCHS_TABLE))?;
        let by_step = |value: fn(&StepRow) -> f64| steps.iter().map(|row| [row.step as f64, value(row)]).collect();
        Ok(RunCurves {
            loss: by_step(|row| row.loss.into()),
            ce: by_step(|row| row.ce.into()),
            dice: by_step(|row| row.dice.into()),
            lr: by_step(|row| row.lr),
            gate: by_step(|row| row.gate.into()),
            rung_gates: rung_gates.into_iter().map(|(column, gates)| (block_of(&column), of_gates(&steps, &gates))).collect(),
            epoch_loss: epochs.iter().map(|row| [row.steps as f64, row.loss]).collect(),
            val_dice: epochs.iter().filter_map(|row| Some([row.steps as f64, row.val_dice?])).collect(),
        })
    }
}

/// `block 5` of `gate_block_5`.
fn block_of(column: &str) -> String {
    format!("block {}", column.strip_prefix(RUNG_GATE).unwrap_or(column))
}

fn of_gates(steps: &[StepRow], gates: &[f32]) -> Curve {
    steps.iter().zip(gates).map(|(row, gate)| [row.step as f64, f64::from(*gate)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_formats::rows::{write_rows, write_rows_with};
    use serde::{Deserialize, Serialize};

    fn step(step: u64, loss: f32) -> StepRow {
        StepRow { step, epoch: 0, lr: 1e-3, loss, ce: loss, dice: loss, alpha: 0.0, gate: 0.5 }
    }

    fn epoch(steps: u64, val_dice: Option<f64>) -> EpochRow {
        let loss = 0.5;
        EpochRow { epoch: 0, steps, loss, ce: loss, dice: loss, val_dice, val_hd95: None, gate: 0.5, seconds: 1.0 }
    }

    #[test]
    fn curves_skip_the_epochs_without_a_validation() {
        let dir = tempfile::tempdir().unwrap();
        write_rows(&dir.path().join(STEPS_TABLE), &[step(0, 1.0), step(1, 0.5), step(2, 0.25)]).unwrap();
        write_rows(&dir.path().join(EPOCHS_TABLE), &[epoch(1, None), epoch(3, Some(0.75))]).unwrap();
        let curves = RunCurves::read(dir.path()).unwrap();
        assert_eq!((curves.loss, curves.val_dice), (vec![[0.0, 1.0], [1.0, 0.5], [2.0, 0.25]], vec![[3.0, 0.75]]));
        assert_eq!((curves.gate.len(), curves.epoch_loss), (3, vec![[1.0, 0.5], [3.0, 0.5]]));
    }

    #[test]
    fn the_gates_of_a_ladder_are_curves_by_block() {
        let dir = tempfile::tempdir().unwrap();
        let gates = vec![(format!("{RUNG_GATE}2"), vec![0.5, 0.25]), (format!("{RUNG_GATE}11"), vec![0.75, 1.0])];
        write_rows_with(&dir.path().join(STEPS_TABLE), &[step(0, 1.0), step(1, 0.5)], &gates).unwrap();
        write_rows(&dir.path().join(EPOCHS_TABLE), &[epoch(2, None)]).unwrap();
        let curves = RunCurves::read(dir.path()).unwrap();
        let named = |name: &str, curve: [[f64; 2]; 2]| (name.to_string(), curve.to_vec());
        let expected = [named("block 2", [[0.0, 0.5], [1.0, 0.25]]), named("block 11", [[0.0, 0.75], [1.0, 1.0]])];
        assert_eq!(curves.rung_gates, expected);
    }

    /// Runs of older versions lack the HD95 column.
    #[test]
    fn a_run_of_an_older_version_is_read() {
        #[derive(Serialize, Deserialize)]
        struct Older {
            epoch: u32,
            steps: u64,
            loss: f64,
            ce: f64,
            dice: f64,
            val_dice: Option<f64>,
            gate: f32,
            seconds: f64,
        }
        let dir = tempfile::tempdir().unwrap();
        write_rows(&dir.path().join(STEPS_TABLE), &[step(0, 1.0)]).unwrap();
        let older = Older { epoch: 0, steps: 1, loss: 1.0, ce: 1.0, dice: 1.0, val_dice: Some(0.5), gate: 0.5, seconds: 1.0 };
        write_rows(&dir.path().join(EPOCHS_TABLE), &[older]).unwrap();
        assert_eq!(RunCurves::read(dir.path()).unwrap().val_dice, [[1.0, 0.5]]);
    }

    #[test]
    fn what_is_not_a_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunCurves::read(dir.path()).unwrap_err().to_string().contains(STEPS_TABLE));
        write_rows(&dir.path().join(STEPS_TABLE), &[epoch(1, None)]).unwrap();
        let error = RunCurves::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(STEPS_TABLE) && error.contains("has no column step of type UInt64"), "{error}");
    }
}
