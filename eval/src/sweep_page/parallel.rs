//! Parallel coordinates: an axis for each searched setting and for each objective, a line through them for each trial.

use super::space::{Parameter, Trial, objective_name, objective_value};
use super::trial_marks::{attributes, draw_order, title};
use crate::html::escape;
use crate::plot::svg::{Anchor, element, number, text, text_width};
use crate::plot::{Scale, ScaleKind, Size};
use sam_ladder_schemas::sweep::Objective;
use std::fmt::Write as _;

/// Room above the axes, for their names.
const TOP: f64 = 34.0;
/// Room below them, for trials in which a setting is not active.
const BELOW: f64 = 34.0;

/// An axis: its name, its marks, and where each trial lies on it, as a share from the bottom.
struct Column {
    name: String,
    ticks: Vec<(f64, String)>,
    places: Vec<Option<f64>>,
}

/// Draws one `mark-line` for each trial that has a value of each objective.
pub(crate) fn draw(trials: &[Trial], parameters: &[Parameter], objectives: &[Objective], size: Size) -> String {
    let measured: Vec<&Trial> = draw_order(trials)
        .into_iter()
        .filter(|trial| objectives.iter().all(|&o| objective_value(trial.row, o).is_some()))
        .collect();
    let mut columns: Vec<Column> = parameters.iter().map(|parameter| of_parameter(parameter, trials, &measured)).collect();
    columns.extend(objectives.iter().map(|&objective| of_objective(objective, &measured)));
    let last_ticks = columns.last().map_or(0.0, widest);
    let left = columns.first().map_or(0.0, |column| (text_width(&column.name) / 2.0).max(widest(column) + 10.0)) + 6.0;
    let right = (last_ticks + 10.0).max(columns.last().map_or(0.0, |column| text_width(&column.name) / 2.0)) + 6.0;
    let step = (size.width - left - right) / (columns.len().max(2) - 1) as f64;
    let (bottom, height) = (size.height - BELOW, size.height - TOP - BELOW);
    let x = |index: usize| left + step * index as f64;
    // A setting that is not active in a trial has its place below the axis.
    let y = |share: Option<f64>| share.map_or(bottom + 20.0, |share| bottom - share * height);
    let mut body = String::new();
    for (index, trial) in measured.iter().enumerate() {
        let points: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(i, column)| format!("{} {}", number(x(i)), number(y(column.places[index]))))
            .collect();
        if points.len() > 1 {
            let _ = writeln!(
                body,
                "<path class=\"mark-line trial\" {} d=\"M{}\">{}</path>",
                attributes(trial),
                points.join("L"),
                title(trial)
            );
        }
    }
    for (index, column) in columns.iter().enumerate() {
        let at = x(index);
        let _ = write!(body, "<path class=\"axis\" d=\"M{} {}V{}\"/>", number(at), number(TOP), number(bottom));
        body += &text(at, TOP - 14.0, Anchor::Middle, "name", &column.name);
        let outward = index + 1 == columns.len();
        for (share, content) in &column.ticks {
            let height = number(y(Some(*share)) + 4.0);
            let (place, anchor) = if outward { (at + 7.0, "start") } else { (at - 7.0, "end") };
            let _ = write!(
                body,
                "<path class=\"axis\" d=\"M{} {}h{}\"/><text class=\"tick halo\" x=\"{}\" y=\"{height}\" text-anchor=\"{anchor}\">{}</text>",
                number(at),
                number(y(Some(*share))),
                if outward { 4 } else { -4 },
                number(place),
                escape(content)
            );
        }
        if column.places.iter().any(Option::is_none) {
            body += &text(at, bottom + 32.0, Anchor::Middle, "tick", "not active");
        }
        body.push('\n');
    }
    element("parallel", size, "Settings and objectives of each trial as parallel coordinates", &body)
}

fn widest(column: &Column) -> f64 {
    column.ticks.iter().map(|(_, text)| text_width(text)).fold(0.0, f64::max)
}

fn shares(scale: &Scale, ticks: Vec<(f64, String)>) -> Vec<(f64, String)> {
    ticks.into_iter().filter_map(|(value, text)| Some((scale.position(value)?, text))).collect()
}

fn of_parameter(parameter: &Parameter, all: &[Trial], measured: &[&Trial]) -> Column {
    let scale = parameter.scale(all);
    let place = |trial: &&Trial| parameter.place(trial).and_then(|value| scale.position(value));
    let ticks = shares(&scale, parameter.ticks(&scale));
    Column { name: parameter.name.clone(), ticks, places: measured.iter().map(place).collect() }
}

fn of_objective(objective: Objective, measured: &[&Trial]) -> Column {
    let value = |trial: &&Trial| objective_value(trial.row, objective);
    let scale = Scale::over(ScaleKind::Linear, measured.iter().filter_map(value)).nice(5);
    let place = |trial: &&Trial| value(trial).and_then(|value| scale.position(value));
    let ticks = shares(&scale, scale.ticks(5));
    Column { name: objective_name(objective).into(), ticks, places: measured.iter().map(place).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::space::trials;
    use super::super::tests_data::{config, row};
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn trials_with_values_are_lines_through_every_axis() {
        let mut rows: Vec<TrialRow> = (0..4).map(|number| row(number, Some(number + 1))).collect();
        rows[2].dice = None;
        rows[3].settings = r#"{"lambda":0.5}"#.into();
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let svg = draw(&trials, &parameters, &[Objective::Dice], Size { width: 700.0, height: 300.0 });
        assert_eq!(svg.matches("mark-line").count(), 3);
        assert_eq!(svg.matches("class=\"tick\"").count(), 1, "the one whose lr is not active");
        assert_eq!(svg.matches("data-best").count(), 1);
        assert!(svg.contains(">lr<") && svg.contains(">lambda<") && svg.contains("Dice, percent") && !svg.contains("NaN"));
    }
}
