//! The report's charts.

use super::Report;
use crate::html::escape;
use crate::plot::{self, Axis, BoxPlot, BoxSeries, HeatMap, Line, LineChart, Paint, Size};
use crate::run_curves::Curve;
use crate::scores::Scores;
use crate::table_md::Column;
use sam_ladder_schemas::tables::CaseRow;

const WIDE: Size = Size { width: 540.0, height: 300.0 };

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption><strong>{}</strong></figcaption>\n{svg}</figure>\n", escape(caption))
}

impl Report<'_> {
    /// A box an organ of each metric.
    pub(super) fn organs_section(&self, columns: &[Column]) -> String {
        let scoring = &self.context.scoring;
        let categories: Vec<String> = columns.iter().map(|column| column.heading.clone()).collect();
        let draw = |caption: &str, axis: Axis, value: &dyn Fn(&CaseRow) -> Option<f64>| {
            let of_organ = |column: &Column| -> Vec<f64> {
                self.cases.iter().filter(|row| row.organ == column.organ).filter_map(value).collect()
            };
            let values: Vec<Vec<f64>> = columns.iter().map(of_organ).collect();
            let series = [BoxSeries { name: self.context.method, paints: &[Paint::Series(0)], values: &values }];
            let label = format!("Box plot: {caption}");
            figure(
                caption,
                &plot::box_plot(&BoxPlot { size: WIDE, label: &label, y: axis, categories: &categories, series: &series }),
            )
        };
        let percent = |label| Axis { label, limits: Some([0.0, 100.0]), ..Axis::default() };
        let distance = format!("HD95, {}", scoring.unit_name());
        let surface = format!("Surface Dice at {} mm of each organ", scoring.tolerance_mm);
        let charts = [
            draw("DSC of each organ", percent("DSC, percent"), &|row| row.dice.map(|dice| 100.0 * dice)),
            draw("HD95 of each organ", Axis { label: &distance, ..Axis::default() }, &|row| row.hd95),
            draw(&surface, percent("surface Dice, percent"), &|row| row.surface_dice.map(|dice| 100.0 * dice)),
            draw("Volume difference of each organ", Axis { label: "ml", ..Axis::default() }, &|row| {
                Some(row.volume_difference_ml)
            }),
        ];
        format!(
            "<section aria-labelledby=\"organs\">\n<h2 id=\"organs\">Organs</h2>\n<div class=\"charts\">\n{}</div>\n\
             <p class=\"note\">A dot is a case. Boxes are quartiles, the thick line is the median, the diamond the mean; whiskers end at the farthest case within \
             1.5 box lengths.</p>\n</section>\n",
            charts.concat()
        )
    }

    /// Learning curves and the gate; nothing without a run.
    pub(super) fn training_section(&self) -> String {
        let Some(curves) = self.curves else { return String::new() };
        let line = |name, series, points, dots| Line { name, paint: Paint::Series(series), points, dots };
        let draw = |caption: &str, y: Axis, lines: &[Line]| {
            if lines.iter().all(|line| line.points.is_empty()) {
                return String::new();
            }
            let x = Axis { label: "step", ..Axis::default() };
            let label = format!("Line chart over the training steps: {caption}");
            figure(caption, &plot::line_chart(&LineChart { size: WIDE, label: &label, x, y, lines }))
        };
        let few = |curve: &Curve| curve.len() <= 60;
        let axis = |label| Axis { label, ..Axis::default() };
        let percent: Curve = curves.val_dice.iter().map(|[step, dice]| [*step, 100.0 * dice]).collect();
        let losses = [
            line("loss", 7, &curves.loss, false),
            line("cross-entropy", 5, &curves.ce, false),
            line("Dice loss", 1, &curves.dice, false),
            line("loss, epoch mean", 0, &curves.epoch_loss, few(&curves.epoch_loss)),
        ];
        let losses: Vec<Line> = losses.into_iter().filter(|line| !line.points.is_empty()).collect();
        let charts = [
            draw("Loss", axis("loss"), &losses),
            draw("DSC of the validation cases", axis("DSC, percent"), &[line("validation", 2, &percent, few(&percent))]),
            draw("Gate: SAM's share of the embeddings", axis("σ(α)"), &[line("gate", 3, &curves.gate, false)]),
            draw("Learning rate", axis("learning rate"), &[line("learning rate", 0, &curves.lr, false)]),
        ];
        if charts.iter().all(String::is_empty) {
            return String::new();
        }
        format!(
            "<section aria-labelledby=\"training\">\n<h2 id=\"training\">Training</h2>\n<div class=\"charts\">\n{}</div>\n\
             <p class=\"note\">From the run's steps.parquet and epochs.parquet.</p>\n</section>\n",
            charts.concat()
        )
    }

    /// Dice of each case and organ as colours.
    pub(super) fn case_map(&self, columns: &[Column]) -> String {
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
        figure("DSC of each case and organ, percent", &svg)
    }
}
