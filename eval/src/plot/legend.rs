//! The legend: the series' names and colours, in one row or more above the data.

use super::paint::Paint;
use super::svg::{Anchor, number, text, text_width};
use maud::{Markup, html};

/// Height of a row.
const ROW: f64 = 18.0;

/// Names and colours; empty if there is nothing to tell apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Legend {
    pub entries: Vec<(String, Paint)>,
}

impl Legend {
    /// The legend of some series: empty for a single one, whose name the page gives.
    pub fn of<'a>(series: impl IntoIterator<Item = (&'a str, Paint)>) -> Legend {
        let entries: Vec<(String, Paint)> = series.into_iter().map(|(name, paint)| (name.to_string(), paint)).collect();
        if entries.len() > 1 { Legend { entries } } else { Legend::default() }
    }

    /// Its height at a given width.
    pub fn height(&self, width: f64) -> f64 {
        self.places(width).last().map_or(0.0, |[_, y]| y + ROW + 4.0)
    }

    /// Position of each entry.
    fn places(&self, width: f64) -> Vec<[f64; 2]> {
        let (mut x, mut y) = (0.0, 0.0);
        let place = |(name, _): &(String, Paint)| {
            let needed = 34.0 + text_width(name);
            if x > 0.0 && x + needed > width {
                (x, y) = (0.0, y + ROW);
            }
            let place = [x, y];
            x += needed;
            place
        };
        self.entries.iter().map(place).collect()
    }

    /// Draws it, starting at `left`.
    pub fn draw(&self, left: f64, width: f64) -> Markup {
        html! {
            @for ((name, paint), [x, y]) in self.entries.iter().zip(self.places(width)) {
                rect.legend-key x=(number(left + x)) y=(number(y + 6.0)) width="14" height="10" rx="2" fill=(paint.css()) {}
                (text(left + x + 19.0, y + 15.5, Anchor::Start, "", name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_series_needs_no_legend_and_many_wrap() {
        let named = |names: &[&'static str]| Legend::of(names.iter().map(|name| (*name, Paint::Series(0))));
        assert_eq!(named(&["loss"]).height(400.0), 0.0);
        assert_eq!(named(&["loss", "cross-entropy"]).height(400.0), ROW + 4.0);
        let names = ["a series with a name"; 5];
        assert_eq!(named(&names).height(330.0), 3.0 * ROW + 4.0);
        let drawn = named(&names).draw(0.0, 330.0).into_string();
        assert_eq!(drawn.matches("legend-key").count(), 5);
    }
}
