//! A results table in Markdown.

use super::ResultsTable;
use crate::organ_columns::{OrganColumn, organ_columns};
use crate::summary::MEAN;
use crate::table_text::{UNDEFINED, cell, interval, markdown_table, minus, number, p_text, percent, signed};
use sam_ladder_schemas::eval::EmptyRule;
use sam_ladder_schemas::tables::ResultRow;

/// A value, with its deviation over seeds if there is one.
fn with_deviation(value: Option<f64>, deviation: Option<f64>, text: fn(Option<f64>) -> String) -> String {
    match deviation {
        Some(deviation) => format!("{} ± {}", text(value), text(Some(deviation))),
        None => text(value),
    }
}

pub(super) fn dice(row: &ResultRow) -> String {
    with_deviation(row.dice, row.dice_sd, percent)
}

pub(super) fn hd95(row: &ResultRow) -> String {
    with_deviation(row.hd95, row.hd95_sd, number)
}

pub(super) fn write(table: &ResultsTable) -> String {
    let columns = organ_columns(&table.class_names);
    // Methods evaluated here; the others are published.
    let ours: Vec<&str> =
        table.methods().into_iter().filter(|method| table.row(method, MEAN).is_some_and(|row| row.seeds.is_some())).collect();
    let mut text = scores_table(table, &columns);
    text += &format!(
        "\nOrgans' columns are DSC. {}. If a method has several seeds, values are means ± standard deviations over seeds. {}\n",
        table.rules,
        absent_organs(table)
    );
    if ours.iter().any(|method| has_folds(table, method)) {
        text += "\nFolds of a cross-validation are one row: each case is scored once, by a model that was not trained on it, and means are over \
                 all cases. With one seed, ± is the standard deviation over these cases, in DSC and HD of each case's mean over its organs.\n";
    }
    text += &format!("\n{}\n{}", distances_table(table, &columns, &ours), counts_table(table, &ours));
    text += "\nIntervals are percentile bootstrap intervals over cases (10 000 resamples, fixed seed), of the mean over seeds. Missed: \
             organs only in the reference. Invented: only in the prediction. Both are summed over cases, organs and seeds. Of fewer than six \
             cases there is no interval.\n";
    if !table.comparisons.is_empty() {
        text += &format!("\n{}", comparisons_table(table));
        text += "\nPaired by case, each case's mean over organs and seeds; two-sided, without a correction for the number of comparisons.\n";
    }
    let sources: Vec<String> = (table.methods().into_iter())
        .filter_map(|method| Some(format!("- {}: {}\n", cell(method), cell(table.row(method, MEAN)?.source.as_deref()?))))
        .collect();
    if !sources.is_empty() {
        text += "\nSources of the published rows. The published code computes HD95 in voxels:\n\n";
        text += &sources.concat();
    }
    text
}

/// Says what the columns of missed and invented organs are, and what was counted as HD for them.
pub(super) fn absent_organs(table: &ResultsTable) -> String {
    let absent = |row: &ResultRow| row.missed.unwrap_or(0) + row.invented.unwrap_or(0);
    let counted = match table.empty {
        _ if table.rows.iter().all(|row| absent(row) == 0) => "",
        EmptyRule::Published => " For each organ that was missed or invented an HD of 0 was counted, the best value there is.",
        EmptyRule::LeaveOut => " The HD of organs that were missed or invented is left out.",
        EmptyRule::Penalise => " For each organ that was missed or invented the scan's diagonal was counted as HD.",
    };
    format!("Missed and invented: organs that only the reference or only the prediction has, over all cases and seeds.{counted}")
}

/// The numbers of missed and of invented organs of a method; published rows have none.
pub(super) fn absent_cells(table: &ResultsTable, method: &str) -> [String; 2] {
    let row = table.row(method, MEAN);
    let count = |count: Option<u32>| count.map_or(UNDEFINED.into(), |count| count.to_string());
    [count(row.and_then(|row| row.missed)), count(row.and_then(|row| row.invented))]
}

