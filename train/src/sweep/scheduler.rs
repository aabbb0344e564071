//! Decides what is trained next. The scheduler depends only on the sweep's config and the results of each round. It uses no clock and no
//! file, so a sweep that starts again with the recorded results makes the same decisions. The training time is part of these results: it is
//! recorded with the epochs.

use super::ranking::{self, Score, fronts, ranks};
use super::space::{Point, Space};
use super::tpe::Observed;
use crate::error::Result;
use sam_ladder_schemas::sweep::{Pruning, SweepConfig};
use sam_ladder_schemas::train::TrainConfig;
use std::collections::HashSet;

/// How a trial ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// Trained to its last epoch.
    Finished,
    /// Stopped early, with the reason.
    Pruned(String),
    /// An error.
    Failed {
        /// Its text.
        reason: String,
        /// Whether the loss or a weight was not finite: the same seed would end the same way.
        diverged: bool,
    },
}

/// A started trial.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) number: u32,
    pub(crate) point: Point,
    pub(crate) config: TrainConfig,
    /// Epochs after which it is compared; the last is the whole run.
    pub(crate) rungs: Vec<u32>,
    /// Its scores at the rungs that it has reached.
    pub(crate) scores: Vec<Score>,
    pub(crate) end: Option<End>,
}

impl Trial {
    /// Epochs that each of its runs has finished.
    pub(crate) fn epochs(&self) -> u32 {
        self.scores.len().checked_sub(1).map_or(0, |rung| self.rungs[rung])
    }

    fn is_open(&self) -> bool {
        self.end.is_none()
    }

    fn failed(&self) -> bool {
        matches!(self.end, Some(End::Failed { .. }))
    }
}

/// A part of a trial: train it up to `until` epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// Index among the scheduler's trials.
    pub(crate) trial: usize,
    /// Epochs that each run has finished afterwards.
    pub(crate) until: u32,
}

/// Result of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// The score after the job's last epoch, or why the trial ended.
    pub(crate) result: std::result::Result<Score, End>,
    /// Recorded seconds of the job's epochs.
    pub(crate) seconds: f64,
}

/// Points chosen by an earlier start of the sweep, by number.
pub(crate) type Chosen = std::collections::HashMap<u32, Point>;

pub(crate) struct Scheduler<'a> {
    config: &'a SweepConfig,
    space: Space<'a>,
    chosen: Chosen,
    /// This worker's number, from 1, and the number of workers n: its trials are every n-th number.
    worker: (u32, u32),
    /// This worker's trials; all trials if there is only one worker.
    pub(crate) trials: Vec<Trial>,
    taken: HashSet<String>,
    /// Set once the search has no more points.
    exhausted: bool,
    /// Set at the sweep's end.
    closed: bool,
    epochs_spent: u64,
    seconds_spent: f64,
}

impl<'a> Scheduler<'a> {
    /// # Errors
    /// A grid of too many points.
    pub(crate) fn new(config: &'a SweepConfig, chosen: Chosen, worker: (u32, u32)) -> Result<Self> {
        let space = Space::new(config)?;
        // Trials that another worker has started are not started here.
        let taken = chosen.values().map(|point| point.id.clone()).collect();
        Ok(Scheduler {
            config,
            space,
            chosen,
            worker,
            trials: Vec::new(),
            taken,
            exhausted: false,
            closed: false,
            epochs_spent: 0,
            seconds_spent: 0.0,
        })
    }

    /// Upper limit of the number of trials, if known.
    pub(crate) fn most_trials(&self) -> Option<usize> {
        let budget = self.config.budget.trials.map(|trials| trials as usize);
        let all = budget.into_iter().chain(self.space.known_size()).min()?;
        let (index, count) = (self.worker.0 as usize, self.worker.1 as usize);
        Some((all + count - index) / count)
    }

