//! The little SVG that all charts share: numbers, text, and the element around them.

use super::Size;
use crate::html::escape;

/// A coordinate with at most two decimals, so that pages stay small.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Width that a text takes at 12 px, about: sans-serif letters are some 6.3 px wide.
pub(crate) fn text_width(text: &str) -> f64 {
    6.3 * text.chars().count() as f64
}

/// Where a text stands in relation to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A text with its baseline at `(x, y)`.
pub(crate) fn text(x: f64, y: f64, anchor: Anchor, class: &str, content: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\"{class}>{}</text>", number(x), number(y), escape(content))
}

/// The element of a chart: `kind` is its second class, `label` is what a screen reader says.
pub(crate) fn element(kind: &str, size: Size, label: &str, body: &str) -> String {
    format!(
        "<svg class=\"plot {kind}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{body}</svg>\n",
        number(size.width),
        number(size.height),
        escape(label),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        assert_eq!([1.0, 0.126, -0.001, 10.5, 100.0].map(number), ["1", "0.13", "0", "10.5", "100"].map(String::from));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            text(1.0, 2.0, Anchor::Middle, "tick", "a<b"),
            "<text x=\"1\" y=\"2\" text-anchor=\"middle\" class=\"tick\">a&lt;b</text>"
        );
    }
}
