//! Two objectives against each other: the front of trials that no other one beats in both.

use super::space::{Trial, objective_name, objective_value};
use super::trial_marks::{attributes, draw_order, title};
use crate::plot::Size;
use crate::plot::axes::{Axis, Marks, axes};
use crate::plot::legend::Legend;
use crate::plot::svg::{element, number};
use sam_ladder_schemas::sweep::Objective;
use std::fmt::Write as _;

/// Draws one `mark-point` for each trial that has both values, and a `front` through those of rank 1.
pub(crate) fn draw(trials: &[Trial], [x, y]: [Objective; 2], size: Size) -> String {
    let place = |trial: &Trial| Some([objective_value(trial.row, x)?, objective_value(trial.row, y)?]);
    let points: Vec<(&Trial, [f64; 2])> =
        draw_order(trials).into_iter().filter_map(|trial| Some((trial, place(trial)?))).collect();
    let axis = |objective| Axis { label: objective_name(objective), ..Axis::default() };
    let x_scale = axis(x).scale(points.iter().map(|(_, point)| point[0]), 6);
    let y_scale = axis(y).scale(points.iter().map(|(_, point)| point[1]), 5);
    let mut body = String::new();
    let frame = axes(
        &mut body,
        size,
        &Legend::default(),
        &Marks::of_scale(objective_name(x), &x_scale, 6),
        &Marks::of_scale(objective_name(y), &y_scale, 5),
    );
    let mut front: Vec<[f64; 2]> =
        points.iter().filter(|(trial, _)| trial.row.rank == Some(1)).map(|(_, point)| *point).collect();
    front.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let path: Vec<String> = (front.iter())
        .filter_map(|point| frame.point([&x_scale, &y_scale], point[0], point[1]))
        .map(|[x, y]| format!("{} {}", number(x), number(y)))
        .collect();
    if path.len() > 1 {
        let _ = writeln!(body, "<path class=\"front\" d=\"M{}\"/>", path.join("L"));
    }
    for (trial, point) in points {
        if let Some([x, y]) = frame.point([&x_scale, &y_scale], point[0], point[1]).map(|at| at.map(number)) {
            let _ = writeln!(
                body,
                "<circle class=\"mark-point trial\" {} cx=\"{x}\" cy=\"{y}\" r=\"5\">{}</circle>",
                attributes(trial),
                title(trial)
            );
        }
    }
    element("pareto", size, "Pareto front of the two objectives", &body)
}

#[cfg(test)]
mod tests {
    use super::super::space::trials;
    use super::super::tests_data::row;
    use super::*;
    use sam_ladder_schemas::sweep::TrialRow;

    #[test]
    fn the_front_goes_through_the_trials_of_rank_1() {
        let rows: Vec<TrialRow> =
            (0..6).map(|n| TrialRow { hd95: (n != 5).then_some(20.0 - f64::from(n)), ..row(n, Some(1 + n / 3)) }).collect();
        let svg = draw(&trials(&rows), [Objective::Hd95, Objective::Dice], Size { width: 500.0, height: 320.0 });
        assert_eq!((svg.matches("mark-point").count(), svg.matches("class=\"front\"").count()), (5, 1));
        let path = svg.split("class=\"front\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('L').count(), 2);
    }
}
