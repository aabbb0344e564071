//! `--final`: trains the best setting on all training cases, and evaluates it once on the test cases.

use super::folder::{Folder, point_of};
use super::{SweepArgs, SweepSummary, train_args, with_inputs_of};
use crate::error::{Result, TrainError};
use crate::run::train_until;
use sam_ladder_schemas::sweep::{FINAL_EVAL, FINAL_RUN, FinalRecord, TrialRow, TrialStatus};
use sam_ladder_schemas::train::TrainConfig;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The run that trains the best setting on all training cases, for `--final`.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalRun {
    /// Its run folder.
    pub run: PathBuf,
    /// Its record.
    pub record: FinalRecord,
}

/// Trains a trial's setting on all training cases, from the sweep's first seed; the best trial's if `trial` is `None`.
///
/// # Errors
/// A sweep without a trained trial; several best trials and no `trial` given; another trial in an earlier call; a sweep whose test cases
/// were evaluated; those of training.
pub fn train_final(args: &SweepArgs, summary: &SweepSummary, trial: Option<&str>, stop: &AtomicBool) -> Result<FinalRun> {
    let folder = Folder::new(&args.out);
    let sweep = folder.read_record()?;
    let found = folder.read_final()?;
    let chosen = choose(summary, trial, sweep.config.objectives.len() > 1, &args.out)?;
    if let Some(found) = &found {
        refuse_second(&args.out, found)?;
        if found.trial != chosen.trial {
            let (begun, best) = (found.trial.clone(), chosen.trial.clone());
            return Err(TrainError::FinalMismatch { out: args.out.clone(), begun, best });
        }
    }
    let point = point_of(&sweep.config, chosen)?;
    let record = FinalRecord { trial: chosen.trial.clone(), settings: point.settings.clone(), evaluated: false };
    folder.write_final(&record)?;
    let run = args.out.join(FINAL_RUN);
    let args = &with_inputs_of(args, &sweep);
    let config = point.config()?;
    let config = TrainConfig { seed: sweep.config.seeds[0], val_cases: Vec::new(), ..config };
    train_until(&train_args(args, &run, config, None), stop).map_err(|error| match error {
        TrainError::Stopped { .. } => TrainError::SweepStopped { out: args.out.clone(), more: " --final".into() },
        other => other,
    })?;
    Ok(FinalRun { run, record })
}

pub(super) fn choose<'a>(summary: &'a SweepSummary, trial: Option<&str>, front: bool, out: &Path) -> Result<&'a TrialRow> {
    if let Some(id) = trial {
        let found = summary.trials.iter().find(|row| row.trial == id && row.status == TrialStatus::Finished);
        return found.ok_or_else(|| TrainError::NoSuchTrial { out: out.into(), trial: id.into() });
    }
    match summary.best().as_slice() {
        [] => Err(TrainError::NoBestTrial(out.into())),
        [best] => Ok(best),
        // Equal in the only objective: take the trial that was started first.
        [best, ..] if !front => Ok(best),
        several => {
            let trials = several.iter().map(|row| row.trial.clone()).collect();
            Err(TrainError::SeveralBestTrials { out: out.into(), trials })
        }
    }
}

/// Refuses a sweep whose test cases were evaluated: a second evaluation would select by them.
///
/// # Errors
/// Names the evaluated trial.
pub fn refuse_second_final(out: &Path) -> Result<()> {
    match Folder::new(out).read_final()? {
        Some(found) => refuse_second(out, &found),
        None => Ok(()),
    }
}

fn refuse_second(out: &Path, found: &FinalRecord) -> Result<()> {
    if !found.evaluated {
        return Ok(());
    }
    Err(TrainError::AlreadyEvaluated { out: out.into(), trial: found.trial.clone(), result: out.join(FINAL_EVAL) })
}

/// Records that the test cases were evaluated.
///
/// # Errors
/// The operating system's, naming the file.
pub fn mark_evaluated(out: &Path, record: &FinalRecord) -> Result<()> {
    Folder::new(out).write_final(&FinalRecord { evaluated: true, ..record.clone() })
}
