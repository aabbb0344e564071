//! Box plots: the spread of values in each of several groups.

use super::Size;
use super::axes::{Axis, Frame, Marks, axes};
use super::legend::Legend;
use super::line_chart::short;
use super::paint::Paint;
use super::scale::Scale;
use super::svg::{element, number};
use crate::html::escape;
use std::fmt::Write as _;

/// Quartiles, whiskers and mean of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FiveNumbers {
    /// Lowest value not farther than 1.5 interquartile ranges below the lower quartile (Tukey).
    pub low: f64,
    /// 25th percentile, linear between neighbours as numpy's.
    pub lower_quartile: f64,
    /// 50th percentile.
    pub median: f64,
    /// 75th percentile.
    pub upper_quartile: f64,
    /// Highest value not farther than 1.5 interquartile ranges above the upper quartile.
    pub high: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

/// The numbers of a box; `None` of no finite value.
pub fn five_numbers(values: &[f64]) -> Option<FiveNumbers> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (&first, &last) = (sorted.first()?, sorted.last()?);
    let quantile = |share: f64| {
        let position = share * (sorted.len() - 1) as f64;
        let (index, between) = (position as usize, position.fract());
        sorted[index] + (sorted[(index + 1).min(sorted.len() - 1)] - sorted[index]) * between
    };
    let [lower_quartile, median, upper_quartile] = [0.25, 0.5, 0.75].map(quantile);
    let reach = 1.5 * (upper_quartile - lower_quartile);
    let inside = |value: &&f64| (lower_quartile - reach..=upper_quartile + reach).contains(*value);
    Some(FiveNumbers {
        low: sorted.iter().find(inside).copied().unwrap_or(first),
        lower_quartile,
        median,
        upper_quartile,
        high: sorted.iter().rev().find(inside).copied().unwrap_or(last),
        mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
    })
}

/// One box in each category.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxSeries<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// One colour, or one a category.
    pub paints: &'a [Paint],
    /// Values of each category.
    pub values: &'a [Vec<f64>],
}

/// A box plot.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxPlot<'a> {
    /// Size of the view box.
    pub size: Size,
    /// What a screen reader says.
    pub label: &'a str,
    /// Vertical axis.
    pub y: Axis<'a>,
    /// Names along the horizontal axis.
    pub categories: &'a [String],
    /// Series stand side by side in a category.
    pub series: &'a [BoxSeries<'a>],
}

/// Draws boxes: one `mark-box` for each list that holds a value, one `mark-point` a value, a diamond at the mean.
pub fn box_plot(chart: &BoxPlot) -> String {
    let values = chart.series.iter().flat_map(|series| series.values.iter().flatten().copied());
    let scale = chart.y.scale(values, 5);
    let mut body = String::new();
    let paint_of = |series: &BoxSeries, category: usize| {
        series.paints.get(category % series.paints.len().max(1)).copied().unwrap_or(Paint::Series(0))
    };
    let legend = Legend::of(chart.series.iter().map(|series| (series.name, paint_of(series, 0))));
    let x_marks = Marks::of_bands("", chart.categories);
    let frame = axes(&mut body, chart.size, &legend, &x_marks, &Marks::of_scale(chart.y.label, &scale, 5));
    let band = frame.width / chart.categories.len().max(1) as f64;
    let lane = 0.8 * band / chart.series.len().max(1) as f64;
    for (category, name) in chart.categories.iter().enumerate() {
        for (index, series) in chart.series.iter().enumerate() {
            let middle = frame.left + (category as f64 + 0.1) * band + (index as f64 + 0.5) * lane;
            let name = if chart.series.len() > 1 { format!("{name}, {}", series.name) } else { name.clone() };
            let values = series.values.get(category).map_or(&[][..], Vec::as_slice);
            let place = Place { middle, half_width: (0.36 * lane).min(22.0), css: paint_of(series, category).css() };
            draw_box(&mut body, &frame, &scale, &place, &escape(&name), values);
        }
    }
    element("box-plot", chart.size, chart.label, &body)
}

/// Where a box stands.
struct Place {
    middle: f64,
    half_width: f64,
    css: String,
}

