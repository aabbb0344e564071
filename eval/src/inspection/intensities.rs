//! The spread of each case's values as strips below one another, on one axis.

use crate::plot::svg::{Anchor, digits, number, text, widest};
use maud::{Markup, html};
use sam_ladder_schemas::inspection::{InspectedCase, InspectedVoxels};
use sam_ladder_schemas::tables::PERCENTILES;

const WIDTH: f64 = 900.0;
const ROW: f64 = 18.0;
/// Space above and below the strips, for the axis's ends.
const MARGIN: f64 = 22.0;

type Percentiles = [f64; PERCENTILES.len()];

/// One strip for each case whose voxels were read.
pub(super) fn intensity_strips(cases: &[InspectedCase], channel: usize, label: &str) -> Markup {
    let strips: Vec<(String, Percentiles)> = cases
        .iter()
        .filter_map(|case| match &case.voxels {
            Some(InspectedVoxels::Usable { percentiles, .. }) => Some((case.case.clone(), *percentiles.get(channel)?)),
            _ => None,
        })
        .collect();
    let least = strips.iter().map(|(_, strip)| strip[0]).fold(f64::INFINITY, f64::min);
    let most = strips.iter().map(|(_, strip)| strip[4]).fold(f64::NEG_INFINITY, f64::max);
    if strips.is_empty() || !(least.is_finite() && most.is_finite()) {
        return html! { p.note { "No case could be read." } };
    }
    let left = (widest(strips.iter().map(|(case, _)| case)) + 10.0).min(WIDTH / 3.0);
    let span = (most - least).max(f64::MIN_POSITIVE);
    let x = |value: f64| left + (value - least) / span * (WIDTH - left - 6.0);
    let height = MARGIN + ROW * strips.len() as f64 + 4.0;
    html! {
        svg.plot.strips viewBox={ "0 0 " (number(WIDTH)) " " (number(height)) } role="img" aria-label={ "Values of " (label) } {
            (text(x(least), 14.0, Anchor::Start, "tick", &digits(least)))
            (text(x(most), 14.0, Anchor::End, "tick", &digits(most)))
            @for (at, (case, strip)) in strips.iter().enumerate() {
                (one_strip(case, strip, MARGIN + ROW * (at as f64 + 0.5), left, x))
            }
        }
    }
}

fn one_strip(case: &str, strip: &Percentiles, y: f64, left: f64, x: impl Fn(f64) -> f64) -> Markup {
    let [least, low, middle, high, most] = strip.map(x);
    let shown = PERCENTILES.iter().zip(strip).map(|(percent, value)| format!("{percent} %: {}", digits(*value)));
    let title = format!("{case}: {}", shown.collect::<Vec<_>>().join(", "));
    html! {
        g {
            title { (title) }
            (text(left - 6.0, y + 4.0, Anchor::End, "tick", case))
            line.whisker x1=(number(least)) x2=(number(most)) y1=(number(y)) y2=(number(y)) {}
            rect.mark-box x=(number(low)) y=(number(y - 5.0)) width=(number((high - low).max(1.0))) height="10" {}
            line.middle x1=(number(middle)) x2=(number(middle)) y1=(number(y - 6.0)) y2=(number(y + 6.0)) {}
        }
    }
}
