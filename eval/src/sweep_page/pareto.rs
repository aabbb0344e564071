//! Two objectives against each other, with the Pareto front.

use super::space::{Trial, objective_name, objective_value};
use super::trial_marks::{draw_order, path, point};
use crate::plot::Size;
use crate::plot::axes::{Axis, Ticks, axes};
use crate::plot::legend::Legend;
use crate::plot::svg::element;
use maud::{Markup, html};
use sam_ladder_schemas::sweep::Objective;

/// Draws one `mark-point` per trial with both values, and a `front` through those of rank 1.
pub(crate) fn draw(trials: &[Trial], [x, y]: [Objective; 2], size: Size) -> Markup {
    let values = |trial: &Trial| Some([objective_value(trial.row, x)?, objective_value(trial.row, y)?]);
    let points: Vec<(&Trial, [f64; 2])> =
        draw_order(trials).into_iter().filter_map(|trial| Some((trial, values(trial)?))).collect();
    let axis = |objective| Axis { label: objective_name(objective), ..Axis::default() };
    let x_scale = axis(x).scale(points.iter().map(|(_, point)| point[0]), 6);
    let y_scale = axis(y).scale(points.iter().map(|(_, point)| point[1]), 5);
    let x_ticks = Ticks::of_scale(objective_name(x), &x_scale, 6);
    let (frame, axes) = axes(size, &Legend::default(), &x_ticks, &Ticks::of_scale(objective_name(y), &y_scale, 5));
    let place = |[x, y]: [f64; 2]| frame.point([&x_scale, &y_scale], x, y);
    let mut front: Vec<[f64; 2]> =
        points.iter().filter(|(trial, _)| trial.row.rank == Some(1)).map(|(_, point)| *point).collect();
    front.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let front: Vec<[f64; 2]> = front.into_iter().filter_map(place).collect();
    let drawn = html! {
        (axes)
        @if front.len() > 1 { path.front d=(path(&front)) {} }
        @for (trial, values) in points { @if let Some(place) = place(values) { (point(trial, place, 5)) } }
    };
    element("pareto", size, "Pareto front of the two objectives", drawn)
}

#[cfg(test)]
mod tests {
    use super::super::made_up::row;
    use super::super::space::trials;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn the_front_goes_through_the_trials_of_rank_1() {
        let rows: Vec<TrialRow> =
            (0..6).map(|n| TrialRow { hd95: (n != 5).then_some(20.0 - f64::from(n)), ..row(n, Some(1 + n / 3)) }).collect();
        let svg = draw(&trials(&rows), [Objective::Hd95, Objective::Dice], Size { width: 500.0, height: 320.0 }).into_string();
        assert_eq!((svg.matches("mark-point").count(), svg.matches("class=\"front\"").count()), (5, 1));
        let path = svg.split("class=\"front\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('L').count(), 2);
    }
}
