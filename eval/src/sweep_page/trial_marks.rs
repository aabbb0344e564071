//! Common properties of a trial's marks: the colour, which emphasises better trials; the number, by which the page's script finds the
//! trial's other marks; and the tooltip.

use super::space::{Trial, objective_value, value_text};
use crate::plot::svg::{digits, number};
use maud::{Markup, html};
use sam_ladder_schemas::sweep::Objective;

/// A trial's line through points `[x, y]`: a `mark-line`.
pub(crate) fn line(trial: &Trial, points: &[[f64; 2]]) -> Markup {
    html! {
        path.mark-line.trial data-trial=(trial.row.number) data-best=[best(trial)] style=(accent(trial)) d=(path(points)) {
            title { (tooltip(trial)) }
        }
    }
}

/// A trial's point: a `mark-point`.
pub(crate) fn point(trial: &Trial, place: [f64; 2], radius: u32) -> Markup {
    let [x, y] = place.map(number);
    html! {
        circle.mark-point.trial data-trial=(trial.row.number) data-best=[best(trial)] style=(accent(trial)) cx=(x) cy=(y) r=(radius) {
            title { (tooltip(trial)) }
        }
    }
}

/// The `d` of a path through the points.
pub(crate) fn path(points: &[[f64; 2]]) -> String {
    let points: Vec<String> = points.iter().map(|[x, y]| format!("{} {}", number(*x), number(*y))).collect();
    format!("M{}", points.join("L"))
}

/// `data-best` of the best trial's marks.
fn best(trial: &Trial) -> Option<&'static str> {
    (trial.row.rank == Some(1)).then_some("")
}

/// The share of the accent colour in the mark's colour: half for an average trial.
fn accent(trial: &Trial) -> String {
    let share = if trial.row.rank == Some(1) { 1.0 } else { trial.quality.unwrap_or(0.0) };
    format!("--q:{:.0}%", 100.0 * share)
}

/// The trials from the worst to the best, so that the best are drawn on top.
pub(crate) fn draw_order<'t, 'a>(trials: &'t [Trial<'a>]) -> Vec<&'t Trial<'a>> {
    let mut order: Vec<&Trial> = trials.iter().collect();
    order.sort_by(|a, b| a.quality.unwrap_or(-1.0).total_cmp(&b.quality.unwrap_or(-1.0)));
    order
}

/// Number, status, settings, values.
fn tooltip(trial: &Trial) -> String {
    let settings: Vec<String> = trial.settings.iter().map(|(name, value)| format!("{name} {}", value_text(value))).collect();
    let mut text = format!("trial {} ({}): {}", trial.row.number, trial.row.status.name(), settings.join(", "));
    if let Some(dice) = objective_value(trial.row, Objective::Dice) {
        text += &format!("; Dice {} %", digits(dice));
    }
    if let Some(hd95) = trial.row.hd95 {
        text += &format!("; HD95 {} mm", digits(hd95));
    }
    text
}
