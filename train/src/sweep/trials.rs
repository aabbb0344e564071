//! Runs a sweep: decides in its turn, trains what was decided, and adds the results, round by round.

use super::ledger::Ledger;
use super::ranking::Score;
use super::scheduler::{End, Job, Outcome, Trial};
use super::trainer::{Task, Trainer};
use super::workers::Workers;
use crate::error::{Result, TrainError};
use crate::run::{SessionStatus, session_end};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use sam_ladder_schemas::sweep::{SweepRecord, TrialRow};
use sam_ladder_schemas::train::{EVENTS_DIR, RESUME_STATE};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Shortest time between two writes of the tables during a sweep.
const TABLES_AFTER: Duration = Duration::from_secs(2);
/// Pause of a worker that waits for the results of others.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

pub(super) struct Trials<'a, T> {
    record: &'a SweepRecord,
    observer: Arc<dyn Observer>,
    ledger: Ledger<'a>,
    workers: Workers,
    trainer: T,
    /// Whether this worker has decided before.
    has_begun: bool,
    /// Counts the trials that have ended.
    progress: Box<dyn Progress>,
    /// Progress of the current round's trials.
    trial_progress: HashMap<usize, Arc<dyn Progress>>,
    /// Number of trials reported as ended.
    ended: usize,
    tables_written: Option<Instant>,
}

/// What a worker does next.
enum Next {
    Train(Vec<Job>),
    /// Results of others may lead to further jobs.
    Wait,
    End,
}

impl<'a, T: Trainer> Trials<'a, T> {
    pub(super) fn new(
        record: &'a SweepRecord,
        ledger: Ledger<'a>,
        workers: Workers,
        trainer: T,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let total = ledger.scheduler.most_trials().map(|most| most as u64);
        Trials {
            record,
            progress: observer.begin(Phase { name: "", unit: Unit::Trials, total, done: 0 }),
            observer,
            ledger,
            workers,
            trainer,
            has_begun: false,
            trial_progress: HashMap::new(),
            ended: 0,
            tables_written: None,
        }
    }

