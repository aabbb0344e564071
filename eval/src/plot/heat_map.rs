//! Heat maps: a value for each pair of two lists, as a colour and as a number.

use super::Size;
use super::paint::{Paint, ink_on, ramp};
use super::scale::{AxisScale, ScaleKind};
use super::svg::{Anchor, element, number, slanted_text, text, text_width, vertical_label, widest};
use maud::{Markup, html};

/// A heat map.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap<'a> {
    /// Size of the view box.
    pub size: Size,
    /// Text for screen readers.
    pub label: &'a str,
    /// Name of the columns, below them.
    pub x_label: &'a str,
    /// Name of the rows, left of them.
    pub y_label: &'a str,
    /// Names of the columns.
    pub columns: &'a [String],
    /// Names of the rows, from the top.
    pub rows: &'a [String],
    /// Values, row by row; a pair without a value stays empty.
    pub values: &'a [Vec<Option<f64>>],
    /// Values of the darkest and the lightest colour; if `None`, the least and the largest value.
    pub limits: Option<[f64; 2]>,
    /// Decimals of the numbers.
    pub decimals: usize,
}

/// Width of the bar that explains the colours, with its numbers.
pub(crate) const BAR: f64 = 66.0;

/// Draws cells, one `mark-cell` per value, and a bar that explains their colours.
pub fn heat_map(chart: &HeatMap) -> Markup {
    let scale = match chart.limits {
        Some([low, high]) => AxisScale::new(ScaleKind::Linear, low, high),
        None => AxisScale::over(ScaleKind::Linear, chart.values.iter().flatten().flatten().copied()),
    };
    let cells = Cells::of(chart);
    let Cells { left, top, width, height, .. } = cells;
    let drawn = html! {
        @for (row, (name, values)) in chart.rows.iter().zip(chart.values).enumerate() {
            (text(left - 6.0, cells.y(row as f64 + 0.5) + 4.0, Anchor::End, "tick", name))
            @for (column, (column_name, value)) in chart.columns.iter().zip(values).enumerate() {
                @if let Some((value, share)) = value.and_then(|value| Some((value, scale.position(value)?))) {
                    (cells.draw(row, column, ramp(share), &[name, column_name], &format!("{value:.*}", chart.decimals)))
                }
            }
        }
        @for (column, name) in chart.columns.iter().enumerate() {
            @let middle = cells.x(column as f64 + 0.5);
            @if cells.slanted { (slanted_text(middle, top + height, name)) }
            @else { (text(middle, top + height + 16.0, Anchor::Middle, "tick", name)) }
        }
        @if !chart.x_label.is_empty() {
            (text(left + width / 2.0, chart.size.height - 5.0, Anchor::Middle, "", chart.x_label))
        }
        @if !chart.y_label.is_empty() { (vertical_label(top + height / 2.0, chart.y_label)) }
        (colour_bar(&scale, left + width + 14.0, top, height))
    };
    element("heat-map", chart.size, chart.label, drawn)
}

/// Layout of the cells.
struct Cells {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    /// Width and height of one.
    cell: [f64; 2],
    /// Whether the columns' names are written at a slant.
    slanted: bool,
}

impl Cells {
    fn of(chart: &HeatMap) -> Cells {
        let left = widest(chart.rows) + 10.0 + if chart.y_label.is_empty() { 4.0 } else { 20.0 };
        let width = chart.size.width - left - BAR - 10.0;
        let cell_width = width / chart.columns.len().max(1) as f64;
        let slanted = widest(chart.columns) + 6.0 > cell_width;
        let below =
            if slanted { 10.0 + 0.6 * widest(chart.columns) } else { 20.0 } + if chart.x_label.is_empty() { 2.0 } else { 20.0 };
        let top = 8.0;
        let height = chart.size.height - top - below;
        Cells { left, top, width, height, cell: [cell_width, height / chart.rows.len().max(1) as f64], slanted }
    }

    fn x(&self, column: f64) -> f64 {
        self.left + column * self.cell[0]
    }

    fn y(&self, row: f64) -> f64 {
        self.top + row * self.cell[1]
    }

    /// One cell, with its number if that fits.
    fn draw(&self, row: usize, column: usize, colour: [u8; 3], [name, column_name]: &[&str; 2], shown: &str) -> Markup {
        let (x, y, [width, height]) = (self.x(column as f64), self.y(row as f64), self.cell);
        let [place_x, place_y, w, h] = [x + 0.5, y + 0.5, width - 1.0, height - 1.0].map(number);
        let fits = text_width(shown) < width && height > 13.0;
        html! {
            rect.mark-cell x=(place_x) y=(place_y) width=(w) height=(h) fill=(Paint::Fixed(colour).css()) {
                title { (name) ", " (column_name) ": " (shown) }
            }
            @if fits {
                @let [x, y] = [x + width / 2.0, y + height / 2.0 + 4.0].map(number);
                text x=(x) y=(y) text-anchor="middle" style={ "fill:" (ink_on(colour)) } { (shown) }
            }
        }
    }
}

/// The colours, from the least value at the bottom to the largest.
pub(crate) fn colour_bar(scale: &AxisScale, x: f64, top: f64, height: f64) -> Markup {
    const STEPS: u32 = 40;
    let steps = f64::from(STEPS);
    html! {
        @for index in 0..STEPS {
            @let share = f64::from(index) / steps;
            @let y = number(top + height * (1.0 - share - 1.0 / steps));
            // Slightly taller, so that no line shows between two steps.
            @let tall = number(height / steps + 0.4);
            rect x=(number(x)) y=(y) width="12" height=(tall) fill=(Paint::Fixed(ramp(share + 0.5 / steps)).css()) {}
        }
        @for (value, content) in scale.ticks(5) {
            @if let Some(share) = scale.position(value) {
                (text(x + 17.0, top + height * (1.0 - share) + 4.0, Anchor::Start, "tick", &content))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: &[Vec<Option<f64>>]) -> String {
        heat_map(&HeatMap {
            size: Size { width: 480.0, height: 240.0 },
            label: "Dice",
            x_label: "learning rate",
            y_label: "λ",
            columns: &["1e-4", "1e-3"].map(String::from),
            rows: &["0.5", "0.8", "<b>"].map(String::from),
            values,
            limits: None,
            decimals: 2,
        })
        .into_string()
    }

    #[test]
    fn cells_with_values_are_drawn() {
        let svg = map(&[vec![Some(0.1), Some(0.25)], vec![None, Some(0.9)], vec![Some(0.5), Some(f64::NAN)]]);
        assert_eq!(svg.matches("mark-cell").count(), 4);
        assert!(svg.contains(">0.25</text>") && svg.contains("0.8, 1e-3: 0.90"), "{svg}");
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("NaN"));
        // The extremes have the ends of the ramp.
        assert!(svg.contains(&Paint::Fixed(ramp(0.0)).css()) && svg.contains(&Paint::Fixed(ramp(1.0)).css()));
    }

    #[test]
    fn a_map_of_nothing_is_empty() {
        assert_eq!(map(&[]).matches("mark-cell").count(), 0);
        assert_eq!(map(&[vec![None, None]]).matches("mark-cell").count(), 0);
    }
}
