//! A table of all trials that can be sorted by any column.

use super::space::{Parameter, Trial, objective_value};
use crate::plot::svg::digits;
use crate::table_text::UNDEFINED;
use maud::{Markup, html};
use sam_ladder_schemas::sweep::Objective;

/// A column: its heading, and each trial's cell.
struct Column<'a> {
    heading: String,
    cell: Box<dyn Fn(&Trial) -> Cell + 'a>,
}

impl<'a> Column<'a> {
    fn new(heading: &str, cell: impl Fn(&Trial) -> Cell + 'a) -> Column<'a> {
        Column { heading: heading.into(), cell: Box::new(cell) }
    }
}

/// A cell: its text, and its key for sorting.
struct Cell {
    text: Markup,
    key: String,
    class: Option<&'static str>,
}

impl Cell {
    fn number(value: Option<f64>, text: impl Fn(f64) -> String) -> Cell {
        let key = value.filter(|value| value.is_finite()).map_or_else(String::new, |value| value.to_string());
        let text = value.map_or(UNDEFINED.into(), text);
        Cell { text: html! { (text) }, key, class: Some("number") }
    }

    fn words(text: &str) -> Cell {
        Cell { text: html! { (text) }, key: text.to_lowercase(), class: None }
    }
}

/// The table, in the order of the ranks; trials without one follow by number.
pub(crate) fn html(trials: &[Trial], parameters: &[Parameter], objectives: &[Objective]) -> Markup {
    let columns = columns(parameters, objectives);
    let mut order: Vec<&Trial> = trials.iter().collect();
    order.sort_by_key(|trial| (trial.row.rank.unwrap_or(u32::MAX), trial.row.number));
    html! {
        table.trials #trials-table {
            thead { tr {
                @for (index, column) in columns.iter().enumerate() {
                    th scope="col" aria-sort=[(index == 0).then_some("ascending")] { button type="button" { (column.heading) } }
                }
            } }
            tbody {
                @for trial in order {
                    tr data-trial=(trial.row.number) class=[(trial.row.rank == Some(1)).then_some("best")] tabindex="0" {
                        @for Cell { text, key, class } in columns.iter().map(|column| (column.cell)(trial)) {
                            td class=[class] data-key=(key) { (text) }
                        }
                    }
                }
            }
        }
    }
}

/// The columns; empty ones are left out.
fn columns<'a>(parameters: &'a [Parameter], objectives: &[Objective]) -> Vec<Column<'a>> {
    let whole = |value: f64| format!("{value:.0}");
    let cents = |value: f64| format!("{value:.2}");
    let mut columns = vec![
        Column::new("Rank", move |trial| Cell::number(trial.row.rank.map(f64::from), whole)),
        Column::new("Trial", |trial| {
            let (number, id) = (trial.row.number, &trial.row.trial);
            Cell { text: html! { (number) " " code { (id) } }, key: number.to_string(), class: Some("name") }
        }),
        Column::new("Status", |trial| {
            let status = trial.row.status.name();
            Cell { text: html! { span class={ "status " (status) } { (status) } }, key: status.into(), class: None }
        }),
    ];
    columns.extend(parameters.iter().map(|parameter| Column::new(&parameter.name, |trial| parameter_cell(parameter, trial))));
    for &objective in objectives {
        let (heading, deviation): (_, fn(&Trial) -> Option<f64>) = match objective {
            Objective::Dice => ("Dice, %", |trial| trial.row.dice_std.map(|std| 100.0 * std)),
            Objective::Hd95 => ("HD95, mm", |trial| trial.row.hd95_std),
        };
        columns.push(Column::new(heading, move |trial| {
            let spread = deviation(trial).map_or(String::new(), |deviation| format!(" ± {}", cents(deviation)));
            Cell::number(objective_value(trial.row, objective), |value| cents(value) + &spread)
        }));
    }
    columns.push(Column::new("Epochs", |trial| {
        let (epochs, max_epochs) = (trial.row.epochs, trial.row.max_epochs);
        let rung = trial.row.rung.map_or(String::new(), |rung| format!(", rung {rung}"));
        Cell { text: html! { (epochs) " of " (max_epochs) (rung) }, key: epochs.to_string(), class: Some("number") }
    }));
    columns.push(Column::new("Time, s", |trial| Cell::number(Some(trial.row.seconds), |seconds| format!("{seconds:.1}"))));
    columns.push(Column::new("Reason", |trial| Cell {
        class: Some("reason"),
        ..Cell::words(trial.row.reason.as_deref().unwrap_or_default())
    }));
    columns
}

fn parameter_cell(parameter: &Parameter, trial: &Trial) -> Cell {
    match (parameter.number(trial), parameter.text(trial)) {
        (None, Some(text)) => Cell::words(&text),
        (number, _) => Cell::number(number, digits),
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{config, row};
    use super::super::space::trials;
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
        let table = html(&trials, &Parameter::all(&config(), &trials), &[Objective::Dice]).into_string();
        assert_eq!(table.matches("<tr data-trial=").count(), 3);
        assert!(table.contains("status diverged") && table.contains("the loss is &lt;NaN&gt; at step 7"));
        let place = |number: u32| table.find(&format!("<tr data-trial=\"{number}\"")).unwrap();
        assert!(place(2) < place(0) && place(0) < place(1), "by rank, then those without");
        let headings = table.matches("<th ").count();
        assert_eq!(table.matches("<td").count(), 3 * headings);
    }
}
