//! Lines over a common axis: curves of training, of a sweep.

use self::Part::{Gap, Point};
use super::Size;
use super::axes::{Axis, Frame, Marks, axes};
use super::legend::Legend;
use super::paint::Paint;
use super::scale::Scale;
use super::svg::{element, number};
use crate::html::escape;
use std::fmt::Write as _;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// Its colour.
    pub paint: Paint,
    /// Values by ascending x; where y is not finite the line is broken.
    pub points: &'a [[f64; 2]],
    /// Dots at the points, for lines of few.
    pub dots: bool,
}

/// A line chart.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart<'a> {
    /// Size of the view box.
    pub size: Size,
    /// What a screen reader says.
    pub label: &'a str,
    /// Horizontal axis.
    pub x: Axis<'a>,
    /// Vertical axis.
    pub y: Axis<'a>,
    /// Drawn in this order, the last on top.
    pub lines: &'a [Line<'a>],
}

/// Draws lines: one `mark-line` a line, one `mark-point` a dot, each of which says its values when pointed at.
///
/// Lines of more points than the chart has columns are thinned: of each column's points the first, the lowest, the highest and the last stay, so
/// that no peak is lost.
pub fn line_chart(chart: &LineChart) -> String {
    let points = || chart.lines.iter().flat_map(|line| line.points);
    let x_scale = match chart.x.limits {
        Some(_) => chart.x.scale([], 6),
        // Time fills the width.
        None => Scale::over(chart.x.kind, points().map(|point| point[0])),
    };
    let y_scale = chart.y.scale(points().map(|point| point[1]), 5);
    let mut body = String::new();
    let legend = Legend::of(chart.lines.iter().map(|line| (line.name, line.paint)));
    let frame = axes(
        &mut body,
        chart.size,
        &legend,
        &Marks::of_scale(chart.x.label, &x_scale, 6),
        &Marks::of_scale(chart.y.label, &y_scale, 5),
    );
    for line in chart.lines {
        let path = path(line.points, &frame, [&x_scale, &y_scale]);
        let name = escape(line.name);
        let css = line.paint.css();
        let _ = writeln!(body, "<path class=\"mark-line\" stroke=\"{css}\" d=\"{path}\"><title>{name}</title></path>");
        for &[x, y] in line.points.iter().filter(|_| line.dots) {
            if let Some([at_x, at_y]) = frame.point([&x_scale, &y_scale], x, y).map(|point| point.map(number)) {
                let _ = write!(
                    body,
                    "<circle class=\"mark-point\" cx=\"{at_x}\" cy=\"{at_y}\" r=\"3\" fill=\"{css}\"><title>{name}: {}, {}</title></circle>",
                    short(x),
                    short(y)
                );
            }
        }
    }
    element("line-chart", chart.size, chart.label, &body)
}

/// A value with four digits that count.
pub(crate) fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = value.abs().log10().floor() as i32;
    if (-4..7).contains(&digits) {
        let text = format!("{value:.*}", (3 - digits).max(0) as usize);
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
    } else {
        format!("{value:.3e}")
    }
}

/// What a path is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// On to the next point of the line.
    Point([f64; 2]),
    /// The line is broken here.
    Gap,
}

/// The `d` of a path through the points.
fn path(points: &[[f64; 2]], frame: &Frame, scales: [&Scale; 2]) -> String {
    let placed: Vec<Part> = points.iter().map(|&[x, y]| frame.point(scales, x, y).map_or(Gap, Point)).collect();
    let mut path = String::new();
    let mut pen_down = false;
    for part in thin(&placed, frame.width) {
        match part {
            Point([x, y]) => {
                let _ = write!(path, "{}{} {}", if pen_down { "L" } else { "M" }, number(x), number(y));
                pen_down = true;
            }
            Gap => pen_down = false,
        }
    }
    path
}

/// First, lowest, highest and last point of each column of one pixel, where there are more points than columns.
fn thin(parts: &[Part], width: f64) -> Vec<Part> {
    if parts.len() as f64 <= 2.0 * width {
        return parts.to_vec();
    }
    let column = |part: &Part| match part {
        Point([x, _]) => Some(x.floor()),
        Gap => None,
    };
    let mut kept = Vec::new();
    for group in parts.chunk_by(|a, b| column(a) == column(b)) {
        let height = |index: &usize| match group[*index] {
            Point([_, y]) => y,
            Gap => 0.0,
        };
        let by_height = |a: &usize, b: &usize| height(a).total_cmp(&height(b));
        let low = (0..group.len()).min_by(by_height).unwrap_or(0);
        let high = (0..group.len()).max_by(by_height).unwrap_or(0);
        let mut stay = [0, low, high, group.len() - 1];
        stay.sort_unstable();
        kept.extend(
            stay.iter().enumerate().filter(|&(at, index)| at == 0 || stay[at - 1] != *index).map(|(_, &index)| group[index]),
        );
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 500.0, height: 300.0 };

    fn chart<'a>(lines: &'a [Line<'a>]) -> LineChart<'a> {
        let axis = |label| Axis { label, ..Axis::default() };
        LineChart { size: SIZE, label: "Loss", x: axis("step"), y: axis("loss"), lines }
    }

    #[test]
    fn marks_can_be_counted_and_text_is_escaped() {
        let lines = [
            Line { name: "a<b", paint: Paint::Series(0), points: &[[0.0, 1.0], [1.0, 0.5], [2.0, 0.25]], dots: true },
            Line { name: "two", paint: Paint::Series(1), points: &[[0.0, 2.0], [2.0, 1.0]], dots: false },
        ];
        let svg = line_chart(&chart(&lines));
        assert_eq!((svg.matches("class=\"mark-line\"").count(), svg.matches("class=\"mark-point\"").count()), (2, 3));
        assert!(svg.contains("a&lt;b: 1, 0.5") && !svg.contains("a<b"));
        assert!(svg.contains("var(--plot-1)") && svg.contains("var(--plot-2)"));
        assert!(svg.starts_with("<svg class=\"plot line-chart\"") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn undefined_values_break_the_line() {
        let points = [[0.0, 1.0], [1.0, 2.0], [2.0, f64::NAN], [3.0, 2.0], [4.0, 1.0]];
        let svg = line_chart(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &points, dots: true }]));
        let path = svg.split("mark-line").nth(1).unwrap().split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 2), "{path}");
        assert_eq!(svg.matches("mark-point").count(), 4);
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_peaks() {
        let mut points: Vec<[f64; 2]> = (0..200_000).map(|step| [f64::from(step), (f64::from(step) * 0.1).sin()]).collect();
        points[77_777][1] = 50.0;
        let svg = line_chart(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &points, dots: false }]));
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        // The highest value is the highest point of the path: y runs down.
        let path = svg.split(" d=\"M").last().unwrap().split('"').next().unwrap();
        let heights = path.split(['L', 'M']).map(|point| point.split(' ').nth(1).unwrap().parse::<f64>().unwrap());
        let top = heights.fold(f64::INFINITY, f64::min);
        assert!(top < 20.0, "{top}");
    }

    #[test]
    fn a_chart_without_values_is_empty_axes() {
        let svg = line_chart(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &[], dots: true }]));
        assert!(svg.contains("class=\"axis\"") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn values_are_said_shortly() {
        assert_eq!(
            [0.5, 12.3456, 1e-3, 123456.0, 1e9, 0.0].map(short),
            ["0.5", "12.35", "0.001", "123456", "1.000e9", "0"].map(String::from)
        );
    }
}
