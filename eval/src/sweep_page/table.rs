//! Every trial in a table that sorts by any column.

use super::space::{Parameter, Trial, digits, objective_value};
use crate::html::escape;
use sam_ladder_schemas::sweep::Objective;
use std::fmt::Write as _;

/// A cell: what is read, and what it is sorted by.
struct Cell {
    text: String,
    key: String,
    class: &'static str,
}

impl Cell {
    fn number(value: Option<f64>, text: impl Fn(f64) -> String) -> Cell {
        let key = value.filter(|value| value.is_finite()).map_or_else(String::new, |value| format!("{value}"));
        Cell { text: value.map_or("–".into(), text), key, class: "number" }
    }

    fn words(text: String) -> Cell {
        Cell { key: text.to_lowercase(), text: escape(&text), class: "" }
    }
}

/// The table, in the order of the ranks; trials without one follow by number.
pub(crate) fn html(trials: &[Trial], parameters: &[Parameter], objectives: &[Objective]) -> String {
    let rungs = trials.iter().any(|trial| trial.row.rung.is_some());
    let spread = trials.iter().any(|trial| trial.row.runs > 1);
    let mut headings = vec!["Rank".to_string(), "Trial".into(), "Status".into()];
    headings.extend(parameters.iter().map(|parameter| parameter.name.clone()));
    for objective in objectives {
        headings.push(if *objective == Objective::Dice { "Dice, %".into() } else { "HD95, mm".into() });
        if spread {
            headings.push("±".into());
        }
    }
    headings.push("Epochs".into());
    if rungs {
        headings.push("Rung".into());
    }
    headings.extend(["Time, s".to_string(), "Reason".into()]);
    let mut order: Vec<&Trial> = trials.iter().collect();
    order.sort_by_key(|trial| (trial.row.rank.unwrap_or(u32::MAX), trial.row.number));
    let mut out = String::from("<table class=\"trials\" id=\"trials-table\">\n<thead><tr>");
    for (index, heading) in headings.iter().enumerate() {
        let sorted = if index == 0 { " aria-sort=\"ascending\"" } else { "" };
        let _ = write!(out, "<th scope=\"col\"{sorted}><button type=\"button\">{}</button></th>", escape(heading));
    }
    out += "</tr></thead>\n<tbody>\n";
    for trial in order {
        let best = if trial.row.rank == Some(1) { " class=\"best\"" } else { "" };
        let _ = write!(out, "<tr data-trial=\"{}\"{best} tabindex=\"0\">", trial.row.number);
        for cell in cells(trial, parameters, objectives, rungs, spread) {
            let class = if cell.class.is_empty() { String::new() } else { format!(" class=\"{}\"", cell.class) };
            let _ = write!(out, "<td{class} data-key=\"{}\">{}</td>", escape(&cell.key), cell.text);
        }
        out += "</tr>\n";
    }
    out + "</tbody>\n</table>\n"
}

fn cells(trial: &Trial, parameters: &[Parameter], objectives: &[Objective], rungs: bool, spread: bool) -> Vec<Cell> {
    let row = trial.row;
    let whole = |value: f64| format!("{value:.0}");
    let status = row.status.name();
    let mut cells = vec![
        Cell::number(row.rank.map(f64::from), whole),
        Cell { text: format!("{} <code>{}</code>", row.number, escape(&row.trial)), key: row.number.to_string(), class: "name" },
        Cell { text: format!("<span class=\"status {status}\">{status}</span>"), key: status.into(), class: "" },
    ];
    for parameter in parameters {
        cells.push(match (parameter.number(trial), parameter.text(trial)) {
            (Some(number), _) => Cell::number(Some(number), digits),
            (None, Some(text)) => Cell::words(text),
            (None, None) => Cell::number(None, digits),
        });
    }
    for &objective in objectives {
        let deviation = if objective == Objective::Dice { row.dice_std.map(|std| 100.0 * std) } else { row.hd95_std };
        cells.push(Cell::number(objective_value(row, objective), |value| format!("{value:.2}")));
        if spread {
            cells.push(Cell::number(deviation, |value| format!("{value:.2}")));
        }
    }
    cells.push(Cell { text: format!("{} of {}", row.epochs, row.max_epochs), key: row.epochs.to_string(), class: "number" });
    if rungs {
        cells.push(Cell::number(row.rung.map(f64::from), whole));
    }
    cells.push(Cell::number(Some(row.seconds), |seconds| format!("{seconds:.1}")));
    cells.push(Cell { class: "reason", ..Cell::words(row.reason.clone().unwrap_or_default()) });
    cells
}

#[cfg(test)]
mod tests {
    use super::super::space::trials;
    use super::super::tests_data::{config, row};
    use super::*;
    use sam_ladder_schemas::sweep::{TrialRow, TrialStatus};

    #[test]
    fn every_trial_has_its_row_with_status_and_reason() {
        let failed = TrialRow {
            status: TrialStatus::Diverged,
            reason: Some("the loss is <NaN> at step 7".into()),
            dice: None,
            ..row(1, None)
        };
        let rows = [row(0, Some(2)), failed, row(2, Some(1))];
        let trials = trials(&rows);
        let table = html(&trials, &Parameter::all(&config(), &trials), &[Objective::Dice]);
        assert_eq!(table.matches("<tr data-trial=").count(), 3);
        assert!(table.contains("status diverged") && table.contains("the loss is &lt;NaN&gt; at step 7"));
        let place = |number: u32| table.find(&format!("<tr data-trial=\"{number}\"")).unwrap();
        assert!(place(2) < place(0) && place(0) < place(1), "by rank, then those without");
        let headings = table.matches("<th ").count();
        assert_eq!(table.matches("<td").count(), 3 * headings);
    }
}
