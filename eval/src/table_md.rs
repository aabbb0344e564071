//! `table.md`: the scores in the form of the paper's Table I.

use crate::organ_columns::{OrganColumn, organ_columns, with_mean};
use crate::protocol::Scoring;
use crate::scored::OF_VALIDATION;
use crate::summary::{MEAN, has_spacing};
use crate::table_text::{cell, interval, markdown_table, number, percent};
use sam_ladder_schemas::eval::ScoredSplit;
use sam_ladder_schemas::tables::SummaryRow;

/// Context of the tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableContext<'a> {
    /// Name of the row.
    pub method: &'a str,
    /// Names of what is scored: the regions, or the classes from 1.
    pub organs: &'a [String],
    /// How the scores were counted.
    pub scoring: Scoring,
    /// Which cases were scored.
    pub split: ScoredSplit,
    /// Number of cases.
    pub cases: usize,
}

/// The whole file: the paper's table, then each organ's counts, then the other metrics.
pub(crate) fn markdown(summary: &[SummaryRow], context: &TableContext) -> String {
    let columns = organ_columns(context.organs);
    let papers = papers_table(summary, &columns, context.method);
    let (counts, others) =
        (counts_table(summary, &columns), other_metrics_table(summary, &columns, context.scoring.tolerance_mm));
    let absent = absent_organs(summary, context);
    format!("{papers}\n{} {absent}\n\n{counts}\n{others}\n{} {}\n", caption(context), other_metrics(summary), uncounted(summary))
}

fn row_of<'a>(summary: &'a [SummaryRow], organ: &str) -> Option<&'a SummaryRow> {
    summary.iter().find(|row| row.organ == organ)
}

/// How many organs were missed and invented, and what was counted for them.
pub(crate) fn absent_organs(summary: &[SummaryRow], context: &TableContext) -> String {
    let (missed, invented) = row_of(summary, MEAN).map_or((0, 0), |row| (row.missed, row.invented));
    context.scoring.absent_organs(missed, invented)
}

/// The same of the other metrics' distances, in which such organs never count.
pub(crate) fn uncounted(summary: &[SummaryRow]) -> String {
    let (missed, invented) = row_of(summary, MEAN).map_or((0, 0), |row| (row.missed, row.invented));
    format!("The {missed} missed and {invented} invented organs count in none of these HD95.")
}

/// One row: the method's mean Dice and HD95, and each organ's Dice.
fn papers_table(summary: &[SummaryRow], columns: &[OrganColumn], method: &str) -> String {
    let dice = |organ: &str| percent(row_of(summary, organ).and_then(|row| row.dice));
    let hd95 = number(row_of(summary, MEAN).and_then(|row| row.hd95));
    let mut headings = ["Methods", "DSC ↑", "HD ↓"].map(String::from).to_vec();
    headings.extend(columns.iter().map(|column| cell(&column.heading)));
    let mut row = vec![cell(method), dice(MEAN), hd95];
    row.extend(columns.iter().map(|column| dice(&column.organ)));
    markdown_table(&headings, [row])
}

/// A row for the mean, then one per organ: means, intervals and counts.
fn counts_table(summary: &[SummaryRow], columns: &[OrganColumn]) -> String {
    let headings =
        ["Organ", "DSC ↑", "95 % interval", "HD ↓", "95 % interval", "Cases with DSC", "Cases with HD", "Missed", "Invented"];
    let rows = with_mean(columns).filter_map(|organ| {
        let row = row_of(summary, organ)?;
        let mut cells = vec![
            cell(organ),
            percent(row.dice),
            interval(row.dice_low, row.dice_high, percent),
            number(row.hd95),
            interval(row.hd95_low, row.hd95_high, number),
        ];
        cells.extend([row.dice_cases, row.hd95_cases, row.missed, row.invented].map(|count| count.to_string()));
        Some(cells)
    });
    markdown_table(&headings, rows)
}

/// A row for the mean, then one per organ: the metrics that do not depend on the protocol. What needs the voxel spacing is left out where it is
/// unknown.
fn other_metrics_table(summary: &[SummaryRow], columns: &[OrganColumn], tolerance_mm: f64) -> String {
    let in_mm = has_spacing(summary);
    let surface = format!("surface Dice at {tolerance_mm} mm");
    let all: [(&str, bool); 7] = [
        ("Organ", true),
        ("HD95, voxels", true),
        ("HD95, mm", in_mm),
        ("larger HD95, voxels", true),
        ("larger HD95, mm", in_mm),
        (&surface, in_mm),
        ("volume difference, ml", in_mm),
    ];
    let headings: Vec<&str> = all.into_iter().filter_map(|(heading, shown)| shown.then_some(heading)).collect();
    let rows = with_mean(columns).filter_map(|organ| {
        let row = row_of(summary, organ)?;
        let mut cells = vec![cell(organ)];
        cells.extend([row.hd95_voxels, row.hd95_mm, row.hd95_larger_voxels, row.hd95_larger_mm].map(number));
        cells.extend([percent(row.surface_dice), number(row.volume_difference_ml)]);
        Some(cells.into_iter().zip(all).filter_map(|(cell, (_, shown))| shown.then_some(cell)).collect())
    });
    markdown_table(&headings, rows)
}

