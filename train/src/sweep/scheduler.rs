//! Decides what is trained next. The scheduler depends only on the sweep's config and on the trials that it is given, with their recorded
//! results. It uses no clock and no file, so a sweep that starts again from its records makes the same decisions. The training time is part
//! of these results: it is recorded with the epochs.

use super::ranking::{self, Score, fronts, ranks};
use super::space::{Point, Space};
use super::tpe::Observed;
use crate::error::Result;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::sweep::{Pruning, SweepConfig};
use sam_ladder_schemas::train::TrainConfig;
use std::collections::HashSet;

/// Start of the reason of a trial that the median has ended; other pruned trials wait, and a larger budget may continue them.
const BELOW_MEDIAN: &str = "worse than the median";

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

/// What a trial has cost, as recorded with its epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Spent {
    /// Epochs of all its runs.
    pub(crate) epochs: u64,
    /// Their seconds.
    pub(crate) seconds: f64,
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
    /// Epochs that its record has. If they are more than its scores show, its runs' records were damaged, and it is trained again.
    pub(crate) recorded: u32,
    pub(crate) spent: Spent,
    pub(crate) end: Option<End>,
}

impl Trial {
    /// Epochs that each of its runs has finished.
    pub(crate) fn epochs(&self) -> u32 {
        self.scores.len().checked_sub(1).map_or(0, |rung| self.rungs[rung])
    }

    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none()
    }

    fn failed(&self) -> bool {
        matches!(self.end, Some(End::Failed { .. }))
    }

    /// Whether a part of its records is lost.
    fn is_damaged(&self) -> bool {
        self.is_open() && self.recorded > self.epochs()
    }
}

/// Whether a pruned trial with this reason stays pruned, whatever the budget.
pub(crate) fn is_final_reason(reason: &str) -> bool {
    reason.starts_with(BELOW_MEDIAN)
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
    /// The scores at all rungs up to the job's last epoch, or why the trial ended.
    pub(crate) result: std::result::Result<Vec<Score>, End>,
    /// What the trial has cost so far.
    pub(crate) spent: Spent,
}

pub(crate) struct Scheduler<'a> {
    config: &'a SweepConfig,
    space: Space<'a>,
    /// All trials of the sweep, whoever trains them. A trial keeps its index.
    pub(crate) trials: Vec<Trial>,
}

impl<'a> Scheduler<'a> {
    /// # Errors
    /// A grid of too many points.
    pub(crate) fn new(config: &'a SweepConfig) -> Result<Self> {
        Ok(Scheduler { config, space: Space::new(config)?, trials: Vec::new() })
    }

    /// A trial of which nothing was trained.
    pub(crate) fn trial(&self, number: u32, point: Point) -> Trial {
        let (config, end) = match point.config() {
            Ok(config) => (config, None),
            Err(reason) => (TrainConfig::default(), Some(End::Failed { reason: reason.to_string(), diverged: true })),
        };
        let rungs = self.rungs(config.epochs as u32);
        Trial { number, point, config, rungs, scores: Vec::new(), recorded: 0, spent: Spent::default(), end }
    }

    /// Index of the trial with this id.
    pub(crate) fn index(&self, id: &str) -> Option<usize> {
        self.trials.iter().position(|trial| trial.point.id == id)
    }

    /// Upper limit of the number of trials, if known.
    pub(crate) fn most_trials(&self) -> Option<usize> {
        let budget = self.config.budget.trials.map(|trials| trials as usize);
        let all = budget.into_iter().chain(self.space.known_size()).min()?;
        Some(all.max(self.trials.len()))
    }

