//! `report.html`: one page that opens from a file and refers to nothing outside itself.

use crate::error::{EvalError, Result};
use crate::html::{escape, write_base64};
use crate::palette::hex;
use crate::summary::MEAN;
use crate::table_md::{Column, TableContext, caption, columns, number, percent};
use crate::write::write_atomically;
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A picture of a slice, on disk.
#[derive(Debug, Clone)]
pub(crate) struct SlicePicture {
    pub case: String,
    pub slice: usize,
    pub path: PathBuf,
    pub width: usize,
    pub height: usize,
}

/// All that the page shows.
pub(crate) struct Report<'a> {
    pub context: TableContext<'a>,
    /// What the run was: pairs of a name and a value, in the order shown.
    pub run_info: &'a [(String, String)],
    pub cases: &'a [CaseRow],
    pub summary: &'a [SummaryRow],
    pub pictures: &'a [SlicePicture],
}

/// Writes the page. Pictures are read one at a time.
pub(crate) fn write(path: &Path, report: &Report) -> Result<()> {
    let mut unreadable = None;
    let written = write_atomically(path, |file| {
        file.write_all(report.before_pictures().as_bytes())?;
        for (index, picture) in report.pictures.iter().enumerate() {
            if index == 0 || report.pictures[index - 1].case != picture.case {
                let end = if index == 0 { "" } else { "</div>\n" };
                write!(file, "{end}<h3>Case {}</h3>\n<div class=\"pictures\">\n", escape(&picture.case))?;
            }
            let bytes = std::fs::read(&picture.path).inspect_err(|_| unreadable = Some(picture.path.clone()))?;
            let SlicePicture { slice, width, height, .. } = picture;
            let alt = format!("Case {}, slice {slice}: scan, reference and prediction side by side", escape(&picture.case));
            write!(file, "<figure><img alt=\"{alt}\" width=\"{width}\" height=\"{height}\" src=\"data:image/png;base64,")?;
            write_base64(file, &bytes)?;
            writeln!(file, "\"><figcaption>Slice {slice}: scan, reference, prediction</figcaption></figure>")?;
        }
        file.write_all(if report.pictures.is_empty() { b"" } else { b"</div>\n" })?;
        file.write_all(report.after_pictures().as_bytes())
    });
    written.map_err(|error| match (unreadable, error) {
        (Some(path), EvalError::Io { source, .. }) => EvalError::Io { path, action: "read", source },
        (_, error) => error,
    })
}

