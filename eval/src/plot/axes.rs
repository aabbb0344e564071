//! The frame of a chart: the area of the data, and the axes around it.

use super::Size;
use super::legend::Legend;
use super::scale::{AxisScale, ScaleKind};
use super::svg::{Anchor, number, slanted_text, text, text_width, vertical_label, widest};
use maud::{Markup, html};

/// Label, scale and range of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Axis<'a> {
    /// Name and unit of the values, as in `HD95, mm`.
    pub label: &'a str,
    /// Linear or logarithmic.
    pub kind: ScaleKind,
    /// Its ends; if `None`, round values around the data.
    pub limits: Option<[f64; 2]>,
}

impl Axis<'_> {
    /// The scale for these values.
    pub(crate) fn scale(&self, values: impl IntoIterator<Item = f64>, ticks: usize) -> AxisScale {
        match self.limits {
            Some([low, high]) => AxisScale::new(self.kind, low, high),
            None => AxisScale::over(self.kind, values).nice(ticks),
        }
    }
}

/// Texts along an axis.
pub(crate) struct Ticks {
    /// Name of the axis; may be empty.
    pub label: String,
    /// Shares of the axis' length, and their texts.
    pub places: Vec<(f64, String)>,
    /// Whether a line is drawn across the chart at each place.
    pub grid: bool,
}

impl Ticks {
    /// A scale's round values.
    pub fn of_scale(label: &str, scale: &AxisScale, wanted: usize) -> Ticks {
        let places = scale.ticks(wanted).into_iter().filter_map(|(value, text)| Some((scale.position(value)?, text)));
        Ticks { label: label.into(), places: places.collect(), grid: true }
    }

    /// Names in the middles of equal bands.
    pub fn of_bands(label: &str, names: &[String]) -> Ticks {
        let middle = |index: usize| (index as f64 + 0.5) / names.len() as f64;
        let places = names.iter().enumerate().map(|(index, name)| (middle(index), name.clone())).collect();
        Ticks { label: label.into(), places, grid: false }
    }

    fn widest(&self) -> f64 {
        widest(self.places.iter().map(|(_, text)| text))
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

    /// Position of a point on two scales; `None` if one of them cannot show it.
    pub fn point(&self, [x_scale, y_scale]: [&AxisScale; 2], x: f64, y: f64) -> Option<[f64; 2]> {
        Some([self.x(x_scale.position(x)?), self.y(y_scale.position(y)?)])
    }
}

/// Grid, axes, their texts and the legend; and the frame that is left for the data.
pub(crate) fn axes(size: Size, legend: &Legend, x: &Ticks, y: &Ticks) -> (Frame, Markup) {
    let beside_y = y.widest() + 10.0 + if y.label.is_empty() { 4.0 } else { 22.0 };
    let room = size.width - beside_y - 14.0;
    let slanted = x.widest() + 6.0 > room / x.places.len().max(1) as f64;
    // A leaning text ends below its place: the first ones may reach beyond the vertical axis.
    let lean = x.places.iter().map(|(share, content)| 0.85 * text_width(content) + 4.0 - share * room);
    let left = if slanted { lean.fold(beside_y, f64::max) } else { beside_y };
    let width = size.width - left - 14.0;
    let below = if slanted { 10.0 + 0.6 * x.widest() } else { 18.0 } + if x.label.is_empty() { 4.0 } else { 22.0 };
    let top = 10.0 + legend.height(width);
    let frame = Frame { left, top, width, height: size.height - top - below };
    let bottom = frame.y(0.0);
    let [l, t, b, r] = [left, top, bottom, frame.x(1.0)].map(number);
    let drawn = html! {
        @for (share, content) in &y.places {
            @let place = frame.y(*share);
            @if y.grid { path.grid d=(format!("M{l} {}H{r}", number(place))) {} }
            (text(left - 6.0, place + 4.0, Anchor::End, "tick", content))
        }
        @for (share, content) in &x.places {
            @let place = frame.x(*share);
            @if x.grid { path.grid d=(format!("M{} {t}V{b}", number(place))) {} }
            @if slanted { (slanted_text(place, bottom, content)) }
            @else { (text(place, bottom + 16.0, Anchor::Middle, "tick", content)) }
        }
        path.axis d=(format!("M{l} {t}V{b}H{r}")) {}
        @if !x.label.is_empty() { (text(frame.x(0.5), size.height - 5.0, Anchor::Middle, "", &x.label)) }
        @if !y.label.is_empty() { (vertical_label(frame.y(0.5), &y.label)) }
        (legend.draw(left, width))
    };
    (frame, drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 400.0, height: 300.0 };

    #[test]
    fn the_frame_leaves_room_for_texts() {
        let scale = AxisScale::new(ScaleKind::Linear, 0.0, 100.0);
        let names = ["aorta".to_string(), "gallbladder".into()];
        let (x, y) = (Ticks::of_bands("", &names), Ticks::of_scale("Dice, percent", &scale, 5));
        let (frame, drawn) = axes(SIZE, &Legend::default(), &x, &y);
        let out = drawn.into_string();
        assert!(frame.left > super::super::svg::text_width("100") + 12.0 && frame.x(1.0) < SIZE.width);
        assert!(frame.y(0.0) < SIZE.height - 16.0 && frame.y(1.0) >= 10.0);
        assert_eq!(frame.x(0.25), frame.left + frame.width / 4.0);
        // Ticks of the scale have grid lines, names have none.
        assert_eq!(out.matches("class=\"grid\"").count(), 6);
        assert!(out.contains(">gallbladder<") && out.contains("rotate(-90)\">Dice, percent<") && !out.contains("rotate(-35)"));
    }

    #[test]
    fn crowded_names_are_slanted() {
        let names: Vec<String> = (0..12).map(|index| format!("a long name {index}")).collect();
        let scale = AxisScale::new(ScaleKind::Linear, 0.0, 1.0);
        let (_, drawn) = axes(SIZE, &Legend::default(), &Ticks::of_bands("", &names), &Ticks::of_scale("", &scale, 5));
        assert_eq!(drawn.into_string().matches("rotate(-35)").count(), 12);
    }
}
