//! The frame of a chart: where its data lie, and the axes around them.

use super::scale::{Scale, ScaleKind};
use super::svg::{Anchor, number, text, text_width};
use super::{Size, legend::Legend};
use crate::html::escape;
use std::fmt::Write as _;

/// What an axis says and how far it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Axis<'a> {
    /// Name and unit of the values, as in `HD95, mm`.
    pub label: &'a str,
    /// Linear or logarithmic.
    pub kind: ScaleKind,
    /// Its ends; without, round values around the data.
    pub limits: Option<[f64; 2]>,
}

impl Axis<'_> {
    /// The scale for these values.
    pub(crate) fn scale(&self, values: impl IntoIterator<Item = f64>, ticks: usize) -> Scale {
        match self.limits {
            Some([low, high]) => Scale::new(self.kind, low, high),
            None => Scale::over(self.kind, values).nice(ticks),
        }
    }
}

/// What is written along an axis: shares of its length, and their texts.
pub(crate) struct Marks {
    pub label: String,
    pub places: Vec<(f64, String)>,
    /// Draw a line across the chart at each place.
    pub grid: bool,
}

impl Marks {
    /// A scale's round values.
    pub fn of_scale(label: &str, scale: &Scale, wanted: usize) -> Marks {
        let places = scale.ticks(wanted).into_iter().filter_map(|(value, text)| Some((scale.position(value)?, text)));
        Marks { label: label.into(), places: places.collect(), grid: true }
    }

    /// Names in the middles of equal bands.
    pub fn of_bands(label: &str, names: &[String]) -> Marks {
        let middle = |index: usize| (index as f64 + 0.5) / names.len() as f64;
        let places = names.iter().enumerate().map(|(index, name)| (middle(index), name.clone())).collect();
        Marks { label: label.into(), places, grid: false }
    }
}

/// The rectangle in which the data lie.
pub(crate) struct Frame {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Frame {
    /// From a share of the horizontal axis.
    pub fn x(&self, share: f64) -> f64 {
        self.left + share * self.width
    }

    /// From a share of the vertical axis, which runs upwards.
    pub fn y(&self, share: f64) -> f64 {
        self.top + (1.0 - share) * self.height
    }

    /// Where a point lies on two scales; `None` where one of them cannot show it.
    pub fn point(&self, [x_scale, y_scale]: [&Scale; 2], x: f64, y: f64) -> Option<[f64; 2]> {
        Some([self.x(x_scale.position(x)?), self.y(y_scale.position(y)?)])
    }
}

/// Draws grid, axes, their texts and the legend; returns the frame that is left for the data.
pub(crate) fn axes(out: &mut String, size: Size, legend: &Legend, x: &Marks, y: &Marks) -> Frame {
    let widest = |marks: &Marks| marks.places.iter().map(|(_, text)| text_width(text)).fold(0.0, f64::max);
    let left = widest(y) + 10.0 + if y.label.is_empty() { 4.0 } else { 22.0 };
    // Texts too wide for their place are written at a slant.
    let width = size.width - left - 14.0;
    let slanted = widest(x) + 6.0 > width / x.places.len().max(1) as f64;
    let below = if slanted { 10.0 + 0.6 * widest(x) } else { 18.0 } + if x.label.is_empty() { 4.0 } else { 22.0 };
    let top = 10.0 + legend.height(width);
    let frame = Frame { left, top, width, height: size.height - top - below };
    let (bottom, right) = (frame.y(0.0), frame.x(1.0));

    for (share, content) in &y.places {
        let place = frame.y(*share);
        if y.grid {
            let _ = write!(out, "<path class=\"grid\" d=\"M{} {}H{}\"/>", number(left), number(place), number(right));
        }
        *out += &text(left - 6.0, place + 4.0, Anchor::End, "tick", content);
    }
    for (share, content) in &x.places {
        let place = frame.x(*share);
        if x.grid {
            let _ = write!(out, "<path class=\"grid\" d=\"M{} {}V{}\"/>", number(place), number(frame.top), number(bottom));
        }
        if slanted {
            let [x, y] = [place + 4.0, bottom + 14.0].map(number);
            let _ = write!(
                out,
                "<text class=\"tick\" text-anchor=\"end\" transform=\"translate({x} {y}) rotate(-35)\">{}</text>",
                escape(content)
            );
        } else {
            *out += &text(place, bottom + 16.0, Anchor::Middle, "tick", content);
        }
    }
    let [l, t, b, r] = [left, frame.top, bottom, right].map(number);
    let _ = writeln!(out, "<path class=\"axis\" d=\"M{l} {t}V{b}H{r}\"/>");
    if !x.label.is_empty() {
        *out += &text(frame.x(0.5), size.height - 5.0, Anchor::Middle, "", &x.label);
    }
    if !y.label.is_empty() {
        let middle = number(frame.y(0.5));
        let _ = write!(
            out,
            "<text text-anchor=\"middle\" transform=\"translate(13 {middle}) rotate(-90)\">{}</text>",
            escape(&y.label)
        );
    }
    legend.draw(out, left, width);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 400.0, height: 300.0 };

    #[test]
    fn the_frame_leaves_room_for_texts() {
        let scale = Scale::new(ScaleKind::Linear, 0.0, 100.0);
        let names = ["aorta".to_string(), "gallbladder".into()];
        let (x, y) = (Marks::of_bands("", &names), Marks::of_scale("Dice, percent", &scale, 5));
        let mut out = String::new();
        let frame = axes(&mut out, SIZE, &Legend::default(), &x, &y);
        assert!(frame.left > text_width("100") + 12.0 && frame.x(1.0) < SIZE.width);
        assert!(frame.y(0.0) < SIZE.height - 16.0 && frame.y(1.0) >= 10.0);
        assert_eq!(frame.x(0.25), frame.left + frame.width / 4.0);
        // Ticks of the scale have grid lines, names have none.
        assert_eq!(out.matches("class=\"grid\"").count(), 6);
        assert!(out.contains(">gallbladder<") && out.contains("rotate(-90)\">Dice, percent<") && !out.contains("rotate(-35)"));
    }

    #[test]
    fn crowded_names_are_slanted() {
        let names: Vec<String> = (0..12).map(|index| format!("a long name {index}")).collect();
        let scale = Scale::new(ScaleKind::Linear, 0.0, 1.0);
        let mut out = String::new();
        axes(&mut out, SIZE, &Legend::default(), &Marks::of_bands("", &names), &Marks::of_scale("", &scale, 5));
        assert_eq!(out.matches("rotate(-35)").count(), 12);
    }
}