impl Report<'_> {
    fn before_pictures(&self) -> String {
        let TableContext { method, class_names, protocol, cases } = self.context;
        let columns = columns(class_names);
        let title = format!("{} · evaluation", escape(method));
        let overall = self.row(MEAN);
        let count = |count: fn(&SummaryRow) -> u32| overall.map_or(0, count);
        let tiles = [
            ("Mean DSC, percent".to_string(), percent(overall.and_then(|row| row.dice))),
            (format!("Mean HD95, {}", protocol.distance_unit()), number(overall.and_then(|row| row.hd95))),
            ("Cases".into(), cases.to_string()),
            ("Organs missed".into(), count(|row| row.missed).to_string()),
            ("Organs invented".into(), count(|row| row.invented).to_string()),
        ];
        let tiles: String = tiles.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n")).collect();
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n\
             <p class=\"lead\">Organ segmentation scored by sam-ladder, {protocol} protocol.</p>\n\
             <dl class=\"tiles\">\n{tiles}</dl>\n</header>\n",
            include_str!("report.css"),
        );
        page += &self.scores_section(&columns);
        page += &self.charts_section(&columns);
        page += &self.cases_section(&columns);
        page += "<section aria-labelledby=\"pictures\">\n<h2 id=\"pictures\">Slices</h2>\n<ul class=\"legend\" aria-label=\"Colours of the organs\">\n";
        for column in &columns {
            let _ = writeln!(
                page,
                "<li><span style=\"background:{}\"></span>{}</li>",
                hex(self.class(column)),
                escape(&column.heading)
            );
        }
        page + "</ul>\n"
    }

    fn after_pictures(&self) -> String {
        let facts: String = (self.run_info.iter())
            .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value)))
            .collect();
        let mut page = String::from("</section>\n");
        if !facts.is_empty() {
            let _ = write!(
                page,
                "<section aria-labelledby=\"run\">\n<h2 id=\"run\">Run</h2>\n<dl class=\"facts\">\n{facts}</dl>\n</section>\n"
            );
        }
        page + "</main>\n</body>\n</html>\n"
    }

    fn row(&self, organ: &str) -> Option<&SummaryRow> {
        self.summary.iter().find(|row| row.organ == organ)
    }

    fn class(&self, column: &Column) -> u8 {
        let index = self.context.class_names.iter().position(|name| *name == column.organ);
        index.map_or(0, |index| index as u8 + 1)
    }

    fn scores_section(&self, columns: &[Column]) -> String {
        let with_mean = || columns.iter().map(|column| (&*column.heading, &*column.organ)).chain([("All organs", MEAN)]);
        let headings: String = with_mean().map(|(heading, _)| format!("<th scope=\"col\">{}</th>", escape(heading))).collect();
        let unit = self.context.protocol.distance_unit();
        let line = |name: &str, value: &dyn Fn(&SummaryRow) -> String| {
            let cells: String =
                with_mean().map(|(_, organ)| format!("<td>{}</td>", self.row(organ).map_or("–".into(), value))).collect();
            format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")
        };
        let lines = [
            line("DSC, percent ↑", &|row| percent(row.dice)),
            line(&format!("HD95, {unit} ↓"), &|row| number(row.hd95)),
            line("Cases with DSC", &|row| row.dice_cases.to_string()),
            line("Cases with HD95", &|row| row.hd95_cases.to_string()),
            line("Missed", &|row| row.missed.to_string()),
            line("Invented", &|row| row.invented.to_string()),
        ];
        format!(
            "<section aria-labelledby=\"scores\">\n<h2 id=\"scores\">Scores</h2>\n\
             <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Scores of each organ\">\n<table>\n\
             <thead><tr><th scope=\"col\">Mean over cases</th>{headings}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n</div>\n\
             <p class=\"note\">{}</p>\n</section>\n",
            lines.concat(),
            escape(&caption(&self.context)),
        )
    }

    fn charts_section(&self, columns: &[Column]) -> String {
        let protocol = self.context.protocol;
        let dice = Chart {
            title: "DSC of each organ, percent".into(),
            mean: |row| row.dice.map(|dice| 100.0 * dice),
            value: |row| row.dice.map(|dice| 100.0 * dice),
            limit: Some(100.0),
        };
        let hd95 = Chart {
            title: format!("HD95 of each organ, {}", protocol.distance_unit()),
            mean: |row| row.hd95,
            value: |row| row.hd95,
            limit: None,
        };
        let charts: String = [dice, hd95].iter().map(|chart| self.draw_chart(chart, columns)).collect();
        format!(
            "<section aria-labelledby=\"organs\">\n<h2 id=\"organs\">Organs</h2>\n<div class=\"charts\">\n{charts}</div>\n\
             <p class=\"note\">Bars are means over cases, dots are cases.</p>\n</section>\n"
        )
    }

    /// Horizontal bars, a dot a case.
    fn draw_chart(&self, chart: &Chart, columns: &[Column]) -> String {
        const LEFT: f64 = 110.0;
        const WIDTH: f64 = 340.0;
        const RIGHT: f64 = 60.0;
        const LINE: f64 = 30.0;
        let values = || self.cases.iter().filter_map(chart.value);
        // Room for the farthest dot.
        let limit = chart.limit.unwrap_or_else(|| values().fold(0.0, f64::max)).max(1e-9);
        let along = |value: f64| (value / limit).clamp(0.0, 1.0) * WIDTH;
        let height = LINE * columns.len() as f64 + 8.0;
        let mut bars = String::new();
        for (index, column) in columns.iter().enumerate() {
            let middle = LINE * index as f64 + LINE / 2.0 + 4.0;
            let mean = self.row(&column.organ).and_then(chart.mean);
            let _ = write!(
                bars,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{WIDTH}\" height=\"18\" rx=\"3\" fill=\"#eef0f3\"/>\
                 <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\" fill=\"{}\"/>",
                LEFT - 8.0,
                middle + 4.5,
                escape(&column.heading),
                middle - 9.0,
                middle - 9.0,
                along(mean.unwrap_or(0.0)),
                hex(self.class(column)),
            );
            for value in self.cases.iter().filter(|row| row.organ == column.organ).filter_map(chart.value) {
                let x = LEFT + along(value);
                let _ = write!(bars, "<circle cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"3\" fill=\"#1c2330\" fill-opacity=\"0.45\"/>");
            }
            let x = LEFT + WIDTH + 8.0;
            let _ = writeln!(bars, "<text x=\"{x:.0}\" y=\"{:.1}\">{}</text>", middle + 4.5, number(mean));
        }
        let title = escape(&chart.title);
        let spoken: Vec<String> = (columns.iter())
            .map(|column| format!("{} {}", escape(&column.heading), number(self.row(&column.organ).and_then(chart.mean))))
            .collect();
        format!(
            "<figure><figcaption>{title}</figcaption>\n<svg viewBox=\"0 0 {:.0} {height:.0}\" role=\"img\" aria-label=\"{title}: {}\">\n{bars}</svg></figure>\n",
            LEFT + WIDTH + RIGHT,
            spoken.join(", "),
        )
    }

    fn cases_section(&self, columns: &[Column]) -> String {
        let mut by_case: BTreeMap<&str, BTreeMap<&str, &CaseRow>> = BTreeMap::new();
        for row in self.cases {
            by_case.entry(&row.case).or_default().insert(&row.organ, row);
        }
        let headings: String =
            columns.iter().map(|column| format!("<th scope=\"col\">{}</th>", escape(&column.heading))).collect();
        let table = |label: &str, text: &dyn Fn(&CaseRow) -> String| {
            let lines: String = (by_case.iter())
                .map(|(case, organs)| {
                    let cell = |column: &Column| organs.get(&*column.organ).map_or("–".into(), |row| text(row));
                    let cells: String = columns.iter().map(|column| format!("<td>{}</td>", cell(column))).collect();
                    format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(case))
                })
                .collect();
            format!(
                "<h3>{label}</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label} of each case\">\n<table>\n\
                 <thead><tr><th scope=\"col\">Case</th>{headings}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n</div>\n"
            )
        };
        format!(
            "<section aria-labelledby=\"cases\">\n<h2 id=\"cases\">Cases</h2>\n{}{}</section>\n",
            table("DSC, percent", &|row| percent(row.dice)),
            table(&format!("HD95, {}", self.context.protocol.distance_unit()), &|row| number(row.hd95)),
        )
    }
}

/// What a chart's bars and dots show.
struct Chart {
    title: String,
    mean: fn(&SummaryRow) -> Option<f64>,
    value: fn(&CaseRow) -> Option<f64>,
    /// End of the axis; that of the largest value without.
    limit: Option<f64>,
}
