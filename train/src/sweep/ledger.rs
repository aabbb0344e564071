//! What is known of a sweep's trials. It is read from the folder first, so nothing that is recorded there can leave the tables, whatever the
//! scheduler decides afterwards; new results only add to it.

use super::account::{Account, runs_of_each_trial};
use super::folder::{Folder, can_resume, point_of};
use super::ranking::{self, Score};
use super::scheduler::{End, Job, Outcome, Scheduler, Trial, is_final_reason};
use super::workers::Planned;
use crate::error::{Result, TrainError};
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::sweep::{Objective, SweepRecord, TRIALS_DIR, TrialRow, TrialStatus};
use sam_ladder_schemas::tables::EpochRow;
use std::collections::HashSet;
use std::sync::Arc;

pub(super) struct Ledger<'a> {
    pub(super) folder: Folder,
    record: &'a SweepRecord,
    observer: Arc<dyn Observer>,
    pub(super) scheduler: Scheduler<'a>,
    /// The records of the scheduler's trials.
    pub(super) accounts: Vec<Account>,
    /// Seed and fold of each run of a trial, folds from 1.
    pub(super) runs: Vec<(u64, u32)>,
    /// Whether nothing was read yet: only then are failed trials tried again.
    is_new: bool,
}

impl<'a> Ledger<'a> {
    /// Knows nothing until [`Self::refresh`].
    ///
    /// # Errors
    /// A grid of too many points.
    pub(super) fn new(folder: Folder, record: &'a SweepRecord, observer: Arc<dyn Observer>) -> Result<Self> {
        let (scheduler, runs) = (Scheduler::new(&record.config)?, runs_of_each_trial(record));
        Ok(Ledger { folder, record, observer, scheduler, accounts: Vec::new(), runs, is_new: true })
    }

