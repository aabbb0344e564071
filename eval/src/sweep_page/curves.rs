//! Learning curves: one line per trial, the mean over its runs.

use super::space::Trial;
use super::trial_marks::{draw_order, line, point};
use crate::plot::axes::{Axis, Ticks, axes};
use crate::plot::legend::Legend;
use crate::plot::svg::element;
use crate::plot::{AxisScale, ScaleKind, Size};
use maud::{Markup, html};
use sam_ladder_schemas::sweep::CurveRow;
use std::collections::BTreeMap;

/// The quantity that a curve shows.
pub(crate) struct Quantity {
    /// Its name and unit, along the axis.
    pub label: &'static str,
    /// Its value in an epoch's row.
    pub value: fn(&CurveRow) -> Option<f64>,
}

/// Mean over a trial's runs at each epoch that all of them have finished: `[epochs finished, mean]`.
pub(crate) fn mean_curve(trial: &Trial, curves: &[CurveRow], value: fn(&CurveRow) -> Option<f64>) -> Vec<[f64; 2]> {
    let mut epochs: BTreeMap<u32, Vec<Option<f64>>> = BTreeMap::new();
    for row in curves.iter().filter(|row| row.trial == trial.row.trial) {
        epochs.entry(row.epoch).or_default().push(value(row));
    }
    let whole = epochs.into_iter().filter(|(_, values)| values.len() >= trial.row.runs as usize);
    let mean = |values: Vec<Option<f64>>| {
        let known: Vec<f64> = values.into_iter().flatten().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    whole.filter_map(|(epoch, values)| Some([f64::from(epoch + 1), mean(values)?])).collect()
}

/// Draws one `mark-line` per trial with at least two epochs, and one `mark-point` at the last epoch of each.
pub(crate) fn draw(trials: &[Trial], curves: &[CurveRow], quantity: &Quantity, size: Size) -> Markup {
    let lines: Vec<(&Trial, Vec<[f64; 2]>)> = (draw_order(trials).into_iter())
        .map(|trial| (trial, mean_curve(trial, curves, quantity.value)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_scale = AxisScale::over(ScaleKind::Linear, all().map(|point| point[0]));
    let y_axis = Axis { label: quantity.label, ..Axis::default() };
    let y_scale = y_axis.scale(all().map(|point| point[1]), 5);
    let x_ticks = whole_ticks("epochs", &x_scale, all().map(|point| point[0]));
    let (frame, axes) = axes(size, &Legend::default(), &x_ticks, &Ticks::of_scale(quantity.label, &y_scale, 5));
    let drawn = html! {
        (axes)
        @for (trial, points) in &lines {
            @let placed: Vec<[f64; 2]> = points.iter().filter_map(|[x, y]| frame.point([&x_scale, &y_scale], *x, *y)).collect();
            @if placed.len() > 1 { (line(trial, &placed)) }
            @if let Some(&last) = placed.last() { (point(trial, last, 3)) }
        }
    };
    element("curves", size, &format!("{} by epoch, one line per trial", quantity.label), drawn)
}

/// About six whole numbers between the least and the largest of some values, a round step apart.
fn whole_ticks(label: &str, scale: &AxisScale, values: impl Iterator<Item = f64> + Clone) -> Ticks {
    let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
    let least = ((high - low) / 6.0).max(1.0);
    let powers = (0..9).map(|power| 10f64.powi(power));
    let step = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * power)).find(|step| *step >= least).unwrap_or(least);
    let numbers = (0..=(high / step) as u64).map(|index| index as f64 * step).filter(|number| *number >= low);
    // Where the step passes over the first epoch, that one stands too.
    let first = (step > 1.0 && low.is_finite()).then_some(low);
    let places = first.into_iter().chain(numbers).filter_map(|number| Some((scale.position(number)?, format!("{number}"))));
    Ticks { label: label.into(), places: places.collect(), grid: true }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{curve, row};
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn a_curve_is_the_mean_of_the_runs_that_are_all_there() {
        let rows = [TrialRow { runs: 2, ..row(0, Some(1)) }];
        let trial = &trials(&rows)[0];
        let curves = [curve(0, 1, 0, 0.2), curve(0, 2, 0, 0.4), curve(0, 1, 1, 0.6), curve(7, 1, 0, 0.9)];
        assert_eq!(mean_curve(trial, &curves, |row| row.val_dice).len(), 1, "epoch 1 has one run of two");
        let [epoch, mean] = mean_curve(trial, &curves, |row| row.val_dice)[0];
        assert!(epoch == 1.0 && (mean - 0.3).abs() < 1e-12);
    }

    #[test]
    fn a_few_epochs_have_their_numbers_and_many_round_ones() {
        let ticks = |low: f64, high: f64| -> Vec<String> {
            let values = [low, high];
            let scale = AxisScale::over(ScaleKind::Linear, values);
            whole_ticks("epochs", &scale, values.into_iter()).places.into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(ticks(1.0, 2.0), ["1", "2"]);
        assert_eq!(ticks(1.0, 5.0), ["1", "2", "3", "4", "5"]);
        assert_eq!(ticks(1.0, 9.0), ["1", "2", "4", "6", "8"]);
        assert_eq!(ticks(1.0, 200.0), ["1", "50", "100", "150", "200"]);
        assert_eq!(ticks(3.0, 3.0), ["3"]);
    }

    #[test]
    fn every_trial_that_was_measured_is_drawn() {
        let rows = [row(0, Some(2)), row(1, Some(1)), row(2, None)];
        let curves: Vec<_> =
            (0..2).flat_map(|trial| (0..5).map(move |epoch| curve(trial, 1, epoch, 0.1 * f64::from(epoch)))).collect();
        let quantity = Quantity { label: "Dice", value: |row| row.val_dice };
        let size = Size { width: 400.0, height: 300.0 };
        let svg = draw(&trials(&rows), &curves, &quantity, size).into_string();
        assert_eq!((svg.matches("mark-line").count(), svg.matches("mark-point").count()), (2, 2));
        assert!(!svg.contains("NaN") && !draw(&[], &[], &quantity, size).into_string().contains("NaN"));
    }
}
