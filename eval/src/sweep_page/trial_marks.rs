//! What every mark of a trial has in common: its colour, by which the better trials stand out; its number, by which the page's script finds its
//! other marks; and what it says when pointed at.

use super::space::{Trial, digits, objective_value, told};
use crate::html::escape;
use sam_ladder_schemas::sweep::Objective;

/// `data-trial`, and the share of the accent in the mark's colour: a half for the middle of the field.
pub(crate) fn attributes(trial: &Trial) -> String {
    let number = trial.row.number;
    match trial.quality {
        Some(_) if trial.row.rank == Some(1) => format!("data-trial=\"{number}\" data-best=\"\" style=\"--q:100%\""),
        Some(quality) => format!("data-trial=\"{number}\" style=\"--q:{:.0}%\"", 100.0 * quality),
        None => format!("data-trial=\"{number}\" style=\"--q:0%\""),
    }
}

/// The trials from the worst to the best, so that the best are drawn on top.
pub(crate) fn draw_order<'t, 'a>(trials: &'t [Trial<'a>]) -> Vec<&'t Trial<'a>> {
    let mut order: Vec<&Trial> = trials.iter().collect();
    order.sort_by(|a, b| a.quality.unwrap_or(-1.0).total_cmp(&b.quality.unwrap_or(-1.0)));
    order
}

/// The `<title>`: number, status, settings, values.
pub(crate) fn title(trial: &Trial) -> String {
    let settings: Vec<String> = trial.settings.iter().map(|(name, value)| format!("{name} {}", told(value))).collect();
    let mut text = format!("trial {} ({}): {}", trial.row.number, trial.row.status.name(), settings.join(", "));
    if let Some(dice) = objective_value(trial.row, Objective::Dice) {
        text += &format!("; Dice {} %", digits(dice));
    }
    if let Some(hd95) = trial.row.hd95 {
        text += &format!("; HD95 {} mm", digits(hd95));
    }
    format!("<title>{}</title>", escape(&text))
}
