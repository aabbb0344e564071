//! The objective over two settings whose values are no grid: each trial as a point, on a ground interpolated between them.

use super::space::{Parameter, Trial, objective_name, objective_value};
use super::trial_marks::point;
use crate::plot::axes::{Ticks, axes};
use crate::plot::legend::Legend;
use crate::plot::svg::{element, number};
use crate::plot::{AxisScale, BAR, Paint, ScaleKind, Size, colour_bar, ramp};
use maud::{Markup, html};
use sam_ladder_schemas::sweep::Objective;

/// Rectangles of the ground, across and upwards.
const GROUND: [usize; 2] = [36, 24];

/// A trial's place in the chart as shares of the axes, and its value.
struct Placed<'t, 'a> {
    trial: &'t Trial<'a>,
    share: [f64; 2],
    value: f64,
}

/// Mean of the values, each weighted by one over the squared distance (Shepard, 1968); a thousandth of the chart is no distance.
fn interpolated(points: &[Placed], [x, y]: [f64; 2]) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for Placed { share: [px, py], value, .. } in points {
        let weight = 1.0 / ((px - x).powi(2) + (py - y).powi(2)).max(1e-6);
        (sum, weights) = (sum + weight * value, weights + weight);
    }
    sum / weights
}

/// Draws one `mark-point` per trial, and what its colours mean. The trials must have both settings and a value.
pub(crate) fn draw([across, upwards]: [&Parameter; 2], trials: &[&Trial], objective: Objective, size: Size) -> Markup {
    let scale = |parameter: &Parameter| match parameter.values {
        super::space::Values::Numbers(kind) => {
            AxisScale::over(kind, trials.iter().filter_map(|trial| parameter.number(trial))).nice(5)
        }
        super::space::Values::Words(_) => AxisScale::new(ScaleKind::Linear, 0.0, 1.0),
    };
    let scales = [scale(across), scale(upwards)];
    let placed: Vec<Placed> = (trials.iter())
        .filter_map(|trial| {
            let share = [scales[0].position(across.number(trial)?)?, scales[1].position(upwards.number(trial)?)?];
            Some(Placed { trial, share, value: objective_value(trial.row, objective)? })
        })
        .collect();
    let values = AxisScale::over(ScaleKind::Linear, placed.iter().map(|point| point.value));
    let ticks = [(&across.name, 0), (&upwards.name, 1)].map(|(name, axis)| Ticks::of_scale(name, &scales[axis], 5));
    let inner = Size { width: size.width - BAR, ..size };
    let (frame, axes) = axes(inner, &Legend::default(), &ticks[0], &ticks[1]);
    let [columns, rows] = GROUND.map(|count| count as f64);
    let [width, height] = [frame.width / columns, frame.height / rows].map(|side| number(side + 0.4));
    let drawn = html! {
        g.ground { @for (column, row) in (0..GROUND[0]).flat_map(|column| (0..GROUND[1]).map(move |row| (column as f64, row as f64))) {
            @let value = interpolated(&placed, [(column + 0.5) / columns, (row + 0.5) / rows]);
            @let colour = ramp(values.position(value).unwrap_or(0.5));
            rect x=(number(frame.x(column / columns))) y=(number(frame.y((row + 1.0) / rows))) width=(width) height=(height) fill=(Paint::Fixed(colour).css()) {}
        } }
        (axes)
        @for Placed { trial, share: [x, y], .. } in &placed { (point(trial, [frame.x(*x), frame.y(*y)], 5)) }
        (colour_bar(&values, frame.x(1.0) + 18.0, frame.top, frame.height))
    };
    element(
        "scatter",
        size,
        &format!("{} by {} and {}, one point per trial", objective_name(objective), across.name, upwards.name),
        drawn,
    )
}

#[cfg(test)]
mod tests {
    use super::super::made_up::row;
    use super::super::space::trials;
    use super::*;

    #[test]
    fn the_ground_has_the_trials_values_where_they_are_and_lies_between_them_elsewhere() {
        let rows = [row(0, Some(1)), row(1, Some(2))];
        let trials = trials(&rows);
        let at = |trial: usize, share, value| Placed { trial: &trials[trial], share, value };
        let points = [at(0, [0.0, 0.0], 10.0), at(1, [1.0, 0.0], 20.0)];
        assert!(
            (interpolated(&points, [0.0, 0.0]) - 10.0).abs() < 1e-4 && (interpolated(&points, [1.0, 0.0]) - 20.0).abs() < 1e-4
        );
        assert!((interpolated(&points, [0.5, 0.7]) - 15.0).abs() < 1e-9);
        // Three times as near to the first: weights of 9 to 1.
        assert!((interpolated(&points, [0.25, 0.0]) - 11.0).abs() < 1e-9);
    }
}
