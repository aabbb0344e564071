//! The scores on one screen of a terminal; `table.md` has the whole.

use crate::organ_columns::organ_columns;
use crate::scored::OF_VALIDATION;
use crate::statistics::FEWEST_CASES;
use crate::summary::{MEAN, has_spacing};
use crate::table_md::TableContext;
use crate::table_text::{UNDEFINED, aligned_table, number, percent};
use sam_ladder_formats::csv::one_line;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::eval::ScoredSplit;
use sam_ladder_schemas::tables::SummaryRow;

/// Organs that a screen shows; of more, those with the lowest Dice.
const ORGANS: usize = 16;

/// What a row says in a column.
type Cell = fn(&SummaryRow) -> String;
/// A column: its heading, and its cell in an organ's row.
type Column = (String, Cell);

/// What was scored and how, then a row for the mean and for each organ. Columns that would say nothing are left out.
pub(crate) fn terminal_table(summary: &[SummaryRow], context: &TableContext) -> String {
    let rows = shown_rows(summary, context);
    let columns = columns(summary, context);
    let mut headings = vec![""];
    headings.extend(columns.iter().map(|(heading, _)| heading.as_str()));
    let left: Vec<bool> = (0..headings.len()).map(|column| column == 0).collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| std::iter::once(one_line(&row.organ)).chain(columns.iter().map(|(_, cell)| cell(row))).collect())
        .collect();
    format!("{}\n\n{}\n{}\n", title(context), aligned_table(&headings, &left, &cells), notes(summary, context).join("\n"))
}

fn title(context: &TableContext) -> String {
    let cases = match context.split {
        ScoredSplit::Test => counted(context.cases, "test case"),
        ScoredSplit::Validation => counted(context.cases, "held-out case"),
    };
    let rules =
        context.scoring.protocol().map_or("rules set by options".into(), |protocol| format!("{} protocol", protocol.name()));
    format!("{}: {cases}, {rules}", one_line(context.method))
}

/// The mean's row, then the organs' in the order of every table; of many organs the lowest Dice first.
fn shown_rows<'a>(summary: &'a [SummaryRow], context: &TableContext) -> Vec<&'a SummaryRow> {
    let find = |organ: &str| summary.iter().find(|row| row.organ == organ);
    let columns = organ_columns(context.organs);
    let mut organs: Vec<&SummaryRow> = columns.iter().filter_map(|column| find(&column.organ)).collect();
    if organs.len() > ORGANS {
        organs.sort_by(|a, b| a.dice.unwrap_or(f64::INFINITY).total_cmp(&b.dice.unwrap_or(f64::INFINITY)));
        organs.truncate(ORGANS);
    }
    find(MEAN).into_iter().chain(organs).collect()
}

fn columns(summary: &[SummaryRow], context: &TableContext) -> Vec<Column> {
    let any = |says: fn(&SummaryRow) -> bool| summary.iter().any(says);
    let all: [(String, bool, Cell); 7] = [
        ("DSC, %".into(), true, |row| percent(row.dice)),
        ("95 % CI".into(), any(|row| row.dice_low.is_some()), |row| interval(row.dice_low, row.dice_high, 100.0)),
        (format!("HD95, {}", context.scoring.unit.name()), true, |row| number(row.hd95)),
        ("95 % CI".into(), any(|row| row.hd95_low.is_some()), |row| interval(row.hd95_low, row.hd95_high, 1.0)),
        ("NSD, %".into(), has_spacing(summary), |row| percent(row.surface_dice)),
        ("missed".into(), any(|row| row.missed > 0), |row| row.missed.to_string()),
        ("invented".into(), any(|row| row.invented > 0), |row| row.invented.to_string()),
    ];
    all.into_iter().filter_map(|(heading, shown, cell)| shown.then_some((heading, cell))).collect()
}

/// Both ends of an interval, short.
fn interval(low: Option<f64>, high: Option<f64>, factor: f64) -> String {
    low.zip(high).map_or(UNDEFINED.into(), |(low, high)| format!("{:.1}–{:.1}", factor * low, factor * high))
}

