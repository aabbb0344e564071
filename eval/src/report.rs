//! `report.html`: a single self-contained page.

mod charts;

use crate::error::Result;
use crate::organ_columns::{OrganColumn, organ_columns, with_mean};
use crate::page::{Document, facts, png_url, scrolling, section};
use crate::palette::{colour, hex};
use crate::picture_choice::ChosenSlice;
use crate::run_curves::RunCurves;
use crate::scored::OF_VALIDATION;
use crate::summary::MEAN;
use crate::summary::has_spacing;
use crate::table_md::{TableContext, absent_organs, caption, other_metrics, uncounted};
use crate::table_text::{UNDEFINED, interval, number, percent};
use maud::{Markup, html};
use sam_ladder_formats::Error;
use sam_ladder_schemas::eval::{EmptyRule, Palette, ScoredSplit};
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A picture of a slice, on disk.
#[derive(Debug, Clone)]
pub(crate) struct SlicePicture {
    pub case: String,
    pub chosen: ChosenSlice,
    pub path: PathBuf,
    pub width: usize,
    pub height: usize,
}

/// Content of the page.
pub(crate) struct ReportPage<'a> {
    pub context: TableContext<'a>,
    /// Names and values about the run, in the order shown.
    pub run_info: &'a [(String, String)],
    pub cases: &'a [CaseRow],
    pub summary: &'a [SummaryRow],
    pub pictures: &'a [SlicePicture],
    pub palette: Palette,
    /// The run's learning curves, if there are any.
    pub curves: Option<&'a RunCurves>,
}