/// Explains the other metrics.
pub(crate) fn other_metrics(summary: &[SummaryRow]) -> &'static str {
    if has_spacing(summary) { OTHER_METRICS } else { OTHER_METRICS_IN_VOXELS }
}

/// Of scans without a spacing.
const OTHER_METRICS_IN_VOXELS: &str = "Means over the cases in which both masks have the organ, the same in every protocol: HD95 of both \
    directions in one list (MedPy), the larger of the two directions' HD95 (MONAI). The scans' voxel spacing is unknown, so nothing is \
    measured in millimetres; eval --spacing states it.";

/// Of scans whose spacing is known.
const OTHER_METRICS: &str = "Means over the cases in which both masks have the organ, the same in every protocol: HD95 of both \
    directions in one list (MedPy), the larger of the two directions' HD95 (MONAI), surface Dice in percent (0 if only one mask has the \
    organ), and predicted minus reference volume (over all cases).";

/// One paragraph that explains the numbers.
pub(crate) fn caption(context: &TableContext) -> String {
    let TableContext { scoring, cases, split, .. } = context;
    let of_split = if *split == ScoredSplit::Validation { format!("{OF_VALIDATION}. ") } else { String::new() };
    let protocol = scoring.protocol().map_or(String::new(), |protocol| format!(" ({} protocol)", protocol.name()));
    let plural = if *cases == 1 { "" } else { "s" };
    format!(
        "{of_split}Mean over {cases} case{plural}{protocol}: {}. Missed: only in the reference. Invented: only in the prediction. Intervals are \
         percentile bootstrap intervals over cases, where at least six have a value.",
        scoring.describe()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
    use sam_ladder_schemas::eval::Protocol;

    fn row(organ: &str, dice: Option<f64>, hd95: Option<f64>) -> SummaryRow {
        SummaryRow {
            organ: organ.into(),
            dice,
            hd95,
            dice_cases: 12,
            hd95_cases: 11,
            missed: 1,
            invented: 0,
            dice_low: dice.map(|dice| dice - 0.1),
            dice_high: dice,
            surface_dice: Some(0.5),
            ..SummaryRow::default()
        }
    }

    #[test]
    fn synapse_organs_stand_in_the_papers_order() {
        let names = SYNAPSE_ORGANS.map(String::from);
        let mut summary: Vec<SummaryRow> =
            (1..).zip(&names).map(|(i, organ)| row(organ, Some(f64::from(i) / 10.0), Some(1.0))).collect();
        summary.push(row(MEAN, Some(0.79456), Some(35.344)));
        let (scoring, split) = (Protocol::Published.into(), ScoredSplit::Test);
        let context = TableContext { method: "a|b", organs: &names, scoring, split, cases: 12 };
        let text = markdown(&summary, &context);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| Methods | DSC ↑ | HD ↓ | Aorta | Gallbladder | Kidney(L) | Kidney(R) | Liver | Pancreas | Spleen | Stomach |"
        );
        assert_eq!(lines[2], "| a\\|b | 79.46 | 35.34 | 70.00 | 40.00 | 30.00 | 20.00 | 50.00 | 80.00 | 10.00 | 60.00 |");
        assert!(lines[4].contains("12 cases (published protocol)") && lines[4].contains("voxels"));
        assert!(
            lines[4]
                .ends_with("Missed organs: 1, invented: 0. For each missed one an HD of 0 was counted, the best value there is.")
        );
        assert!(text.trim_end().ends_with("The 1 missed and 0 invented organs count in none of these HD95."), "{text}");
        assert_eq!(lines[8], "| mean | 79.46 | 69.46 to 79.46 | 35.34 | – | 12 | 11 | 1 | 0 |");
        assert_eq!(lines[9], "| aorta | 70.00 | 60.00 to 70.00 | 1.00 | – | 12 | 11 | 1 | 0 |");
        assert!(text.contains("surface Dice at 2 mm") && text.contains("| mean | – | – | – | – | 50.00 | – |"), "{text}");
    }

    #[test]
    fn other_organs_stand_as_named_and_undefined_is_a_dash() {
        let names = ["tumour".to_string(), "liver".to_string()];
        let summary = [row("tumour", None, None), row("liver", Some(1.0), Some(0.0)), row(MEAN, Some(1.0), Some(0.0))];
        let (scoring, split) = (Protocol::Standard.into(), ScoredSplit::Validation);
        let context = TableContext { method: "ours", organs: &names, scoring, split, cases: 1 };
        let text = markdown(&summary, &context);
        assert!(text.starts_with("| Methods | DSC ↑ | HD ↓ | tumour | liver |\n"), "{text}");
        assert!(text.contains("| ours | 100.00 | 0.00 | – | 100.00 |\n"), "{text}");
        assert!(text.contains("1 case (standard protocol)") && text.contains("in mm"), "{text}");
        assert!(text.contains("held out, not test scans. Mean over 1 case"), "{text}");
    }
}
