//! SVG shared by all charts: numbers, text, and the outer element.

use super::Size;
use maud::{Markup, html};

/// A coordinate with at most two decimals, so that pages stay small.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// A value with four significant digits, as tooltips and tables write it.
pub(crate) fn digits(value: f64) -> String {
    let trim =
        |text: &str| if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text.to_string() };
    if !value.is_finite() {
        return value.to_string();
    }
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        let text = format!("{value:.3e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trim(mantissa));
    }
    let before = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    trim(&format!("{value:.*}", (3 - before).max(0) as usize))
}

/// Approximate width of a text at 12 px: sans-serif letters are about 6.3 px wide.
pub(crate) fn text_width(text: &str) -> f64 {
    6.3 * text.chars().count() as f64
}

/// Width of the widest text.
pub(crate) fn widest<'a>(texts: impl IntoIterator<Item = &'a String>) -> f64 {
    texts.into_iter().map(|text| text_width(text)).fold(0.0, f64::max)
}

/// Alignment of a text to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A text with its baseline at `(x, y)`; `class` may be empty.
pub(crate) fn text(x: f64, y: f64, anchor: Anchor, class: &str, content: &str) -> Markup {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let class = (!class.is_empty()).then_some(class);
    html! { text x=(number(x)) y=(number(y)) text-anchor=(anchor) class=[class] { (content) } }
}

/// A tick's text that ends below `(x, y)`, slanted because it is too wide for its place.
pub(crate) fn slanted_text(x: f64, y: f64, content: &str) -> Markup {
    let [x, y] = [x + 4.0, y + 14.0].map(number);
    html! { text.tick text-anchor="end" transform=(format!("translate({x} {y}) rotate(-35)")) { (content) } }
}

/// The name of a vertical axis, upwards along the chart's left side.
pub(crate) fn vertical_label(middle: f64, content: &str) -> Markup {
    let transform = format!("translate(13 {}) rotate(-90)", number(middle));
    html! { text text-anchor="middle" transform=(transform) { (content) } }
}

/// The element of a chart: `kind` is its second class, `label` is for screen readers.
pub(crate) fn element(kind: &str, size: Size, label: &str, body: Markup) -> Markup {
    let view_box = format!("0 0 {} {}", number(size.width), number(size.height));
    html! { svg class={ "plot " (kind) } viewBox=(view_box) role="img" aria-label=(label) { (body) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        assert_eq!([1.0, 0.126, -0.001, 10.5, 100.0].map(number), ["1", "0.13", "0", "10.5", "100"].map(String::from));
    }

    #[test]
    fn values_have_four_digits() {
        let values = [0.0, 0.5, 0.001, 1e-4, 0.000123456, 0.8, 12.3456, 1234.0, 123456.0, 2.5e7, 1e9, f64::NAN].map(digits);
        let texts = ["0", "0.5", "0.001", "1e-4", "1.235e-4", "0.8", "12.35", "1234", "123456", "2.5e7", "1e9", "NaN"];
        assert_eq!(values, texts);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            text(1.0, 2.0, Anchor::Middle, "tick", "a<b").into_string(),
            "<text x=\"1\" y=\"2\" text-anchor=\"middle\" class=\"tick\">a&lt;b</text>"
        );
    }
}
