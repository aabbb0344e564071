//! The sweep itself: round after round, from the scheduler's jobs to runs, to outcomes, to the tables.

use super::folder::{Folder, can_resume, point_of};
use super::live::{Live, Standing};
use super::lone;
use super::ranking::{self, Score, mean_and_deviation};
use super::scheduler::{Chosen, End, Job, Outcome, Scheduler, Trial};
use super::together::{Member, Together};
use super::{SweepArgs, SweepSummary, train_args};
use crate::error::{Result, TrainError, io};
use crate::run::hparams::{SessionStatus, session_end};
use crate::run::open_run;
use crate::run::training_run::{Checkpoints, Trainee};
use sam_ladder_cache::{Reader, TrainingSplit};
use sam_ladder_schemas::sweep::{CurveRow, Objective, Pruning, SweepRecord, TrialRow, TrialStatus};
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{EVENTS_DIR, RESUME_STATE, SliceOrder, TrainConfig};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A run's state goes to disk at the end of an epoch when the last one is this old, and whenever its trial waits or ends.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(60);
/// The tables are written at most this often while trials come and go.
const TABLES_AFTER: Duration = Duration::from_secs(2);

/// What a trial has besides its scores.
#[derive(Debug, Clone, Default)]
struct Account {
    /// Epochs of each run, in the order of [`Trials::runs`].
    epochs: Vec<Vec<EpochRow>>,
    failures: u32,
    /// An earlier start's error that is not tried again.
    ended: Option<End>,
    /// Seconds that a lone run takes for an epoch, where it was measured.
    lone_epoch: Option<f64>,
    /// The row on disk.
    written: Option<TrialRow>,
}

pub(super) struct Trials<'a> {
    args: &'a SweepArgs,
    store: &'a TrainingSplit,
    record: &'a SweepRecord,
    folder: Folder,
    reader: Reader,
    scheduler: Scheduler<'a>,
    /// Seed and fold of each run of a trial, folds from 1.
    runs: Vec<(u64, u32)>,
    accounts: Vec<Account>,
    /// Rows of earlier starts by number, until the scheduler comes to them.
    found: HashMap<u32, TrialRow>,
    /// Lone epochs by what shapes their cost.
    lone: HashMap<String, f64>,
    live: Live,
    tables_written: Option<Instant>,
    begun: Instant,
    /// Seconds that earlier starts took.
    seconds_before: f64,
}

impl<'a> Trials<'a> {
    pub(super) fn new(args: &'a SweepArgs, store: &'a TrainingSplit, record: &'a SweepRecord) -> Result<Self> {
        let folder = Folder::new(&args.out);
        let found: Vec<TrialRow> = folder.read_trials()?;
        let chosen: Chosen = found.iter().map(|row| Ok((row.number, point_of(&record.config, row)?))).collect::<Result<_>>()?;
        let seconds_before = found.iter().map(|row| row.seconds).sum();
        let folds = record.folds.len() as u32;
        let runs = record.config.seeds.iter().flat_map(|&seed| (1..=folds).map(move |fold| (seed, fold))).collect();
        Ok(Trials {
            args,
            store,
            record,
            folder,
            reader: store.reader(args.read_mode),
            scheduler: Scheduler::new(&record.config, chosen, args.worker)?,
            runs,
            accounts: Vec::new(),
            found: found.into_iter().map(|row| (row.number, row)).collect(),
            lone: HashMap::new(),
            live: Live::new(args.progress),
            tables_written: None,
            begun: Instant::now(),
            seconds_before,
        })
    }

