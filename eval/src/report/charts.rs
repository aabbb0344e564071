//! The report's charts.

use super::ReportPage;
use crate::page::section;
use crate::plot::svg::widest;
use crate::plot::{self, Axis, BoxPlot, BoxSeries, Line, LineChart, Paint, Size};
use crate::run_curves::Curve;
use crate::summary::has_spacing;
use maud::{Markup, html};
use sam_ladder_schemas::tables::CaseRow;

const WIDE: Size = Size { width: 540.0, height: 300.0 };
/// Organs in a chart; more are shown in further ones.
const ORGANS_BESIDE: usize = 12;

fn figure(caption: &str, svg: Markup) -> Markup {
    html! { figure { figcaption { strong { (caption) } } (svg) } }
}

impl ReportPage<'_> {
    /// A box plot of each metric, one box per organ.
    pub(super) fn organs_section(&self, organs: &[String]) -> Markup {
        let scoring = &self.context.scoring;
        let percent = |label| Axis { label, limits: Some([0.0, 100.0]), ..Axis::default() };
        let axis = |label| Axis { label, ..Axis::default() };
        let unit = scoring.unit.name();
        let distance = format!("HD95, {unit}");
        let captions = [
            "DSC of each organ, percent: higher is better".to_string(),
            format!("HD95 of each organ, {unit}: lower is better"),
            format!("Surface Dice at {} mm of each organ, percent: higher is better", scoring.tolerance_mm),
            "Volume difference of each organ, ml, predicted minus reference: 0 is best".into(),
        ];
        let body = html! {
            div.charts {
                (self.organ_boxes(organs, &captions[0], percent("DSC, percent"), |row| row.dice.map(|dice| 100.0 * dice)))
                (self.organ_boxes(organs, &captions[1], axis(&distance), |row| row.hd95))
                @if has_spacing(self.summary) {
                    (self.organ_boxes(organs, &captions[2], percent("surface Dice, percent"), |row| row.surface_dice.map(|dice| 100.0 * dice)))
                    (self.organ_boxes(organs, &captions[3], axis("volume difference, ml"), |row| row.volume_difference_ml))
                }
            }
            p.note {
                "A dot is a case. Boxes are quartiles, the thick line is the median, the diamond the mean; whiskers end at the farthest case \
                 within 1.5 box lengths."
            }
        };
        section("organs", "Organs", body)
    }

    fn organ_boxes(&self, organs: &[String], caption: &str, y: Axis, value: fn(&CaseRow) -> Option<f64>) -> Markup {
        let of_organ =
            |organ: &String| -> Vec<f64> { self.cases.iter().filter(|row| row.organ == *organ).filter_map(value).collect() };
        let parts = organs.chunks(ORGANS_BESIDE).len();
        let part = |(index, organs): (usize, &[String])| {
            let values: Vec<Vec<f64>> = organs.iter().map(of_organ).collect();
            if parts > 1 && values.iter().all(Vec::is_empty) {
                return html! {};
            }
            let series = [BoxSeries { name: self.context.method, paints: &[Paint::Series(0)], values: &values }];
            let caption = if parts > 1 { format!("{caption} ({} of {parts})", index + 1) } else { caption.into() };
            let label = format!("Box plot: {caption}");
            // Long names, which lean, need room below.
            let size = Size { height: WIDE.height + (0.6 * widest(organs) - 60.0).max(0.0), ..WIDE };
            figure(&caption, plot::box_plot(&BoxPlot { size, label: &label, y, categories: organs, series: &series }))
        };
        html! { @for part in organs.chunks(ORGANS_BESIDE).enumerate().map(part) { (part) } }
    }

    /// Learning curves and the gate; empty without a run.
    pub(super) fn training_section(&self) -> Markup {
        let Some(curves) = self.curves else { return html! {} };
        fn line<'a>(name: &'a str, series: usize, points: &'a Curve, dots: bool) -> Line<'a> {
            Line { name, paint: Paint::Series(series), points, dots }
        }
        let few = |curve: &Curve| curve.len() <= 60;
        let percent: Curve = curves.val_dice.iter().map(|[step, dice]| [*step, 100.0 * dice]).collect();
        let losses = [
            line("loss", 7, &curves.loss, false),
            line("cross-entropy", 5, &curves.ce, false),
            line("Dice loss", 1, &curves.dice, false),
            line("loss, epoch mean", 0, &curves.epoch_loss, few(&curves.epoch_loss)),
        ];
        let losses: Vec<Line> = losses.into_iter().filter(|line| !line.points.is_empty()).collect();
        let rungs: Vec<Line> = curves
            .rung_gates
            .iter()
            .zip((0..8).cycle())
            .map(|((block, curve), series)| line(block, series, curve, false))
            .collect();
        let charts: Vec<Markup> = [
            over_steps("Training loss: lower is better", "loss", &losses),
            over_steps(
                "DSC of the validation cases at low resolution, percent: higher is better",
                "DSC, percent",
                &[line("validation", 2, &percent, few(&percent))],
            ),
            over_steps(
                "Gate, SAM's share of the embeddings: 1 is only SAM, 0 only the side network",
                "gate σ(α)",
                &[line("gate", 3, &curves.gate, false)],
            ),
            over_steps(
                "Gates of the ladder, each rung's share where it is mixed into the side network, by the encoder's block",
                "gate σ(α)",
                &rungs,
            ),
            over_steps("Learning rate of each step", "learning rate", &[line("learning rate", 0, &curves.lr, false)]),
        ]
        .into_iter()
        .flatten()
        .collect();
        if charts.is_empty() {
            return html! {};
        }
        let body = html! {
            div.charts { @for chart in charts { (chart) } }
            p.note { "From the run's steps.parquet and epochs.parquet." }
        };
        section("training", "Training", body)
    }
}

/// Lines over the training steps; `None` if none has a point.
fn over_steps(caption: &str, y_label: &str, lines: &[Line]) -> Option<Markup> {
    if lines.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let axis = |label| Axis { label, ..Axis::default() };
    let label = format!("Line chart over the training steps: {caption}");
    let chart = LineChart { size: WIDE, label: &label, x: axis("optimizer step"), y: axis(y_label), lines };
    Some(figure(caption, plot::line_chart(&chart)))
}
