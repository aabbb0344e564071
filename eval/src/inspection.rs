//! What `inspect` found in a folder of scans, as a page and as lines for a terminal.

mod intensities;

use crate::page::{Document, section};
use crate::table_text::{UNDEFINED, aligned_table};
use intensities::intensity_strips;
use maud::{Markup, html};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::inspection::{InspectedCase, InspectedCost, InspectedVoxels, Inspection};
use sam_ladder_schemas::tables::PERCENTILES;

const ORGAN_COLUMNS: [&str; 5] = ["training cases", "test cases", "middle volume", "smallest", "largest"];
const COST_COLUMNS: [&str; 3] = ["images", "disk, at most", "encoding"];
/// Cases that a terminal shows.
const CASES: usize = 40;

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

/// A heading, and a case's cell below it.
type Column = (&'static str, fn(&InspectedCase) -> String);

/// What is shown of a case.
fn case_columns() -> [Column; 6] {
    [
        ("split", |case| case.split.to_string()),
        ("slices", |case| case.slices.to_string()),
        ("height × width", |case| case.plane.map_or(UNDEFINED.into(), |[h, w]| format!("{h} × {w}"))),
        ("voxel, mm", |case| {
            case.spacing_mm
                .map_or(UNDEFINED.into(), |[z, y, x]| format!("{} × {} × {}", millimetres(z), millimetres(y), millimetres(x)))
        }),
        ("orientation", |case| case.orientation.clone().unwrap_or(UNDEFINED.into())),
        ("file", |case| case.file.clone()),
    ]
}

/// At most three decimals.
fn millimetres(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').into()
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

struct OrganFacts {
    /// Cases with the organ, and all, of each split.
    with: [(usize, usize); 2],
    /// Volumes and their unit, sorted.
    volumes: Vec<f64>,
    unit: &'static str,
}

impl OrganFacts {
    fn of(cases: &[InspectedCase], organ: usize) -> Self {
        let counts: Vec<(&InspectedCase, u64)> =
            cases.iter().filter_map(|case| Some((case, *case.organ_voxels()?.get(organ)?))).collect();
        let with = Split::ALL.map(|split| {
            let of_split = counts.iter().filter(|(case, _)| case.split == split);
            (of_split.clone().filter(|(_, count)| *count > 0).count(), of_split.count())
        });
        let there = || counts.iter().filter(|(_, count)| *count > 0);
        let in_ml = there().all(|(case, _)| case.spacing_mm.is_some());
        let mut volumes: Vec<f64> =
            there().map(|(case, count)| *count as f64 * if in_ml { case.voxel_ml().unwrap_or(f64::NAN) } else { 1.0 }).collect();
        volumes.sort_by(f64::total_cmp);
        OrganFacts { with, volumes, unit: if in_ml { "ml" } else { "voxels" } }
    }

    fn cells(&self) -> Vec<String> {
        let volume = |value: Option<&f64>| match value {
            None => UNDEFINED.into(),
            Some(value) if self.unit == "ml" => format!("{value:.1} ml"),
            Some(value) => format!("{value} voxels"),
        };
        let share = |(with, all): (usize, usize)| if all == 0 { UNDEFINED.into() } else { format!("{with} of {all}") };
        let half = self.volumes.len() / 2;
        let middle = match self.volumes.len() {
            0 => None,
            count if count.is_multiple_of(2) => Some((self.volumes[half - 1] + self.volumes[half]) / 2.0),
            _ => Some(self.volumes[half]),
        };
        vec![
            share(self.with[0]),
            share(self.with[1]),
            volume(middle.as_ref()),
            volume(self.volumes.first()),
            volume(self.volumes.last()),
        ]
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

fn cost_cells(cost: &InspectedCost) -> [String; 3] {
    let bytes = match cost.bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    };
    [cost.images.to_string(), bytes, cost.seconds.map_or(UNDEFINED.into(), duration)]
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// The same for a terminal: a line for each of the first cases, what to look at, and the costs.
pub fn inspection_lines(inspection: &Inspection) -> String {
    let columns = case_columns();
    let mut headings = vec!["case"];
    headings.extend(columns.iter().map(|(heading, _)| *heading));
    let left: Vec<bool> = (0..headings.len()).map(|column| column == 0 || column == headings.len() - 1).collect();
    let row =
        |case: &InspectedCase| std::iter::once(case.case.clone()).chain(columns.iter().map(|(_, cell)| cell(case))).collect();
    let rows: Vec<Vec<String>> = inspection.cases.iter().take(CASES).map(row).collect();
    let mut out = format!("{}: {}\n\n{}", inspection.folder, inspection.layout, aligned_table(&headings, &left, &rows));
    if inspection.cases.len() > CASES {
        out += &format!("and {}\n", counted(inspection.cases.len() - CASES, "more case"));
    }
    if inspection.cases.iter().any(|case| case.voxels.is_some()) {
        let rows: Vec<Vec<String>> = (inspection.class_names.iter().enumerate())
            .map(|(organ, name)| std::iter::once(name.clone()).chain(OrganFacts::of(&inspection.cases, organ).cells()).collect())
            .collect();
        let headings = [&["organ"], &ORGAN_COLUMNS[..]].concat();
        out += &format!("\n{}", aligned_table(&headings, &[true, false, false, false, false, false], &rows));
    }
    let rows: Vec<Vec<String>> =
        inspection.costs.iter().map(|cost| std::iter::once(cost.options.clone()).chain(cost_cells(cost)).collect()).collect();
    out += &format!("\n{}", aligned_table(&[&["precompute"], &COST_COLUMNS[..]].concat(), &[true, false, false, false], &rows));
    let unusable = inspection.cases.iter().filter_map(|case| match &case.voxels {
        Some(InspectedVoxels::Unusable(why)) => Some(format!("case {} cannot be used: {why}", case.case)),
        _ => None,
    });
    let warnings: Vec<String> = inspection.warnings.iter().cloned().chain(unusable).collect();
    out += &warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect::<String>();
    out + &inspection.remarks.iter().map(|remark| format!("\n{remark}")).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspection() -> Inspection {
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
    fn organs_are_counted_in_millilitres_of_the_cases_that_have_them() {
        let cases = inspection().cases;
        // 3 × 0.5 × 0.75 mm³ = 1.125e-3 ml for each voxel.
        assert_eq!(
            OrganFacts::of(&cases, 0).cells(),
            ["2 of 2", "–", "4.5 ml", "1.8 ml", "7.2 ml"].map(|cell| cell.replace('–', UNDEFINED))
        );
        assert_eq!(OrganFacts::of(&cases, 1).cells()[..3], ["1 of 2".to_string(), UNDEFINED.into(), "0.9 ml".into()]);
        let mut unknown = cases;
        unknown[1].spacing_mm = None;
        assert_eq!(OrganFacts::of(&unknown, 1).cells()[2], "800 voxels");
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