/// A method's text for each organ.
fn organ_cells(table: &ResultsTable, columns: &[OrganColumn], method: &str, text: fn(&ResultRow) -> String) -> Vec<String> {
    columns.iter().map(|column| table.row(method, &column.organ).map_or(UNDEFINED.into(), text)).collect()
}

/// `first` headings, then the organs'.
fn headings<const N: usize>(first: [&str; N], columns: &[OrganColumn]) -> Vec<String> {
    let organs = columns.iter().map(|column| cell(&column.heading));
    first.map(String::from).into_iter().chain(organs).chain(["Missed", "Invented"].map(String::from)).collect()
}

/// Mean Dice and HD95 of every method, and Dice of each organ.
fn scores_table(table: &ResultsTable, columns: &[OrganColumn]) -> String {
    let rows = table.methods().into_iter().map(|method| {
        let overall = |text: fn(&ResultRow) -> String| table.row(method, MEAN).map_or(UNDEFINED.into(), text);
        let scores = vec![cell(method), overall(dice), overall(hd95)];
        [scores, organ_cells(table, columns, method, dice), absent_cells(table, method).to_vec()].concat()
    });
    markdown_table(&headings(["Methods", "DSC ↑", "HD ↓"], columns), rows)
}

/// HD95 of each organ.
fn distances_table(table: &ResultsTable, columns: &[OrganColumn], methods: &[&str]) -> String {
    let rows = methods.iter().map(|method| {
        [vec![cell(method)], organ_cells(table, columns, method, hd95), absent_cells(table, method).to_vec()].concat()
    });
    markdown_table(&headings([&*format!("HD95, {} ↓", table.unit)], columns), rows)
}

fn has_folds(table: &ResultsTable, method: &str) -> bool {
    table.row(method, MEAN).is_some_and(|row| row.folds.is_some())
}

/// Number of seeds, folds and cases of each method, its intervals, and its missed organs.
fn counts_table(table: &ResultsTable, methods: &[&str]) -> String {
    let folds = methods.iter().any(|method| has_folds(table, method));
    let mut headings = vec!["Methods", "Seeds", "Cases", "DSC, 95 % interval", "HD95, 95 % interval", "Missed", "Invented"];
    if folds {
        headings.insert(2, "Folds");
    }
    let count = |count: Option<u32>| count.map_or(UNDEFINED.into(), |count| count.to_string());
    let rows = methods.iter().filter_map(|method| {
        let row = table.row(method, MEAN)?;
        let mut cells = vec![
            cell(method),
            count(row.seeds),
            count(row.cases),
            interval(row.dice_low, row.dice_high, percent),
            interval(row.hd95_low, row.hd95_high, number),
            count(row.missed),
            count(row.invented),
        ];
        if folds {
            cells.insert(2, count(row.folds));
        }
        Some(cells)
    });
    markdown_table(&headings, rows)
}

/// The tests of each method against the chosen one.
fn comparisons_table(table: &ResultsTable) -> String {
    let headings = [
        "Compared",
        "Difference in DSC",
        "95 % interval",
        "p, Wilcoxon",
        "p, permutation",
        "Difference in HD95",
        "p, Wilcoxon",
        "p, permutation",
    ];
    let rows = table.comparisons.iter().filter_map(|comparison| {
        let find = |metric: &str| comparison.rows.iter().find(|row| row.organ == MEAN && row.metric == metric);
        let (dice, hd95) = (find("dice")?, find("hd95")?);
        Some(vec![
            format!("{} over {}", cell(&comparison.against), cell(&comparison.method)),
            signed(dice.difference.map(|value| 100.0 * value)),
            minus(&interval(dice.difference_low, dice.difference_high, percent)),
            p_text(dice.wilcoxon_p),
            p_text(dice.permutation_p),
            signed(hd95.difference),
            p_text(hd95.wilcoxon_p),
            p_text(hd95.permutation_p),
        ])
    });
    markdown_table(&headings, rows)
}
