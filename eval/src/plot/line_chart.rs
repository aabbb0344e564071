//! Line charts, such as the curves of a run or a sweep.

use self::Part::{Gap, Point};
use super::Size;
use super::axes::{Axis, Frame, Ticks, axes};
use super::legend::Legend;
use super::paint::Paint;
use super::scale::AxisScale;
use super::svg::{digits, element, number};
use maud::{Markup, html};
use std::fmt::Write as _;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Its colour.
    pub paint: Paint,
    /// Values by ascending x; the line is broken where y is not finite.
    pub points: &'a [[f64; 2]],
    /// Whether to draw dots at the points, for lines with few points.
    pub dots: bool,
}

/// A line chart.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart<'a> {
    /// Size of the view box.
    pub size: Size,
    /// Text for screen readers.
    pub label: &'a str,
    /// Horizontal axis.
    pub x: Axis<'a>,
    /// Vertical axis.
    pub y: Axis<'a>,
    /// Drawn in this order, the last on top.
    pub lines: &'a [Line<'a>],
}

/// Draws lines: one `mark-line` per line, one `mark-point` per dot, whose tooltip shows its values.
///
/// Lines with more points than the chart has pixel columns are thinned: each column keeps its first, lowest, highest and last point, so that
/// no peak is lost.
pub fn line_chart(chart: &LineChart) -> Markup {
    let points = || chart.lines.iter().flat_map(|line| line.points);
    let x_scale = match chart.x.limits {
        Some(_) => chart.x.scale([], 6),
        // The horizontal axis ends at the data, not at round values.
        None => AxisScale::over(chart.x.kind, points().map(|point| point[0])),
    };
    let y_scale = chart.y.scale(points().map(|point| point[1]), 5);
    let legend = Legend::of(chart.lines.iter().map(|line| (line.name, line.paint)));
    let x_ticks = Ticks::of_scale(chart.x.label, &x_scale, 6);
    let (frame, axes) = axes(chart.size, &legend, &x_ticks, &Ticks::of_scale(chart.y.label, &y_scale, 5));
    let scales = [&x_scale, &y_scale];
    let drawn = html! {
        (axes)
        @for line in chart.lines {
            path.mark-line stroke=(line.paint.css()) d=(path(line.points, &frame, scales)) { title { (line.name) } }
            @for &[x, y] in line.points.iter().filter(|_| line.dots) {
                @if let Some([at_x, at_y]) = frame.point(scales, x, y).map(|point| point.map(number)) {
                    circle.mark-point cx=(at_x) cy=(at_y) r="3" fill=(line.paint.css()) {
                        title { (line.name) ": " (digits(x)) ", " (digits(y)) }
                    }
                }
            }
        }
    };
    element("line-chart", chart.size, chart.label, drawn)
}

/// An element of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// The next point of the line.
    Point([f64; 2]),
    /// The line is broken here.
    Gap,
}

/// The `d` of a path through the points.
fn path(points: &[[f64; 2]], frame: &Frame, scales: [&AxisScale; 2]) -> String {
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

/// First, lowest, highest and last point of each column of one pixel, if there are more points than columns.
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

    fn draw(chart: &LineChart) -> String {
        line_chart(chart).into_string()
    }

    #[test]
    fn marks_can_be_counted_and_text_is_escaped() {
        let lines = [
            Line { name: "a<b", paint: Paint::Series(0), points: &[[0.0, 1.0], [1.0, 0.5], [2.0, 0.25]], dots: true },
            Line { name: "two", paint: Paint::Series(1), points: &[[0.0, 2.0], [2.0, 1.0]], dots: false },
        ];
        let svg = draw(&chart(&lines));
        assert_eq!((svg.matches("class=\"mark-line\"").count(), svg.matches("class=\"mark-point\"").count()), (2, 3));
        assert!(svg.contains("a&lt;b: 1, 0.5") && !svg.contains("a<b"));
        assert!(svg.contains("var(--plot-1)") && svg.contains("var(--plot-2)"));
        assert!(svg.starts_with("<svg class=\"plot line-chart\"") && svg.ends_with("</svg>"));
    }

    #[test]
    fn undefined_values_break_the_line() {
        let points = [[0.0, 1.0], [1.0, 2.0], [2.0, f64::NAN], [3.0, 2.0], [4.0, 1.0]];
        let svg = draw(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &points, dots: true }]));
        let path = svg.split("mark-line").nth(1).unwrap().split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 2), "{path}");
        assert_eq!(svg.matches("mark-point").count(), 4);
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_peaks() {
        let mut points: Vec<[f64; 2]> = (0..200_000).map(|step| [f64::from(step), (f64::from(step) * 0.1).sin()]).collect();
        points[77_777][1] = 50.0;
        let svg = draw(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &points, dots: false }]));
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        // The highest value is the highest point of the path: y runs down.
        let path = svg.split(" d=\"M").last().unwrap().split('"').next().unwrap();
        let heights = path.split(['L', 'M']).map(|point| point.split(' ').nth(1).unwrap().parse::<f64>().unwrap());
        let top = heights.fold(f64::INFINITY, f64::min);
        assert!(top < 20.0, "{top}");
    }

    #[test]
    fn a_chart_without_values_is_empty_axes() {
        let svg = draw(&chart(&[Line { name: "one", paint: Paint::Series(0), points: &[], dots: true }]));
        assert!(svg.contains("class=\"axis\"") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
