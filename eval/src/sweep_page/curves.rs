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
    let mut x_ticks = Ticks::of_scale("epochs", &x_scale, 6);
    // Epochs are whole numbers.
    x_ticks.places.retain(|(_, text)| !text.contains('.'));
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
