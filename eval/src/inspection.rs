//! What `inspect` found in a folder of scans, as a page.

mod cells;
mod intensities;
mod lines;

pub use lines::inspection_lines;

use crate::page::{Document, section};
use crate::table_text::UNDEFINED;
use cells::{COST_COLUMNS, ORGAN_COLUMNS, OrganFacts, case_columns, cost_cells};
use intensities::intensity_strips;
use maud::{Markup, html};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::inspection::{InspectedCost, InspectedVoxels, Inspection};
use sam_ladder_schemas::tables::PERCENTILES;

/// The page, self-contained.
pub fn inspection_page(inspection: &Inspection) -> String {
    let document = Document {
        title: &format!("{} · scans", inspection.folder),
        allows: "img-src data:",
        style: concat!(include_str!("report.css"), include_str!("inspection.css")),
        script: "",
    };
    let body = html! {
        (section("remarks", "What to look at", remarks(inspection)))
        (section("cases", "Cases", cases_table(inspection)))
        @if inspection.cases.iter().any(|case| case.voxels.is_some()) {
            (section("values", "Values", values(inspection)))
            (section("organs", "Organs", organs_table(inspection)))
        }
        (section("costs", "What precompute would cost", costs_table(&inspection.costs)))
    };
    document.html(header(inspection), body)
}

fn header(inspection: &Inspection) -> Markup {
    let count = |split| inspection.cases.iter().filter(|case| case.split == split).count().to_string();
    let slices: usize = inspection.cases.iter().map(|case| case.slices).sum();
    html! {
        p.lead { "Scans in " (inspection.layout) ", looked at by sam-ladder before anything is computed." }
        dl.tiles {
            div { dt { "Training cases" } dd { (count(Split::Train)) } }
            div { dt { "Test cases" } dd { (count(Split::Test)) } }
            div { dt { "Slices" } dd { (slices) } }
            div { dt { "Classes" } dd { (inspection.class_names.len()) } dd { (inspection.class_names.join(", ")) } }
            div { dt { "Orientation" } dd { (inspection.orientation.as_deref().unwrap_or(UNDEFINED)) } }
        }
    }
}

fn remarks(inspection: &Inspection) -> Markup {
    html! {
        @if inspection.warnings.is_empty() {
            p { "Nothing was found that should be looked at." }
        } @else {
            ul.warnings { @for warning in &inspection.warnings { li { (warning) } } }
        }
        @if !inspection.remarks.is_empty() {
            ul.remarks { @for remark in &inspection.remarks { li { (remark) } } }
        }
        p.note { "Channels: " (inspection.channels.join("; ")) "." }
    }
}

fn cases_table(inspection: &Inspection) -> Markup {
    let columns = case_columns();
    let table = html! {
        table.organs.plain {
            thead { tr { th { "case" } @for (heading, _) in &columns { th { (heading) } } } }
            tbody {
                @for case in &inspection.cases {
                    tr {
                        th scope="row" { (case.case) }
                        @for (heading, cell) in &columns { td data-label=(heading) { (cell(case)) } }
                    }
                    @if let Some(InspectedVoxels::Unusable(why)) = &case.voxels {
                        tr.unusable { td colspan=(columns.len() + 1) { "cannot be used: " (why) } }
                    }
                }
            }
        }
    };
    html! {
        p.note { "Voxels are given along depth, height and width of the slices, as they are taken." }
        (table)
    }
}

/// For each channel the spread of every case's values.
fn values(inspection: &Inspection) -> Markup {
    html! {
        p.note {
            "A line from the " (PERCENTILES[0]) "th to the " (PERCENTILES[4]) "th percentile of a case's values, a bar from the 5th to the \
             95th, and a mark at the middle one. Cases that lie apart have another scanner, another unit or another part of the body."
        }
        @for (channel, name) in inspection.channels.iter().enumerate() {
            figure { figcaption { strong { (name) } } (intensity_strips(&inspection.cases, channel, name)) }
        }
    }
}

/// For each organ: how many cases have it, and its volume.
fn organs_table(inspection: &Inspection) -> Markup {
    let rows = inspection.class_names.iter().enumerate().map(|(organ, name)| (name, OrganFacts::of(&inspection.cases, organ)));
    let table = html! {
        table.organs.plain {
            thead { tr { th { "organ" } @for heading in ORGAN_COLUMNS { th { (heading) } } } }
            tbody { @for (name, facts) in rows {
                tr { th scope="row" { (name) } @for (heading, cell) in ORGAN_COLUMNS.iter().zip(facts.cells()) { td data-label=(heading) { (cell) } } }
            } }
        }
    };
    html! {
        p.note { "Volumes are of the cases that have the organ, in millilitres, or in voxels where nothing says the distance between them." }
        (table)
    }
}

fn costs_table(costs: &[InspectedCost]) -> Markup {
    let table = html! {
        table.organs.plain {
            thead { tr { th { "options" } @for heading in COST_COLUMNS { th { (heading) } } } }
            tbody { @for cost in costs {
                tr {
                    th scope="row" { code { (cost.options) } }
                    @for (heading, cell) in COST_COLUMNS.iter().zip(cost_cells(cost)) { td data-label=(heading) { (cell) } }
                }
            } }
        }
    };
    html! {
        p.note { "SAM ViT-B, embeddings and images in float16. Times are measured on a few images and multiplied." }
        (table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::inspection::InspectedCase;

    pub(super) fn inspection() -> Inspection {
        let case = |name: &str, split, voxels| InspectedCase {
            case: name.into(),
            split,
            file: format!("imagesTr/{name}_0000.nii.gz"),
            slices: 30,
            plane: Some([512, 500]),
            spacing_mm: Some([3.0, 0.5, 0.75]),
            orientation: Some("LPS".into()),
            voxels,
        };
        let usable = |organ_voxels: &[u64]| InspectedVoxels::Usable {
            percentiles: vec![[-1024.0, -1000.0, 20.0, 120.0, 900.0]],
            in_window: vec![0.5],
            organ_voxels: organ_voxels.into(),
        };
        Inspection {
            folder: "a <folder>".into(),
            layout: "nnU-Net's layout".into(),
            class_names: vec!["liver".into(), "spleen".into()],
            channels: vec!["CT, -125 to 275".into()],
            orientation: Some("LPS".into()),
            cases: vec![
                case("a", Split::Train, Some(usable(&[1600, 0]))),
                case("b", Split::Train, Some(usable(&[6400, 800]))),
                case("c", Split::Test, Some(InspectedVoxels::Unusable("NaN in slice 3".into()))),
            ],
            warnings: vec!["the side of a pixel differs".into()],
            remarks: vec!["1 file is passed over".into()],
            costs: vec![InspectedCost {
                options: "--preset native224".into(),
                images: 90,
                bytes: 1_500_000_000,
                seconds: Some(4000.0),
            }],
        }
    }

    #[test]
    fn the_page_and_the_lines_have_everything() {
        let found = inspection();
        let (page, lines) = (inspection_page(&found), inspection_lines(&found));
        for text in [&page, &lines] {
            for expected in [
                "512 × 500",
                "3 × 0.5 × 0.75",
                "NaN in slice 3",
                "the side of a pixel differs",
                "1.5 GB",
                "67 min",
                "1 file is passed",
            ] {
                assert!(text.contains(expected), "{expected} is not in {text}");
            }
        }
        assert!(page.contains("a &lt;folder&gt;") && !page.contains("<folder>"));
    }
}
