//! Charts as SVG, for pages that refer to nothing outside themselves.
//!
//! Each chart is a pure function from plain data to one `<svg>` element. Its colours are the CSS variables of [`STYLE`], which
//! the page carries once, so that charts follow the reader's light or dark setting. Every mark has a class (`mark-line`,
//! `mark-point`, `mark-box`, `mark-cell`), so that a test can count it in the page. plotters' SVG backend writes fixed colours
//! and no classes, and charming draws by ECharts' JavaScript: neither gives that.

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
pub use heat_map::{HeatMap, heat_map};
pub use line_chart::{Line, LineChart, line_chart};
pub use paint::Paint;
pub(crate) use scale::AxisScale;
pub use scale::ScaleKind;

/// The charts' colours and type, for the `<style>` of the page that shows them: light, or dark if the reader's system is.
pub const STYLE: &str = include_str!("plot.css");

/// Width and height of a chart's view box, in pixels at its natural size; a page may stretch it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Pixels along a row.
    pub width: f64,
    /// Rows.
    pub height: f64,
}
