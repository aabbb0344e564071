//! A trial's records: the epochs of its runs, its failures, and its rows of the sweep's tables.

use super::ranking::{Score, mean_and_deviation};
use super::scheduler::{End, Spent, Trial};
use sam_ladder_schemas::sweep::{CurveRow, Pruning, SweepConfig, SweepRecord, TrialRow, TrialStatus};
use sam_ladder_schemas::tables::EpochRow;
use serde_json::Value;

/// A trial's records, as they are on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    /// Epochs of each run, seed by seed, fold by fold.
    pub(super) epochs: Vec<Vec<EpochRow>>,
    pub(super) failures: u32,
    /// The trial's row.
    pub(super) written: Option<TrialRow>,
    /// Whether another worker was training it when its records were read.
    pub(super) in_flux: bool,
}

impl Account {
    /// Whether a run has fewer than `epochs` epochs on record.
    pub(super) fn lacks(&self, run: usize, epochs: u32) -> bool {
        self.epochs[run].len() < epochs as usize
    }

    /// The scores at the rungs up to `until` epochs that every run has on record.
    pub(super) fn scores(&self, rungs: &[u32], until: u32) -> Vec<Score> {
        let reached = |&&rung: &&u32| rung <= until && (0..self.epochs.len()).all(|run| !self.lacks(run, rung));
        rungs.iter().take_while(reached).map(|&rung| self.score(rung)).collect()
    }

    /// Means over the runs after `epochs` epochs.
    fn score(&self, epochs: u32) -> Score {
        let mean = |value| mean_and_deviation(&self.values(epochs, value)).0;
        Score { dice: mean(|row| row.val_dice), hd95: mean(|row| row.val_hd95) }
    }

    /// What the recorded epochs have cost.
    pub(super) fn spent(&self) -> Spent {
        let rows = self.epochs.iter().flatten();
        Spent { epochs: rows.clone().count() as u64, seconds: rows.map(|row| row.seconds).sum() }
    }

    fn values(&self, epochs: u32, value: fn(&EpochRow) -> Option<f64>) -> Vec<Option<f64>> {
        let last = epochs.checked_sub(1).map(|last| last as usize);
        self.epochs.iter().map(|rows| rows.get(last?).and_then(value)).collect()
    }

    /// The trial's row, without a rank, which depends on all trials.
    pub(super) fn row(&self, trial: &Trial, config: &SweepConfig) -> TrialRow {
        let epochs = trial.epochs();
        let (status, reason) = match &trial.end {
            None => (TrialStatus::Running, None),
            Some(End::Finished) => (TrialStatus::Finished, None),
            Some(End::Pruned(reason)) => (TrialStatus::Pruned, Some(reason.clone())),
            Some(End::Failed { reason, diverged: true }) => (TrialStatus::Diverged, Some(reason.clone())),
            Some(End::Failed { reason, diverged: false }) => (TrialStatus::Failed, Some(reason.clone())),
        };
        let (dice, dice_std) = mean_and_deviation(&self.values(epochs, |row| row.val_dice));
        let (hd95, hd95_std) = mean_and_deviation(&self.values(epochs, |row| row.val_hd95));
        let asha = matches!(config.pruning, Pruning::Asha { .. });
        TrialRow {
            trial: trial.point.id.clone(),
            number: trial.number,
            settings: Value::Object(trial.point.searched(config)).to_string(),
            status,
            reason,
            rank: None,
            dice,
            dice_std,
            hd95,
            hd95_std,
            runs: self.epochs.len() as u32,
            epochs,
            max_epochs: trial.config.epochs as u32,
            rung: if asha { trial.scores.len().checked_sub(1).map(|rung| rung as u32) } else { None },
            failures: self.failures,
            seconds: self.spent().seconds,
        }
    }

    /// The rows of the trial's learning curves; `runs` gives seed and fold of each run.
    pub(super) fn curves<'a>(&'a self, trial: &'a str, runs: &'a [(u64, u32)]) -> impl Iterator<Item = CurveRow> + 'a {
        runs.iter().zip(&self.epochs).flat_map(move |(&run, rows)| rows.iter().map(move |row| curve_row(trial, run, row)))
    }
}

/// Seed and fold of each run of a trial, folds from 1.
pub(super) fn runs_of_each_trial(record: &SweepRecord) -> Vec<(u64, u32)> {
    let folds = record.folds.len() as u32;
    record.config.seeds.iter().flat_map(|&seed| (1..=folds).map(move |fold| (seed, fold))).collect()
}

fn curve_row(trial: &str, (seed, fold): (u64, u32), row: &EpochRow) -> CurveRow {
    CurveRow {
        trial: trial.to_string(),
        seed,
        fold,
        epoch: row.epoch,
        loss: row.loss,
        val_dice: row.val_dice,
        val_hd95: row.val_hd95,
        gate: row.gate,
        seconds: row.seconds,
    }
}
