//! Runs a sweep: in each round, trains the scheduler's jobs, returns their outcomes, and writes the tables.

use super::account::{Account, gather, runs_of_each_trial};
use super::folder::{Folder, can_resume, point_of};
use super::ranking::Score;
use super::scheduler::{Chosen, End, Job, Outcome, Scheduler, Trial};
use super::{SweepArgs, SweepSummary, train_args};
use crate::error::{Result, TrainError, guarded, io};
use crate::run::{
    BatchSource, Checkpoints, Control, DeviceItems, Report, Run, Sampler, SessionStatus, StepKind, VariantDraws, open_run,
    session_end, train_group,
};
use rayon::prelude::*;
use sam_ladder_cache::{ReadMode, Reader, TrainingSplit};
use sam_ladder_ops::device::queues_work;
use sam_ladder_schemas::observer::{Phase, Progress, Unit};
use sam_ladder_schemas::sweep::{Objective, SweepRecord, TrialRow, TrialStatus};
use sam_ladder_schemas::train::{EVENTS_DIR, RESUME_STATE, SliceOrder, TrainConfig};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A run's state is written at the end of an epoch if the last one is this old, and whenever its trial waits or ends.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(60);
/// Shortest time between two writes of the tables during a sweep.
const TABLES_AFTER: Duration = Duration::from_secs(2);

pub(super) struct Trials<'a> {
    args: &'a SweepArgs,
    store: &'a TrainingSplit,
    record: &'a SweepRecord,
    folder: Folder,
    reader: Arc<Reader>,
    /// The store's items in a GPU's memory, for all trials.
    items: Option<Arc<DeviceItems>>,
    scheduler: Scheduler<'a>,
    /// Seed and fold of each run of a trial, folds from 1.
    runs: Vec<(u64, u32)>,
    accounts: Vec<Account>,
    /// Rows of earlier starts by number, until the scheduler reaches them.
    found: HashMap<u32, TrialRow>,
    /// Counts the trials that have ended.
    progress: Box<dyn Progress>,
    /// Progress of the current round's trials.
    trial_progress: HashMap<usize, Arc<dyn Progress>>,
    /// Number of trials reported as ended.
    ended: usize,
    tables_written: Option<Instant>,
}

/// Runs that draw the same batches, with their trials' indices.
#[derive(Default)]
struct Group {
    trials: Vec<usize>,
    runs: Vec<Run>,
    /// Error that ended all of them: their batches could not be read.
    error: Option<TrainError>,
}

impl<'a> Trials<'a> {
    pub(super) fn new(args: &'a SweepArgs, store: &'a TrainingSplit, record: &'a SweepRecord) -> Result<Self> {
        let folder = Folder::new(&args.out);
        let found: Vec<TrialRow> = folder.read_trials()?;
        let chosen: Chosen = found.iter().map(|row| Ok((row.number, point_of(&record.config, row)?))).collect::<Result<_>>()?;
        let scheduler = Scheduler::new(&record.config, chosen, args.worker)?;
        let total = scheduler.most_trials().map(|most| most as u64);
        let resident = (&args.device, args.device_store);
        Ok(Trials {
            args,
            store,
            record,
            folder,
            reader: Arc::new(store.reader(args.read_mode)),
            items: DeviceItems::load(&store.reader(ReadMode::Stream), || all_items(store), resident, &*args.observer)?,
            scheduler,
            runs: runs_of_each_trial(record),
            accounts: Vec::new(),
            found: found.into_iter().map(|row| (row.number, row)).collect(),
            progress: args.observer.begin(Phase { name: "", unit: Unit::Trials, total, done: 0 }),
            trial_progress: HashMap::new(),
            ended: 0,
            tables_written: None,
        })
    }