    /// Up to `most` jobs that can run at the same time; empty if the sweep has ended.
    pub(crate) fn next_jobs(&mut self, most: usize) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        while !self.closed && jobs.len() < most && !self.is_out_of_budget(&jobs) {
            let Some(job) = self.next_job(&jobs) else { break };
            jobs.push(job);
        }
        if jobs.is_empty() {
            self.close();
        }
        jobs
    }

    fn is_out_of_budget(&self, jobs: &[Job]) -> bool {
        let runs = self.config.runs_per_trial() as u64;
        let planned: u64 = jobs.iter().map(|job| u64::from(job.until - self.trials[job.trial].epochs()) * runs).sum();
        let budget = &self.config.budget;
        budget.epochs.is_some_and(|most| self.epochs_spent + planned >= most)
            || budget.hours.is_some_and(|hours| self.seconds_spent >= hours * 3600.0)
    }

    fn next_job(&mut self, jobs: &[Job]) -> Option<Job> {
        let busy = |trial: usize| jobs.iter().any(|job| job.trial == trial);
        if let Pruning::Asha { reduction, .. } = self.config.pruning {
            let promoted = self.promotable(reduction as usize, &busy);
            let job = promoted.map(|trial| self.job(trial)).or_else(|| self.begin());
            // At the end of the search at least one trial is trained to its last epoch, however few there are.
            return job.or_else(|| if jobs.is_empty() { self.last_promotion() } else { None });
        }
        let open = (0..self.trials.len()).find(|&trial| self.trials[trial].is_open() && !busy(trial));
        open.map(|trial| self.job(trial)).or_else(|| self.begin())
    }

    fn job(&self, trial: usize) -> Job {
        let Trial { rungs, scores, .. } = &self.trials[trial];
        Job { trial, until: rungs[scores.len().min(rungs.len() - 1)] }
    }

    /// Starts a new trial.
    fn begin(&mut self) -> Option<Job> {
        while !self.exhausted {
            let number = self.trials.len() as u32 * self.worker.1 + self.worker.0 - 1;
            let over = self.config.budget.trials.is_some_and(|most| number >= most);
            let point = if over { None } else { self.chosen.remove(&number).or_else(|| self.choose(number)) };
            let Some(point) = point else {
                self.exhausted = true;
                return None;
            };
            self.taken.insert(point.id.clone());
            let config = point.config();
            let (config, end) = match config {
                Ok(config) => (config, None),
                Err(reason) => (TrainConfig::default(), Some(End::Failed { reason: reason.to_string(), diverged: true })),
            };
            let open = end.is_none();
            let rungs = self.rungs(config.epochs as u32);
            self.trials.push(Trial { number, point, config, rungs, scores: Vec::new(), end });
            if open {
                return Some(self.job(self.trials.len() - 1));
            }
        }
        None
    }

    fn choose(&self, number: u32) -> Option<Point> {
        let order = self.order();
        let observed: Vec<Observed<'_>> = order
            .iter()
            .map(|&trial| &self.trials[trial])
            .map(|trial| Observed { settings: &trial.point.settings, has_value: !trial.scores.is_empty() || trial.failed() })
            .collect();
        self.space.point(number, &self.taken, &observed)
    }

    /// The epochs at which a run of `epochs` epochs is compared.
    fn rungs(&self, epochs: u32) -> Vec<u32> {
        let mut rungs = Vec::new();
        match self.config.pruning {
            Pruning::None => {}
            Pruning::Asha { min_epochs, reduction } => {
                let mut rung = min_epochs;
                while rung < epochs {
                    rungs.push(rung);
                    rung = rung.saturating_mul(reduction);
                }
            }
            Pruning::Median { min_epochs, interval, .. } => {
                rungs.extend((min_epochs..epochs).step_by(interval as usize));
            }
        }
        rungs.push(epochs);
        rungs
    }

    /// Algorithm 2 of Li et al. 2018: from the highest rung down, a trial among the best 1/η of those that reached a rung, and not yet trained
    /// further.
    fn promotable(&self, reduction: usize, busy: &impl Fn(usize) -> bool) -> Option<usize> {
        let highest = self.trials.iter().map(|trial| trial.rungs.len()).max().unwrap_or(0);
        (0..highest).rev().find_map(|rung| {
            let there = self.best_at(rung);
            let best = &there[..there.len() / reduction];
            let waits = |&&trial: &&usize| {
                let Trial { scores, rungs, .. } = &self.trials[trial];
                scores.len() == rung + 1 && rung + 1 < rungs.len() && self.trials[trial].is_open() && !busy(trial)
            };
            best.iter().find(waits).copied()
        })
    }

    /// Trials with a score at a rung, best first.
    fn best_at(&self, rung: usize) -> Vec<usize> {
        let there: Vec<usize> = (0..self.trials.len()).filter(|&trial| self.trials[trial].scores.len() > rung).collect();
        let costs: Vec<Vec<f64>> =
            there.iter().map(|&trial| self.trials[trial].scores[rung].costs(&self.config.objectives)).collect();
        let fronts = fronts(&costs);
        let mut order: Vec<usize> = (0..there.len()).collect();
        order.sort_by(|&left, &right| {
            fronts[left].cmp(&fronts[right]).then(costs[left][0].total_cmp(&costs[right][0])).then(left.cmp(&right))
        });
        order.into_iter().map(|index| there[index]).collect()
    }

    /// If no trial was trained to its last epoch: continues the best of the highest rung.
    fn last_promotion(&self) -> Option<Job> {
        if self.trials.iter().any(|trial| trial.end == Some(End::Finished)) {
            return None;
        }
        let highest = self.trials.iter().map(|trial| trial.scores.len()).max().filter(|&rungs| rungs > 0)?;
        let best = self.best_at(highest - 1).into_iter().find(|&trial| self.trials[trial].is_open());
        // Failed trials may hold the highest rung.
        let best = best.or_else(|| (0..self.trials.len()).find(|&trial| self.trials[trial].is_open()));
        best.map(|trial| self.job(trial))
    }

    /// Records the results of a round's jobs.
    pub(crate) fn record(&mut self, outcomes: Vec<(Job, Outcome)>) {
        let runs = self.config.runs_per_trial() as u64;
        for (job, outcome) in &outcomes {
            self.epochs_spent += u64::from(job.until - self.trials[job.trial].epochs()) * runs;
            self.seconds_spent += outcome.seconds;
            let trial = &mut self.trials[job.trial];
            match &outcome.result {
                Ok(score) => trial.scores.push(*score),
                Err(end) => trial.end = Some(end.clone()),
            }
            if trial.is_open() && trial.scores.len() == trial.rungs.len() {
                trial.end = Some(End::Finished);
            }
        }
        // Compared when all scores of the round are known, so that the order of its jobs does not matter.
        if let Pruning::Median { startup, .. } = self.config.pruning {
            let pruned: Vec<(usize, String)> = outcomes
                .iter()
                .filter_map(|(job, _)| Some((job.trial, self.below_median(job.trial, startup as usize)?)))
                .collect();
            for (trial, reason) in pruned {
                self.trials[trial].end = Some(End::Pruned(reason));
            }
        }
    }

    /// Why a trial is stopped at its current rung: it is worse than the median of the others there in each objective.
    fn below_median(&self, trial: usize, startup: usize) -> Option<String> {
        let this = &self.trials[trial];
        let (rung, epochs) = (this.scores.len().checked_sub(1)?, this.epochs());
        if !this.is_open() {
            return None;
        }
        let costs = |trial: &Trial| -> Option<Vec<f64>> {
            let rung = trial.rungs.iter().position(|&at| at == epochs)?;
            Some(trial.scores.get(rung)?.costs(&self.config.objectives))
        };
        let others: Vec<Vec<f64>> = self.trials.iter().filter(|other| other.number != this.number).filter_map(costs).collect();
        if others.len() < startup {
            return None;
        }
        let median = |objective: usize| {
            let mut values: Vec<f64> = others.iter().map(|costs| costs[objective]).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
        };
        let own = this.scores[rung].costs(&self.config.objectives);
        let worse = own.iter().enumerate().all(|(objective, &cost)| cost > median(objective));
        worse.then(|| format!("worse than the median of {} trials after {epochs} epochs", others.len()))
    }

    /// Ends the sweep: trials that wait for a higher rung are pruned.
    fn close(&mut self) {
        self.closed = true;
        let places: Vec<(usize, String)> = (0..self.trials.len())
            .filter(|&trial| self.trials[trial].is_open())
            .map(|trial| {
                let reason = match self.trials[trial].scores.len().checked_sub(1) {
                    None => "the budget ended before it was trained".to_string(),
                    Some(rung) => {
                        let there = self.best_at(rung);
                        let place = there.iter().position(|&other| other == trial).unwrap_or(there.len()) + 1;
                        format!("number {place} of {} after {} epochs", there.len(), self.trials[trial].epochs())
                    }
                };
                (trial, reason)
            })
            .collect();
        for (trial, reason) in places {
            self.trials[trial].end = Some(End::Pruned(reason));
        }
    }

    /// All trials, best first: first those trained to their last epoch, then by how far they were trained, by objective, and by number. Failed
    /// trials come after those with a value; trials without a first result come last.
    pub(crate) fn order(&self) -> Vec<usize> {
        let ranks = self.ranks();
        let mut order: Vec<usize> = (0..self.trials.len()).collect();
        let first_cost = |trial: usize| {
            self.trials[trial].scores.last().map_or(f64::INFINITY, |score| score.costs(&self.config.objectives)[0])
        };
        let key = |trial: usize| (ranks[trial].unwrap_or(u32::MAX), !self.trials[trial].failed());
        order.sort_by(|&left, &right| {
            key(left).cmp(&key(right)).then(first_cost(left).total_cmp(&first_cost(right))).then(left.cmp(&right))
        });
        order
    }

    /// The rank of each trial: see [`ranks`].
    pub(crate) fn ranks(&self) -> Vec<Option<u32>> {
        let result = |trial: &Trial| {
            let score = trial.scores.last().filter(|_| !trial.failed())?;
            let finished = trial.end == Some(End::Finished);
            Some(ranking::Reached { finished, epochs: trial.epochs(), costs: score.costs(&self.config.objectives) })
        };
        ranks(&self.trials.iter().map(result).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::sweep::parse_sweep;

    fn config(pruning: &str, search: &str, budget: &str) -> SweepConfig {
        let text = format!(
            "[settings]\nepochs = 9\nlr = {{ min = 1e-4, max = 1e-1, scale = \"log\", points = 9 }}\n[search]\nmethod = \"{search}\"\n\
             [pruning]\n{pruning}\n[validation]\nfold = \"1/2\"\n[budget]\n{budget}\n"
        );
        parse_sweep("s.toml", &text).unwrap()
    }

    /// Dice that improves with the epochs, and is best at an lr of 1e-2.
    fn dice(trial: &Trial, epochs: u32) -> Score {
        let distance = (trial.point.settings["lr"].as_f64().unwrap() / 1e-2).log10().abs();
        Score { dice: Some(1.0 - 0.2 * distance - 0.5 / f64::from(epochs + 1)), hd95: None }
    }

    /// An epoch takes ten minutes.
    fn outcome(trial: &Trial, until: u32) -> Outcome {
        Outcome { result: Ok(dice(trial, until)), seconds: f64::from(until - trial.epochs()) * 600.0 }
    }

    /// Runs a sweep to its end; returns the number of epochs.
    fn run(scheduler: &mut Scheduler<'_>, jobs: usize) -> u64 {
        loop {
            let jobs = scheduler.next_jobs(jobs);
            if jobs.is_empty() {
                return scheduler.epochs_spent;
            }
            let outcomes = jobs.iter().map(|&job| (job, outcome(&scheduler.trials[job.trial], job.until))).collect();
            scheduler.record(outcomes);
        }
    }

    fn ends(scheduler: &Scheduler<'_>) -> [usize; 2] {
        let count = |is: fn(&End) -> bool| scheduler.trials.iter().filter(|trial| trial.end.as_ref().is_some_and(is)).count();
        [count(|end| *end == End::Finished), count(|end| matches!(end, End::Pruned(_)))]
    }

    #[test]
    fn without_pruning_every_trial_is_trained_out() {
        let config = config("", "grid", "");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        assert_eq!(run(&mut scheduler, 2), 81);
        assert_eq!(ends(&scheduler), [9, 0]);
        let ranks = scheduler.ranks();
        let best = scheduler.order()[0];
        assert_eq!(scheduler.trials[best].point.settings["lr"], 7.49894e-3);
        assert_eq!(ranks[best], Some(1));
        assert_eq!(ranks.iter().flatten().max(), Some(&9));
    }

    #[test]
    fn successive_halving_trains_a_third_on_and_finds_the_same_best() {
        for jobs in [1, 2, 4] {
            let asha = config("method = \"asha\"", "grid", "");
            let mut scheduler = Scheduler::new(&asha, Chosen::new(), (1, 1)).unwrap();
            let spent = run(&mut scheduler, jobs);
            assert!(spent <= 9 + 3 * 2 + 6 + 12, "{jobs} jobs: {spent} epochs");
            let [finished, pruned] = ends(&scheduler);
            assert!(finished >= 1 && finished + pruned == 9, "{finished} {pruned}");
            let whole = config("", "grid", "");
            let mut all = Scheduler::new(&whole, Chosen::new(), (1, 1)).unwrap();
            run(&mut all, 1);
            assert_eq!(scheduler.trials[scheduler.order()[0]].point, all.trials[all.order()[0]].point);
        }
    }

    #[test]
    fn two_trials_under_successive_halving_end_with_one_that_is_trained_out() {
        let config = config("method = \"asha\"", "random", "trials = 2");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        run(&mut scheduler, 1);
        assert_eq!(ends(&scheduler), [1, 1]);
    }

    #[test]
    fn the_median_gives_up_the_worse_half() {
        let config = config("method = \"median\"\nstartup = 3", "random", "trials = 20");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        let spent = run(&mut scheduler, 2);
        let [finished, pruned] = ends(&scheduler);
        assert!(finished >= 5 && pruned >= 5 && finished + pruned == 20, "{finished} {pruned}");
        assert!(spent < 150, "{spent}");
        let best = scheduler.order()[0];
        let least = |trial: &Trial| (trial.point.settings["lr"].as_f64().unwrap() / 1e-2).log10().abs();
        assert!(scheduler.trials.iter().all(|trial| least(trial) >= least(&scheduler.trials[best])));
    }

    #[test]
    fn budgets_of_epochs_end_a_sweep() {
        let config = config("", "random", "epochs = 30");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        // The fourth trial starts below the budget and is trained to its last epoch.
        assert_eq!(run(&mut scheduler, 1), 36);
        assert_eq!(ends(&scheduler), [4, 0]);
    }

    #[test]
    fn hours_are_those_on_record() {
        let config = config("", "random", "hours = 5");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        // Trials take an hour and a half: the fourth starts before the five hours are over and is trained to its last epoch.
        assert_eq!(run(&mut scheduler, 1), 36);
        assert_eq!(ends(&scheduler), [4, 0]);
    }

    #[test]
    fn given_the_same_results_it_decides_the_same() {
        let config = config("method = \"asha\"", "tpe", "trials = 30");
        let mut first = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        run(&mut first, 2);
        let chosen = first.trials[..17].iter().map(|trial| (trial.number, trial.point.clone())).collect();
        let mut second = Scheduler::new(&config, chosen, (1, 1)).unwrap();
        run(&mut second, 2);
        let points =
            |scheduler: &Scheduler<'_>| -> Vec<Point> { scheduler.trials.iter().map(|trial| trial.point.clone()).collect() };
        assert_eq!(points(&first), points(&second));
        assert_eq!(first.ranks(), second.ranks());
    }

    #[test]
    fn failures_rank_behind_and_do_not_stop_the_rest() {
        let config = config("", "grid", "");
        let mut scheduler = Scheduler::new(&config, Chosen::new(), (1, 1)).unwrap();
        loop {
            let jobs = scheduler.next_jobs(1);
            let Some(&job) = jobs.first() else { break };
            let trial = &scheduler.trials[job.trial];
            let outcome = if trial.number == 4 {
                Outcome { result: Err(End::Failed { reason: "out of memory".into(), diverged: false }), seconds: 1.0 }
            } else {
                outcome(trial, job.until)
            };
            scheduler.record(vec![(job, outcome)]);
        }
        assert_eq!(scheduler.ranks()[4], None);
        assert_eq!(*scheduler.order().last().unwrap(), 4);
        assert_eq!(ends(&scheduler), [8, 0]);
    }
}
