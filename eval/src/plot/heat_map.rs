//! Heat maps: a value for each pair of two lists, as a colour and as a number.

use super::Size;
use super::paint::{Paint, ink_on, ramp};
use super::scale::{Scale, ScaleKind};
use super::svg::{Anchor, element, number, text, text_width};
use crate::html::escape;
use std::fmt::Write as _;

/// A heat map.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap<'a> {
    /// Size of the view box.
    pub size: Size,
    /// What a screen reader says.
    pub label: &'a str,
    /// Name of the columns, below them.
    pub x_label: &'a str,
    /// Name of the rows, beside them.
    pub y_label: &'a str,
    /// Names of the columns.
    pub columns: &'a [String],
    /// Names of the rows, from the top.
    pub rows: &'a [String],
    /// Values, row by row; a pair without one stays empty.
    pub values: &'a [Vec<Option<f64>>],
    /// Values of the darkest and the lightest colour; without, the least and the largest.
    pub limits: Option<[f64; 2]>,
    /// Decimals of the numbers.
    pub decimals: usize,
}

/// Width of the bar that explains the colours, with its numbers.
const BAR: f64 = 66.0;

/// Draws cells, one `mark-cell` a value, and a bar that explains their colours.
pub fn heat_map(chart: &HeatMap) -> String {
    let values = chart.values.iter().flatten().flatten().copied();
    let scale = match chart.limits {
        Some([low, high]) => Scale::new(ScaleKind::Linear, low, high),
        None => Scale::over(ScaleKind::Linear, values),
    };
    let widest = |names: &[String]| names.iter().map(|name| text_width(name)).fold(0.0, f64::max);
    let left = widest(chart.rows) + 10.0 + if chart.y_label.is_empty() { 4.0 } else { 20.0 };
    let width = chart.size.width - left - BAR - 10.0;
    let cell_width = width / chart.columns.len().max(1) as f64;
    let slanted = widest(chart.columns) + 6.0 > cell_width;
    let below =
        if slanted { 10.0 + 0.6 * widest(chart.columns) } else { 20.0 } + if chart.x_label.is_empty() { 2.0 } else { 20.0 };
    let top = 8.0;
    let height = chart.size.height - top - below;
    let cell_height = height / chart.rows.len().max(1) as f64;

    let mut body = String::new();
    for (row, (name, values)) in chart.rows.iter().zip(chart.values).enumerate() {
        let y = top + row as f64 * cell_height;
        body += &text(left - 6.0, y + cell_height / 2.0 + 4.0, Anchor::End, "tick", name);
        for (column, (column_name, value)) in chart.columns.iter().zip(values).enumerate() {
            let Some((value, share)) = value.and_then(|value| Some((value, scale.position(value)?))) else { continue };
            let (x, colour) = (left + column as f64 * cell_width, ramp(share));
            let shown = format!("{value:.*}", chart.decimals);
            let _ = write!(
                body,
                "<rect class=\"mark-cell\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{}, {}: {shown}</title></rect>",
                number(x + 0.5),
                number(y + 0.5),
                number(cell_width - 1.0),
                number(cell_height - 1.0),
                Paint::Fixed(colour).css(),
                escape(name),
                escape(column_name),
            );
            if text_width(&shown) < cell_width && cell_height > 13.0 {
                let [x, y] = [x + cell_width / 2.0, y + cell_height / 2.0 + 4.0].map(number);
                let ink = ink_on(colour);
                let _ = write!(body, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" style=\"fill:{ink}\">{shown}</text>");
            }
        }
        body.push('\n');
    }
    for (column, name) in chart.columns.iter().enumerate() {
        let middle = left + (column as f64 + 0.5) * cell_width;
        if slanted {
            let [x, y] = [middle + 4.0, top + height + 14.0].map(number);
            let _ = write!(
                body,
                "<text class=\"tick\" text-anchor=\"end\" transform=\"translate({x} {y}) rotate(-35)\">{}</text>",
                escape(name)
            );
        } else {
            body += &text(middle, top + height + 16.0, Anchor::Middle, "tick", name);
        }
    }
    if !chart.x_label.is_empty() {
        body += &text(left + width / 2.0, chart.size.height - 5.0, Anchor::Middle, "", chart.x_label);
    }
    if !chart.y_label.is_empty() {
        let middle = number(top + height / 2.0);
        let label = escape(chart.y_label);
        let _ = write!(body, "<text text-anchor=\"middle\" transform=\"translate(13 {middle}) rotate(-90)\">{label}</text>");
    }
    body += &colour_bar(&scale, left + width + 14.0, top, height);
    element("heat-map", chart.size, chart.label, &body)
}

/// The colours from the least value, at the bottom, to the largest.
fn colour_bar(scale: &Scale, x: f64, top: f64, height: f64) -> String {
    const STEPS: u32 = 40;
    let mut bar = String::new();
    for step in 0..STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let _ = write!(
            bar,
            "<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"{}\" fill=\"{}\"/>",
            number(x),
            number(top + height * (1.0 - share - 1.0 / f64::from(STEPS))),
            // A little over, so that no line shows between two steps.
            number(height / f64::from(STEPS) + 0.4),
            Paint::Fixed(ramp(share + 0.5 / f64::from(STEPS))).css(),
        );
    }
    for (value, content) in scale.ticks(5) {
        if let Some(share) = scale.position(value) {
            bar += &text(x + 17.0, top + height * (1.0 - share) + 4.0, Anchor::Start, "tick", &content);
        }
    }
    bar.push('\n');
    bar
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
