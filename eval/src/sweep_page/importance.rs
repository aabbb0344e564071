//! The share of the trials' differences that each setting explains.
//!
//! One-way analysis of variance. Trials are grouped by a setting's value: numbers into at most four groups of similar size, with equal
//! numbers always together; each word, and the setting's absence, into its own group. With N trials in k groups, SSW the sum of squares
//! within the groups and SST the total sum of squares,
//!
//! ```text
//! ε² = 1 - (SSW / (N - k)) / (SST / (N - 1))        (Kelley, "An unbiased correlation ratio measure", 1935)
//! ```
//!
//! is the share of the variance that the groups explain, corrected for what random groups would explain; a negative share is
//! reported as 0. Trials are compared at the last epoch that all of them reached, so that pruned trials are not worse only because they
//! ended early.

use super::curves::mean_curve;
use super::space::{Parameter, Trial, Values, is_measured};
use sam_ladder_schemas::sweep::{CurveRow, Objective};
use std::collections::BTreeMap;

/// Maximal number of groups for numbers.
const MAX_GROUPS: usize = 4;

/// The importance of each setting.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Importance {
    /// Number of compared trials.
    pub trials: usize,
    /// Epochs after which they were compared.
    pub epochs: u32,
    /// Each setting's name and ε², the largest first; `None` if there are too few trials.
    pub shares: Vec<(String, Option<f64>)>,
}

/// Compares the trials that ended without an error; `None` if fewer than three can be compared.
pub(crate) fn importance(
    trials: &[Trial],
    parameters: &[Parameter],
    curves: &[CurveRow],
    objective: Objective,
) -> Option<Importance> {
    let value: fn(&CurveRow) -> Option<f64> = match objective {
        Objective::Dice => |row| row.val_dice,
        Objective::Hd95 => |row| row.val_hd95,
    };
    let measured: Vec<(&Trial, Vec<[f64; 2]>)> = (trials.iter())
        .filter(|trial| is_measured(trial.row))
        .map(|trial| (trial, mean_curve(trial, curves, value)))
        .filter(|(_, curve)| !curve.is_empty())
        .collect();
    let epochs = measured.iter().filter_map(|(_, curve)| curve.last()).map(|point| point[0]).reduce(f64::min)?;
    let compared: Vec<(&Trial, f64)> = (measured.iter())
        .filter_map(|(trial, curve)| Some((*trial, curve.iter().find(|point| point[0] == epochs)?[1])))
        .filter(|(_, value)| value.is_finite())
        .collect();
    if compared.len() < 3 {
        return None;
    }
    let mut shares: Vec<(String, Option<f64>)> =
        (parameters.iter()).map(|parameter| (parameter.name.clone(), epsilon_squared(&groups(parameter, &compared)))).collect();
    shares.sort_by(|a, b| b.1.unwrap_or(-1.0).total_cmp(&a.1.unwrap_or(-1.0)));
    Some(Importance { trials: compared.len(), epochs: epochs as u32, shares })
}

/// The compared values, grouped by the setting's value.
fn groups(parameter: &Parameter, compared: &[(&Trial, f64)]) -> Vec<Vec<f64>> {
    let mut words: BTreeMap<Option<String>, Vec<f64>> = BTreeMap::new();
    let mut numbers: Vec<(f64, f64)> = Vec::new();
    for (trial, value) in compared {
        match (&parameter.values, parameter.number(trial)) {
            (Values::Numbers(_), Some(number)) => numbers.push((number, *value)),
            _ => words.entry(parameter.text(trial)).or_default().push(*value),
        }
    }
    let mut all: Vec<Vec<f64>> = words.into_values().collect();
    all.extend(quantiles(numbers));
    all
}

/// Numbers in at most [`MAX_GROUPS`] groups of neighbours; equal numbers stay together.
fn quantiles(mut numbers: Vec<(f64, f64)>) -> Vec<Vec<f64>> {
    numbers.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = numbers.len();
    let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut before = 0;
    let distinct = numbers.chunk_by(|a, b| a.0 == b.0);
    let few = numbers.chunk_by(|a, b| a.0 == b.0).count() <= MAX_GROUPS;
    for (index, equal) in distinct.enumerate() {
        // The group that contains the middle of these equal numbers.
        let group = if few { index } else { (2 * before + equal.len()) * MAX_GROUPS / (2 * total) };
        groups.entry(group).or_default().extend(equal.iter().map(|(_, value)| value));
        before += equal.len();
    }
    groups.into_values().collect()
}

