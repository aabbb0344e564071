//! The report's maps of cases and organs: tables whose cells have colours, the mean first, the worst case on top.

use super::ReportPage;
use crate::page::section;
use crate::plot::{Paint, ink_on, ramp};
use crate::scores::{ScoreOf, Scores};
use crate::statistics::mean;
use crate::table_md::absent_organs;
use crate::table_text::UNDEFINED;
use maud::{Markup, html};
use sam_ladder_schemas::tables::CaseRow;

/// Organs beside each other; more are continued below, so that the page need not be wider.
const ORGANS_BESIDE: usize = 12;

/// A map of one metric.
struct Map<'a> {
    caption: String,
    /// What the values mean.
    note: &'a str,
    value: ScoreOf,
    /// Values of the best and the worst colour.
    best: f64,
    worst: f64,
}

impl ReportPage<'_> {
    pub(super) fn cases_section(&self, organs: &[String]) -> Markup {
        let distances = self.cases.iter().filter_map(|row| row.hd95).filter(|value| value.is_finite());
        let farthest = distances.fold(0.0, f64::max).max(1.0);
        let maps = [
            Map {
                caption: "DSC of each case and organ, percent ↑".into(),
                note: "higher is better",
                value: |row| row.dice.map(|dice| 100.0 * dice),
                best: 100.0,
                worst: 0.0,
            },
            Map {
                caption: format!("HD95 of each case and organ, {} ↓", self.context.scoring.unit.name()),
                note: "lower is better",
                value: |row| row.hd95,
                best: 0.0,
                worst: farthest,
            },
        ];
        let body = html! {
            @for map in &maps { (self.heat_map(map, organs)) }
            p.note {
                "The cases with the lowest mean DSC are on top. M: missed, only in the reference. I: invented, only in the prediction. "
                (absent_organs(self.summary, &self.context)) " A cell's number in full appears when the pointer is on it; cases.parquet has all."
            }
        };
        section("cases", "Cases", body)
    }

    /// The cases from the lowest mean Dice to the highest; of the same, by name.
    pub(super) fn cases_from_the_worst(&self) -> Vec<String> {
        let scores = Scores::new(self.cases, self.context.organs, |row| row.dice);
        let mut order: Vec<usize> = (0..scores.cases.len()).collect();
        let dice = |case: usize| scores.case_mean(case).unwrap_or(f64::INFINITY);
        order.sort_by(|&a, &b| dice(a).total_cmp(&dice(b)).then_with(|| scores.cases[a].cmp(&scores.cases[b])));
        order.into_iter().map(|case| scores.cases[case].clone()).collect()
    }

    fn heat_map(&self, map: &Map, organs: &[String]) -> Markup {
        let cases = self.cases_from_the_worst();
        html! {
            figure.map {
                figcaption { strong { (map.caption) } " " (scale(map)) }
                @for (index, shown) in organs.chunks(ORGANS_BESIDE).enumerate() {
                    (self.part(map, &cases, organs, shown, index == 0))
                }
            }
        }
    }

    /// Some organs beside each other, after the mean of all if requested.
    fn part(&self, map: &Map, cases: &[String], all: &[String], shown: &[String], with_mean: bool) -> Markup {
        let row_of = |case: &str, organ: &str| self.cases.iter().find(|row| row.case == case && row.organ == organ);
        let value_of = |case: &str, organ: &str| row_of(case, organ).and_then(map.value);
        html! {
            table.heat aria-label=(map.caption) {
                thead { tr {
                    th scope="col" { "Case" }
                    @if with_mean { th.upright scope="col" { span { "mean" } } }
                    @for organ in shown { th.upright scope="col" { span { (organ) } } }
                } }
                tbody { @for case in cases {
                    tr {
                        th scope="row" { (case) }
                        @if with_mean { (map.cell(mean(all.iter().filter_map(|organ| value_of(case, organ))), &format!("{case}, mean"), "", "mean")) }
                        @for organ in shown {
                            @let absent = row_of(case, organ).map_or("", absence);
                            (map.cell(value_of(case, organ), &format!("{case}, {organ}"), absent, "mark-cell"))
                        }
                    }
                } }
            }
        }
    }
}

impl Map<'_> {
    fn cell(&self, value: Option<f64>, name: &str, absent: &str, class: &str) -> Markup {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            return html! { td class={ (class) " empty" } title={ (name) ": not defined" } { (UNDEFINED) (letter(absent)) } };
        };
        let colour = ramp((value - self.worst) / (self.best - self.worst));
        let style = format!("background:{};color:{}", Paint::Fixed(colour).css(), ink_on(colour));
        let title = format!("{name}: {value:.2}{}{absent}", if absent.is_empty() { "" } else { ", " });
        // A narrow page has room for three digits.
        let (exact, short) = (format!("{value:.1}"), if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") });
        html! {
            td class=(class) style=(style) title=(title) {
                span.exact { (exact) } span.short aria-hidden="true" { (short) } (letter(absent))
            }
        }
    }
}

/// The colours from the worst value to the best.
fn scale(map: &Map) -> Markup {
    let stops: Vec<String> = (0..=6).map(|step| Paint::Fixed(ramp(f64::from(step) / 6.0)).css()).collect();
    html! {
        span.scale {
            (format!("{:.0}", map.worst)) " "
            span.bar style={ "background:linear-gradient(to right," (stops.join(",")) ")" } {}
            " " (format!("{:.0}", map.best)) ", " (map.note)
        }
    }
}

/// Says of an organ of a case whether only one mask has it.
fn absence(row: &CaseRow) -> &'static str {
    match (row.reference_voxels, row.predicted_voxels) {
        (1.., 0) => "missed",
        (0, 1..) => "invented",
        _ => "",
    }
}

fn letter(absent: &str) -> Markup {
    html! { @match absent { "missed" => sup { "M" }, "invented" => sup { "I" }, _ => {} } }
}
