//! Rows of `trials.parquet` and `curves.parquet`.

use serde::{Deserialize, Serialize};

/// How far a trial came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialStatus {
    /// Begun and not ended: it is trained now, or waits for a higher rung, or was interrupted.
    Running,
    /// Trained to its last epoch.
    Finished,
    /// Given up before, since others were better.
    Pruned,
    /// Ended by an error, whose text is the row's `reason`; `--resume` tries again, within a limit.
    Failed,
    /// Its loss or a weight was not finite any more. It is not tried again: the same seed ends the same way.
    Diverged,
}

impl TrialStatus {
    /// All of them.
    pub const ALL: [TrialStatus; 5] =
        [TrialStatus::Running, TrialStatus::Finished, TrialStatus::Pruned, TrialStatus::Failed, TrialStatus::Diverged];

    /// The word in the table.
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

/// One row of `trials.parquet`: a trial. Of several seeds and folds it holds the mean and the standard deviation over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialRow {
    /// Id: see [`super::trial_id`].
    pub trial: String,
    /// In the order in which trials were begun, from 0.
    pub number: u32,
    /// The searched settings that are active in this trial, by name, as a JSON object.
    pub settings: String,
    /// How far it came.
    pub status: TrialStatus,
    /// Why it was pruned, failed or diverged.
    pub reason: Option<String>,
    /// Place among the trials, from 1; trials that no other one beats in both objectives share the first place, and so on. None for
    /// trials that have no value.
    pub rank: Option<u32>,
    /// Validation Dice after the last epoch that all its runs have behind them, mean over organs, then over runs.
    pub dice: Option<f64>,
    /// Standard deviation over its runs, with n - 1; none with a single run.
    pub dice_std: Option<f64>,
    /// Validation HD95 in millimetres, likewise; none where HD95 is no objective.
    pub hd95: Option<f64>,
    /// Standard deviation over its runs.
    pub hd95_std: Option<f64>,
    /// Seeds times folds.
    pub runs: u32,
    /// Epochs that each of its runs has behind it.
    pub epochs: u32,
    /// Epochs of a whole training.
    pub max_epochs: u32,
    /// Highest rung that it came to, from 0; none without successive halving.
    pub rung: Option<u32>,
    /// Times that it failed.
    pub failures: u32,
    /// The machine's time that it took, in seconds: the wall time of its epochs, divided by the trials that were trained at the same time.
    pub seconds: f64,
}

/// One row of `curves.parquet`: an epoch of a run of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurveRow {
    /// The trial's id.
    pub trial: String,
    /// Seed of the run.
    pub seed: u64,
    /// Fold of the run, from 1; 1 also where one fold or a list of cases validates.
    pub fold: u32,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Mean loss over the epoch's steps.
    pub loss: f64,
    /// Validation Dice after the epoch, mean over organs; none where no organ is in the validation cases.
    pub val_dice: Option<f64>,
    /// Validation HD95 after the epoch, in millimetres; none where HD95 is no objective.
    pub val_hd95: Option<f64>,
    /// Gate after the epoch.
    pub gate: f32,
    /// The machine's time that the epoch took, in seconds (see [`TrialRow::seconds`]).
    pub seconds: f64,
}