    /// Up to `most` jobs that can run at the same time, in addition to those that other workers do; empty if there is nothing to do.
    pub(crate) fn next_jobs(&mut self, most: usize, others: &[Job]) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        while jobs.len() < most
            && let Some(job) = self.next_job(&jobs, others)
        {
            jobs.push(job);
        }
        jobs
    }

    /// Whether results of the other workers may lead to further jobs.
    pub(crate) fn may_follow(&self, others: &[Job]) -> bool {
        !others.is_empty() && matches!(self.config.pruning, Pruning::Asha { .. }) && !self.is_out_of_budget(others)
    }

    /// Whether the budget is spent once these jobs are done.
    fn is_out_of_budget(&self, planned: &[Job]) -> bool {
        let runs = self.config.runs_per_trial() as u64;
        let cost = |job: &Job| u64::from(job.until.saturating_sub(self.trials[job.trial].epochs())) * runs;
        let epochs = || self.trials.iter().map(|trial| trial.spent.epochs).sum::<u64>() + planned.iter().map(cost).sum::<u64>();
        let seconds = || self.trials.iter().map(|trial| trial.spent.seconds).sum::<f64>();
        let budget = &self.config.budget;
        budget.epochs.is_some_and(|most| epochs() >= most) || budget.hours.is_some_and(|hours| seconds() >= hours * 3600.0)
    }

    fn next_job(&mut self, jobs: &[Job], others: &[Job]) -> Option<Job> {
        let planned = [jobs, others].concat();
        let busy = |trial: usize| planned.iter().any(|job| job.trial == trial);
        // What a damaged record had was paid for before.
        if let Some(damaged) = self.first(|trial| trial.is_damaged(), &busy) {
            return Some(self.job(damaged));
        }
        if self.is_out_of_budget(&planned) {
            return None;
        }
        let Pruning::Asha { reduction, .. } = self.config.pruning else {
            let open = self.first(Trial::is_open, &busy);
            return open.map(|trial| self.job(trial)).or_else(|| self.begin());
        };
        // A trial that was interrupted or failed before its first rung is not one that waits.
        let next = self.first(|trial| trial.is_open() && trial.scores.is_empty(), &busy);
        let next = next.or_else(|| self.promotable(reduction as usize, &busy));
        let job = next.map(|trial| self.job(trial)).or_else(|| self.begin());
        // At the end of the search at least one trial is trained to its last epoch, however few there are.
        job.or_else(|| if planned.is_empty() { self.last_promotion() } else { None })
    }

    /// The trial with the lowest number among those that are `wanted` and not busy.
    fn first(&self, wanted: impl Fn(&Trial) -> bool, busy: &impl Fn(usize) -> bool) -> Option<usize> {
        let found = (0..self.trials.len()).filter(|&trial| wanted(&self.trials[trial]) && !busy(trial));
        found.min_by_key(|&trial| self.trials[trial].number)
    }

    fn job(&self, trial: usize) -> Job {
        let Trial { rungs, scores, .. } = &self.trials[trial];
        Job { trial, until: rungs[scores.len().min(rungs.len() - 1)] }
    }

    /// Starts a new trial, with the lowest number that is free.
    fn begin(&mut self) -> Option<Job> {
        let mut numbers: HashSet<u32> = self.trials.iter().map(|trial| trial.number).collect();
        let taken: HashSet<String> = self.trials.iter().map(|trial| trial.point.id.clone()).collect();
        loop {
            let number = (0..).find(|number| !numbers.contains(number))?;
            if self.config.budget.trials.is_some_and(|most| number >= most) {
                return None;
            }
            let point = self.choose(number, &taken)?;
            numbers.insert(number);
            // A point of a grid that has another number already.
            if taken.contains(&point.id) {
                continue;
            }
            let trial = self.trial(number, point);
            let open = trial.is_open();
            self.trials.push(trial);
            if open {
                return Some(self.job(self.trials.len() - 1));
            }
        }
    }

    fn choose(&self, number: u32, taken: &HashSet<String>) -> Option<Point> {
        let order = self.order();
        let observed: Vec<Observed<'_>> = order
            .iter()
            .map(|&trial| &self.trials[trial])
            .map(|trial| Observed { settings: &trial.point.settings, has_value: !trial.scores.is_empty() || trial.failed() })
            .collect();
        self.space.point(number, taken, &observed)
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
        let number = |index: usize| self.trials[there[index]].number;
        let mut order: Vec<usize> = (0..there.len()).collect();
        order.sort_by(|&left, &right| {
            let by_value = fronts[left].cmp(&fronts[right]).then(costs[left][0].total_cmp(&costs[right][0]));
            by_value.then_with(|| number(left).cmp(&number(right)))
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
        let best = best.or_else(|| self.first(Trial::is_open, &|_| false));
        best.map(|trial| self.job(trial))
    }

    /// Records the results of a round's jobs.
    pub(crate) fn record(&mut self, outcomes: Vec<(Job, Outcome)>) {
        for (job, outcome) in &outcomes {
            let trial = &mut self.trials[job.trial];
            trial.spent = outcome.spent;
            match &outcome.result {
                Ok(scores) => trial.scores = scores.clone(),
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
                // What is trained again had passed these rungs; its record is not replaced by less.
                .filter(|(job, _)| !self.trials[job.trial].is_damaged())
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
        worse.then(|| format!("{BELOW_MEDIAN} of {} after {}", counted(others.len(), "trial"), counted(epochs, "epoch")))
    }

    /// Ends the sweep: trials that wait are pruned.
    pub(crate) fn close(&mut self) {
        let places: Vec<(usize, String)> = (0..self.trials.len())
            .filter(|&trial| self.trials[trial].is_open())
            .map(|trial| {
                let reason = match self.trials[trial].scores.len().checked_sub(1) {
                    None => "the budget ended before it was trained".to_string(),
                    Some(rung) => {
                        let there = self.best_at(rung);
                        let place = there.iter().position(|&other| other == trial).unwrap_or(there.len()) + 1;
                        format!("number {place} of {} after {}", there.len(), counted(self.trials[trial].epochs(), "epoch"))
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
        let number = |trial: usize| self.trials[trial].number;
        let key = |trial: usize| (ranks[trial].unwrap_or(u32::MAX), !self.trials[trial].failed());
        order.sort_by(|&left, &right| {
            key(left).cmp(&key(right)).then(first_cost(left).total_cmp(&first_cost(right))).then(number(left).cmp(&number(right)))
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
        let scores = trial.rungs.iter().filter(|&&rung| rung <= until).map(|&rung| dice(trial, rung)).collect();
        let spent = Spent { epochs: until.into(), seconds: f64::from(until) * 600.0 };
        Outcome { result: Ok(scores), spent }
    }

    /// Runs a sweep to its end; returns the number of epochs.
    fn run(scheduler: &mut Scheduler<'_>, jobs: usize) -> u64 {
        loop {
            let jobs = scheduler.next_jobs(jobs, &[]);
            if jobs.is_empty() {
                scheduler.close();
                return scheduler.trials.iter().map(|trial| trial.spent.epochs).sum();
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
        let mut scheduler = Scheduler::new(&config).unwrap();
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
            let mut scheduler = Scheduler::new(&asha).unwrap();
            let spent = run(&mut scheduler, jobs);
            assert!(spent <= 9 + 3 * 2 + 6 + 12, "{jobs} jobs: {spent} epochs");
            let [finished, pruned] = ends(&scheduler);
            assert!(finished >= 1 && finished + pruned == 9, "{finished} {pruned}");
            let whole = config("", "grid", "");
            let mut all = Scheduler::new(&whole).unwrap();
            run(&mut all, 1);
            assert_eq!(scheduler.trials[scheduler.order()[0]].point, all.trials[all.order()[0]].point);
        }
    }

    #[test]
    fn two_trials_under_successive_halving_end_with_one_that_is_trained_out() {
        let config = config("method = \"asha\"", "random", "trials = 2");
        let mut scheduler = Scheduler::new(&config).unwrap();
        run(&mut scheduler, 1);
        assert_eq!(ends(&scheduler), [1, 1]);
    }

    #[test]
    fn the_median_gives_up_the_worse_half() {
        let config = config("method = \"median\"\nstartup = 3", "random", "trials = 20");
        let mut scheduler = Scheduler::new(&config).unwrap();
        let spent = run(&mut scheduler, 2);
        let [finished, pruned] = ends(&scheduler);
        assert!(finished >= 5 && pruned >= 5 && finished + pruned == 20, "{finished} {pruned}");
        assert!(spent < 150, "{spent}");
        let best = scheduler.order()[0];
        let least = |trial: &Trial| (trial.point.settings["lr"].as_f64().unwrap() / 1e-2).log10().abs();
        assert!(scheduler.trials.iter().all(|trial| least(trial) >= least(&scheduler.trials[best])));
    }

    /// The median does not judge a trial that is trained again, because its runs were damaged, before it has what its record says: a record
    /// is not replaced by less, so each start would train it anew.
    #[test]
    fn a_damaged_trial_gets_back_what_it_had() {
        let config = config("method = \"median\"\nstartup = 3", "random", "trials = 20");
        let mut scheduler = Scheduler::new(&config).unwrap();
        run(&mut scheduler, 2);
        let value = |trial: &Trial| dice(trial, 9).dice.unwrap();
        let worst = (0..20).min_by(|&a, &b| value(&scheduler.trials[a]).total_cmp(&value(&scheduler.trials[b]))).unwrap();
        let Trial { number, point, .. } = scheduler.trials[worst].clone();
        scheduler.trials[worst] = Trial { recorded: 3, ..scheduler.trial(number, point) };
        let mut trained = Vec::new();
        while let Some(&job) = scheduler.next_jobs(1, &[]).first() {
            let outcome = outcome(&scheduler.trials[job.trial], job.until);
            scheduler.record(vec![(job, outcome)]);
            trained.push((job.trial, job.until));
        }
        assert_eq!(trained, [(worst, 1), (worst, 2), (worst, 3)]);
        assert!(matches!(&scheduler.trials[worst].end, Some(End::Pruned(reason)) if is_final_reason(reason)));
    }

    #[test]
    fn budgets_of_epochs_end_a_sweep() {
        let config = config("", "random", "epochs = 30");
        let mut scheduler = Scheduler::new(&config).unwrap();
        // The fourth trial starts below the budget and is trained to its last epoch.
        assert_eq!(run(&mut scheduler, 1), 36);
        assert_eq!(ends(&scheduler), [4, 0]);
    }

    #[test]
    fn hours_are_those_on_record() {
        let config = config("", "random", "hours = 5");
        let mut scheduler = Scheduler::new(&config).unwrap();
        // Trials take an hour and a half: the fourth starts before the five hours are over and is trained to its last epoch.
        assert_eq!(run(&mut scheduler, 1), 36);
        assert_eq!(ends(&scheduler), [4, 0]);
    }

    /// The trials of a sweep that was interrupted after some rounds, given to a new scheduler: it ends as the first one.
    #[test]
    fn given_the_same_results_it_decides_the_same() {
        let config = config("method = \"asha\"", "tpe", "trials = 30");
        let mut first = Scheduler::new(&config).unwrap();
        let mut second = Scheduler::new(&config).unwrap();
        for _ in 0..17 {
            let jobs = first.next_jobs(2, &[]);
            let outcomes = jobs.iter().map(|&job| (job, outcome(&first.trials[job.trial], job.until))).collect();
            first.record(outcomes);
        }
        second.trials = first.trials.clone();
        second.trials.sort_by_key(|trial| trial.number);
        run(&mut first, 2);
        run(&mut second, 2);
        let points =
            |scheduler: &Scheduler<'_>| -> Vec<Point> { scheduler.trials.iter().map(|trial| trial.point.clone()).collect() };
        assert_eq!(points(&first), points(&second));
        assert_eq!(first.ranks(), second.ranks());
    }

    /// What other workers do counts: their points are not drawn again, their numbers are not given twice, and their epochs are spent.
    #[test]
    fn jobs_of_other_workers_count() {
        let config = config("", "random", "epochs = 27");
        let mut scheduler = Scheduler::new(&config).unwrap();
        let theirs = scheduler.next_jobs(2, &[]);
        assert_eq!(scheduler.next_jobs(9, &theirs), [Job { trial: 2, until: 9 }]);
        assert_eq!(scheduler.trials.iter().map(|trial| trial.number).collect::<Vec<_>>(), [0, 1, 2]);
        // A gap in the numbers is filled.
        scheduler.trials.remove(1);
        assert_eq!(scheduler.next_jobs(9, &[Job { trial: 0, until: 9 }]).len(), 2);
        let mut numbers: Vec<u32> = scheduler.trials.iter().map(|trial| trial.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    }

    #[test]
    fn failures_rank_behind_and_do_not_stop_the_rest() {
        let config = config("", "grid", "");
        let mut scheduler = Scheduler::new(&config).unwrap();
        loop {
            let jobs = scheduler.next_jobs(1, &[]);
            let Some(&job) = jobs.first() else { break };
            let trial = &scheduler.trials[job.trial];
            let outcome = if trial.number == 4 {
                Outcome { result: Err(End::Failed { reason: "out of memory".into(), diverged: false }), spent: Spent::default() }
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
