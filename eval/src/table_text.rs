//! Tables as text: Markdown tables, and the format of numbers in their cells.

/// Text for a value that is not defined.
pub(crate) const UNDEFINED: &str = "–";

/// A Markdown table: the first column aligned left, the others right. Cells must be [`cell`]s or numbers.
pub(crate) fn markdown_table<S: AsRef<str>>(headings: &[S], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(headings.iter().map(AsRef::as_ref).collect());
    text += &format!("| --- |{}\n", " ---: |".repeat(headings.len() - 1));
    text.extend(rows.into_iter().map(|row| line(row.iter().map(String::as_str).collect())));
    text
}

/// A table for a terminal: columns as wide as their widest cell and two spaces apart, without spaces at a line's end. `left` says of each
/// column whether its cells are aligned left; the others are aligned right.
pub fn aligned_table(headings: &[&str], left: &[bool], rows: &[Vec<String>]) -> String {
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| length(cell));
        cells.chain([length(headings[column])]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells
            .iter()
            .zip(&widths)
            .zip(left)
            .map(|((cell, &width), &left)| if left { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(headings.to_vec())).chain(rows).collect()
}

/// Text that cannot break out of a Markdown table's cell.
pub(crate) fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// In percent with two decimals, or a dash.
pub(crate) fn percent(value: Option<f64>) -> String {
    number(value.map(|value| 100.0 * value))
}

/// With two decimals, or a dash.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or(UNDEFINED.into(), |value| format!("{value:.2}"))
}

/// A difference: with its sign and two decimals, or a dash.
pub(crate) fn signed(value: Option<f64>) -> String {
    value.map_or(UNDEFINED.into(), |value| minus(&format!("{value:+.2}")))
}

/// Both ends of an interval, or a dash.
pub(crate) fn interval(low: Option<f64>, high: Option<f64>, text: fn(Option<f64>) -> String) -> String {
    if low.is_none() || high.is_none() { UNDEFINED.into() } else { format!("{} to {}", text(low), text(high)) }
}

/// Replaces hyphens by minus signs.
pub(crate) fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// A p value with three decimals, or `< 0.001`.
pub(crate) fn p_text(p: Option<f64>) -> String {
    match p {
        None => UNDEFINED.into(),
        Some(p) if p < 0.001 => "< 0.001".into(),
        Some(p) => format!("{p:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_have_three_decimals() {
        assert_eq!([Some(0.0004), Some(0.25), None].map(p_text), ["< 0.001", "0.250", "–"].map(String::from));
    }

    #[test]
    fn a_terminals_table_is_aligned() {
        let rows = [["aorta", "9.50", "x y"], ["größe", "100.00", ""]].map(|row| row.map(String::from).to_vec());
        let table = aligned_table(&["organ", "DSC", "note"], &[true, false, true], &rows);
        assert_eq!(table, "organ     DSC  note\naorta    9.50  x y\ngröße  100.00\n");
        assert_eq!(aligned_table(&["a"], &[true], &[]), "a\n");
    }

    #[test]
    fn a_table_has_a_line_per_row() {
        let table =
            markdown_table(&["Organ", "DSC"], [vec![cell("a|b"), percent(Some(0.5))], vec!["liver".into(), number(None)]]);
        assert_eq!(table, "| Organ | DSC |\n| --- | ---: |\n| a\\|b | 50.00 |\n| liver | – |\n");
        assert_eq!([Some(1.0), Some(-0.5), None].map(signed), ["+1.00", "−0.50", "–"].map(String::from));
    }
}
