//! The report's charts.

use super::ReportPage;
use crate::organ_columns::OrganColumn;
use crate::page::section;
use crate::plot::{self, Axis, BoxPlot, BoxSeries, HeatMap, Line, LineChart, Paint, Size};
use crate::run_curves::Curve;
use crate::scores::Scores;
use crate::summary::has_spacing;
use maud::{Markup, html};
use sam_ladder_schemas::tables::CaseRow;

const WIDE: Size = Size { width: 540.0, height: 300.0 };

fn figure(caption: &str, svg: Markup) -> Markup {
    html! { figure { figcaption { strong { (caption) } } (svg) } }
}

impl ReportPage<'_> {
    /// A box plot of each metric, one box per organ.
    pub(super) fn organs_section(&self, columns: &[OrganColumn]) -> Markup {
        let scoring = &self.context.scoring;
        let percent = |label| Axis { label, limits: Some([0.0, 100.0]), ..Axis::default() };
        let distance = format!("HD95, {}", scoring.unit.name());
        let surface = format!("Surface Dice at {} mm of each organ", scoring.tolerance_mm);
        let ml = Axis { label: "ml", ..Axis::default() };
        let body = html! {
            div.charts {
                (self.organ_boxes(columns, "DSC of each organ", percent("DSC, percent"), |row| row.dice.map(|dice| 100.0 * dice)))
                (self.organ_boxes(columns, "HD95 of each organ", Axis { label: &distance, ..Axis::default() }, |row| row.hd95))
                @if has_spacing(self.summary) {
                    (self.organ_boxes(columns, &surface, percent("surface Dice, percent"), |row| row.surface_dice.map(|dice| 100.0 * dice)))
                    (self.organ_boxes(columns, "Volume difference of each organ", ml, |row| row.volume_difference_ml))
                }
            }
            p.note {
                "A dot is a case. Boxes are quartiles, the thick line is the median, the diamond the mean; whiskers end at the farthest case \
                 within 1.5 box lengths."
            }
        };
        section("organs", "Organs", body)
    }

    fn organ_boxes(&self, columns: &[OrganColumn], caption: &str, y: Axis, value: fn(&CaseRow) -> Option<f64>) -> Markup {
        let of_organ = |column: &OrganColumn| -> Vec<f64> {
            self.cases.iter().filter(|row| row.organ == column.organ).filter_map(value).collect()
        };
        let categories: Vec<String> = columns.iter().map(|column| column.heading.clone()).collect();
        let values: Vec<Vec<f64>> = columns.iter().map(of_organ).collect();
        let series = [BoxSeries { name: self.context.method, paints: &[Paint::Series(0)], values: &values }];
        let label = format!("Box plot: {caption}");
        figure(caption, plot::box_plot(&BoxPlot { size: WIDE, label: &label, y, categories: &categories, series: &series }))
    }

    /// Learning curves and the gate; empty without a run.
    pub(super) fn training_section(&self) -> Markup {
        let Some(curves) = self.curves else { return html! {} };
        let line = |name, series, points, dots| Line { name, paint: Paint::Series(series), points, dots };
        let few = |curve: &Curve| curve.len() <= 60;
        let percent: Curve = curves.val_dice.iter().map(|[step, dice]| [*step, 100.0 * dice]).collect();
        let losses = [
            line("loss", 7, &curves.loss, false),
            line("cross-entropy", 5, &curves.ce, false),
            line("Dice loss", 1, &curves.dice, false),
            line("loss, epoch mean", 0, &curves.epoch_loss, few(&curves.epoch_loss)),
        ];
        let losses: Vec<Line> = losses.into_iter().filter(|line| !line.points.is_empty()).collect();
        let charts: Vec<Markup> = [
            over_steps("Loss", "loss", &losses),
            over_steps("DSC of the validation cases", "DSC, percent", &[line("validation", 2, &percent, few(&percent))]),
            over_steps("Gate: SAM's share of the embeddings", "σ(α)", &[line("gate", 3, &curves.gate, false)]),
            over_steps("Learning rate", "learning rate", &[line("learning rate", 0, &curves.lr, false)]),
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

    /// Dice of each case and organ as colours.
    pub(super) fn case_map(&self, columns: &[OrganColumn]) -> Markup {
        let organs: Vec<String> = columns.iter().map(|column| column.organ.clone()).collect();
        let scores = Scores::new(self.cases, &organs, |row| row.dice.map(|dice| 100.0 * dice));
        let values: Vec<Vec<Option<f64>>> =
            (0..scores.cases.len()).map(|case| (0..scores.organs()).map(|organ| scores.get(organ, case)).collect()).collect();
        let names: Vec<String> = columns.iter().map(|column| column.heading.clone()).collect();
        let svg = plot::heat_map(&HeatMap {
            size: Size { width: 820.0, height: 60.0 + 26.0 * scores.cases.len() as f64 },
            label: "Heat map: DSC of each case and organ, in percent",
            x_label: "",
            y_label: "case",
            columns: &names,
            rows: &scores.cases,
            values: &values,
            limits: Some([0.0, 100.0]),
            decimals: 1,
        });
        figure("DSC of each case and organ, percent", svg)
    }
}

/// Lines over the training steps; `None` if none has a point.
fn over_steps(caption: &str, y_label: &str, lines: &[Line]) -> Option<Markup> {
    if lines.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let axis = |label| Axis { label, ..Axis::default() };
    let label = format!("Line chart over the training steps: {caption}");
    let chart = LineChart { size: WIDE, label: &label, x: axis("step"), y: axis(y_label), lines };
    Some(figure(caption, plot::line_chart(&chart)))
}
