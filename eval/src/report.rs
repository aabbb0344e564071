//! `report.html`: a single self-contained page.

mod case_page;
mod charts;
mod heat_maps;
mod scores_table;
mod slices;
mod viewer;

pub(crate) use viewer::Viewer;

use crate::folder::RunFact;
use crate::organ_columns::organ_columns;
use crate::page::{Document, section};
use crate::palette::{colour, hex};
use crate::run_curves::RunCurves;
use crate::scored::OF_VALIDATION;
use crate::slice_picture::SlicePicture;
use crate::summary::{MEAN, has_spacing};
use crate::table_md::TableContext;
use crate::table_text::{interval, number, percent};
use maud::{Markup, html};
use sam_ladder_schemas::eval::{EmptyRule, Palette, ScoredSplit};
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};

/// Content of the page.
pub(crate) struct ReportPage<'a> {
    pub context: TableContext<'a>,
    /// Names of the masks' classes from 1.
    pub class_names: &'a [String],
    /// What is said of the run, in the order shown.
    pub run_info: &'a [RunFact],
    /// What the grey values of the pictures are.
    pub greys: &'a str,
    pub cases: &'a [CaseRow],
    pub summary: &'a [SummaryRow],
    pub pictures: &'a [SlicePicture],
    pub palette: Palette,
    /// The run's learning curves, if there are any.
    pub curves: Option<&'a RunCurves>,
    /// Whether each case has a page of its own.
    pub case_pages: bool,
}

impl ReportPage<'_> {
    /// The page, with embedded pictures.
    pub fn html(&self) -> String {
        let document = Document {
            title: &format!("{} · evaluation", self.context.method),
            allows: "img-src data:; script-src 'unsafe-inline'",
            style: include_str!("report.css"),
            script: include_str!("report.js"),
        };
        let organs = self.organs();
        let body = html! {
            (self.scores_section(&organs))
            (self.organs_section(&organs))
            (self.cases_section(&organs))
            (self.slices_section())
            (self.training_section())
            (self.run_section())
        };
        document.html(self.header(), body)
    }

    /// The organs' names in the order of every table.
    fn organs(&self) -> Vec<String> {
        organ_columns(self.context.organs).into_iter().map(|column| column.organ).collect()
    }

    /// The names of the classes that are drawn: the organs, or the classes of which regions are unions.
    fn classes(&self) -> Vec<String> {
        let organs = self.organs();
        if organs.iter().all(|organ| self.class_names.contains(organ)) { organs } else { self.class_names.to_vec() }
    }

    fn header(&self) -> Markup {
        let protocol = self.context.scoring.protocol();
        let rules = protocol.map_or("rules set by options".into(), |protocol| format!("{} protocol", protocol.name()));
        let cautions: Vec<&RunFact> = self.run_info.iter().filter(|fact| fact.is_caution).collect();
        html! {
            p.lead {
                "Organ segmentation scored by sam-ladder, " (rules) "."
                @if self.context.split == ScoredSplit::Validation { " " (OF_VALIDATION) "." }
            }
            @if !cautions.is_empty() {
                p.caution {
                    "Look at this first. "
                    @for fact in &cautions { (fact.group) ", " (fact.name) ": " (fact.value) ". " }
                }
            }
            dl.tiles { @for (name, value, note) in self.tiles() {
                div { dt { (name) } dd { (value) } @if let Some(note) = note { dd { (note) } } }
            } }
        }
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
        let surface = format!("Surface Dice at {} mm, percent ↑", scoring.tolerance_mm);
        let surface = has_spacing(self.summary).then(|| (surface, percent(of(|row| row.surface_dice)), None));
        [
            ("Mean DSC, percent ↑".into(), percent(of(|row| row.dice)), dice_interval),
            (format!("Mean HD95, {} ↓", scoring.unit.name()), number(of(|row| row.hd95)), hd95_interval),
        ]
        .into_iter()
        .chain(surface)
        .chain([
            ("Cases".into(), cases.to_string(), None),
            ("Organs missed ↓".into(), count(|row| row.missed), self.counted_as(of_missed)),
            ("Organs invented ↓".into(), count(|row| row.invented), self.counted_as(of_invented)),
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

    /// An organ's name with its colour in the pictures; the mean has none.
    fn name_of(&self, organ: &str) -> Markup {
        let class = self.class_names.iter().position(|name| name == organ).map(|index| index as u8 + 1);
        html! {
            @if let Some(class) = class { span.swatch style={ "background:" (hex(colour(self.palette, class))) } {} }
            (organ)
        }
    }

    /// What another lab asks, in groups.
    fn run_section(&self) -> Markup {
        if self.run_info.is_empty() {
            return html! {};
        }
        let groups = self.run_info.chunk_by(|a, b| a.group == b.group);
        let body = html! {
            div.groups { @for facts in groups {
                div.group {
                    h3 { (facts[0].group) }
                    dl.facts { @for fact in facts {
                        dt { (fact.name) }
                        dd class=[fact.is_caution.then_some("caution")] { (fact.value) }
                    } }
                }
            } }
        };
        section("run", "Run", body)
    }
}