    /// Trains to the sweep's end.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<SweepSummary> {
        let outcome = self.rounds(stop);
        let tables = self.write_tables();
        outcome?;
        tables?;
        Ok(SweepSummary::new(self.all_rows()?))
    }

    fn rounds(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            let jobs = self.scheduler.next_jobs(self.record.jobs as usize);
            self.take_in_new()?;
            if jobs.is_empty() {
                break;
            }
            // Jobs that an earlier start has on record are not reported.
            let trained: Vec<Job> = jobs.iter().copied().filter(|job| self.is_to_train(job)).collect();
            let outcomes = self.round(&jobs, stop)?;
            self.scheduler.record(outcomes);
            self.write_rows()?;
            self.report(&trained);
            if self.tables_written.is_none_or(|at| at.elapsed() >= TABLES_AFTER) {
                self.write_tables()?;
            }
        }
        // Trials that were pruned at the end have a new record; no run is resumed after this.
        self.write_rows()?;
        self.close_runs()
    }

    /// Writes the end of each run for TensorBoard, and removes what only a resume needs.
    fn close_runs(&self) -> Result<()> {
        for (trial, account) in self.scheduler.trials.iter().zip(&self.accounts) {
            let failed = matches!(trial.end, Some(End::Failed { .. }));
            for (&(seed, fold), epochs) in self.runs.iter().zip(&account.epochs) {
                let run = self.folder.run(&trial.point.id, seed, fold);
                // If the state is gone, an earlier start has written the run's end.
                if run.join(RESUME_STATE).exists() {
                    let status = if failed { SessionStatus::Failure } else { SessionStatus::Success };
                    session_end(&run.join(EVENTS_DIR), epochs.last().map_or(0, |epoch| epoch.steps), status)?;
                }
                if !failed {
                    self.folder.drop_state(&trial.point.id, seed, fold)?;
                }
            }
        }
        Ok(())
    }

    /// Adds accounts for the trials that the scheduler has started since, with what an earlier start left of them.
    fn take_in_new(&mut self) -> Result<()> {
        for index in self.accounts.len()..self.scheduler.trials.len() {
            let trial = &self.scheduler.trials[index];
            let epochs = self.runs.iter().map(|&(seed, fold)| self.folder.read_run(&trial.point.id, seed, fold));
            let row = self.found.remove(&trial.number);
            let account = Account::found(epochs.collect::<Result<_>>()?, row, self.record.config.retries);
            let is_new = account.written.is_none();
            self.accounts.push(account);
            if is_new {
                // The record assigns the point its number before any of it is trained.
                self.write_row(index)?;
            }
        }
        Ok(())
    }

    /// Whether a run of the job's trial has fewer epochs on record than the job needs.
    fn is_to_train(&self, job: &Job) -> bool {
        (0..self.runs.len()).any(|run| self.accounts[job.trial].lacks(run, job.until))
    }

    /// Trains the jobs' trials, run by run.
    fn round(&mut self, jobs: &[Job], stop: &AtomicBool) -> Result<Vec<(Job, Outcome)>> {
        let mut ends: HashMap<usize, End> = HashMap::new();
        for job in jobs.iter().filter(|job| self.is_to_train(job)).copied().collect::<Vec<_>>() {
            ends.extend(self.accounts[job.trial].ended.clone().map(|end| (job.trial, end)));
            self.announce(&job);
        }
        for run in 0..self.runs.len() {
            let lacking = |job: &&Job| !ends.contains_key(&job.trial) && self.accounts[job.trial].lacks(run, job.until);
            let lacking: Vec<Job> = jobs.iter().filter(lacking).copied().collect();
            for (trial, error) in self.train_run(run, &lacking, stop) {
                let diverged = matches!(error, TrainError::Diverged { .. });
                self.accounts[trial].failures += u32::from(!diverged);
                ends.insert(trial, End::Failed { reason: error.in_short(), diverged });
            }
            if stop.load(Ordering::Relaxed) && !lacking.is_empty() {
                return Err(TrainError::SweepStopped { out: self.args.out.clone() });
            }
        }
        let outcome = |job: &Job| {
            let account = &self.accounts[job.trial];
            let seconds = account.seconds(self.scheduler.trials[job.trial].epochs()..job.until);
            Outcome { seconds, result: ends.remove(&job.trial).map_or_else(|| Ok(account.score(job.until)), Err) }
        };
        Ok(jobs.iter().copied().zip(jobs.iter().map(outcome).collect::<Vec<_>>()).collect())
    }

    /// Trains one run of each job's trial; returns the errors of those that failed.
    fn train_run(&mut self, run: usize, jobs: &[Job], stop: &AtomicBool) -> Vec<(usize, TrainError)> {
        let (mut groups, mut errors) = self.open_groups(run, jobs);
        let control = Control::new(stop);
        let train = |group: &mut Group| {
            let mut steps = StepKind::new(self.args.cuda_graph, &self.args.observer);
            let source = BatchSource::new(self.reader.clone(), &self.args.device, self.items.clone());
            group.error = source.and_then(|mut source| train_group(&mut group.runs, &mut source, &mut steps, &control)).err();
        };
        if queues_work(&self.args.device) {
            // It works on one thing at a time anyway.
            groups.iter_mut().for_each(train);
        } else {
            std::thread::scope(|scope| {
                for group in &mut groups {
                    let train = &train;
                    scope.spawn(move || train(group));
                }
            });
        }
        for group in groups {
            let reason = group.error.as_ref().map(TrainError::to_string);
            for (trial, mut trained) in group.trials.into_iter().zip(group.runs) {
                self.accounts[trial].epochs[run] = trained.records().epochs.clone();
                let unread = reason.clone().filter(|_| !trained.is_finished()).map(TrainError::BatchUnread);
                errors.extend(trained.take_error().or(unread).map(|error| (trial, error)));
            }
        }
        errors
    }

    /// Opens one run of each job's trial, and groups those that draw the same batches; on a device that queues work each is its own group, since
    /// sharing would save nothing there. Also returns the errors of those that cannot be opened.
    fn open_groups(&self, run: usize, jobs: &[Job]) -> (Vec<Group>, Vec<(usize, TrainError)>) {
        let opened: Vec<Result<Run>> = jobs.par_iter().map(|job| guarded(|| self.open(job, run))).collect();
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut errors = Vec::new();
        for (job, opened) in jobs.iter().zip(opened) {
            match opened {
                Err(error) => errors.push((job.trial, error)),
                Ok(opened) => {
                    let apart = if queues_work(&self.args.device) { format!(" {:09}", job.trial) } else { String::new() };
                    let group = groups.entry(group_key(&opened) + &apart).or_default();
                    group.trials.push(job.trial);
                    group.runs.push(opened);
                }
            }
        }
        (groups.into_values().collect(), errors)
    }

    /// The run of a job's trial, resumed if it has a state.
    fn open(&self, job: &Job, run: usize) -> Result<Run> {
        let (seed, fold) = self.runs[run];
        let Trial { point, config, .. } = &self.scheduler.trials[job.trial];
        let folder = self.folder.run(&point.id, seed, fold);
        if !can_resume(&folder) && folder.exists() {
            // An interrupted start, or a finished run that must be trained further: it starts again, with the same result.
            std::fs::remove_dir_all(&folder).map_err(io(&folder))?;
        }
        let config = TrainConfig { seed, val_cases: self.record.folds[fold as usize - 1].clone(), ..config.clone() };
        let hd95 = self.record.config.objectives.contains(&Objective::Hd95).then(|| self.args.hd95.clone());
        let checkpoints = Checkpoints { every_steps: None, epochs_after: CHECKPOINT_AFTER, models: false };
        let mut opened = open_run(&train_args(self.args, &folder, config), self.store, checkpoints, hd95)?;
        if opened.position().steps == 0 {
            opened.write_settings(&point.searched(&self.record.config), &point.id)?;
        }
        let report = self.trial_progress.get(&job.trial).map_or(Report::Nothing, |progress| Report::Epochs(progress.clone()));
        Ok(opened.until(job.until).reporting(report))
    }

    fn rows(&self) -> Vec<TrialRow> {
        let ranks = self.scheduler.ranks();
        (0..self.accounts.len()).map(|trial| self.row(trial, ranks[trial])).collect()
    }

    fn row(&self, trial: usize, rank: Option<u32>) -> TrialRow {
        self.accounts[trial].row(&self.scheduler.trials[trial], &self.record.config, rank)
    }

    /// Writes the changed records.
    fn write_rows(&mut self) -> Result<()> {
        (0..self.accounts.len()).try_for_each(|trial| self.write_row(trial))
    }

    /// Writes a trial's record, without a rank, which depends on all trials.
    fn write_row(&mut self, trial: usize) -> Result<()> {
        let row = self.row(trial, None);
        // Until the scheduler has all results of an earlier start, the earlier row has more than this one.
        let ahead = |written: &TrialRow| row.status == TrialStatus::Running && written.epochs > row.epochs;
        if self.accounts[trial].written.as_ref().is_some_and(|written| *written == row || ahead(written)) {
            return Ok(());
        }
        self.folder.write_trial(&row)?;
        self.accounts[trial].written = Some(row);
        Ok(())
    }

    fn write_tables(&mut self) -> Result<()> {
        self.tables_written = Some(Instant::now());
        if self.args.worker.1 > 1 {
            let (rows, curves) = gather(&self.args.out)?;
            return self.folder.write_tables(&rows, &curves);
        }
        let trials = self.scheduler.trials.iter().zip(&self.accounts);
        let curves: Vec<_> = trials.flat_map(|(trial, account)| account.curves(&trial.point.id, &self.runs)).collect();
        self.folder.write_tables(&self.rows(), &curves)
    }

    /// The rows of this worker's trials, or of all workers' trials if there are several.
    fn all_rows(&self) -> Result<Vec<TrialRow>> {
        if self.args.worker.1 > 1 { Ok(gather(&self.args.out)?.0) } else { Ok(self.rows()) }
    }

    fn name(&self, trial: usize) -> String {
        let Trial { number, point, .. } = &self.scheduler.trials[trial];
        format!("trial {number} {}", settings_text(&point.searched(&self.record.config)))
    }

    fn announce(&mut self, job: &Job) {
        let done = |epochs: &Vec<_>| (epochs.len() as u64).min(job.until.into());
        let phase = Phase {
            name: &self.name(job.trial),
            unit: Unit::Epochs,
            total: Some(u64::from(job.until) * self.runs.len() as u64),
            done: self.accounts[job.trial].epochs.iter().map(done).sum(),
        };
        self.trial_progress.insert(job.trial, self.args.observer.begin(phase).into());
    }

    /// Reports the trials' results in a round, and the sweep's progress.
    fn report(&mut self, jobs: &[Job]) {
        self.trial_progress.clear();
        for job in jobs {
            let trial = &self.scheduler.trials[job.trial];
            let score = trial.scores.last().map_or(String::new(), score_text);
            let came_to = match &trial.end {
                None => format!("waits after {} epochs{score}", trial.epochs()),
                Some(End::Finished) => format!("finished after {} epochs{score}", trial.epochs()),
                Some(End::Pruned(reason)) => format!("pruned{score}: {reason}"),
                Some(End::Failed { reason, diverged: true }) => format!("diverged: {reason}"),
                Some(End::Failed { reason, diverged: false }) => format!("failed: {reason}"),
            };
            self.args.observer.message(&format!("{}: {came_to}", self.name(job.trial)));
        }
        let count =
            |is: fn(&End) -> bool| self.scheduler.trials.iter().filter(|trial| trial.end.as_ref().is_some_and(is)).count();
        let (pruned, failed) = (count(|end| matches!(end, End::Pruned(_))), count(|end| matches!(end, End::Failed { .. })));
        let best = self.scheduler.order().first().copied().filter(|&trial| !self.scheduler.trials[trial].scores.is_empty());
        let best = best.map_or(String::new(), |trial| {
            let score = self.scheduler.trials[trial].scores.last().map_or(String::new(), score_text);
            format!("  ·  best {}{score}", self.name(trial))
        });
        let ended = count(|_| true);
        self.progress.advance((ended - self.ended) as u64);
        self.ended = ended;
        self.progress.describe(&format!("{pruned} pruned, {failed} failed{best}"));
    }
}

/// Every item that a trial may draw, the likeliest first.
fn all_items(store: &TrainingSplit) -> Vec<(u32, u32)> {
    let rows = store.slices().iter().map(|slice| slice.row).collect();
    let draws = VariantDraws::new(store.variants(), None, store.config().rotation_step);
    draws.map_or(Vec::new(), |draws| Sampler::new(rows, draws, SliceOrder::Sequential, 0).items())
}

/// Runs of one seed and fold with the same key will draw the same batches.
fn group_key(run: &Run) -> String {
    let TrainConfig { batch_size, order, augment, precision, .. } = &run.setup().config;
    let position = run.position();
    let order = if *order == SliceOrder::Shuffled { "shuffled" } else { "sequential" };
    format!("{} {} {batch_size} {order} {augment:?} {precision:?}", position.epoch, position.batch)
}

fn score_text(score: &Score) -> String {
    let part = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!(", {name} {value:.4}"));
    format!("{}{}", part("dice", score.dice), part("hd95", score.hd95))
}

/// `lr 0.001, lambda 0.8`.
fn settings_text(settings: &Map<String, Value>) -> String {
    let parts: Vec<String> = settings
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect();
    parts.join(", ")
}