    /// Trains to the sweep's end; returns the rows of all trials, by number.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Result<Vec<TrialRow>> {
        let outcome = self.rounds(stop);
        let tables = self.last_tables();
        outcome?;
        tables?;
        Ok(self.ledger.rows())
    }

    fn rounds(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            match self.decide()? {
                Next::End => return Ok(()),
                Next::Train(jobs) => self.train(&jobs, stop)?,
                Next::Wait if stop.load(Ordering::Relaxed) => return Err(self.stopped()),
                Next::Wait => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn stopped(&self) -> TrainError {
        TrainError::SweepStopped { out: self.ledger.folder.path().into(), more: self.workers.option() }
    }

    /// Reads what all workers have recorded, and decides what this one trains next.
    fn decide(&mut self) -> Result<Next> {
        let _turn = self.workers.turn()?;
        let planned = self.workers.others()?;
        self.ledger.refresh(&planned)?;
        let others = self.ledger.jobs(&planned);
        let mut jobs = Vec::new();
        if !self.has_begun {
            // A round that was interrupted is finished first: its results, together, lead to the same decisions.
            jobs = self.ledger.unfinished(&self.workers.own()?, &others);
        }
        self.has_begun = true;
        if jobs.is_empty() {
            jobs = self.ledger.scheduler.next_jobs(self.record.jobs as usize, &others);
        }
        self.ledger.add_started()?;
        self.workers.plan(&self.ledger.plan(&jobs))?;
        if !jobs.is_empty() {
            return Ok(Next::Train(jobs));
        }
        if self.ledger.scheduler.may_follow(&others) {
            return Ok(Next::Wait);
        }
        // The last worker ends the sweep for all.
        if others.is_empty() {
            self.ledger.close()?;
            self.close_runs()?;
        }
        Ok(Next::End)
    }

    /// Writes the end of each run for TensorBoard, and removes what only a resume needs.
    fn close_runs(&self) -> Result<()> {
        for (trial, account) in self.ledger.scheduler.trials.iter().zip(&self.ledger.accounts) {
            let failed = matches!(trial.end, Some(End::Failed { .. }));
            for (&(seed, fold), epochs) in self.ledger.runs.iter().zip(&account.epochs) {
                let run = self.ledger.folder.run(&trial.point.id, seed, fold);
                // If the state is gone, an earlier start has written the run's end.
                if !run.join(RESUME_STATE).exists() {
                    continue;
                }
                let status = if failed { SessionStatus::Failure } else { SessionStatus::Success };
                session_end(&run.join(EVENTS_DIR), epochs.last().map_or(0, |epoch| epoch.steps), status)?;
                if !failed {
                    self.ledger.folder.drop_state(&trial.point.id, seed, fold)?;
                }
            }
        }
        Ok(())
    }

    /// Trains the jobs of a round, and adds their results to the records.
    fn train(&mut self, jobs: &[Job], stop: &AtomicBool) -> Result<()> {
        // Jobs that an earlier start has on record are not reported.
        let trained: Vec<Job> = jobs.iter().copied().filter(|job| self.is_to_train(job)).collect();
        let outcomes = self.round(jobs, stop)?;
        let _turn = self.workers.turn()?;
        let others = self.workers.others()?;
        self.ledger.refresh(&others)?;
        self.ledger.add(outcomes)?;
        self.workers.plan(&[])?;
        self.report(&trained);
        if self.tables_written.is_none_or(|at| at.elapsed() >= TABLES_AFTER) {
            self.ledger.write_tables()?;
            self.tables_written = Some(Instant::now());
        }
        Ok(())
    }

    /// The tables of what all workers have recorded.
    fn last_tables(&mut self) -> Result<()> {
        let _turn = self.workers.turn()?;
        let others = self.workers.others()?;
        self.ledger.refresh(&others)?;
        self.ledger.write_tables()
    }

    /// Whether a run of the job's trial has fewer epochs on record than the job needs.
    fn is_to_train(&self, job: &Job) -> bool {
        (0..self.ledger.runs.len()).any(|run| self.ledger.accounts[job.trial].lacks(run, job.until))
    }

    /// Trains the jobs' trials, run by run.
    fn round(&mut self, jobs: &[Job], stop: &AtomicBool) -> Result<Vec<(Job, Outcome)>> {
        let mut ends: HashMap<usize, End> = HashMap::new();
        for job in jobs.iter().filter(|job| self.is_to_train(job)).copied().collect::<Vec<_>>() {
            self.announce(&job);
        }
        for run in 0..self.ledger.runs.len() {
            let lacking = |job: &&Job| !ends.contains_key(&job.trial) && self.ledger.accounts[job.trial].lacks(run, job.until);
            let tasks: Vec<Task> = jobs.iter().filter(lacking).map(|job| self.task(job)).collect();
            if tasks.is_empty() {
                continue;
            }
            for task in &tasks {
                self.ledger.clear_run(task.trial, run)?;
            }
            let mut errors = self.trainer.train(self.ledger.runs[run], &tasks, stop);
            // The machine's faults are no trial's: any other would fail in the same way.
            if let Some(at) = errors.iter().position(|(_, error)| error.is_of_the_machine()) {
                return Err(errors.swap_remove(at).1);
            }
            for task in &tasks {
                self.ledger.read_again(task.trial, run)?;
            }
            for (trial, error) in errors {
                let diverged = matches!(error, TrainError::Diverged { .. });
                self.ledger.accounts[trial].failures += u32::from(!diverged);
                ends.insert(trial, End::Failed { reason: error.in_short(), diverged });
            }
            if stop.load(Ordering::Relaxed) {
                return Err(self.stopped());
            }
        }
        let mut outcome = |job: &Job| {
            let (trial, account) = (&self.ledger.scheduler.trials[job.trial], &self.ledger.accounts[job.trial]);
            let scores = account.scores(&trial.rungs, job.until);
            if (0..account.epochs.len()).any(|run| account.lacks(run, job.until)) {
                // Otherwise it would be tried for ever.
                let reason = format!("it has fewer than {} on record after it was trained", counted(job.until, "epoch"));
                ends.entry(job.trial).or_insert(End::Failed { reason, diverged: false });
            }
            Outcome { spent: account.spent(), result: ends.remove(&job.trial).map_or(Ok(scores), Err) }
        };
        Ok(jobs.iter().copied().zip(jobs.iter().map(&mut outcome).collect::<Vec<_>>()).collect())
    }

    fn task(&self, job: &Job) -> Task {
        let Trial { point, config, .. } = &self.ledger.scheduler.trials[job.trial];
        Task {
            trial: job.trial,
            id: point.id.clone(),
            searched: point.searched(&self.record.config),
            config: config.clone(),
            until: job.until,
            progress: self.trial_progress.get(&job.trial).cloned(),
        }
    }

    fn name(&self, trial: usize) -> String {
        let Trial { number, point, .. } = &self.ledger.scheduler.trials[trial];
        format!("trial {number} {}", settings_text(&point.searched(&self.record.config)))
    }

    fn announce(&mut self, job: &Job) {
        let done = |epochs: &Vec<_>| (epochs.len() as u64).min(job.until.into());
        let phase = Phase {
            name: &self.name(job.trial),
            unit: Unit::Epochs,
            total: Some(u64::from(job.until) * self.ledger.runs.len() as u64),
            done: self.ledger.accounts[job.trial].epochs.iter().map(done).sum(),
        };
        self.trial_progress.insert(job.trial, self.observer.begin(phase).into());
    }

    /// Reports the trials' results in a round, and the sweep's progress.
    fn report(&mut self, jobs: &[Job]) {
        self.trial_progress.clear();
        let trials = &self.ledger.scheduler.trials;
        for job in jobs {
            let trial = &trials[job.trial];
            let score = trial.scores.last().map_or(String::new(), score_text);
            let came_to = match &trial.end {
                None => format!("waits after {}{score}", counted(trial.epochs(), "epoch")),
                Some(End::Finished) => format!("finished after {}{score}", counted(trial.epochs(), "epoch")),
                Some(End::Pruned(reason)) => format!("pruned{score}: {reason}"),
                Some(End::Failed { reason, diverged: true }) => format!("diverged: {reason}"),
                Some(End::Failed { reason, diverged: false }) => format!("failed: {reason}"),
            };
            self.observer.message(&format!("{}: {came_to}", self.name(job.trial)));
        }
        let count = |is: fn(&End) -> bool| trials.iter().filter(|trial| trial.end.as_ref().is_some_and(is)).count();
        let (pruned, failed) = (count(|end| matches!(end, End::Pruned(_))), count(|end| matches!(end, End::Failed { .. })));
        let best = self.ledger.scheduler.order().first().copied().filter(|&trial| !trials[trial].scores.is_empty());
        let best = best.map_or(String::new(), |trial| {
            let score = trials[trial].scores.last().map_or(String::new(), score_text);
            format!(", best {}{score}", self.name(trial))
        });
        let ended = count(|_| true);
        self.progress.advance(ended.saturating_sub(self.ended) as u64);
        self.ended = ended;
        self.progress.describe(&format!("{pruned} pruned, {failed} failed{best}"));
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
