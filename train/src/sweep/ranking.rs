//! Ranks trials: by one objective, or by the Pareto front of two.

use sam_ladder_schemas::sweep::Objective;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A trial's scores after some epochs: means over its runs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Score {
    /// Validation Dice.
    pub(crate) dice: Option<f64>,
    /// Validation HD95 in millimetres.
    pub(crate) hd95: Option<f64>,
}

impl Score {
    /// Costs to minimise, one per objective; an undefined value is worse than any other.
    pub(crate) fn costs(&self, objectives: &[Objective]) -> Vec<f64> {
        let cost = |objective: &Objective| match objective {
            Objective::Dice => self.dice.map(|dice| -dice),
            Objective::Hd95 => self.hd95,
        };
        objectives.iter().map(|objective| cost(objective).filter(|cost| cost.is_finite()).unwrap_or(f64::INFINITY)).collect()
    }
}

/// The Pareto front of each: 0 for those that no other dominates (better in one objective, worse in none), 1 for those that none dominates
/// once front 0 is removed, and so on. With one objective, its order.
pub(crate) fn fronts(costs: &[Vec<f64>]) -> Vec<u32> {
    let dominates = |left: &[f64], right: &[f64]| {
        let mut pairs = left.iter().zip(right);
        pairs.clone().all(|(left, right)| left <= right) && pairs.any(|(left, right)| left < right)
    };
    let mut front = vec![u32::MAX; costs.len()];
    let mut left: Vec<usize> = (0..costs.len()).collect();
    let mut number = 0;
    while !left.is_empty() {
        let (inner, rest): (Vec<usize>, Vec<usize>) =
            left.iter().partition(|&&one| left.iter().all(|&other| !dominates(&costs[other], &costs[one])));
        inner.into_iter().for_each(|one| front[one] = number);
        left = rest;
        number += 1;
    }
    front
}

/// How far a trial was trained, and its result there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reached {
    /// Trained to its last epoch.
    pub(crate) finished: bool,
    pub(crate) epochs: u32,
    /// See [`Score::costs`].
    pub(crate) costs: Vec<f64>,
}

/// The rank of each trial, from 1. Trials trained to their last epoch come first, then those trained further; trials trained equally far
/// are ordered by [`fronts`]. Equal trials share their rank; trials without a result have none.
pub(crate) fn ranks(results: &[Option<Reached>]) -> Vec<Option<u32>> {
    // Trials trained to their last epoch are compared only by value, whatever their number of epochs.
    let class = |result: &Reached| if result.finished { u32::MAX } else { result.epochs };
    let mut classes: BTreeMap<Reverse<u32>, Vec<(usize, &Reached)>> = BTreeMap::new();
    for (index, result) in results.iter().enumerate() {
        if let Some(result) = result {
            classes.entry(Reverse(class(result))).or_default().push((index, result));
        }
    }
    let mut ranks = vec![None; results.len()];
    let mut before = 0;
    for equally_far in classes.into_values() {
        let fronts = fronts(&equally_far.iter().map(|(_, result)| result.costs.clone()).collect::<Vec<_>>());
        for ((index, _), &front) in equally_far.iter().zip(&fronts) {
            let ahead = fronts.iter().filter(|&&other| other < front).count() as u32;
            ranks[*index] = Some(before + ahead + 1);
        }
        before += equally_far.len() as u32;
    }
    ranks
}

/// Mean and standard deviation (n - 1) of the values, if all are defined.
pub(crate) fn mean_and_deviation(values: &[Option<f64>]) -> (Option<f64>, Option<f64>) {
    let Some(values) = values.iter().copied().collect::<Option<Vec<f64>>>().filter(|values| !values.is_empty()) else {
        return (None, None);
    };
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let deviation =
        (values.len() > 1).then(|| (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt());
    (Some(mean), deviation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_objective_orders_and_two_make_fronts() {
        let score = |dice: Option<f64>, hd95: Option<f64>| Score { dice, hd95 };
        let scores = [
            score(Some(0.8), Some(5.0)),
            score(Some(0.9), Some(7.0)),
            score(Some(0.7), Some(6.0)),
            score(None, None),
            score(Some(0.8), Some(5.0)),
        ];
        let by = |objectives: &[Objective]| fronts(&scores.map(|score| score.costs(objectives)));
        assert_eq!(by(&[Objective::Dice]), [1, 0, 2, 3, 1]);
        assert_eq!(by(&[Objective::Hd95]), [0, 2, 1, 3, 0]);
        assert_eq!(by(&[Objective::Dice, Objective::Hd95]), [0, 0, 1, 2, 0]);
        assert!(fronts(&[]).is_empty());
    }

    #[test]
    fn trials_trained_further_rank_first() {
        let result = |finished, epochs, cost| Some(Reached { finished, epochs, costs: vec![cost] });
        let results = [
            result(false, 9, 0.1),
            result(true, 9, 0.5),
            None,
            result(true, 12, 0.4),
            result(false, 3, 0.0),
            result(false, 9, 0.1),
        ];
        assert_eq!(ranks(&results), [Some(3), Some(2), None, Some(1), Some(5), Some(3)]);
    }

    #[test]
    fn deviations_need_two_values_and_means_all_of_them() {
        assert_eq!(mean_and_deviation(&[Some(1.0), Some(3.0)]), (Some(2.0), Some(2f64.sqrt())));
        assert_eq!(mean_and_deviation(&[Some(1.0)]), (Some(1.0), None));
        assert_eq!(mean_and_deviation(&[Some(1.0), None]), (None, None));
        assert_eq!(mean_and_deviation(&[]), (None, None));
    }
}
