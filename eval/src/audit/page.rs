//! `audit.html`: the disputed slices by rank.

use super::{Audit, AuditedCase, DisputedSlice, class_name};
use crate::display::Difference;
use crate::organ_columns::organ_columns;
use crate::page::{Document, facts, section};
use crate::palette::{colour, hex};
use crate::slice_picture::{OrganLook, SlicePicture, enlarged, lines_legend};
use crate::table_text::{UNDEFINED, percent};
use maud::{Markup, html};
use sam_ladder_schemas::counted::counted;

impl Audit {
    /// The page, self-contained.
    pub(super) fn html(&self) -> String {
        let document = Document {
            title: "Audit of labels",
            allows: "img-src data:; script-src 'unsafe-inline'",
            style: concat!(include_str!("../report.css"), include_str!("../inspection.css")),
            script: include_str!("../report.js"),
        };
        let body = html! {
            (self.slices_section())
            (section("cases", "Cases", self.cases_table()))
            (section("runs", "Runs", facts(&self.config.facts)))
        };
        document.html(self.header(), body)
    }

    fn header(&self) -> Markup {
        let slices: usize = self.cases.iter().map(|case| case.slices).sum();
        html! {
            p.lead {
                "Slices in which all runs that were not trained on a case agree with one another, and not with its label. Either the label is \
                 wrong, or the case is one that these models do not understand: look and decide."
            }
            dl.tiles {
                div { dt { "Cases" } dd { (self.cases.len()) } }
                div { dt { "Slices" } dd { (slices) } }
                div { dt { "Disputed slices" } dd { (self.found.len()) } }
            }
        }
    }

    fn slices_section(&self) -> Markup {
        let names = &self.config.class_names;
        let organs = organ_columns(names).into_iter().map(|column| column.organ);
        let swatch = |organ: &str| {
            let class = names.iter().position(|name| name == organ).map_or(0, |index| index as u8 + 1);
            html! { span.swatch style={ "background:" (hex(colour(self.config.palette, class))) } {} (organ) }
        };
        let shown = if self.pictures.len() < self.found.len() {
            format!("These are the first {} of {} disputed slices; audit.csv has all. ", self.pictures.len(), self.found.len())
        } else {
            String::new()
        };
        let body = html! {
            @if self.found.is_empty() {
                p { "No label is disputed: nowhere do all runs agree on another class in 3 × 3 pixels." }
            } @else {
                ul.legend aria-label="Lines and colours of the pictures" {
                    (lines_legend("vote of the runs", "label"))
                    @for difference in Difference::ALL { li { span.swatch style={ "background:" (hex(difference.colour())) } {} (meaning(difference)) } }
                }
                ul.legend aria-label="Colours of the organs" { @for organ in organs { li { (swatch(&organ)) } } }
                p.note {
                    (shown) "They are ranked by the disputed area, times the DSC of the runs with each other. Edges of one or two pixels do not count. A click enlarges; the arrow keys step \
                     through the slices. Greys: " (self.config.greys) "."
                }
                div.slices { @for (rank, (slice, picture)) in self.found.iter().zip(&self.pictures).enumerate() { (self.figure(rank, slice, picture)) } }
                (enlarged())
            }
        };
        section("slices", "Disputed slices", body)
    }

    fn figure(&self, rank: usize, slice: &DisputedSlice, picture: &SlicePicture) -> Markup {
        let look = OrganLook { class_names: &self.config.class_names, palette: self.config.palette };
        html! {
            figure.slice {
                button.panels type="button" title="Enlarge" { (picture.panels(look, &format!("scan-{rank}"))) }
                figcaption { span.tag { (rank + 1) } span.what { (self.words(slice)) } }
            }
        }
    }

    /// What is disputed, in a sentence.
    fn words(&self, slice: &DisputedSlice) -> String {
        let [label, predicted] = [slice.label, slice.predicted].map(|class| class_name(&self.config.class_names, class));
        let area = slice.area_mm2.map_or_else(|| counted(slice.pixels, "pixel"), |area| format!("{area:.0} mm²"));
        let most = if slice.of_these < slice.pixels { "most of it " } else { "" };
        let agreement =
            slice.agreement.map_or(String::new(), |_| format!("with each other {} percent, ", percent(slice.agreement)));
        let (case, index, dice, runs) = (&slice.case, slice.slice, percent(slice.dice), counted(slice.runs, "run"));
        format!(
            "Case {case}, slice {index}: {area} disputed, {most}{label} in the label, {predicted} in {runs}. DSC of the runs {agreement}with the \
             label {dice} percent."
        )
    }

    fn cases_table(&self) -> Markup {
        let columns = ["slices", "runs", "disputed slices", "disputed area, mm²", "first"];
        let row = |case: &AuditedCase| {
            let of_case = || (1..).zip(&self.found).filter(|(_, slice)| slice.case == case.case);
            let area: Option<f64> = of_case().map(|(_, slice)| slice.area_mm2).sum();
            let first = of_case()
                .next()
                .map_or(UNDEFINED.into(), |(rank, slice): (usize, _)| format!("slice {}, rank {rank}", slice.slice));
            let area = area.map_or(UNDEFINED.into(), |area| format!("{area:.0}"));
            [case.slices.to_string(), case.runs.to_string(), of_case().count().to_string(), area, first]
        };
        html! {
            table.organs.plain {
                thead { tr { th { "case" } @for heading in columns { th { (heading) } } } }
                tbody { @for case in &self.cases { tr {
                    th scope="row" { (case.case) }
                    @for (heading, cell) in columns.iter().zip(row(case)) { td data-label=(heading) { (cell) } }
                } } }
            }
        }
    }
}

/// What a colour of the disputed area means.
fn meaning(difference: Difference) -> &'static str {
    match difference {
        Difference::Missed => "only in the label",
        Difference::Added => "only in the runs",
        Difference::OtherOrgan => "in both, as different organs",
    }
}
