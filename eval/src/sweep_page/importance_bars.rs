//! The importance of settings, as bars.

use super::importance::Importance;
use crate::plot::svg::{Anchor, element, number, text, widest};
use crate::plot::{Paint, Size};
use maud::{Markup, html};

/// Height of a bar with the space around it.
const LINE: f64 = 34.0;

/// Draws one `mark-bar` per setting, from 0 to 100 percent.
pub(crate) fn draw(importance: &Importance, width: f64) -> Markup {
    let size = Size { width, height: LINE * importance.shares.len() as f64 + 30.0 };
    let left = widest(importance.shares.iter().map(|(name, _)| name)) + 14.0;
    let length = width - left - 60.0;
    let bottom = size.height - 26.0;
    let drawn = html! {
        @for percent in [0, 25, 50, 75, 100] {
            @let x = left + length * f64::from(percent) / 100.0;
            path.grid d=(format!("M{} 0V{}", number(x), number(bottom))) {}
            (text(x, bottom + 16.0, Anchor::Middle, "tick", &format!("{percent} %")))
        }
        @for (index, (name, share)) in importance.shares.iter().enumerate() {
            @let middle = LINE * (index as f64 + 0.5);
            @let end = length * share.unwrap_or(0.0);
            @let shown = share.map_or("too few trials".to_string(), |share| format!("{:.0} %", 100.0 * share));
            (text(left - 8.0, middle + 4.0, Anchor::End, "", name))
            @let (x, y, bar) = (number(left), number(middle - 9.0), number(end));
            rect.mark-bar x=(x) y=(y) width=(bar) height="18" rx="2" fill=(Paint::Series(0).css()) { title { (name) ": " (shown) } }
            (text(left + end + 6.0, middle + 4.0, Anchor::Start, "", &shown))
        }
    };
    element("importance", size, "Share of the variance that each setting explains", drawn)
}
