//! `table.md`: the scores in the shape of the paper's Table I.

use crate::protocol::Scoring;
use crate::summary::MEAN;
use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
use sam_ladder_schemas::tables::SummaryRow;

/// Headings of the paper's Table I, in its order, and the organs they stand for.
const PAPER_COLUMNS: [(&str, &str); 8] = [
    ("Aorta", "aorta"),
    ("Gallbladder", "gallbladder"),
    ("Kidney(L)", "left kidney"),
    ("Kidney(R)", "right kidney"),
    ("Liver", "liver"),
    ("Pancreas", "pancreas"),
    ("Spleen", "spleen"),
    ("Stomach", "stomach"),
];

/// A column of the tables: an organ under the heading that the reader looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// What the table says.
    pub heading: String,
    /// The organ's name in the store.
    pub organ: String,
}

/// Columns of the tables: the paper's for the eight Synapse organs (in whatever order they are named), else the organs as they are named.
pub fn columns(class_names: &[String]) -> Vec<Column> {
    let is_synapse = class_names.len() == SYNAPSE_ORGANS.len()
        && SYNAPSE_ORGANS.iter().all(|organ| class_names.iter().any(|name| name == organ));
    if is_synapse {
        PAPER_COLUMNS.iter().map(|&(heading, organ)| Column { heading: heading.into(), organ: organ.into() }).collect()
    } else {
        class_names.iter().map(|name| Column { heading: name.clone(), organ: name.clone() }).collect()
    }
}

/// What the tables are about.
#[derive(Debug, Clone, Copy)]
pub struct TableContext<'a> {
    /// Name of the row.
    pub method: &'a str,
    /// Names of the classes from 1.
    pub class_names: &'a [String],
    /// How the scores were counted.
    pub scoring: Scoring,
    /// Number of cases.
    pub cases: usize,
}

/// The whole file: the paper's table, then each organ's counts.
pub fn markdown(summary: &[SummaryRow], context: &TableContext) -> String {
    let columns = columns(context.class_names);
    let find = |organ: &str| summary.iter().find(|row| row.organ == organ);
    let dice = |organ: &str| percent(find(organ).and_then(|row| row.dice));
    let hd95 = |organ: &str| number(find(organ).and_then(|row| row.hd95));

    let headings: Vec<String> = columns.iter().map(|column| cell(&column.heading)).collect();
    let scores: Vec<String> = columns.iter().map(|column| dice(&column.organ)).collect();
    let mut text = format!("| Methods | DSC ↑ | HD ↓ | {} |\n", headings.join(" | "));
    text += &format!("| --- |{}\n", " ---: |".repeat(columns.len() + 2));
    text += &format!("| {} | {} | {} | {} |\n\n", cell(context.method), dice(MEAN), hd95(MEAN), scores.join(" | "));
    text += &caption(context);

    text += "\n\n| Organ | DSC ↑ | 95 % interval | HD ↓ | 95 % interval | Cases with DSC | Cases with HD | Missed | Invented |\n| --- |";
    text += &(" ---: |".repeat(8) + "\n");
    let with_mean = || columns.iter().map(|column| (&*column.heading, &*column.organ)).chain([("All organs", MEAN)]);
    for (heading, organ) in with_mean() {
        if let Some(row) = find(organ) {
            let counts = [row.dice_cases, row.hd95_cases, row.missed, row.invented].map(|count| count.to_string());
            text += &format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                cell(heading),
                dice(organ),
                interval(row.dice_low, row.dice_high, percent),
                hd95(organ),
                interval(row.hd95_low, row.hd95_high, number),
                counts.join(" | ")
            );
        }
    }
    text += &format!(
        "\n| Organ | HD95, voxels | HD95, mm | larger HD95, voxels | larger HD95, mm | surface Dice at {} mm | volume difference, ml |\n| --- |",
        context.scoring.tolerance_mm
    );
    text += &(" ---: |".repeat(6) + "\n");
    for (heading, organ) in with_mean() {
        if let Some(row) = find(organ) {
            let distances = [row.hd95_voxels, row.hd95_mm, row.hd95_larger_voxels, row.hd95_larger_mm].map(number).join(" | ");
            let (surface, volume) = (percent(row.surface_dice), number(row.volume_difference_ml));
            text += &format!("| {} | {distances} | {surface} | {volume} |\n", cell(heading));
        }
    }
    text + "\n" + OTHER_COLUMNS + "\n"
}

