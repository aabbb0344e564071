//! A results table in Markdown.

use super::ResultsTable;
use crate::comparison::p_text;
use crate::summary::MEAN;
use crate::table_md::{cell, columns, interval, number, percent};
use sam_ladder_schemas::tables::ResultRow;
use std::fmt::Write as _;

/// A value, with its deviation over seeds where there is one.
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
    let columns = columns(&table.class_names);
    let headings: Vec<String> = columns.iter().map(|column| cell(&column.heading)).collect();
    let mut text =
        format!("| Methods | DSC ↑ | HD ↓ | {} |\n| --- |{}\n", headings.join(" | "), " ---: |".repeat(columns.len() + 2));
    let cells = |method: &str, value: &dyn Fn(&ResultRow) -> String| -> Vec<String> {
        columns.iter().map(|column| table.row(method, &column.organ).map_or("–".into(), value)).collect()
    };
    for method in table.methods() {
        let overall = |value: fn(&ResultRow) -> String| table.row(method, MEAN).map_or("–".into(), value);
        let _ =
            writeln!(text, "| {} | {} | {} | {} |", cell(method), overall(dice), overall(hd95), cells(method, &dice).join(" | "));
    }
    let ours: Vec<&str> =
        table.methods().into_iter().filter(|method| table.row(method, MEAN).is_some_and(|row| row.seeds.is_some())).collect();
    let _ = writeln!(
        text,
        "\nOrgans' columns are DSC. {}. Where a method has several seeds, values are means ± standard deviations over seeds.",
        table.rules
    );

    let _ = write!(text, "\n| HD95, {} ↓ | {} |\n| --- |{}\n", table.unit, headings.join(" | "), " ---: |".repeat(columns.len()));
    for method in &ours {
        let _ = writeln!(text, "| {} | {} |", cell(method), cells(method, &hd95).join(" | "));
    }

    text += "\n| Methods | Seeds | Cases | DSC, 95 % interval | HD95, 95 % interval | Missed | Invented |\n| --- |";
    text += &(" ---: |".repeat(6) + "\n");
    for method in &ours {
        let Some(row) = table.row(method, MEAN) else { continue };
        let count = |count: Option<u32>| count.map_or("–".into(), |count| count.to_string());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            cell(method),
            count(row.seeds),
            count(row.cases),
            interval(row.dice_low, row.dice_high, percent),
            interval(row.hd95_low, row.hd95_high, number),
            count(row.missed),
            count(row.invented),
        );
    }
    text += "\nIntervals are percentile bootstrap intervals over cases (10 000 resamples, fixed seed), of the mean over seeds. Missed: organs in the reference \
             alone. Invented: in the prediction alone. Both are summed over cases, organs and seeds.\n";

    if !table.comparisons.is_empty() {
        text += "\n| Compared | Difference in DSC | 95 % interval | p, Wilcoxon | p, permutation | Difference in HD95 | p, Wilcoxon | p, permutation |\n";
        text += &format!("| --- |{}\n", " ---: |".repeat(7));
        for comparison in &table.comparisons {
            let find = |metric: &str| comparison.rows.iter().find(|row| row.organ == MEAN && row.metric == metric);
            let (Some(dice), Some(hd95)) = (find("dice"), find("hd95")) else { continue };
            let signed = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:+.2}").replace('-', "−"));
            let _ = writeln!(
                text,
                "| {} over {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(&comparison.against),
                cell(&comparison.method),
                signed(dice.difference.map(|value| 100.0 * value)),
                interval(dice.difference_low, dice.difference_high, percent).replace('-', "−"),
                p_text(dice.wilcoxon_p),
                p_text(dice.permutation_p),
                signed(hd95.difference),
                p_text(hd95.wilcoxon_p),
                p_text(hd95.permutation_p),
            );
        }
        text += "\nPaired by case, each case's mean over organs and seeds; two-sided, without a correction for the number of comparisons.\n";
    }

    let sources: Vec<(&str, &str)> =
        (table.methods().into_iter()).filter_map(|method| Some((method, table.row(method, MEAN)?.source.as_deref()?))).collect();
    if !sources.is_empty() {
        text += "\nSources of the published rows, whose HD95 is in voxels by the published rules:\n\n";
        for (method, source) in sources {
            let _ = writeln!(text, "- {}: {}", cell(method), cell(source));
        }
    }
    text
}
