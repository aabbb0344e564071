//! Charts as SVG, for self-contained pages.
//!
//! Each chart is a pure function from plain data to one `<svg>` element. Its colours are the CSS variables of [`STYLE`], which the page
//! includes once, so that charts follow the reader's light or dark setting. Every mark has a class (`mark-line`, `mark-point`, `mark-box`,
//! `mark-cell`), so that tests can count marks. Neither plotters (whose SVG has fixed colours and no classes) nor charming (which draws by
//! ECharts' JavaScript) offers this.

pub(crate) mod axes;
mod box_plot;
mod heat_map;
pub(crate) mod legend;
mod line_chart;
mod paint;
mod scale;
pub(crate) mod svg;

pub use axes::Axis;
pub use box_plot::{BoxPlot, BoxSeries, box_plot};
pub(crate) use heat_map::{BAR, colour_bar};
pub use heat_map::{HeatMap, heat_map};
pub use line_chart::{Line, LineChart, line_chart};
pub use paint::Paint;
pub(crate) use paint::{ink_on, ramp};
pub(crate) use scale::AxisScale;
pub use scale::ScaleKind;

/// The charts' colours and fonts, for the page's `<style>`: light, or dark if the reader's system is dark.
pub const STYLE: &str = include_str!("plot.css");

/// Width and height of a chart's view box, in pixels at its natural size; a page may stretch it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Pixels along a row.
    pub width: f64,
    /// Rows.
    pub height: f64,
}
