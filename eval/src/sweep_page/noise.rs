//! How many trials the best one is not clearly better than, by the spread over each trial's runs.

use super::space::{Trial, objective_name, objective_value};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::sweep::Objective;

/// Standard error of a trial's mean over its runs; `None` of a single run.
fn standard_error(trial: &Trial, objective: Objective) -> Option<f64> {
    let deviation = match objective {
        Objective::Dice => trial.row.dice_std.map(|std| 100.0 * std),
        Objective::Hd95 => trial.row.hd95_std,
    };
    deviation.filter(|_| trial.row.runs > 1).map(|deviation| deviation / f64::from(trial.row.runs).sqrt())
}

/// Says how many of the trials that were trained as long as the best differ from it by less than two standard errors of the difference.
pub(crate) fn within_noise(best: &Trial, trials: &[Trial], objective: Objective) -> String {
    let (Some(value), Some(error)) = (objective_value(best.row, objective), standard_error(best, objective)) else {
        return "Each trial has one run, so nothing says how much of the differences is chance: more seeds or folds would."
            .into();
    };
    let others = trials.iter().filter(|trial| trial.row.number != best.row.number && trial.row.epochs == best.row.epochs);
    let compared: Vec<bool> = others
        .filter_map(|trial| {
            let difference = objective_value(trial.row, objective)? - value;
            Some(difference.abs() < 2.0 * error.hypot(standard_error(trial, objective)?))
        })
        .collect();
    let within = compared.iter().filter(|within| **within).count();
    let name = objective_name(objective).split(',').next().unwrap_or_default();
    format!(
        "It is within the noise of {within} of the {} trained as long: their mean {name} over {} differs by less than two standard errors.",
        counted(compared.len(), "other trial"),
        counted(best.row.runs, "run"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::made_up::row;
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn trials_within_two_standard_errors_are_counted() {
        // Dice 90, 89, 88 … percent; four runs that spread by 1.0: the error of a mean is 0.5, of a difference 0.707.
        let of = |number: u32| TrialRow { dice_std: Some(0.01), runs: 4, ..row(number, Some(number + 1)) };
        let mut rows: Vec<TrialRow> = (0..5).map(of).collect();
        rows.push(TrialRow { epochs: 1, ..of(0) });
        rows[5].number = 9;
        let all = trials(&rows);
        let said = within_noise(&all[0], &all, Objective::Dice);
        assert!(
            said.starts_with("It is within the noise of 1 of the 4 other trials trained as long: their mean Dice over 4 runs"),
            "{said}"
        );
        let single = [row(0, Some(1)), row(1, Some(2))];
        let all = trials(&single);
        assert!(within_noise(&all[0], &all, Objective::Dice).starts_with("Each trial has one run"));
    }
}
