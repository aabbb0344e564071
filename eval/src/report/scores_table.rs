//! The report's tables of scores: organs as rows, the mean first. On a narrow page each row becomes a block, so that nothing is cut.

use super::ReportPage;
use crate::page::section;
use crate::statistics::FEWEST_CASES;
use crate::summary::{MEAN, has_spacing};
use crate::table_md::{absent_organs, caption, other_metrics, uncounted};
use crate::table_text::{UNDEFINED, interval, minus, number, percent};
use maud::{Markup, html};
use sam_ladder_schemas::tables::SummaryRow;

/// A column: its heading, the values of a row, and what stands small below them.
struct Column {
    heading: String,
    value: fn(&SummaryRow) -> String,
    below: fn(&SummaryRow) -> Vec<String>,
}

fn column(heading: String, value: fn(&SummaryRow) -> String, below: fn(&SummaryRow) -> Vec<String>) -> Column {
    Column { heading, value, below }
}

fn nothing(_: &SummaryRow) -> Vec<String> {
    Vec::new()
}

/// Standard deviation and interval, where there are any.
fn spread(deviation: Option<f64>, low: Option<f64>, high: Option<f64>, text: fn(Option<f64>) -> String) -> Vec<String> {
    let deviation = deviation.map(|_| format!("SD {}", text(deviation)));
    deviation.into_iter().chain(low.and(high).map(|_| interval(low, high, text))).collect()
}

impl ReportPage<'_> {
    pub(super) fn scores_section(&self, organs: &[String]) -> Markup {
        let in_mm = has_spacing(self.summary);
        let unit = self.context.scoring.unit.name();
        let dice = |row: &SummaryRow| spread(row.dice_sd, row.dice_low, row.dice_high, percent);
        let hd95 = |row: &SummaryRow| spread(row.hd95_sd, row.hd95_low, row.hd95_high, number);
        let of_cases = |row: &SummaryRow| {
            if row.dice_cases == row.hd95_cases { Vec::new() } else { vec![format!("HD95 {}", row.hd95_cases)] }
        };
        let mut main = vec![
            column("DSC, percent ↑".into(), |row| percent(row.dice), dice),
            column(format!("HD95, {unit} ↓"), |row| number(row.hd95), hd95),
        ];
        if in_mm {
            let surface = format!("Surface Dice at {} mm, percent ↑", self.context.scoring.tolerance_mm);
            main.push(column(surface, |row| percent(row.surface_dice), nothing));
            main.push(column("Volume difference, ml".into(), |row| minus(&number(row.volume_difference_ml)), nothing));
        }
        main.extend([
            column("Cases".into(), |row| row.dice_cases.to_string(), of_cases),
            column("Missed ↓".into(), |row| row.missed.to_string(), nothing),
            column("Invented ↓".into(), |row| row.invented.to_string(), nothing),
        ]);
        let mut others = vec![column("HD95, voxels ↓".into(), |row| number(row.hd95_voxels), nothing)];
        if in_mm {
            others.push(column("HD95, mm ↓".into(), |row| number(row.hd95_mm), nothing));
        }
        others.push(column("Larger HD95, voxels ↓".into(), |row| number(row.hd95_larger_voxels), nothing));
        if in_mm {
            others.push(column("Larger HD95, mm ↓".into(), |row| number(row.hd95_larger_mm), nothing));
        }
        let few = self.context.cases < FEWEST_CASES;
        let body = html! {
            (self.organ_table(organs, "Scores of each organ", &main))
            p.note {
                (caption(&self.context)) " " (absent_organs(self.summary, &self.context))
                @if few { " With fewer than six cases there are no intervals." }
                " ↑: higher is better; ↓: lower is better."
                @if in_mm { " A volume difference is predicted minus reference; 0 is best." }
            }
            h3 { "Distances by other definitions" }
            (self.organ_table(organs, "Distances of each organ by other definitions", &others))
            p.note { (other_metrics(self.summary)) " " (uncounted(self.summary)) }
        };
        section("scores", "Scores", body)
    }

    /// A row for the mean and one per organ.
    fn organ_table(&self, organs: &[String], label: &str, columns: &[Column]) -> Markup {
        let rows = std::iter::once(MEAN).chain(organs.iter().map(String::as_str));
        html! {
            table.organs aria-label=(label) {
                thead { tr { th scope="col" { "Organ" } @for column in columns { th scope="col" { (column.heading) } } } }
                tbody { @for organ in rows {
                    @let row = self.row(organ);
                    tr class=[(organ == MEAN).then_some("mean")] {
                        th scope="row" { (self.name_of(organ)) }
                        @for column in columns {
                            td data-label=(column.heading) {
                                (row.map_or(UNDEFINED.into(), column.value))
                                @for line in row.map_or_else(Vec::new, column.below) { small { (line) } }
                            }
                        }
                    }
                } }
            }
        }
    }
}