    /// Reads what was recorded since the last call. Parts of the trials of `others`, who are training them now, may not be there yet.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn refresh(&mut self, others: &[Planned]) -> Result<()> {
        let busy: HashSet<&str> = others.iter().map(|planned| planned.trial.as_str()).collect();
        let found = self.folder.read_trials()?;
        let mut rows = found.rows;
        for (id, reason) in found.damaged {
            rows.extend(self.restored(&id, &reason)?);
        }
        rows.sort_by_key(|row| row.number);
        for row in rows {
            let known = self.scheduler.index(&row.trial);
            let in_flux = busy.contains(row.trial.as_str());
            let is_current = |account: &Account| account.written.as_ref() == Some(&row) && (in_flux || !account.in_flux);
            if !known.is_some_and(|at| is_current(&self.accounts[at])) {
                self.take_in(row, known, in_flux)?;
            }
        }
        self.is_new = false;
        Ok(())
    }

    /// The row of a trial whose record is damaged, from the sweep's table; if it is not there, the trial is kept aside.
    fn restored(&self, id: &str, reason: &TrainError) -> Result<Option<TrialRow>> {
        if let Some(row) = self.folder.row_of_table(id) {
            let row = self.finished(row)?;
            self.observer.message(&format!("{reason}; the record of trial {id} is written again from the sweep's table"));
            self.folder.write_trial(&row)?;
            return Ok(Some(row));
        }
        let aside = self.folder.set_aside(&self.folder.path().join(TRIALS_DIR).join(id))?;
        self.observer.message(&format!("{reason}; trial {id} is kept in {}, and its number is free again", aside.display()));
        Ok(None)
    }

    /// The table may be older than the record that was lost: a trial whose runs have all their epochs has finished.
    fn finished(&self, row: TrialRow) -> Result<TrialRow> {
        let epochs = |&(seed, fold): &(u64, u32)| self.folder.read_run(&row.trial, seed, fold).unwrap_or_default();
        let account = Account { epochs: self.runs.iter().map(epochs).collect(), failures: row.failures, ..Account::default() };
        let mut trial = self.scheduler.trial(row.number, point_of(&self.record.config, &row)?);
        trial.scores = account.scores(&trial.rungs, row.max_epochs);
        if row.status == TrialStatus::Finished || trial.end.is_some() || trial.scores.len() < trial.rungs.len() {
            return Ok(row);
        }
        trial.end = Some(End::Finished);
        Ok(account.row(&trial, &self.record.config))
    }

    fn take_in(&mut self, row: TrialRow, known: Option<usize>, in_flux: bool) -> Result<()> {
        let point = point_of(&self.record.config, &row)?;
        let epochs = |&(seed, fold): &(u64, u32)| match in_flux {
            true => Ok(self.folder.read_run(&row.trial, seed, fold).unwrap_or_default()),
            false => self.whole_run(&row, seed, fold),
        };
        let epochs = self.runs.iter().map(epochs).collect::<Result<_>>()?;
        let account = Account { epochs, failures: row.failures, written: Some(row), in_flux };
        let mut trial = self.scheduler.trial(0, point);
        let retries = if self.is_new { self.record.config.retries } else { 0 };
        fill(&mut trial, &account, retries);
        match known {
            Some(at) => (self.scheduler.trials[at], self.accounts[at]) = (trial, account),
            None => {
                self.scheduler.trials.push(trial);
                self.accounts.push(account);
            }
        }
        Ok(())
    }

    /// The epochs of a run. If they are damaged, or fewer than the trial's record says, the run is kept aside, and trained again.
    fn whole_run(&self, row: &TrialRow, seed: u64, fold: u32) -> Result<Vec<EpochRow>> {
        let run = self.folder.run(&row.trial, seed, fold);
        let reason = match self.folder.read_run(&row.trial, seed, fold) {
            Ok(epochs) if epochs.len() >= row.epochs as usize => return Ok(epochs),
            // It is being trained again. If its state is damaged, too, opening it will tell.
            Ok(epochs) if can_resume(&run) || !run.exists() => return Ok(epochs),
            Ok(epochs) => format!("has {} epochs, its trial's record says {}", epochs.len(), row.epochs),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        };
        let aside = self.folder.set_aside(&run)?;
        let (number, run, aside) = (row.number, run.display(), aside.display());
        self.observer.message(&format!("trial {number}, {run}: {reason}; it is kept in {aside} and trained again"));
        Ok(Vec::new())
    }

    /// The jobs of plans, as far as their trials are known.
    pub(super) fn jobs(&self, planned: &[Planned]) -> Vec<Job> {
        let job = |planned: &Planned| Some(Job { trial: self.scheduler.index(&planned.trial)?, until: planned.until });
        planned.iter().filter_map(job).collect()
    }

    /// What is left of a round that was interrupted.
    pub(super) fn unfinished(&self, planned: &[Planned], others: &[Job]) -> Vec<Job> {
        let is_left = |job: &Job| {
            let trial = &self.scheduler.trials[job.trial];
            let is_free = others.iter().all(|other| other.trial != job.trial);
            is_free && trial.is_open() && trial.epochs() < job.until && trial.rungs.contains(&job.until)
        };
        self.jobs(planned).into_iter().filter(is_left).collect()
    }

    /// The plan for these jobs.
    pub(super) fn plan(&self, jobs: &[Job]) -> Vec<Planned> {
        let planned = |job: &Job| Planned { trial: self.scheduler.trials[job.trial].point.id.clone(), until: job.until };
        jobs.iter().map(planned).collect()
    }

    /// Records the trials that the scheduler has started: a record assigns the point its number before any of it is trained.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn add_started(&mut self) -> Result<()> {
        let (first, all) = (self.accounts.len(), self.scheduler.trials.len());
        // All of them before the first write, which may fail: then what others have recorded is read once more.
        self.accounts.resize_with(all, || Account { epochs: vec![Vec::new(); self.runs.len()], ..Account::default() });
        (first..all).try_for_each(|trial| self.write_row(trial))
    }

    /// Reads a run's epochs again after it was trained.
    ///
    /// # Errors
    /// A damaged table; the operating system's, naming the file.
    pub(super) fn read_again(&mut self, trial: usize, run: usize) -> Result<()> {
        let (seed, fold) = self.runs[run];
        self.accounts[trial].epochs[run] = self.folder.read_run(&self.scheduler.trials[trial].point.id, seed, fold)?;
        Ok(())
    }

    /// Removes what an earlier start left of a run that is to be trained and cannot be resumed: an interrupted start, or a run whose state
    /// was removed because its trial had ended. It starts again, with the same result.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn clear_run(&mut self, trial: usize, run: usize) -> Result<()> {
        let (seed, fold) = self.runs[run];
        let path = self.folder.run(&self.scheduler.trials[trial].point.id, seed, fold);
        if can_resume(&path) || !path.exists() {
            return Ok(());
        }
        let account = &mut self.accounts[trial];
        // A record must not say more than its runs hold.
        if let Some(row) = &mut account.written
            && row.status != TrialStatus::Finished
            && row.epochs > 0
        {
            let empty = Account { epochs: vec![Vec::new(); self.runs.len()], failures: row.failures, ..Account::default() };
            let unscored = Trial { scores: Vec::new(), end: None, ..self.scheduler.trials[trial].clone() };
            *row = empty.row(&unscored, &self.record.config);
            self.folder.write_trial(row)?;
        }
        account.epochs[run].clear();
        self.folder.remove_run(&path)
    }

    /// Adds the results of a round, and records them.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn add(&mut self, outcomes: Vec<(Job, Outcome)>) -> Result<()> {
        let trials: Vec<usize> = outcomes.iter().map(|(job, _)| job.trial).collect();
        self.scheduler.record(outcomes);
        trials.into_iter().try_for_each(|trial| self.write_row(trial))
    }

    /// Ends the sweep: trials that wait are pruned, and recorded so.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn close(&mut self) -> Result<()> {
        self.scheduler.close();
        (0..self.accounts.len()).try_for_each(|trial| self.write_row(trial))
    }

    /// Writes a trial's record if it has changed. A result is never replaced by less.
    fn write_row(&mut self, trial: usize) -> Result<()> {
        let account = &mut self.accounts[trial];
        let row = account.row(&self.scheduler.trials[trial], &self.record.config);
        let is_less = |written: &TrialRow| {
            let waits = matches!(row.status, TrialStatus::Running | TrialStatus::Pruned);
            let was_finished = written.status == TrialStatus::Finished && row.status != TrialStatus::Finished;
            was_finished || (waits && written.epochs > row.epochs)
        };
        if account.written.as_ref().is_some_and(|written| *written == row || is_less(written)) {
            return Ok(());
        }
        self.folder.write_trial(&row)?;
        account.written = Some(row);
        Ok(())
    }

    /// The trials' rows as they are recorded, by number, with their ranks.
    pub(super) fn rows(&self) -> Vec<TrialRow> {
        let mut rows: Vec<TrialRow> = self.accounts.iter().filter_map(|account| account.written.clone()).collect();
        rows.sort_by(|left, right| (left.number, &left.trial).cmp(&(right.number, &right.trial)));
        let ranks = ranking::ranks(&rows.iter().map(|row| reached(row, &self.record.config.objectives)).collect::<Vec<_>>());
        rows.iter_mut().zip(ranks).for_each(|(row, rank)| row.rank = rank);
        rows
    }

    /// Writes the sweep's tables.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn write_tables(&self) -> Result<()> {
        let mut order: Vec<usize> = (0..self.accounts.len()).collect();
        order.sort_by_key(|&trial| self.scheduler.trials[trial].number);
        let of_trial = |trial: usize| self.accounts[trial].curves(&self.scheduler.trials[trial].point.id, &self.runs);
        let curves: Vec<_> = order.into_iter().flat_map(of_trial).collect();
        self.folder.write_tables(&self.rows(), &curves)
    }
}

