//! A trial's records: the epochs of its runs, its failures, and its rows of the sweep's tables.

use super::folder::Folder;
use super::ranking::{self, Score, mean_and_deviation};
use super::scheduler::{End, Trial};
use crate::error::Result;
use sam_ladder_schemas::sweep::{CurveRow, Pruning, SweepConfig, SweepRecord, TrialRow, TrialStatus};
use sam_ladder_schemas::tables::EpochRow;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// A trial's records.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    /// Epochs of each run, seed by seed, fold by fold.
    pub(super) epochs: Vec<Vec<EpochRow>>,
    pub(super) failures: u32,
    /// How an earlier start ended it, if it is not tried again.
    pub(super) ended: Option<End>,
    /// The trial's row on disk.
    pub(super) written: Option<TrialRow>,
}

impl Account {
    /// From what an earlier start left of a trial: its row, and the epochs of its runs.
    pub(super) fn found(epochs: Vec<Vec<EpochRow>>, row: Option<TrialRow>, retries: u32) -> Self {
        let Some(row) = row else { return Account { epochs, ..Account::default() } };
        let reason = row.reason.clone().unwrap_or_default();
        let ended = match row.status {
            TrialStatus::Diverged => Some(End::Failed { reason, diverged: true }),
            TrialStatus::Failed if row.failures > retries => Some(End::Failed { reason, diverged: false }),
            _ => None,
        };
        Account { epochs, failures: row.failures, ended, written: Some(row) }
    }

    /// Whether a run has fewer than `epochs` epochs on record.
    pub(super) fn lacks(&self, run: usize, epochs: u32) -> bool {
        self.epochs[run].len() < epochs as usize
    }

    /// Means over the runs after `epochs` epochs.
    pub(super) fn score(&self, epochs: u32) -> Score {
        let mean = |value| mean_and_deviation(&self.values(epochs, value)).0;
        Score { dice: mean(|row| row.val_dice), hd95: mean(|row| row.val_hd95) }
    }

    /// Recorded seconds of these epochs, over all runs.
    pub(super) fn seconds(&self, epochs: Range<u32>) -> f64 {
        let of_run =
            |rows: &Vec<EpochRow>| rows.iter().filter(|row| epochs.contains(&row.epoch)).map(|row| row.seconds).sum::<f64>();
        self.epochs.iter().map(of_run).sum()
    }

    fn values(&self, epochs: u32, value: fn(&EpochRow) -> Option<f64>) -> Vec<Option<f64>> {
        let last = epochs.checked_sub(1).map(|last| last as usize);
        self.epochs.iter().map(|rows| rows.get(last?).and_then(value)).collect()
    }

    /// The trial's row.
    pub(super) fn row(&self, trial: &Trial, config: &SweepConfig, rank: Option<u32>) -> TrialRow {
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
            rank,
            dice,
            dice_std,
            hd95,
            hd95_std,
            runs: self.epochs.len() as u32,
            epochs,
            max_epochs: trial.config.epochs as u32,
            rung: if asha { trial.scores.len().checked_sub(1).map(|rung| rung as u32) } else { None },
            failures: self.failures,
            seconds: self.epochs.iter().flatten().map(|row| row.seconds).sum(),
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

/// The tables of a sweep's folder, made again from the trials' records of all workers: trials by number with their ranks, and every epoch
/// of each run.
///
/// # Errors
/// A folder without a sweep, or a damaged record.
pub fn gather(out: &Path) -> Result<(Vec<TrialRow>, Vec<CurveRow>)> {
    let folder = Folder::new(out);
    let record = folder.read_record()?;
    let mut rows = folder.read_trials()?;
    let result = |row: &TrialRow| {
        let failed = matches!(row.status, TrialStatus::Failed | TrialStatus::Diverged);
        let costs = Score { dice: row.dice, hd95: row.hd95 }.costs(&record.config.objectives);
        (!failed && row.epochs > 0).then(|| ranking::Reached {
            finished: row.status == TrialStatus::Finished,
            epochs: row.epochs,
            costs,
        })
    };
    let runs = runs_of_each_trial(&record);
    let ranks = ranking::ranks(&rows.iter().map(result).collect::<Vec<_>>());
    let mut curves = Vec::new();
    for (row, rank) in rows.iter_mut().zip(ranks) {
        row.rank = rank;
        for &(seed, fold) in &runs {
            let epochs = folder.read_run(&row.trial, seed, fold)?;
            curves.extend(epochs.iter().map(|epoch| curve_row(&row.trial, (seed, fold), epoch)));
        }
    }
    Ok((rows, curves))
}
