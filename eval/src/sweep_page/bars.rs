//! The importance of settings, as bars.

use super::importance::Importance;
use crate::plot::svg::{Anchor, element, number, text, text_width};
use crate::plot::{Paint, Size};
use std::fmt::Write as _;

/// Height of a bar with the space around it.
const LINE: f64 = 34.0;

/// Draws one `mark-bar` a setting, from 0 to 100 percent.
pub(crate) fn draw(importance: &Importance, width: f64) -> String {
    let size = Size { width, height: LINE * importance.shares.len() as f64 + 30.0 };
    let left = importance.shares.iter().map(|(name, _)| text_width(name)).fold(0.0, f64::max) + 14.0;
    let length = width - left - 60.0;
    let bottom = size.height - 26.0;
    let mut body = String::new();
    for percent in [0, 25, 50, 75, 100] {
        let x = left + length * f64::from(percent) / 100.0;
        let _ = write!(body, "<path class=\"grid\" d=\"M{} 0V{}\"/>", number(x), number(bottom));
        body += &text(x, bottom + 16.0, Anchor::Middle, "tick", &format!("{percent} %"));
    }
    for (index, (name, share)) in importance.shares.iter().enumerate() {
        let middle = LINE * (index as f64 + 0.5);
        body += &text(left - 8.0, middle + 4.0, Anchor::End, "", name);
        let told = share.map_or("too few trials".to_string(), |share| format!("{:.0} %", 100.0 * share));
        let _ = write!(
            body,
            "<rect class=\"mark-bar\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"18\" rx=\"2\" fill=\"{}\"><title>{}: {told}</title></rect>",
            number(left),
            number(middle - 9.0),
            number(length * share.unwrap_or(0.0)),
            Paint::Series(0).css(),
            crate::html::escape(name),
        );
        body += &text(left + length * share.unwrap_or(0.0) + 6.0, middle + 4.0, Anchor::Start, "", &told);
        body.push('\n');
    }
    element("importance", size, "Share of the variance that each setting explains", &body)
}