/// What the second table's numbers are.
pub(crate) const OTHER_COLUMNS: &str = "Means over the cases in which both masks have the organ, whatever the protocol: HD95 of both directions in one list \
    (MedPy), the larger of the two directions' HD95 (MONAI), surface Dice in percent (an organ that one mask alone has counts 0), and predicted less reference volume \
    (all cases).";

/// Both ends of an interval, or a dash.
pub(crate) fn interval(low: Option<f64>, high: Option<f64>, text: fn(Option<f64>) -> String) -> String {
    if low.is_none() || high.is_none() { "–".into() } else { format!("{} to {}", text(low), text(high)) }
}

/// One paragraph that says what the numbers are.
pub(crate) fn caption(context: &TableContext) -> String {
    let TableContext { scoring, cases, .. } = context;
    let protocol = scoring.protocol().map_or(String::new(), |protocol| format!(" ({protocol} protocol)"));
    let plural = if *cases == 1 { "" } else { "s" };
    format!(
        "Mean over {cases} case{plural}{protocol}: {}. Missed: in the reference alone. Invented: in the prediction alone. Intervals are percentile bootstrap \
         intervals over cases.",
        scoring.describe()
    )
}

/// In percent with two decimals, or a dash.
pub(crate) fn percent(value: Option<f64>) -> String {
    number(value.map(|value| 100.0 * value))
}

/// With two decimals, or a dash.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.2}"))
}

/// Text that cannot break out of a table's cell.
pub(crate) fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;

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
        let context = TableContext { method: "a|b", class_names: &names, scoring: Protocol::Published.into(), cases: 12 };
        let text = markdown(&summary, &context);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| Methods | DSC ↑ | HD ↓ | Aorta | Gallbladder | Kidney(L) | Kidney(R) | Liver | Pancreas | Spleen | Stomach |"
        );
        assert_eq!(lines[2], "| a\\|b | 79.46 | 35.34 | 70.00 | 40.00 | 30.00 | 20.00 | 50.00 | 80.00 | 10.00 | 60.00 |");
        assert!(lines[4].contains("12 cases (published protocol)") && lines[4].contains("voxels"));
        assert_eq!(lines[8], "| Aorta | 70.00 | 60.00 to 70.00 | 1.00 | – | 12 | 11 | 1 | 0 |");
        assert!(lines.contains(&"| All organs | 79.46 | 69.46 to 79.46 | 35.34 | – | 12 | 11 | 1 | 0 |"), "{text}");
        assert!(text.contains("surface Dice at 2 mm") && text.contains("| All organs | – | – | – | – | 50.00 | – |"), "{text}");
    }

    #[test]
    fn other_organs_stand_as_named_and_undefined_is_a_dash() {
        let names = ["tumour".to_string(), "liver".to_string()];
        let summary = [row("tumour", None, None), row("liver", Some(1.0), Some(0.0)), row(MEAN, Some(1.0), Some(0.0))];
        let context = TableContext { method: "ours", class_names: &names, scoring: Protocol::Standard.into(), cases: 1 };
        let text = markdown(&summary, &context);
        assert!(text.starts_with("| Methods | DSC ↑ | HD ↓ | tumour | liver |\n"), "{text}");
        assert!(text.contains("| ours | 100.00 | 0.00 | – | 100.00 |\n"), "{text}");
        assert!(text.contains("1 case (standard protocol)") && text.contains("in mm"), "{text}");
    }
}