/// ε² of a grouping, at least 0; `None` for a single group, if there are not more values than groups, or if all values are equal.
fn epsilon_squared(groups: &[Vec<f64>]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let squares = |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let all: Vec<f64> = groups.iter().flatten().copied().collect();
    let (n, k) = (all.len(), groups.len());
    if k < 2 || n <= k {
        return None;
    }
    let total = squares(&all, mean(&all)) / (n - 1) as f64;
    let within = groups.iter().map(|group| squares(group, mean(group))).sum::<f64>() / (n - k) as f64;
    (total > 0.0).then(|| (1.0 - within / total).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{config, curve, row};
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::{TrialRow, TrialStatus};

    #[test]
    fn epsilon_squared_is_the_adjusted_share() {
        // By hand: SST = 17.5 of 6 values, SSW = 4: 1 - (4/4)/(17.5/5) = 0.714285…
        let share = epsilon_squared(&[vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]]).unwrap();
        assert!((share - (1.0 - 1.0 / 3.5)).abs() < 1e-12, "{share}");
        assert_eq!(epsilon_squared(&[vec![1.0, 2.0], vec![1.0, 2.0]]), Some(0.0), "no more than noise");
        assert_eq!(epsilon_squared(&[vec![1.0, 2.0]]), None);
        assert_eq!(epsilon_squared(&[vec![1.0], vec![2.0]]), None);
        assert_eq!(epsilon_squared(&[vec![1.0, 1.0], vec![1.0]]), None);
    }

    #[test]
    fn equal_numbers_stay_together() {
        let numbers = |values: &[f64]| quantiles(values.iter().map(|&value| (value, value)).collect());
        assert_eq!(numbers(&[1.0, 2.0, 1.0]), [vec![1.0, 1.0], vec![2.0]]);
        let many: Vec<f64> = (0..40).map(f64::from).collect();
        assert_eq!(numbers(&many).iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 10, 10]);
        let lumped: Vec<f64> = [vec![1.0; 30], (0..10).map(|i| 2.0 + f64::from(i)).collect()].concat();
        assert!(numbers(&lumped).iter().any(|group| group.iter().filter(|&&value| value == 1.0).count() == 30));
        assert_eq!(numbers(&[]), Vec::<Vec<f64>>::new());
    }

    #[test]
    fn the_setting_that_matters_comes_first_and_pruned_trials_are_compared_early() {
        // Dice depends only on λ; half the trials stop after two epochs of four.
        let mut rows: Vec<TrialRow> = (0..12).map(|number| row(number, Some(number + 1))).collect();
        let mut curves = Vec::new();
        for (index, row) in rows.iter_mut().enumerate() {
            let lambda = [0.2, 0.5, 0.8][index % 3];
            row.settings = format!(r#"{{"lr":{},"lambda":{lambda}}}"#, 1e-4 * (1 + index / 3) as f64);
            let epochs = if index % 2 == 0 { 4 } else { 2 };
            row.status = if epochs == 4 { TrialStatus::Finished } else { TrialStatus::Pruned };
            let noise = 0.001 * (index * 7 % 5) as f64;
            curves.extend((0..epochs).map(|epoch| curve(index as u32, 1, epoch, lambda * f64::from(epoch + 1) / 4.0 + noise)));
        }
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let found = importance(&trials, &parameters, &curves, Objective::Dice).unwrap();
        assert_eq!((found.trials, found.epochs), (12, 2));
        let (first, second) = (&found.shares[0], &found.shares[1]);
        assert!(first.0 == "lambda" && first.1.unwrap() > 0.99, "{found:?}");
        assert!(second.0 == "lr" && second.1.unwrap() < 0.2, "{found:?}");
        assert_eq!(importance(&trials[..2], &parameters, &curves, Objective::Dice), None);
    }
}
