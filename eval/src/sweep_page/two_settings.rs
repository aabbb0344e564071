//! The objective over two settings, λ and the learning rate if both are searched: a heat map of a grid, otherwise a scatter.

use super::scatter;
use super::space::{Parameter, Trial, Values, objective_name, objective_value};
use crate::plot::svg::digits;
use crate::plot::{HeatMap, Size, heat_map};
use maud::Markup;
use sam_ladder_schemas::sweep::Objective;

/// Values of each setting that a grid has at most.
const MOST_VALUES: usize = 8;

/// The settings across and upwards: the learning rate and λ, or the two numeric settings that explain most.
pub(crate) fn choose<'p>(parameters: &'p [Parameter], by_importance: &[String]) -> Option<[&'p Parameter; 2]> {
    let find = |name: &str| parameters.iter().find(|p| p.name == name && matches!(p.values, Values::Numbers(_)));
    if let (Some(lr), Some(lambda)) = (find("lr"), find("lambda")) {
        return Some([lr, lambda]);
    }
    let mut found = by_importance.iter().filter_map(|name| find(name));
    let fallback = parameters.iter().filter(|p| matches!(p.values, Values::Numbers(_)));
    match (found.next(), found.next()) {
        (Some(x), Some(y)) => Some([x, y]),
        _ => {
            let all: Vec<&Parameter> = fallback.collect();
            (all.len() > 1).then(|| [all[0], all[1]])
        }
    }
}

/// The distinct values of a setting, ascending.
fn distinct(parameter: &Parameter, trials: &[&Trial]) -> Vec<f64> {
    let mut numbers: Vec<f64> = trials.iter().filter_map(|trial| parameter.number(trial)).filter(|n| n.is_finite()).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    numbers
}

/// Whether the trials' values of two settings are a grid: few values of each, and most pairs of them tried.
fn is_grid([across, upwards]: [&Parameter; 2], trials: &[&Trial]) -> bool {
    let [columns, rows] = [across, upwards].map(|parameter| distinct(parameter, trials).len());
    let mut pairs: Vec<[u64; 2]> =
        trials.iter().filter_map(|trial| Some([across.number(trial)?.to_bits(), upwards.number(trial)?.to_bits()])).collect();
    pairs.sort_unstable();
    pairs.dedup();
    columns <= MOST_VALUES && rows <= MOST_VALUES && 2 * pairs.len() >= columns * rows
}

/// Draws the objective over two settings: of a grid the best value of each pair, otherwise the trials on a ground; `None` if no trial has both
/// settings and a value.
pub(crate) fn draw(two: [&Parameter; 2], trials: &[Trial], objective: Objective, size: Size) -> Option<Markup> {
    let has_all = |trial: &&Trial| {
        two.iter().all(|parameter| parameter.number(trial).is_some()) && objective_value(trial.row, objective).is_some()
    };
    let measured: Vec<&Trial> = trials.iter().filter(has_all).collect();
    if measured.is_empty() {
        return None;
    }
    Some(if is_grid(two, &measured) {
        draw_grid(two, &measured, objective, size)
    } else {
        scatter::draw(two, &measured, objective, size)
    })
}

/// One cell for each pair of values, λ upwards.
fn draw_grid([across, upwards]: [&Parameter; 2], measured: &[&Trial], objective: Objective, size: Size) -> Markup {
    let (columns, rows) = (distinct(across, measured), distinct(upwards, measured));
    let mut values = vec![vec![None; columns.len()]; rows.len()];
    for trial in measured {
        let (Some(x), Some(y)) = (across.number(trial), upwards.number(trial)) else { continue };
        let Some(value) = objective_value(trial.row, objective) else { continue };
        let place = |all: &[f64], number: f64| all.iter().position(|&known| known == number);
        let (Some(column), Some(row)) = (place(&columns, x), place(&rows, y)) else { continue };
        let cell: &mut Option<f64> = &mut values[rows.len() - 1 - row][column];
        let better = |held: f64| if objective == Objective::Dice { held.max(value) } else { held.min(value) };
        *cell = Some(cell.map_or(value, better));
    }
    let names = |numbers: &[f64]| -> Vec<String> { numbers.iter().map(|&number| digits(number)).collect() };
    let row_names: Vec<String> = names(&rows).into_iter().rev().collect();
    heat_map(&HeatMap {
        size,
        label: &format!("{} by {} and {}", objective_name(objective), across.name, upwards.name),
        x_label: &across.name,
        y_label: &upwards.name,
        columns: &names(&columns),
        rows: &row_names,
        values: &values,
        limits: None,
        decimals: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{config, row};
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    fn rows(count: u32, settings: impl Fn(u32) -> String) -> Vec<TrialRow> {
        (0..count).map(|number| TrialRow { settings: settings(number), ..row(number, Some(number + 1)) }).collect()
    }

    #[test]
    fn a_grid_has_a_cell_for_each_pair_and_keeps_the_best() {
        let rows = rows(7, |n| {
            format!(r#"{{"lr":{},"lambda":{}}}"#, [1e-4, 1e-3, 1e-2][n as usize % 3], [0.5, 0.8][n as usize / 3 % 2])
        });
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let chosen = choose(&parameters, &[]).unwrap();
        assert_eq!(chosen.map(|parameter| parameter.name.as_str()), ["lr", "lambda"]);
        let svg = draw(chosen, &trials, Objective::Dice, Size { width: 500.0, height: 300.0 }).unwrap().into_string();
        assert_eq!(svg.matches("mark-cell").count(), 6);
        // Trials 0 and 6 share a cell: Dice 90 and 84 percent.
        assert!(svg.contains("0.5, 1e-4: 90.0"), "{svg}");
        // λ runs upwards.
        assert!(svg.find(">0.8<").unwrap() < svg.find(">0.5<").unwrap());
    }

    #[test]
    fn values_that_are_no_grid_are_points() {
        let rows = rows(40, |n| format!(r#"{{"lr":{},"lambda":{}}}"#, 1e-5 * 1.3f64.powi(n as i32), f64::from(n) / 40.0));
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let size = Size { width: 500.0, height: 300.0 };
        let svg = draw(choose(&parameters, &[]).unwrap(), &trials, Objective::Dice, size).unwrap().into_string();
        assert_eq!((svg.matches("mark-point").count(), svg.matches("mark-cell").count()), (40, 0), "{svg}");
        assert!(draw(choose(&parameters, &[]).unwrap(), &[], Objective::Dice, size).is_none());
    }
}
