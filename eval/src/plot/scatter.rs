//! Points on two axes.

use super::Size;
use super::axes::{Axis, Marks, axes};
use super::legend::Legend;
use super::line_chart::short;
use super::paint::Paint;
use super::svg::{element, number};
use crate::html::escape;
use std::fmt::Write as _;

/// One point.
#[derive(Debug, Clone, PartialEq)]
pub struct ScatterPoint<'a> {
    /// Horizontal value.
    pub x: f64,
    /// Vertical value.
    pub y: f64,
    /// What it says when pointed at, before its values.
    pub name: &'a str,
}

/// Points of one colour.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud<'a> {
    /// What the legend calls them.
    pub name: &'a str,
    /// Their colour.
    pub paint: Paint,
    /// The points.
    pub points: &'a [ScatterPoint<'a>],
}

/// A scatter plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Scatter<'a> {
    /// Size of the view box.
    pub size: Size,
    /// What a screen reader says.
    pub label: &'a str,
    /// Horizontal axis.
    pub x: Axis<'a>,
    /// Vertical axis.
    pub y: Axis<'a>,
    /// Drawn in this order.
    pub clouds: &'a [Cloud<'a>],
    /// A line where both values are equal.
    pub diagonal: bool,
}

/// Draws points, one `mark-point` for each that the axes can show.
pub fn scatter(chart: &Scatter) -> String {
    let points = || chart.clouds.iter().flat_map(|cloud| cloud.points);
    let x_scale = chart.x.scale(points().map(|point| point.x), 6);
    let y_scale = chart.y.scale(points().map(|point| point.y), 5);
    let mut body = String::new();
    let legend = Legend::of(chart.clouds.iter().map(|cloud| (cloud.name, cloud.paint)));
    let frame = axes(
        &mut body,
        chart.size,
        &legend,
        &Marks::of_scale(chart.x.label, &x_scale, 6),
        &Marks::of_scale(chart.y.label, &y_scale, 5),
    );
    if chart.diagonal {
        let [x_limits, y_limits] = [x_scale.limits(), y_scale.limits()];
        let [low, high] = [x_limits[0].max(y_limits[0]), x_limits[1].min(y_limits[1])];
        let ends = [low, high].map(|value| frame.point([&x_scale, &y_scale], value, value).map(|point| point.map(number)));
        if let ([Some([x0, y0]), Some([x1, y1])], true) = (ends, low < high) {
            let _ = writeln!(body, "<path class=\"axis diagonal\" stroke-dasharray=\"4 4\" d=\"M{x0} {y0}L{x1} {y1}\"/>");
        }
    }
    for cloud in chart.clouds {
        for point in cloud.points {
            let Some([x, y]) = frame.point([&x_scale, &y_scale], point.x, point.y).map(|place| place.map(number)) else {
                continue;
            };
            let _ = writeln!(
                body,
                "<circle class=\"mark-point\" cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{}\" fill-opacity=\"0.85\"><title>{}: {}, {}</title></circle>",
                cloud.paint.css(),
                escape(point.name),
                short(point.x),
                short(point.y)
            );
        }
    }
    element("scatter", chart.size, chart.label, &body)
}

#[cfg(test)]
mod tests {
    use super::super::ScaleKind;
    use super::*;

    #[test]
    fn points_that_can_be_shown_are() {
        let point = |x, y| ScatterPoint { x, y, name: "trial <1>" };
        let points = [point(1e-4, 0.5), point(1e-3, 0.7), point(0.0, 0.9), point(1e-2, f64::NAN)];
        let svg = scatter(&Scatter {
            size: Size { width: 400.0, height: 300.0 },
            label: "trials",
            x: Axis { label: "learning rate", kind: ScaleKind::Log, limits: None },
            y: Axis { label: "Dice", ..Axis::default() },
            clouds: &[Cloud { name: "trials", paint: Paint::Series(0), points: &points }],
            diagonal: false,
        });
        // 0 has no place on a logarithmic axis.
        assert_eq!(svg.matches("mark-point").count(), 2);
        assert!(svg.contains("trial &lt;1&gt;: 0.0001, 0.5") && !svg.contains("NaN"));
    }

    #[test]
    fn the_diagonal_is_where_values_are_equal() {
        let axis = Axis { label: "Dice", limits: Some([0.0, 1.0]), ..Axis::default() };
        let svg = scatter(&Scatter {
            size: Size { width: 300.0, height: 300.0 },
            label: "pairs",
            x: axis,
            y: axis,
            clouds: &[],
            diagonal: true,
        });
        assert_eq!(svg.matches("diagonal").count(), 1);
    }
}