impl ReportPage<'_> {
    /// The page, with embedded pictures.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn html(&self) -> Result<String> {
        let document = Document {
            title: &format!("{} · evaluation", self.context.method),
            allows: "img-src data:",
            style: include_str!("report.css"),
            script: "",
        };
        let protocol = self.context.scoring.protocol();
        let rules = protocol.map_or("rules set by options".into(), |protocol| format!("{} protocol", protocol.name()));
        let header = html! {
            p.lead {
                "Organ segmentation scored by sam-ladder, " (rules) "."
                @if self.context.split == ScoredSplit::Validation { " " (OF_VALIDATION) "." }
            }
            dl.tiles { @for (name, value, note) in self.tiles() {
                div { dt { (name) } dd { (value) } @if let Some(note) = note { dd { (note) } } }
            } }
        };
        let columns = organ_columns(self.context.class_names);
        let pictures = self.pictures_section(&columns)?;
        let body = html! {
            (self.scores_section(&columns))
            (self.organs_section(&columns))
            (self.training_section())
            (self.cases_section(&columns))
            (pictures)
            @if !self.run_info.is_empty() { (section("run", "Run", facts(self.run_info))) }
        };
        Ok(document.html(header, body))
    }

    /// The numbers at the top: name, value, and the interval if there is one.
    fn tiles(&self) -> Vec<(String, String, Option<String>)> {
        let TableContext { scoring, cases, .. } = self.context;
        let overall = self.row(MEAN);
        let of = |value: fn(&SummaryRow) -> Option<f64>| overall.and_then(value);
        let count = |count: fn(&SummaryRow) -> u32| overall.map_or(0, count).to_string();
        let between = |low: Option<f64>, high: Option<f64>, text: fn(Option<f64>) -> String| {
            low.and(high).map(|_| format!("95 % interval {}", interval(low, high, text)))
        };
        let dice_interval = between(of(|row| row.dice_low), of(|row| row.dice_high), percent);
        let hd95_interval = between(of(|row| row.hd95_low), of(|row| row.hd95_high), number);
        let (of_missed, of_invented) = (overall.map_or(0, |row| row.missed), overall.map_or(0, |row| row.invented));
        let surface = format!("Surface Dice at {} mm, percent", scoring.tolerance_mm);
        let surface = has_spacing(self.summary).then(|| (surface, percent(of(|row| row.surface_dice)), None));
        [
            ("Mean DSC, percent".into(), percent(of(|row| row.dice)), dice_interval),
            (format!("Mean HD95, {}", scoring.unit.name()), number(of(|row| row.hd95)), hd95_interval),
        ]
        .into_iter()
        .chain(surface)
        .chain([
            ("Cases".into(), cases.to_string(), None),
            ("Organs missed".into(), count(|row| row.missed), self.counted_as(of_missed)),
            ("Organs invented".into(), count(|row| row.invented), self.counted_as(of_invented)),
        ])
        .collect()
    }

    /// A note if an HD of 0 was counted for organs that a mask lacks.
    fn counted_as(&self, organs: u32) -> Option<String> {
        (organs > 0 && self.context.scoring.empty == EmptyRule::Published).then(|| "HD 0 was counted for each".into())
    }

    fn row(&self, organ: &str) -> Option<&SummaryRow> {
        self.summary.iter().find(|row| row.organ == organ)
    }

    fn scores_section(&self, columns: &[OrganColumn]) -> Markup {
        let scoring = &self.context.scoring;
        let unit = scoring.unit.name();
        let line = |name: &str, value: fn(&SummaryRow) -> String| {
            let cells = with_mean(columns, "All organs").map(|(_, organ)| self.row(organ).map_or(UNDEFINED.into(), value));
            html! { tr { th scope="row" { (name) } @for cell in cells { td { (cell) } } } }
        };
        let table = |label: &str, lines: &[Markup]| {
            let headings = with_mean(columns, "All organs").map(|(heading, _)| heading);
            scrolling(label, summary_table("Mean over cases", headings, lines))
        };
        let main = [
            line("DSC, percent ↑", |row| percent(row.dice)),
            line("standard deviation", |row| percent(row.dice_sd)),
            line("95 % interval", |row| interval(row.dice_low, row.dice_high, percent)),
            line(&format!("HD95, {unit} ↓"), |row| number(row.hd95)),
            line("standard deviation", |row| number(row.hd95_sd)),
            line("95 % interval", |row| interval(row.hd95_low, row.hd95_high, number)),
            line("Cases with DSC", |row| row.dice_cases.to_string()),
            line("Cases with HD95", |row| row.hd95_cases.to_string()),
            line("Missed", |row| row.missed.to_string()),
            line("Invented", |row| row.invented.to_string()),
        ];
        let mut others = vec![
            line("HD95, voxels ↓", |row| number(row.hd95_voxels)),
            line("Larger HD95, voxels ↓", |row| number(row.hd95_larger_voxels)),
        ];
        if has_spacing(self.summary) {
            others.insert(1, line("HD95, mm ↓", |row| number(row.hd95_mm)));
            others.extend([
                line("Larger HD95, mm ↓", |row| number(row.hd95_larger_mm)),
                line(&format!("Surface Dice at {} mm, percent ↑", scoring.tolerance_mm), |row| percent(row.surface_dice)),
                line("Volume difference, ml", |row| number(row.volume_difference_ml)),
            ]);
        }
        let body = html! {
            (table("Scores of each organ", &main))
            p.note { (caption(&self.context)) " " (absent_organs(self.summary, &self.context)) }
            (table("Other metrics of each organ", &others))
            p.note { (other_metrics(self.summary)) " " (uncounted(self.summary)) }
        };
        section("scores", "Scores", body)
    }

    fn cases_section(&self, columns: &[OrganColumn]) -> Markup {
        let mut by_case: BTreeMap<&str, BTreeMap<&str, &CaseRow>> = BTreeMap::new();
        for row in self.cases {
            by_case.entry(&row.case).or_default().insert(&row.organ, row);
        }
        let table = |label: &str, text: fn(&CaseRow) -> String| {
            let line = |(case, organs): (&&str, &BTreeMap<&str, &CaseRow>)| {
                let cells = columns.iter().map(|column| organs.get(&*column.organ).map_or(UNDEFINED.into(), |row| text(row)));
                html! { tr { th scope="row" { (case) } @for cell in cells { td { (cell) } } } }
            };
            let lines: Vec<Markup> = by_case.iter().map(line).collect();
            let table = summary_table("Case", columns.iter().map(|column| &*column.heading), &lines);
            html! { h3 { (label) } (scrolling(&format!("{label} of each case"), table)) }
        };
        let body = html! {
            (self.case_map(columns))
            (table("DSC, percent", |row| percent(row.dice) + absence(row)))
            (table(&format!("HD95, {}", self.context.scoring.unit.name()), |row| number(row.hd95) + absence(row)))
            p.note { (absent_organs(self.summary, &self.context)) }
        };
        section("cases", "Cases", body)
    }

    /// The organs' colours, then each case's pictures.
    fn pictures_section(&self, columns: &[OrganColumn]) -> Result<Markup> {
        let colour_of = |column: &OrganColumn| {
            let index = self.context.class_names.iter().position(|name| *name == column.organ);
            hex(colour(self.palette, index.map_or(0, |index| index as u8 + 1)))
        };
        let mut cases = Vec::new();
        for pictures in self.pictures.chunk_by(|a, b| a.case == b.case) {
            let figures = pictures.iter().map(SlicePicture::figure).collect::<Result<Vec<Markup>>>()?;
            cases.push(html! { h3 { "Case " (pictures[0].case) } div.pictures { @for figure in figures { (figure) } } });
        }
        let body = html! {
            ul.legend aria-label="Colours of the organs" {
                @for column in columns { li { span style={ "background:" (colour_of(column)) } {} (column.heading) } }
            }
            p.note {
                "Of each case the slices with the lowest and the highest DSC, and the one with the most organ voxels. The DSC of a slice is the \
                 mean over the organs that the reference or the prediction has in it. Slices with less than a twentieth of the organ voxels of the \
                 fullest one are passed over."
            }
            @for case in cases { (case) }
        };
        Ok(section("pictures", "Slices", body))
    }
}

impl SlicePicture {
    fn figure(&self) -> Result<Markup> {
        let SlicePicture { case, chosen: ChosenSlice { slice, choice, dice }, path, width, height } = self;
        let png = std::fs::read(path).map_err(Error::io("read", path))?;
        let alt = format!("Case {case}, slice {slice}: scan, reference and prediction side by side");
        Ok(html! {
            figure {
                img alt=(alt) width=(width) height=(height) src=(png_url(&png));
                figcaption {
                    span.tag { (choice.name()) }
                    "Slice " (slice) ": scan, reference, prediction; DSC in the slice " (percent(*dice))
                }
            }
        })
    }
}

/// Says of an organ of a case whether only one mask has it.
fn absence(row: &CaseRow) -> &'static str {
    match (row.reference_voxels, row.predicted_voxels) {
        (1.., 0) => " missed",
        (0, 1..) => " invented",
        _ => "",
    }
}

/// A table whose first column names the rows.
fn summary_table<'a>(first: &str, headings: impl Iterator<Item = &'a str>, lines: &[Markup]) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { (first) } @for heading in headings { th scope="col" { (heading) } } } }
            tbody { @for line in lines { (line) } }
        }
    }
}