/// What the table cannot say.
fn notes(summary: &[SummaryRow], context: &TableContext) -> Vec<String> {
    let organs = context.organs.len();
    let (missed, invented) = summary.iter().find(|row| row.organ == MEAN).map_or((0, 0), |row| (row.missed, row.invented));
    let tolerance = context.scoring.tolerance_mm;
    let mut notes = vec![if has_spacing(summary) {
        format!("higher is better: DSC (Dice), NSD (surface Dice at {tolerance} mm); lower: HD95")
    } else {
        "higher is better: DSC (Dice); lower: HD95. The spacing is unknown: nothing is measured in millimetres".into()
    }];
    if context.split == ScoredSplit::Validation {
        notes.push(OF_VALIDATION.into());
    }
    if organs > ORGANS {
        notes.push(format!("the {ORGANS} organs with the lowest DSC of {organs}"));
    }
    notes.push(match (missed, invented) {
        (0, 0) => "no organ was missed or invented".into(),
        _ => context.scoring.absent_organs(missed, invented),
    });
    if context.cases < FEWEST_CASES {
        notes.push(format!("no intervals: they need at least {FEWEST_CASES} cases"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
    use sam_ladder_schemas::eval::Protocol;

    fn row(organ: &str, dice: f64) -> SummaryRow {
        SummaryRow { organ: organ.into(), dice: Some(dice), hd95: Some(1.5), surface_dice: Some(0.5), ..SummaryRow::default() }
    }

    fn table(names: &[String], summary: &[SummaryRow], cases: usize) -> String {
        let scoring = Protocol::Published.into();
        terminal_table(summary, &TableContext { method: "ours", organs: names, scoring, split: ScoredSplit::Test, cases })
    }

    #[test]
    fn the_mean_is_first_and_nothing_that_says_nothing_is_shown() {
        let names = ["liver".to_string(), "spleen".into()];
        let summary = [row("liver", 0.9), row("spleen", 1.0), row(MEAN, 0.95)];
        let expected = "ours: 1 test case, published protocol\n\n\
                        \x20       DSC, %  HD95, voxels  NSD, %\n\
                        mean     95.00          1.50   50.00\n\
                        liver    90.00          1.50   50.00\n\
                        spleen  100.00          1.50   50.00\n\n\
                        higher is better: DSC (Dice), NSD (surface Dice at 2 mm); lower: HD95\n\
                        no organ was missed or invented\n\
                        no intervals: they need at least 6 cases\n";
        assert_eq!(table(&names, &summary, 1), expected);
    }

    #[test]
    fn intervals_and_counts_stand_where_there_are_any_within_eighty_columns() {
        let names = SYNAPSE_ORGANS.map(String::from);
        let mut summary: Vec<SummaryRow> = names.iter().map(|organ| row(organ, 0.8)).collect();
        summary.push(SummaryRow { missed: 2, dice_low: Some(0.7), dice_high: Some(0.9), ..row(MEAN, 0.8) });
        let text = table(&names, &summary, 12);
        assert!(text.contains("mean           80.00  70.0–90.0 ") && text.contains("Missed organs: 2"), "{text}");
        assert!(text.contains("missed") && !text.contains("no intervals"), "{text}");
        // The organs' own names, in the paper's order.
        let at = |name: &str| text.find(&format!("\n{name} ")).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(
            at("aorta") < at("gallbladder") && at("gallbladder") < at("left kidney") && at("left kidney") < at("right kidney")
        );
        assert!(text.lines().take(12).all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn of_many_organs_one_screen_shows_the_worst() {
        let names: Vec<String> = (0..104).map(|organ| format!("organ {organ}")).collect();
        let mut summary: Vec<SummaryRow> =
            (0..104).map(|organ| row(&format!("organ {organ}"), f64::from(104 - organ) / 104.0)).collect();
        summary.push(row(MEAN, 0.5));
        let text = table(&names, &summary, 12);
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.contains("\norgan 103 ") && text.contains("\norgan 88 ") && !text.contains("\norgan 87 "), "{text}");
        assert!(text.contains("the 16 organs with the lowest DSC of 104"));
    }
}
