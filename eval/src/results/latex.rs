//! A results table in LaTeX.

use super::ResultsTable;
use super::markdown::{absent_cells, absent_organs, dice, hd95};
use crate::organ_columns::organ_columns;
use crate::summary::MEAN;
use std::fmt::Write as _;

/// Escapes a text for LaTeX.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', character]),
            '\\' => escaped += "\\textbackslash{}",
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '±' => escaped += "$\\pm$",
            '–' => escaped += "--",
            '\n' | '\r' => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

pub(super) fn write(table: &ResultsTable) -> String {
    let columns = organ_columns(&table.class_names);
    let mut text = format!("% Needs \\usepackage{{booktabs}}. {}. {}\n", escape(&table.rules), escape(&absent_organs(table)));
    let _ = writeln!(text, "\\begin{{tabular}}{{l{}}}\n\\toprule", "r".repeat(columns.len() + 4));
    let headings: String = columns.iter().map(|column| format!(" & {}", escape(&column.heading))).collect();
    let _ = writeln!(text, "Methods & DSC $\\uparrow$ & HD $\\downarrow${headings} & Missed & Invented \\\\\n\\midrule");
    let mut published = false;
    for method in table.methods() {
        let Some(overall) = table.row(method, MEAN) else { continue };
        // A line between published methods and those evaluated here.
        if published && overall.source.is_none() {
            text += "\\midrule\n";
        }
        published = overall.source.is_some();
        let absent = absent_cells(table, method).map(|count| escape(&count)).join(" & ");
        let organs: String = (columns.iter())
            .map(|column| format!(" & {}", table.row(method, &column.organ).map_or("--".into(), |row| escape(&dice(row)))))
            .collect();
        let _ = writeln!(
            text,
            "{} & {} & {}{organs} & {} \\\\",
            escape(method),
            escape(&dice(overall)),
            escape(&hd95(overall)),
            absent
        );
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_printed() {
        assert_eq!(
            escape("50 % of a_b & ~c^ \\ ± –"),
            "50 \\% of a\\_b \\& \\textasciitilde{}c\\textasciicircum{} \\textbackslash{} $\\pm$ --"
        );
    }
}