fn draw_box(body: &mut String, frame: &Frame, scale: &Scale, place: &Place, name: &str, values: &[f64]) {
    let Some(numbers) = five_numbers(values) else { return };
    let Place { middle, half_width, css } = place;
    let at = |value: f64| scale.position(value).map(|share| frame.y(share.clamp(0.0, 1.0)));
    let corners =
        [numbers.low, numbers.lower_quartile, numbers.median, numbers.upper_quartile, numbers.high, numbers.mean].map(at);
    if let [Some(low), Some(lower), Some(median), Some(upper), Some(high), Some(mean)] = corners {
        let [x, left, right] = [*middle, middle - half_width, middle + half_width].map(number);
        let [cap_left, cap_right] = [middle - half_width / 2.0, middle + half_width / 2.0].map(number);
        let [low, high, l, u, m] = [low, high, lower, upper, median].map(number);
        let _ = write!(
            body,
            "<path class=\"mark-whisker\" stroke=\"{css}\" d=\"M{x} {u}V{high}M{cap_left} {high}H{cap_right}M{x} {l}V{low}M{cap_left} {low}H{cap_right}\"/>\
             <rect class=\"mark-box\" x=\"{left}\" y=\"{u}\" width=\"{}\" height=\"{}\" fill=\"{css}\" stroke=\"{css}\"><title>{name}: median {}, \
             quartiles {} and {}, mean {}, {} values</title></rect>\
             <path class=\"mark-median\" stroke=\"{css}\" d=\"M{left} {m}H{right}\"/>",
            number(2.0 * half_width),
            number(lower - upper),
            short(numbers.median),
            short(numbers.lower_quartile),
            short(numbers.upper_quartile),
            short(numbers.mean),
            values.len(),
        );
        let [top, bottom, before, after, mean] = [mean - 4.5, mean + 4.5, middle - 4.5, middle + 4.5, mean].map(number);
        let _ = write!(
            body,
            "<path class=\"mark-mean\" stroke=\"{css}\" d=\"M{x} {top}L{after} {mean}L{x} {bottom}L{before} {mean}Z\"/>"
        );
    }
    for (index, &value) in values.iter().enumerate() {
        let Some(y) = at(value) else { continue };
        // The golden ratio spreads neighbours evenly, and always in the same way.
        let aside = ((index as f64 * 0.618_034).fract() - 0.5) * 1.1 * half_width;
        let _ = write!(
            body,
            "<circle class=\"mark-point\" cx=\"{}\" cy=\"{}\" r=\"2.6\" fill=\"{css}\" fill-opacity=\"0.9\"><title>{name}: {}</title></circle>",
            number(middle + aside),
            number(y),
            short(value)
        );
    }
    body.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_numpys_and_whiskers_tukeys() {
        // numpy.percentile([1, 2, 3, 4, 20], [25, 50, 75]) is [2, 3, 4]: 20 lies beyond 4 + 3.
        let numbers = five_numbers(&[20.0, 1.0, 4.0, 3.0, 2.0]).unwrap();
        assert_eq!((numbers.lower_quartile, numbers.median, numbers.upper_quartile), (2.0, 3.0, 4.0));
        assert_eq!((numbers.low, numbers.high, numbers.mean), (1.0, 4.0, 6.0));
        // numpy.percentile([0, 1], 25) is 0.25.
        assert_eq!(five_numbers(&[0.0, 1.0]).unwrap().lower_quartile, 0.25);
        assert_eq!(five_numbers(&[7.0, f64::NAN]).unwrap().high, 7.0);
        assert_eq!(five_numbers(&[f64::NAN]), None);
    }

    #[test]
    fn a_box_for_each_list_and_a_dot_for_each_value() {
        let categories = ["aorta", "liver", "spleen"].map(String::from);
        let values = [vec![90.0, 91.0, 70.0], vec![], vec![88.0]];
        let paints = [Paint::Fixed([1, 2, 3]), Paint::Fixed([4, 5, 6]), Paint::Fixed([7, 8, 9])];
        let series = [
            BoxSeries { name: "ours", paints: &paints, values: &values },
            BoxSeries { name: "theirs", paints: &[Paint::Series(1)], values: &values },
        ];
        let svg = box_plot(&BoxPlot {
            size: Size { width: 600.0, height: 300.0 },
            label: "Dice",
            y: Axis { label: "Dice", limits: Some([0.0, 100.0]), ..Axis::default() },
            categories: &categories,
            series: &series,
        });
        assert_eq!((svg.matches("mark-box").count(), svg.matches("mark-point").count()), (4, 8));
        assert!(svg.contains("#010203") && svg.contains("#070809") && svg.contains("aorta, theirs: median 90"));
    }
}
