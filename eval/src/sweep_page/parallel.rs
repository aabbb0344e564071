//! Parallel coordinates: one axis per searched setting and per objective, one line through them per trial.

use super::space::{Parameter, Trial, objective_name, objective_value};
use super::trial_marks::{draw_order, line};
use crate::plot::svg::{Anchor, element, number, text, text_width, widest};
use crate::plot::{AxisScale, ScaleKind, Size};
use maud::{Markup, html};
use sam_ladder_schemas::sweep::Objective;

/// Space above the axes, for their names.
const TOP: f64 = 34.0;
/// Space below them, for trials in which a setting is not active.
const BELOW: f64 = 34.0;

/// An axis: its name, its ticks, and each trial's position on it, as a share from the bottom.
struct Coordinate {
    name: String,
    ticks: Vec<(f64, String)>,
    places: Vec<Option<f64>>,
}

impl Coordinate {
    fn widest_tick(&self) -> f64 {
        widest(self.ticks.iter().map(|(_, text)| text))
    }
}

/// Layout of the axes.
struct Layout {
    left: f64,
    /// Distance between two axes.
    step: f64,
    bottom: f64,
    height: f64,
}

impl Layout {
    fn of(coordinates: &[Coordinate], size: Size) -> Layout {
        let half_name = |axis: &Coordinate| text_width(&axis.name) / 2.0;
        let left = coordinates.first().map_or(0.0, |axis| half_name(axis).max(axis.widest_tick() + 10.0)) + 6.0;
        let right = coordinates.last().map_or(10.0, |axis| half_name(axis).max(axis.widest_tick() + 10.0)) + 6.0;
        let step = (size.width - left - right) / (coordinates.len().max(2) - 1) as f64;
        Layout { left, step, bottom: size.height - BELOW, height: size.height - TOP - BELOW }
    }

    fn x(&self, index: usize) -> f64 {
        self.left + self.step * index as f64
    }

    /// Vertical position of a share; below the axis for a setting that is not active in a trial.
    fn y(&self, share: Option<f64>) -> f64 {
        share.map_or(self.bottom + 20.0, |share| self.bottom - share * self.height)
    }

    /// An axis with its name and ticks, which are on its right side if it is the last.
    fn axis(&self, index: usize, axis: &Coordinate, last: bool) -> Markup {
        let x = self.x(index);
        let (length, text_x, anchor) = if last { (4, x + 7.0, "start") } else { (-4, x - 7.0, "end") };
        html! {
            path.axis d=(format!("M{} {}V{}", number(x), number(TOP), number(self.bottom))) {}
            (text(x, TOP - 14.0, Anchor::Middle, "name", &axis.name))
            @for (share, content) in &axis.ticks {
                @let y = self.y(Some(*share));
                path.axis d=(format!("M{} {}h{length}", number(x), number(y))) {}
                text.tick.halo x=(number(text_x)) y=(number(y + 4.0)) text-anchor=(anchor) { (content) }
            }
            @if axis.places.iter().any(Option::is_none) {
                (text(x, self.bottom + 32.0, Anchor::Middle, "tick", "not active"))
            }
        }
    }
}

/// Draws one `mark-line` per trial with a value of each objective.
pub(crate) fn draw(trials: &[Trial], parameters: &[Parameter], objectives: &[Objective], size: Size) -> Markup {
    let has_values = |trial: &&Trial| objectives.iter().all(|&o| objective_value(trial.row, o).is_some());
    let measured: Vec<&Trial> = draw_order(trials).into_iter().filter(has_values).collect();
    let mut coordinates: Vec<Coordinate> =
        parameters.iter().map(|parameter| of_parameter(parameter, trials, &measured)).collect();
    coordinates.extend(objectives.iter().map(|&objective| of_objective(objective, &measured)));
    let layout = Layout::of(&coordinates, size);
    let points = |trial: usize| -> Vec<[f64; 2]> {
        coordinates.iter().enumerate().map(|(index, axis)| [layout.x(index), layout.y(axis.places[trial])]).collect()
    };
    let drawn = html! {
        @if coordinates.len() > 1 {
            @for (index, trial) in measured.iter().enumerate() { (line(trial, &points(index))) }
        }
        @for (index, axis) in coordinates.iter().enumerate() { (layout.axis(index, axis, index + 1 == coordinates.len())) }
    };
    element("parallel", size, "Settings and objectives of each trial as parallel coordinates", drawn)
}

fn shares(scale: &AxisScale, ticks: Vec<(f64, String)>) -> Vec<(f64, String)> {
    ticks.into_iter().filter_map(|(value, text)| Some((scale.position(value)?, text))).collect()
}

fn of_parameter(parameter: &Parameter, all: &[Trial], measured: &[&Trial]) -> Coordinate {
    let scale = parameter.scale(all);
    let place = |trial: &&Trial| parameter.place(trial).and_then(|value| scale.position(value));
    let ticks = shares(&scale, parameter.ticks(&scale));
    Coordinate { name: parameter.name.clone(), ticks, places: measured.iter().map(place).collect() }
}

fn of_objective(objective: Objective, measured: &[&Trial]) -> Coordinate {
    let value = |trial: &&Trial| objective_value(trial.row, objective);
    let scale = AxisScale::over(ScaleKind::Linear, measured.iter().filter_map(value)).nice(5);
    let place = |trial: &&Trial| value(trial).and_then(|value| scale.position(value));
    let ticks = shares(&scale, scale.ticks(5));
    Coordinate { name: objective_name(objective).into(), ticks, places: measured.iter().map(place).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{config, row};
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn trials_with_values_are_lines_through_every_axis() {
        let mut rows: Vec<TrialRow> = (0..4).map(|number| row(number, Some(number + 1))).collect();
        rows[2].dice = None;
        rows[3].settings = r#"{"lambda":0.5}"#.into();
        let trials = trials(&rows);
        let parameters = Parameter::all(&config(), &trials);
        let svg = draw(&trials, &parameters, &[Objective::Dice], Size { width: 700.0, height: 300.0 }).into_string();
        assert_eq!(svg.matches("mark-line").count(), 3);
        assert_eq!(svg.matches("class=\"tick\"").count(), 1, "the one whose lr is not active");
        assert_eq!(svg.matches("data-best").count(), 1);
        assert!(svg.contains(">lr<") && svg.contains(">lambda<") && svg.contains("Dice, percent") && !svg.contains("NaN"));
    }
}
