//! Box plots: the spread of values in each of several groups.

use super::Size;
use super::axes::{Axis, Ticks, axes};
use super::legend::Legend;
use super::paint::Paint;
use super::svg::{digits, element, number};
use maud::{Markup, html};

/// Quartiles, whiskers and mean of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct FiveNumbers {
    /// Lowest value not farther than 1.5 interquartile ranges below the lower quartile (Tukey).
    low: f64,
    /// 25th percentile, linear between neighbours as in numpy.
    lower_quartile: f64,
    /// 50th percentile.
    median: f64,
    /// 75th percentile.
    upper_quartile: f64,
    /// Highest value not farther than 1.5 interquartile ranges above the upper quartile.
    high: f64,
    /// Arithmetic mean.
    mean: f64,
}

/// The numbers of a box; `None` if no value is finite.
fn five_numbers(values: &[f64]) -> Option<FiveNumbers> {
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

/// A series, with one box per category.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxSeries<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// One colour, or one per category.
    pub paints: &'a [Paint],
    /// Values of each category.
    pub values: &'a [Vec<f64>],
}

/// A box plot.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxPlot<'a> {
    /// Size of the view box.
    pub size: Size,
    /// Text for screen readers.
    pub label: &'a str,
    /// Vertical axis.
    pub y: Axis<'a>,
    /// Names along the horizontal axis.
    pub categories: &'a [String],
    /// The series, side by side in each category.
    pub series: &'a [BoxSeries<'a>],
}

/// Draws boxes: one `mark-box` per list with a value, one `mark-point` per value, a diamond at the mean.
pub fn box_plot(chart: &BoxPlot) -> Markup {
    let values = chart.series.iter().flat_map(|series| series.values.iter().flatten().copied());
    let scale = chart.y.scale(values, 5);
    let paint_of = |series: &BoxSeries, category: usize| {
        series.paints.get(category % series.paints.len().max(1)).copied().unwrap_or(Paint::Series(0))
    };
    let legend = Legend::of(chart.series.iter().map(|series| (series.name, paint_of(series, 0))));
    let y_ticks = Ticks::of_scale(chart.y.label, &scale, 5);
    let (frame, axes) = axes(chart.size, &legend, &Ticks::of_bands("", chart.categories), &y_ticks);
    let band = frame.width / chart.categories.len().max(1) as f64;
    let lane = 0.8 * band / chart.series.len().max(1) as f64;
    let one_box = |category: usize, index: usize, series: &BoxSeries| {
        let category_name = &chart.categories[category];
        OneBox {
            name: if chart.series.len() > 1 { format!("{category_name}, {}", series.name) } else { category_name.clone() },
            values: series.values.get(category).map_or(&[], Vec::as_slice),
            middle: frame.left + (category as f64 + 0.1) * band + (index as f64 + 0.5) * lane,
            half_width: (0.36 * lane).min(22.0),
            colour: paint_of(series, category).css(),
        }
        .draw(&|value| scale.position(value).map(|share| frame.y(share.clamp(0.0, 1.0))))
    };
    let drawn = html! {
        (axes)
        @for category in 0..chart.categories.len() {
            @for (index, series) in chart.series.iter().enumerate() { (one_box(category, index, series)) }
        }
    };
    element("box-plot", chart.size, chart.label, drawn)
}

/// One list's box and its place.
struct OneBox<'a> {
    name: String,
    values: &'a [f64],
    /// Horizontal place of its middle.
    middle: f64,
    half_width: f64,
    colour: String,
}

impl OneBox<'_> {
    /// Draws the box and its points; `place` gives the vertical place of a value. Nothing without a finite value.
    fn draw(&self, place: &dyn Fn(f64) -> Option<f64>) -> Markup {
        let OneBox { name, values, middle, half_width, colour } = self;
        // The golden ratio spreads neighbours evenly and reproducibly.
        let aside = |index: usize| ((index as f64 * 0.618_034).fract() - 0.5) * 1.1 * half_width;
        html! {
            @if let Some(numbers) = five_numbers(values) {
                (self.draw_numbers(&numbers, place).unwrap_or_default())
                @for (index, &value) in values.iter().enumerate() {
                    @if let Some(y) = place(value) {
                        circle.mark-point cx=(number(middle + aside(index))) cy=(number(y)) r="2.6" fill=(colour) fill-opacity="0.9" {
                            title { (name) ": " (digits(value)) }
                        }
                    }
                }
            }
        }
    }

    /// Whiskers, box, median and mean.
    fn draw_numbers(&self, numbers: &FiveNumbers, place: &dyn Fn(f64) -> Option<f64>) -> Option<Markup> {
        let OneBox { name, values, middle, half_width, colour } = self;
        let FiveNumbers { low, lower_quartile, median, upper_quartile, high, mean } = *numbers;
        let (lower, upper, mean_y) = (place(lower_quartile)?, place(upper_quartile)?, place(mean)?);
        let [x, left, right] = [*middle, middle - half_width, middle + half_width].map(number);
        let [cap_left, cap_right] = [middle - half_width / 2.0, middle + half_width / 2.0].map(number);
        let [low, high, l, u, m] = [place(low)?, place(high)?, lower, upper, place(median)?].map(number);
        let whiskers = format!("M{x} {u}V{high}M{cap_left} {high}H{cap_right}M{x} {l}V{low}M{cap_left} {low}H{cap_right}");
        let [top, bottom, before, after, mean_y] = [mean_y - 4.5, mean_y + 4.5, middle - 4.5, middle + 4.5, mean_y].map(number);
        let [median, lower_quartile, upper_quartile, mean] = [median, lower_quartile, upper_quartile, mean].map(digits);
        let [width, height] = [2.0 * half_width, lower - upper].map(number);
        Some(html! {
            path.mark-whisker stroke=(colour) d=(whiskers) {}
            rect.mark-box x=(left) y=(u) width=(width) height=(height) fill=(colour) stroke=(colour) {
                title {
                    (name) ": median " (median) ", quartiles " (lower_quartile) " and " (upper_quartile) ", mean " (mean) ", "
                    (values.len()) " values"
                }
            }
            path.mark-median stroke=(colour) d=(format!("M{left} {m}H{right}")) {}
            path.mark-mean stroke=(colour) d=(format!("M{x} {top}L{after} {mean_y}L{x} {bottom}L{before} {mean_y}Z")) {}
        })
    }
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
        })
        .into_string();
        assert_eq!((svg.matches("mark-box").count(), svg.matches("mark-point").count()), (4, 8));
        assert!(svg.contains("#010203") && svg.contains("#070809") && svg.contains("aorta, theirs: median 90"));
    }
}
