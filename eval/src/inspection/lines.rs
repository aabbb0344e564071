//! What `inspect` found, as lines for a terminal.

use super::cells::{COST_COLUMNS, ORGAN_COLUMNS, OrganFacts, case_columns, cost_cells};
use crate::table_text::aligned_table;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::inspection::{InspectedCase, InspectedVoxels, Inspection};

/// Cases that a terminal shows.
const CASES: usize = 40;

/// A line for each of the first cases, what to look at, and the costs.
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