fn reached(row: &TrialRow, objectives: &[Objective]) -> Option<ranking::Reached> {
    let failed = matches!(row.status, TrialStatus::Failed | TrialStatus::Diverged);
    let costs = Score { dice: row.dice, hd95: row.hd95 }.costs(objectives);
    let finished = row.status == TrialStatus::Finished;
    (!failed && row.epochs > 0).then_some(ranking::Reached { finished, epochs: row.epochs, costs })
}

/// Gives a trial what its records say.
fn fill(trial: &mut Trial, account: &Account, retries: u32) {
    let Some(row) = &account.written else { return };
    trial.number = row.number;
    // Epochs after those of its record belong to a round that was interrupted: nothing is decided by them.
    trial.scores = account.scores(&trial.rungs, row.epochs);
    trial.recorded = row.epochs;
    trial.spent = account.spent();
    let is_whole = trial.scores.len() == trial.rungs.len();
    let reason = row.reason.clone().unwrap_or_default();
    let end = match row.status {
        TrialStatus::Finished if is_whole => Some(End::Finished),
        TrialStatus::Pruned if is_final_reason(&reason) => Some(End::Pruned(reason)),
        TrialStatus::Diverged => Some(End::Failed { reason, diverged: true }),
        TrialStatus::Failed if row.failures > retries => Some(End::Failed { reason, diverged: false }),
        // Pruned at the sweep's end: it waits again, in case the budget has grown.
        _ => None,
    };
    trial.end = trial.end.take().or(end);
}
