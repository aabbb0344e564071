//! Rows of `trials.parquet` and `curves.parquet`.

use serde::{Deserialize, Serialize};

/// Status of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialStatus {
    /// Started and not ended: in training, waiting for a higher rung, or interrupted.
    Running,
    /// Trained to its last epoch.
    Finished,
    /// Stopped early because others were better.
    Pruned,
    /// Ended by an error, whose text is the row's `reason`. `--resume` tries it again, within a limit.
    Failed,
    /// Its loss or a weight became infinite or NaN. It is not tried again: the same seed would end the same way.
    Diverged,
}

impl TrialStatus {
    /// All of them.
    pub const ALL: [TrialStatus; 5] =
        [TrialStatus::Running, TrialStatus::Finished, TrialStatus::Pruned, TrialStatus::Failed, TrialStatus::Diverged];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            TrialStatus::Running => "running",
            TrialStatus::Finished => "finished",
            TrialStatus::Pruned => "pruned",
            TrialStatus::Failed => "failed",
            TrialStatus::Diverged => "diverged",
        }
    }
}

/// Columns that older versions wrote in `trials.parquet`.
pub const RETIRED_TRIAL_COLUMNS: [&str; 1] = ["lone_seconds"];

/// One row of `trials.parquet`: a trial. Scores are means and standard deviations over its seeds and folds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialRow {
    /// Id: see [`super::trial_id`].
    pub trial: String,
    /// Number in the order in which trials were started, from 0.
    pub number: u32,
    /// The searched settings that are active in this trial, by name, as a JSON object.
    pub settings: String,
    /// Its status.
    pub status: TrialStatus,
    /// Why it was pruned, failed or diverged.
    pub reason: Option<String>,
    /// Rank among the trials, from 1. With two objectives, trials that no other one beats in both share the first rank, and so on. `None`
    /// for trials without a value.
    pub rank: Option<u32>,
    /// Validation Dice after the last epoch that all its runs have finished, mean over organs, then over runs.
    pub dice: Option<f64>,
    /// Standard deviation of `dice` over its runs (n - 1); `None` for a single run.
    pub dice_std: Option<f64>,
    /// Validation HD95 in millimetres, averaged in the same way; `None` unless HD95 is an objective.
    pub hd95: Option<f64>,
    /// Standard deviation of `hd95` over its runs.
    pub hd95_std: Option<f64>,
    /// Number of its runs: seeds times folds.
    pub runs: u32,
    /// Epochs that each of its runs has finished.
    pub epochs: u32,
    /// Epochs of a whole training run.
    pub max_epochs: u32,
    /// Highest rung that it reached, from 0; `None` without successive halving.
    pub rung: Option<u32>,
    /// Times that it failed.
    pub failures: u32,
    /// Machine time in seconds: the wall time of its epochs, divided by the number of trials that were trained at the same time.
    pub seconds: f64,
}

/// One row of `curves.parquet`: one epoch of one run of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurveRow {
    /// The trial's id.
    pub trial: String,
    /// Seed of the run.
    pub seed: u64,
    /// Fold of the run, from 1; also 1 if one fold or a list of cases validates.
    pub fold: u32,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Mean loss over the epoch's steps.
    pub loss: f64,
    /// Validation Dice after the epoch, mean over organs; `None` if no validation case has an organ.
    pub val_dice: Option<f64>,
    /// Validation HD95 after the epoch, in millimetres; `None` unless HD95 is an objective.
    pub val_hd95: Option<f64>,
    /// Gate after the epoch.
    pub gate: f32,
    /// Machine time of the epoch, in seconds (see [`TrialRow::seconds`]).
    pub seconds: f64,
}
