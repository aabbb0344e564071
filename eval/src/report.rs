//! `report.html`: one page that opens from a file and refers to nothing outside itself.

mod figures;

use crate::error::{EvalError, Result};
use crate::html::{escape, write_base64};
use crate::palette::{Palette, hex};
use crate::picture_choice::ChosenSlice;
use crate::plot;
use crate::run_curves::RunCurves;
use crate::summary::MEAN;
use crate::table_md::{Column, OTHER_COLUMNS, TableContext, caption, columns, interval, number, percent};
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
    pub chosen: ChosenSlice,
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
    pub palette: Palette,
    /// The run's course, where there was one.
    pub curves: Option<&'a RunCurves>,
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
            let SlicePicture { chosen: ChosenSlice { slice, choice, dice }, width, height, .. } = picture;
            let alt = format!("Case {}, slice {slice}: scan, reference and prediction side by side", escape(&picture.case));
            write!(file, "<figure><img alt=\"{alt}\" width=\"{width}\" height=\"{height}\" src=\"data:image/png;base64,")?;
            write_base64(file, &bytes)?;
            writeln!(
                file,
                "\"><figcaption><span class=\"tag\">{}</span>Slice {slice}: scan, reference, prediction; DSC in the slice {}</figcaption></figure>",
                choice.name(),
                percent(*dice)
            )?;
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
        let TableContext { method, class_names, scoring, cases } = self.context;
        let columns = columns(class_names);
        let title = format!("{} · evaluation", escape(method));
        let overall = self.row(MEAN);
        let count = |count: fn(&SummaryRow) -> u32| overall.map_or(0, count).to_string();
        let of = |value: fn(&SummaryRow) -> Option<f64>| overall.and_then(value);
        let between = |low: Option<f64>, high: Option<f64>, text: fn(Option<f64>) -> String| match interval(low, high, text) {
            interval if interval == "–" => String::new(),
            interval => format!("95 % interval {interval}"),
        };
        let unit = scoring.unit_name();
        let tiles = [
            (
                "Mean DSC, percent".to_string(),
                percent(of(|row| row.dice)),
                between(of(|row| row.dice_low), of(|row| row.dice_high), percent),
            ),
            (
                format!("Mean HD95, {unit}"),
                number(of(|row| row.hd95)),
                between(of(|row| row.hd95_low), of(|row| row.hd95_high), number),
            ),
            (format!("Surface Dice at {} mm, percent", scoring.tolerance_mm), percent(of(|row| row.surface_dice)), String::new()),
            ("Cases".into(), cases.to_string(), String::new()),
            ("Organs missed".into(), count(|row| row.missed), String::new()),
            ("Organs invented".into(), count(|row| row.invented), String::new()),
        ];
        let tile = |(name, value, note): &(String, String, String)| {
            let note = if note.is_empty() { String::new() } else { format!("<dd>{note}</dd>") };
            format!("<div><dt>{name}</dt><dd>{value}</dd>{note}</div>\n")
        };
        let tiles: String = tiles.iter().map(tile).collect();
        let protocol = scoring.protocol().map_or("rules of its own".into(), |protocol| format!("{protocol} protocol"));
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n\
             <p class=\"lead\">Organ segmentation scored by sam-ladder, {protocol}.</p>\n\
             <dl class=\"tiles\">\n{tiles}</dl>\n</header>\n",
            plot::STYLE,
            include_str!("report.css"),
        );
        page += &self.scores_section(&columns);
        page += &self.organs_section(&columns);
        page += &self.training_section();
        page += &self.cases_section(&columns);
        page += "<section aria-labelledby=\"pictures\">\n<h2 id=\"pictures\">Slices</h2>\n<ul class=\"legend\" aria-label=\"Colours of the organs\">\n";
        for column in &columns {
            let _ = writeln!(
                page,
                "<li><span style=\"background:{}\"></span>{}</li>",
                hex(self.palette.colour(self.class(column))),
                escape(&column.heading)
            );
        }
        page += "</ul>\n<p class=\"note\">Of each case the slices of lowest and highest DSC, and the one with the most organ voxels. The DSC of a slice is the mean over the organs \
                 that reference or prediction have in it; slices with less than a twentieth of the fullest one's organ voxels are passed over.</p>\n";
        page
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
        let scoring = &self.context.scoring;
        let unit = scoring.unit_name();
        let line = |name: &str, value: &dyn Fn(&SummaryRow) -> String| {
            let cells: String =
                with_mean().map(|(_, organ)| format!("<td>{}</td>", self.row(organ).map_or("–".into(), value))).collect();
            format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")
        };
        let table = |label: &str, lines: &[String]| {
            format!(
                "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">\n<table>\n\
                 <thead><tr><th scope=\"col\">Mean over cases</th>{headings}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n</div>\n",
                lines.concat()
            )
        };
        let main = [
            line("DSC, percent ↑", &|row| percent(row.dice)),
            line("standard deviation", &|row| percent(row.dice_sd)),
            line("95 % interval", &|row| interval(row.dice_low, row.dice_high, percent)),
            line(&format!("HD95, {unit} ↓"), &|row| number(row.hd95)),
            line("standard deviation", &|row| number(row.hd95_sd)),
            line("95 % interval", &|row| interval(row.hd95_low, row.hd95_high, number)),
            line("Cases with DSC", &|row| row.dice_cases.to_string()),
            line("Cases with HD95", &|row| row.hd95_cases.to_string()),
            line("Missed", &|row| row.missed.to_string()),
            line("Invented", &|row| row.invented.to_string()),
        ];
        let others = [
            line("HD95, voxels ↓", &|row| number(row.hd95_voxels)),
            line("HD95, mm ↓", &|row| number(row.hd95_mm)),
            line("Larger HD95, voxels ↓", &|row| number(row.hd95_larger_voxels)),
            line("Larger HD95, mm ↓", &|row| number(row.hd95_larger_mm)),
            line(&format!("Surface Dice at {} mm, percent ↑", scoring.tolerance_mm), &|row| percent(row.surface_dice)),
            line("Volume difference, ml", &|row| number(row.volume_difference_ml)),
        ];
        format!(
            "<section aria-labelledby=\"scores\">\n<h2 id=\"scores\">Scores</h2>\n{}<p class=\"note\">{}</p>\n{}<p class=\"note\">{}</p>\n</section>\n",
            table("Scores of each organ", &main),
            escape(&caption(&self.context)),
            table("Other metrics of each organ", &others),
            escape(OTHER_COLUMNS),
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
            "<section aria-labelledby=\"cases\">\n<h2 id=\"cases\">Cases</h2>\n{}{}{}</section>\n",
            self.case_map(columns),
            table("DSC, percent", &|row| percent(row.dice)),
            table(&format!("HD95, {}", self.context.scoring.unit_name()), &|row| number(row.hd95)),
        )
    }
}