    /// Goes on to the sweep's end.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<SweepSummary> {
        let outcome = self.rounds(stop);
        self.live.finish();
        let tables = self.write_tables();
        outcome?;
        tables?;
        Ok(SweepSummary::new(self.all_rows()?))
    }

    fn rounds(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            if self.is_out_of_time() {
                self.scheduler.close();
            }
            let jobs = self.scheduler.next_jobs(self.record.jobs as usize);
            self.take_in_new()?;
            if jobs.is_empty() {
                break;
            }
            // What an earlier start has on record is taken in without a word.
            let trained: Vec<Job> =
                jobs.iter().copied().filter(|job| (0..self.runs.len()).any(|run| self.lacks(job, run))).collect();
            let outcomes = self.round(&jobs, stop)?;
            self.scheduler.record(outcomes);
            self.write_rows()?;
            self.tell(&trained);
            if self.tables_written.is_none_or(|at| at.elapsed() >= TABLES_AFTER) {
                self.write_tables()?;
            }
        }
        // Who was given up at the end has a new record; no run goes on from here.
        self.write_rows()?;
        for (trial, account) in self.scheduler.trials.iter().zip(&self.accounts) {
            let failed = matches!(trial.end, Some(End::Failed { .. }));
            for (&(seed, fold), epochs) in self.runs.iter().zip(&account.epochs) {
                let run = self.folder.run(&trial.point.id, seed, fold);
                // An earlier start has told the end of a run whose state is gone.
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

    fn is_out_of_time(&self) -> bool {
        let spent = self.seconds_before + self.begun.elapsed().as_secs_f64();
        self.record.config.budget.hours.is_some_and(|hours| spent >= hours * 3600.0)
    }

    /// Accounts of the trials that the scheduler has begun since, with what an earlier start left of them.
    fn take_in_new(&mut self) -> Result<()> {
        for index in self.accounts.len()..self.scheduler.trials.len() {
            let trial = &self.scheduler.trials[index];
            let epochs = self.runs.iter().map(|&(seed, fold)| self.folder.read_run(&trial.point.id, seed, fold));
            let mut account = Account { epochs: epochs.collect::<Result<_>>()?, ..Account::default() };
            if let Some(row) = self.found.remove(&trial.number) {
                account.failures = row.failures;
                account.lone_epoch = row.lone_seconds.map(|seconds| seconds / f64::from((row.epochs * row.runs).max(1)));
                let again = row.status == TrialStatus::Failed && row.failures <= self.record.config.retries;
                if matches!(row.status, TrialStatus::Failed | TrialStatus::Diverged) && !again {
                    let diverged = row.status == TrialStatus::Diverged;
                    account.ended = Some(End::Failed { reason: row.reason.clone().unwrap_or_default(), diverged });
                }
                account.written = Some(row);
            }
            self.accounts.push(account);
            if self.accounts[index].written.is_none() {
                // The record says which point has which number, before anything of it is trained.
                self.write_row(index, None)?;
            }
        }
        Ok(())
    }

    /// Trains the jobs' trials, run by run, those of one round beside one another.
    fn round(&mut self, jobs: &[Job], stop: &AtomicBool) -> Result<Vec<(Job, Outcome)>> {
        let mut ends: HashMap<usize, End> = HashMap::new();
        for job in jobs {
            if let Some(end) = self.accounts[job.trial].ended.clone()
                && (0..self.runs.len()).any(|run| self.lacks(job, run))
            {
                ends.insert(job.trial, end);
            }
            if (0..self.runs.len()).any(|run| self.lacks(job, run)) {
                self.announce(job);
            }
        }
        for run in 0..self.runs.len() {
            let wanted: Vec<Job> =
                jobs.iter().copied().filter(|job| !ends.contains_key(&job.trial) && self.lacks(job, run)).collect();
            if wanted.is_empty() {
                continue;
            }
            for (trial, error) in self.train_run(run, &wanted, stop)? {
                let diverged = matches!(error, TrainError::Diverged { .. });
                self.accounts[trial].failures += u32::from(!diverged);
                ends.insert(trial, End::Failed { reason: reason(&error), diverged });
            }
            if stop.load(Ordering::Relaxed) {
                return Err(TrainError::SweepStopped { out: self.args.out.clone() });
            }
        }
        let outcome = |job: &Job| match ends.remove(&job.trial) {
            Some(end) => Err(end),
            None => Ok(self.score(job.trial, job.until)),
        };
        Ok(jobs.iter().copied().zip(jobs.iter().map(outcome).collect::<Vec<_>>()).collect())
    }

    /// Whether a run of the job's trial has fewer epochs on record than the job asks for.
    fn lacks(&self, job: &Job, run: usize) -> bool {
        self.accounts[job.trial].epochs[run].len() < job.until as usize
    }

    /// Trains one run of each job's trial; the errors of those that failed.
    fn train_run(&mut self, run: usize, jobs: &[Job], stop: &AtomicBool) -> Result<Vec<(usize, TrainError)>> {
        let opened: Vec<Result<Trainee>> = std::thread::scope(|scope| {
            let open = |job: &Job| {
                let trial = job.trial;
                let this = &*self;
                scope.spawn(move || this.open(trial, run))
            };
            let threads: Vec<_> = jobs.iter().map(open).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(TrainError::Input("the program stumbled".into()))))
                .collect()
        });
        let mut errors = Vec::new();
        let mut groups: BTreeMap<String, Vec<(usize, Member)>> = BTreeMap::new();
        for (job, opened) in jobs.iter().zip(opened) {
            match opened {
                Err(error) => errors.push((job.trial, error)),
                Ok(trainee) => {
                    self.measure_lone(job.trial, &trainee);
                    let key = group_key(&trainee);
                    groups.entry(key).or_default().push((job.trial, Member { trainee, until: job.until, error: None }));
                }
            }
        }
        let live = AtomicUsize::new(0);
        let seen: Mutex<()> = Mutex::new(());
        let mut groups: Vec<(Vec<usize>, Vec<Member>)> = groups.into_values().map(|group| group.into_iter().unzip()).collect();
        std::thread::scope(|scope| {
            for (trials, members) in &mut groups {
                let (live, seen, this) = (&live, &seen, &*self);
                scope.spawn(move || {
                    let on_epoch = |member: usize, row: &EpochRow| {
                        let _turn = seen.lock();
                        this.live.epoch(trials[member], row);
                    };
                    Together { reader: &this.reader, stop, live, on_epoch: &on_epoch }.train(members);
                });
            }
        });
        for (trials, members) in groups {
            for (trial, member) in trials.into_iter().zip(members) {
                self.accounts[trial].epochs[run] = member.trainee.records().epochs.clone();
                errors.extend(member.error.map(|error| (trial, error)));
            }
        }
        Ok(errors)
    }

    /// The run of a trial, resumed where it has a state.
    fn open(&self, trial: usize, run: usize) -> Result<Trainee> {
        let (seed, fold) = self.runs[run];
        let Trial { point, config, .. } = &self.scheduler.trials[trial];
        let folder = self.folder.run(&point.id, seed, fold);
        if !can_resume(&folder) && folder.exists() {
            // A start that was interrupted, or a run that had ended and is wanted longer: it begins anew and comes to the same.
            std::fs::remove_dir_all(&folder).map_err(io(&folder))?;
        }
        let config = TrainConfig { seed, val_cases: self.record.folds[fold as usize - 1].clone(), ..config.clone() };
        let hd95 = self.record.config.objectives.contains(&Objective::Hd95).then(|| self.args.hd95.clone());
        let checkpoints = Checkpoints { every_steps: None, epochs_after: CHECKPOINT_AFTER, models: false };
        let mut trainee = open_run(&train_args(self.args, &folder, config), self.store, checkpoints, hd95)?;
        if trainee.position().steps == 0 {
            trainee.tell_settings(&self.scheduler.searched(trial), &point.id)?;
        }
        Ok(trainee)
    }

    /// Times a lone run of the trial's kind, where trials share the machine and none of its kind was timed.
    fn measure_lone(&mut self, trial: usize, trainee: &Trainee) {
        if self.record.jobs < 2 || self.accounts[trial].lone_epoch.is_some() {
            return;
        }
        let plan = trainee.plan();
        let TrainConfig { batch_size, arm, optimizer, side_network, gate, train_mask_tokens, train_hypernetworks, .. } =
            plan.config;
        let model = format!("{arm:?} {side_network:?} {gate:?} {train_mask_tokens} {train_hypernetworks}");
        let key = format!("{batch_size} {model} {optimizer:?} {}", plan.sampler.slices());
        if !self.lone.contains_key(&key) {
            // What cannot be measured is left out; the trial itself will say why.
            let Ok(seconds) = lone::epoch_seconds(plan, self.store) else { return };
            self.lone.insert(key.clone(), seconds);
        }
        self.accounts[trial].lone_epoch = self.lone.get(&key).copied();
    }

    /// Means over the runs after so many epochs.
    fn score(&self, trial: usize, epochs: u32) -> Score {
        let values = |value: fn(&EpochRow) -> Option<f64>| mean_and_deviation(&self.values(trial, epochs, value)).0;
        Score { dice: values(|row| row.val_dice), hd95: values(|row| row.val_hd95) }
    }

    fn values(&self, trial: usize, epochs: u32, value: fn(&EpochRow) -> Option<f64>) -> Vec<Option<f64>> {
        let last = epochs.checked_sub(1).map(|last| last as usize);
        self.accounts[trial].epochs.iter().map(|rows| rows.get(last?).and_then(value)).collect()
    }

    fn rows(&self) -> Vec<TrialRow> {
        let ranks = self.scheduler.ranks();
        (0..self.scheduler.trials.len()).map(|trial| self.row(trial, ranks[trial])).collect()
    }

    fn row(&self, index: usize, rank: Option<u32>) -> TrialRow {
        let trial = &self.scheduler.trials[index];
        let account = &self.accounts[index];
        let epochs = trial.epochs();
        let (status, reason) = match &trial.end {
            None => (TrialStatus::Running, None),
            Some(End::Finished) => (TrialStatus::Finished, None),
            Some(End::Pruned(reason)) => (TrialStatus::Pruned, Some(reason.clone())),
            Some(End::Failed { reason, diverged: true }) => (TrialStatus::Diverged, Some(reason.clone())),
            Some(End::Failed { reason, diverged: false }) => (TrialStatus::Failed, Some(reason.clone())),
        };
        let (dice, dice_std) = mean_and_deviation(&self.values(index, epochs, |row| row.val_dice));
        let (hd95, hd95_std) = mean_and_deviation(&self.values(index, epochs, |row| row.val_hd95));
        let trained: Vec<&EpochRow> = account.epochs.iter().flatten().collect();
        let asha = matches!(self.record.config.pruning, Pruning::Asha { .. });
        TrialRow {
            trial: trial.point.id.clone(),
            number: trial.number,
            settings: Value::Object(self.scheduler.searched(index)).to_string(),
            status,
            reason,
            rank,
            dice,
            dice_std,
            hd95,
            hd95_std,
            runs: self.runs.len() as u32,
            epochs,
            max_epochs: trial.config.epochs as u32,
            rung: if asha { trial.scores.len().checked_sub(1).map(|rung| rung as u32) } else { None },
            failures: account.failures,
            seconds: trained.iter().map(|row| row.seconds).sum(),
            lone_seconds: account.lone_epoch.map(|seconds| seconds * trained.len() as f64),
        }
    }

    /// Writes the records that have changed. A trial's own has no rank: that is a matter of all of them.
    fn write_rows(&mut self) -> Result<()> {
        (0..self.accounts.len()).try_for_each(|trial| self.write_row(trial, None))
    }

    fn write_row(&mut self, trial: usize, rank: Option<u32>) -> Result<()> {
        let row = self.row(trial, rank);
        // Until the scheduler was told all that an earlier start had on record, its row knows more than this one.
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
        let mut curves = Vec::new();
        for (trial, account) in self.scheduler.trials.iter().zip(&self.accounts) {
            for (&run, rows) in self.runs.iter().zip(&account.epochs) {
                curves.extend(rows.iter().map(|row| curve_row(&trial.point.id, run, row)));
            }
        }
        self.folder.write_tables(&self.rows(), &curves)
    }

    /// The rows of this worker's trials, or where there are several workers those of all of them.
    fn all_rows(&self) -> Result<Vec<TrialRow>> {
        if self.args.worker.1 > 1 { Ok(gather(&self.args.out)?.0) } else { Ok(self.rows()) }
    }

    fn name(&self, trial: usize) -> String {
        format!("trial {} {}", self.scheduler.trials[trial].number, settings_text(&self.scheduler.searched(trial)))
    }

    fn announce(&self, job: &Job) {
        let done = |run: usize| (self.accounts[job.trial].epochs[run].len() as u64).min(job.until.into());
        let done: u64 = (0..self.runs.len()).map(done).sum();
        self.live.begin(job.trial, &self.name(job.trial), done, u64::from(job.until) * self.runs.len() as u64);
    }

    fn tell(&self, jobs: &[Job]) {
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
            self.live.end(job.trial, &format!("{}: {came_to}", self.name(job.trial)));
        }
        let count =
            |is: fn(&End) -> bool| self.scheduler.trials.iter().filter(|trial| trial.end.as_ref().is_some_and(is)).count();
        let best = self.scheduler.order().first().copied().filter(|&trial| !self.scheduler.trials[trial].scores.is_empty());
        self.live.stand(&Standing {
            ended: count(|_| true),
            most: self.scheduler.most_trials(),
            pruned: count(|end| matches!(end, End::Pruned(_))),
            failed: count(|end| matches!(end, End::Failed { .. })),
            best: best.map(|trial| {
                let score = self.scheduler.trials[trial].scores.last().map_or(String::new(), score_text);
                format!("{}{score}", self.name(trial))
            }),
        });
    }
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

