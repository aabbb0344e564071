//! Learning curves: one line a trial, the mean over its runs.

use super::space::Trial;
use super::trial_marks::{attributes, draw_order, title};
use crate::plot::axes::{Axis, Marks, axes};
use crate::plot::legend::Legend;
use crate::plot::svg::{element, number};
use crate::plot::{ScaleKind, Size};
use sam_ladder_schemas::sweep::CurveRow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a curve shows.
pub(crate) struct Quantity {
    /// Its name and unit, below the heading and at the axis.
    pub label: &'static str,
    /// Its value in an epoch's row.
    pub value: fn(&CurveRow) -> Option<f64>,
}

/// Mean over a trial's runs at each epoch that all of them have behind them: `[epochs behind, mean]`.
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

/// Draws one `mark-line` for each trial that has two epochs behind it, one `mark-point` at its last.
pub(crate) fn draw(trials: &[Trial], curves: &[CurveRow], quantity: &Quantity, size: Size) -> String {
    let lines: Vec<(&Trial, Vec<[f64; 2]>)> = (draw_order(trials).into_iter())
        .map(|trial| (trial, mean_curve(trial, curves, quantity.value)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_scale = crate::plot::Scale::over(ScaleKind::Linear, all().map(|point| point[0]));
    let y_axis = Axis { label: quantity.label, ..Axis::default() };
    let y_scale = y_axis.scale(all().map(|point| point[1]), 5);
    let mut body = String::new();
    let mut x_marks = Marks::of_scale("epochs", &x_scale, 6);
    // Epochs are whole.
    x_marks.places.retain(|(_, text)| !text.contains('.'));
    let frame = axes(&mut body, size, &Legend::default(), &x_marks, &Marks::of_scale(quantity.label, &y_scale, 5));
    for (trial, points) in &lines {
        let placed: Vec<[f64; 2]> = points.iter().filter_map(|[x, y]| frame.point([&x_scale, &y_scale], *x, *y)).collect();
        let path: Vec<String> = placed.iter().map(|[x, y]| format!("{} {}", number(*x), number(*y))).collect();
        let (data, title) = (attributes(trial), title(trial));
        if path.len() > 1 {
            let _ = write!(body, "<path class=\"mark-line trial\" {data} d=\"M{}\">{title}</path>", path.join("L"));
        }
        if let Some([x, y]) = placed.last().map(|point| point.map(number)) {
            let _ = writeln!(body, "<circle class=\"mark-point trial\" {data} cx=\"{x}\" cy=\"{y}\" r=\"3\">{title}</circle>");
        }
    }
    element("curves", size, &format!("{} by epoch, one line a trial", quantity.label), &body)
}

#[cfg(test)]
mod tests {
    use super::super::space::trials;
    use super::super::tests_data::{curve, row};
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
        let svg = draw(&trials(&rows), &curves, &quantity, Size { width: 400.0, height: 300.0 });
        assert_eq!((svg.matches("mark-line").count(), svg.matches("mark-point").count()), (2, 2));
        assert!(!svg.contains("NaN") && !draw(&[], &[], &quantity, Size { width: 400.0, height: 300.0 }).contains("NaN"));
    }
}
