//! The heat map of two settings: λ and the learning rate if both are searched.

use super::space::{Parameter, Trial, Values, objective_name, objective_value};
use crate::plot::svg::digits;
use crate::plot::{HeatMap, ScaleKind, Size, heat_map};
use maud::Markup;
use sam_ladder_schemas::sweep::Objective;

/// Number of bins for a setting with more distinct values.
const MAX_BINS: usize = 8;

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

/// Ranges of a setting's values: one bin per value if there are few, otherwise equal parts of its scale.
struct Bins {
    /// Upper ends of all bins except the last.
    ends: Vec<f64>,
    names: Vec<String>,
}

impl Bins {
    fn new(parameter: &Parameter, trials: &[&Trial]) -> Bins {
        let mut numbers: Vec<f64> = trials.iter().filter_map(|trial| parameter.number(trial)).filter(|n| n.is_finite()).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        if numbers.len() <= MAX_BINS {
            let ends = numbers.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
            return Bins { ends, names: numbers.iter().map(|&number| digits(number)).collect() };
        }
        let log = parameter.values == Values::Numbers(ScaleKind::Log);
        let (low, high) = (numbers[0], numbers[numbers.len() - 1]);
        let edge = |index: usize| {
            let share = index as f64 / MAX_BINS as f64;
            if log { low * (high / low).powf(share) } else { low + (high - low) * share }
        };
        let short = |value: f64| digits(format!("{value:.1e}").parse().unwrap_or(value));
        let names = (0..MAX_BINS).map(|index| format!("{}–{}", short(edge(index)), short(edge(index + 1)))).collect();
        Bins { ends: (1..MAX_BINS).map(edge).collect(), names }
    }

    /// The bin of a value.
    fn of(&self, value: f64) -> usize {
        self.ends.iter().take_while(|&&end| value >= end).count()
    }
}

/// Draws the best value of the objective in each cell, λ upwards; `None` if no trial has both settings and a value.
pub(crate) fn draw([across, upwards]: [&Parameter; 2], trials: &[Trial], objective: Objective, size: Size) -> Option<Markup> {
    let measured: Vec<&Trial> = (trials.iter())
        .filter(|trial| {
            across.number(trial).is_some() && upwards.number(trial).is_some() && objective_value(trial.row, objective).is_some()
        })
        .collect();
    if measured.is_empty() {
        return None;
    }
    let (columns, rows) = (Bins::new(across, &measured), Bins::new(upwards, &measured));
    let mut values = vec![vec![None; columns.names.len()]; rows.names.len()];
    for trial in measured {
        let (Some(x), Some(y)) = (across.number(trial), upwards.number(trial)) else { continue };
        let Some(value) = objective_value(trial.row, objective) else { continue };
        let cell: &mut Option<f64> = &mut values[rows.names.len() - 1 - rows.of(y)][columns.of(x)];
        let better = |held: f64| if objective == Objective::Dice { held.max(value) } else { held.min(value) };
        *cell = Some(cell.map_or(value, better));
    }
    let row_names: Vec<String> = rows.names.into_iter().rev().collect();
    Some(heat_map(&HeatMap {
        size,
        label: &format!("{} by {} and {}", objective_name(objective), across.name, upwards.name),
        x_label: &across.name,
        y_label: &upwards.name,
        columns: &columns.names,
        rows: &row_names,
        values: &values,
        limits: None,
        decimals: 1,
    }))
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
    fn many_values_are_put_in_bins_of_the_scale() {
        let rows = rows(40, |n| format!(r#"{{"lr":{},"lambda":{}}}"#, 1e-5 * 1.3f64.powi(n as i32), f64::from(n) / 40.0));
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let svg = draw(choose(&parameters, &[]).unwrap(), &trials, Objective::Dice, Size { width: 500.0, height: 300.0 })
            .unwrap()
            .into_string();
        let cells = svg.matches("mark-cell").count();
        assert!((8..=16).contains(&cells), "{cells} cells along the diagonal");
        assert!(draw(choose(&parameters, &[]).unwrap(), &[], Objective::Dice, Size { width: 500.0, height: 300.0 }).is_none());
    }
}