/// The tables of a sweep's folder, made anew of its trials' own records, whichever workers wrote them: trials by number with their ranks, and every epoch of
/// each of their runs.
///
/// # Errors
/// A folder that holds no sweep, or a damaged record.
pub fn gather(out: &Path) -> Result<(Vec<TrialRow>, Vec<CurveRow>)> {
    let folder = Folder::new(out);
    let record = folder.read_record()?;
    let mut rows = folder.read_trials()?;
    let result = |row: &TrialRow| {
        let failed = matches!(row.status, TrialStatus::Failed | TrialStatus::Diverged);
        let costs = Score { dice: row.dice, hd95: row.hd95 }.costs(&record.config.objectives);
        (!failed && row.epochs > 0).then(|| ranking::Result {
            finished: row.status == TrialStatus::Finished,
            epochs: row.epochs,
            costs,
        })
    };
    let ranks = ranking::ranks(&rows.iter().map(result).collect::<Vec<_>>());
    let mut curves = Vec::new();
    for (row, rank) in rows.iter_mut().zip(ranks) {
        row.rank = rank;
        for &seed in &record.config.seeds {
            for fold in 1..=record.folds.len() as u32 {
                let epochs = folder.read_run(&row.trial, seed, fold)?;
                curves.extend(epochs.iter().map(|epoch| curve_row(&row.trial, (seed, fold), epoch)));
            }
        }
    }
    Ok((rows, curves))
}

/// Runs of one seed and fold with the same key draw the same batches from where they stand.
fn group_key(trainee: &Trainee) -> String {
    let TrainConfig { batch_size, order, augment, epochs: _, .. } = &trainee.plan().config;
    let position = trainee.position();
    let order = if *order == SliceOrder::Shuffled { "shuffled" } else { "sequential" };
    format!("{} {} {batch_size} {order} {augment:?}", position.epoch, position.batch)
}

/// Why a run failed, in one line.
fn reason(error: &TrainError) -> String {
    match error {
        TrainError::Diverged { step, what, value, lr, .. } => {
            format!("{what} is {value} at step {step} with learning rate {lr:e}")
        }
        other => other.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    }
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
