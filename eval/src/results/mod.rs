//! Results tables in the form of the paper's: methods by organs, published rows above our own.

mod folds;
mod latex;
mod markdown;
mod published;

use crate::comparison::compare;
use crate::error::{EvalError, Result};
use crate::folder::{EvaluationFolder, create_dir};
use crate::scored::OF_VALIDATION;
use crate::scores::Scores;
use crate::statistics::{FEWEST_CASES, Interval, Resampling, mean, standard_deviation};
use crate::summary::MEAN;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{self, HTML_COMMENT, LATEX_COMMENT, Origin, is_regular_file, origin_of_text, sealed};
use sam_ladder_formats::rows::{read_rows, write_rows};
use sam_ladder_schemas::eval::{EmptyRule, PublishedRows};
use sam_ladder_schemas::tables::{CaseRow, ComparisonRow, ResultRow};
use std::path::{Path, PathBuf};

/// One method's evaluations: one, or several of different seeds or, on held-out training cases, of the folds of a cross-validation.
#[derive(Debug, Clone)]
pub struct Method {
    /// Name of its row.
    pub name: String,
    /// One evaluation per seed and fold.
    pub seeds: Vec<EvaluationFolder>,
}

/// A finished table.
#[derive(Debug, Clone)]
pub struct ResultsTable {
    /// Names of the classes from 1.
    pub class_names: Vec<String>,
    /// Unit of HD95 in our own rows.
    pub unit: &'static str,
    /// Rules of our own rows' scores.
    pub rules: String,
    /// What was counted for organs that a mask of ours lacks.
    pub empty: EmptyRule,
    /// One row per method and organ, published ones first; each method's last is [`MEAN`].
    pub rows: Vec<ResultRow>,
    /// Each method against the chosen one, if any.
    pub comparisons: Vec<MethodComparison>,
}

/// One method against another.
#[derive(Debug, Clone)]
pub struct MethodComparison {
    /// The method.
    pub method: String,
    /// The method it was compared with.
    pub against: String,
    /// [`compare`]'s rows, with the method as the first side.
    pub rows: Vec<ComparisonRow>,
}

/// Makes a table of methods. `published` adds published rows if the organs are the eight of Synapse; `against` names the
/// method against which the others are tested. Evaluations on `validation` of one method are pooled: those with the same seed become one
/// evaluation of all their cases.
///
/// # Errors
/// If an evaluation has another split, other organs, rules or cases than the first one; if a method's validations are no folds of one
/// cross-validation, or two of its folds have a case in common; for published rows, which are of test scans, next to a validation; if a
/// method is called as one of them.
pub fn tabulate(methods: &[Method], published: Option<PublishedRows>, against: Option<&str>) -> Result<ResultsTable> {
    let folds = methods.iter().map(folds::count).collect::<Vec<_>>();
    let methods = &methods.iter().map(folds::pool).collect::<Result<Vec<_>>>()?;
    let all: Vec<&EvaluationFolder> = methods.iter().flat_map(|method| &method.seeds).collect();
    let Some((reference, others)) = all.split_first() else {
        return Ok(ResultsTable {
            class_names: Vec::new(),
            unit: "",
            rules: String::new(),
            empty: EmptyRule::Published,
            rows: Vec::new(),
            comparisons: Vec::new(),
        });
    };
    others.iter().try_for_each(|other| reference.check_comparable(other))?;
    let class_names = reference.info.class_names.clone();
    let is_validation = reference.info.scored.is_validation();
    if published.is_some() && is_validation {
        return Err(EvalError::PublishedValidation { path: reference.path.clone() });
    }
    let mut rows = published.map_or(Vec::new(), |which| published::rows(which, &class_names));
    if let Some(method) = methods.iter().find(|method| rows.iter().any(|row| row.method == method.name)) {
        return Err(EvalError::PublishedName { name: method.name.clone() });
    }
    methods.iter().zip(folds).for_each(|(method, folds)| rows.extend(method_rows(method, folds, &class_names)));
    let mut comparisons = Vec::new();
    if let Some(best) = methods.iter().find(|method| Some(&*method.name) == against) {
        for method in methods.iter().filter(|method| method.name != best.name) {
            let rows = compare(&method.seeds, &best.seeds)?;
            comparisons.push(MethodComparison { method: method.name.clone(), against: best.name.clone(), rows });
        }
    }
    let scoring = &reference.info.scoring;
    let rules = if is_validation { format!("{OF_VALIDATION}. {}", scoring.describe()) } else { scoring.describe() };
    Ok(ResultsTable { class_names, unit: scoring.unit.name(), rules, empty: scoring.empty, rows, comparisons })
}

/// A metric of a method: mean over seeds of means over cases, its deviation, its interval over cases.
struct Spread {
    mean: Option<f64>,
    deviation: Option<f64>,
    interval: Option<Interval>,
}

/// The deviation is over seeds; of a cross-validation with one seed it is over the cases.
fn spread(seeds: &[Scores], folds: Option<u32>, organ: Option<usize>, resampling: &Resampling) -> Spread {
    let of = |cases: &[u32]| mean(seeds.iter().filter_map(|scores| scores.mean_of(organ, cases)));
    let all: Vec<u32> = seeds.first().map_or(Vec::new(), Scores::all);
    let means: Vec<f64> = seeds.iter().filter_map(|scores| scores.mean_of(organ, &all)).collect();
    let deviation = match (seeds, folds) {
        ([scores], Some(_)) => standard_deviation(&folds::case_values(scores, organ)),
        _ => standard_deviation(&means),
    };
    let enough = seeds.iter().all(|scores| scores.cases_of(organ) >= FEWEST_CASES);
    let interval = enough.then(|| resampling.interval(of)).flatten();
    Spread { mean: mean(means.iter().copied()), deviation, interval }
}

fn method_rows(method: &Method, folds: Option<u32>, class_names: &[String]) -> Vec<ResultRow> {
    let scores = |value: fn(&CaseRow) -> Option<f64>| -> Vec<Scores> {
        // The same order of cases for every seed, so that a draw selects the same cases.
        let sorted = |seed: &EvaluationFolder| {
            let mut rows = seed.cases.clone();
            rows.sort_by(|a, b| a.case.cmp(&b.case));
            Scores::new(&rows, class_names, value)
        };
        method.seeds.iter().map(sorted).collect()
    };
    let (dice, hd95) = (scores(|row| row.dice), scores(|row| row.hd95));
    let cases = dice.first().map_or(0, |scores| scores.cases.len());
    let resampling = Resampling::new(cases);
    let count = |organ: Option<usize>, wanted: fn(&CaseRow) -> bool| {
        let rows = method.seeds.iter().flat_map(|seed| &seed.cases);
        rows.filter(|row| organ.is_none_or(|organ| row.organ == class_names[organ]) && wanted(row)).count() as u32
    };
    let row = |organ: Option<usize>| {
        let (dice, hd95) = (spread(&dice, folds, organ, &resampling), spread(&hd95, folds, organ, &resampling));
        ResultRow {
            method: method.name.clone(),
            organ: organ.map_or(MEAN.into(), |organ| class_names[organ].clone()),
            source: None,
            seeds: Some(method.seeds.len() as u32),
            folds,
            cases: Some(cases as u32),
            dice: dice.mean,
            dice_sd: dice.deviation,
            dice_low: dice.interval.map(|interval| interval.low),
            dice_high: dice.interval.map(|interval| interval.high),
            hd95: hd95.mean,
            hd95_sd: hd95.deviation,
            hd95_low: hd95.interval.map(|interval| interval.low),
            hd95_high: hd95.interval.map(|interval| interval.high),
            missed: Some(count(organ, |row| row.reference_voxels > 0 && row.predicted_voxels == 0)),
            invented: Some(count(organ, |row| row.reference_voxels == 0 && row.predicted_voxels > 0)),
        }
    };
    (0..class_names.len()).map(Some).chain([None]).map(row).collect()
}

impl ResultsTable {
    /// Names of the methods, in the order of their rows.
    fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !methods.contains(&&*row.method) {
                methods.push(&row.method);
            }
        }
        methods
    }

    fn row(&self, method: &str, organ: &str) -> Option<&ResultRow> {
        self.rows.iter().find(|row| row.method == method && row.organ == organ)
    }

    /// The table in Markdown, with intervals, counts, tests and sources below it.
    pub fn markdown(&self) -> String {
        markdown::write(self)
    }

    /// The table as a LaTeX `tabular` for the package `booktabs`.
    pub fn latex(&self) -> String {
        latex::write(self)
    }

    /// Refuses to write the files of [`Self::write`] where they are not to be replaced.
    ///
    /// # Errors
    /// [`sam_ladder_formats::Error::Exists`] unless `force` is set; [`sam_ladder_formats::Error::Foreign`] for files of another origin;
    /// [`sam_ladder_formats::Error::Changed`] for a text that someone has edited.
    pub fn may_write(folder: &Path, name: &str, force: bool) -> Result<()> {
        let files = ["md", "tex", "parquet"].map(|ending| folder.join(format!("{name}.{ending}")));
        let origin = |path: &Path| match files.iter().position(|file| file == path) {
            Some(0) => origin_of_text(path, HTML_COMMENT),
            Some(1) => origin_of_text(path, LATEX_COMMENT),
            _ => Origin::ours_if(is_regular_file(path) && read_rows::<ResultRow>(path).is_ok()),
        };
        Ok(outputs::may_write(&files, force, "a table by sam-ladder", origin)?)
    }

    /// Writes `<name>.md`, `<name>.tex` and `<name>.parquet` into a folder, which is created if necessary; returns the path of the first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        create_dir(folder)?;
        write_rows(&folder.join(format!("{name}.parquet")), &self.rows)?;
        write_atomic(&folder.join(format!("{name}.tex")), sealed(&self.latex(), LATEX_COMMENT).as_bytes())?;
        let path = folder.join(format!("{name}.md"));
        write_atomic(&path, sealed(&format!("{}\n", self.markdown()), HTML_COMMENT).as_bytes())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::EvaluationInfo;
    use crate::protocol::Scoring;
    use crate::scored::Scored;
    use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
    use sam_ladder_schemas::eval::Protocol;

    /// An evaluation of six cases whose Dice is `base` and a little, organ by organ; the aorta of case 2 is missed.
    fn evaluation(path: &str, base: f64) -> EvaluationFolder {
        let class_names = SYNAPSE_ORGANS.map(String::from).to_vec();
        let mut cases = Vec::new();
        for case in 0..6 {
            for (organ, name) in class_names.iter().enumerate() {
                let missed = case == 2 && name == "aorta";
                cases.push(CaseRow {
                    case: format!("000{case}"),
                    organ: name.clone(),
                    dice: Some(if missed { 0.0 } else { base + 0.01 * organ as f64 + 0.02 * f64::from(case) }),
                    hd95: (!missed).then_some(10.0 - 5.0 * base),
                    reference_voxels: 10,
                    predicted_voxels: if missed { 0 } else { 9 },
                    ..CaseRow::default()
                });
            }
        }
        let scoring = Scoring::of(Protocol::Published);
        EvaluationFolder {
            path: path.into(),
            info: EvaluationInfo { method: "ours".into(), class_names, scoring, scored: Scored::default(), run_info: Vec::new() },
            cases,
        }
    }

    fn table(published: Option<PublishedRows>) -> ResultsTable {
        let methods = [
            Method { name: "CNN_only".into(), seeds: vec![evaluation("c1", 0.5)] },
            Method { name: "full & more".into(), seeds: vec![evaluation("f1", 0.6), evaluation("f2", 0.7)] },
        ];
        tabulate(&methods, published, Some("full & more")).unwrap()
    }

    #[test]
    fn rows_have_means_over_seeds_and_their_deviation() {
        let table = table(None);
        assert_eq!(table.methods(), ["CNN_only", "full & more"]);
        let liver = table.row("full & more", "liver").unwrap();
        // Liver is the fifth organ: bases 0.6 and 0.7 plus 0.04, plus 0.05 on average over cases.
        assert!((liver.dice.unwrap() - 0.74).abs() < 1e-12 && (liver.dice_sd.unwrap() - 0.1 / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((liver.seeds, liver.cases, liver.missed), (Some(2), Some(6), Some(0)));
        let (low, high) = (liver.dice_low.unwrap(), liver.dice_high.unwrap());
        assert!((0.69..0.74).contains(&low) && (0.7401..=0.79).contains(&high), "{low} {high}");
        // The aorta's HD95 is there in five cases only.
        let aorta = table.row("full & more", "aorta").unwrap();
        assert!(aorta.dice_low.is_some() && aorta.hd95.is_some() && aorta.hd95_low.is_none(), "{aorta:?}");
        assert_eq!(table.row("full & more", "aorta").unwrap().missed, Some(2));
        let single = table.row("CNN_only", MEAN).unwrap();
        assert_eq!((single.dice_sd, single.missed), (None, Some(1)));
        assert_eq!(table.comparisons.len(), 1);
        assert_eq!((table.comparisons[0].method.as_str(), table.comparisons[0].against.as_str()), ("CNN_only", "full & more"));
    }

    #[test]
    fn a_published_name_is_no_name_of_a_row() {
        let methods = [Method { name: "SAMed".into(), seeds: vec![evaluation("s", 0.5)] }];
        let refused = tabulate(&methods, Some(PublishedRows::Methods), None).unwrap_err();
        assert_eq!(refused.to_string(), "a row is called \"SAMed\", as a published row is");
        assert!(tabulate(&methods, Some(PublishedRows::Ablation), None).is_ok());
    }

    #[test]
    fn the_papers_ablation_stands_above_the_arms() {
        let text = table(Some(PublishedRows::Ablation)).markdown();
        assert!(text.contains("| SAM only (paper) | 58.97 | 101.60 | – | – |"), "{text}");
        assert!(text.contains("- full (paper): Table II of Chai et al. (2023), HD95 printed as mm\n"), "{text}");
    }

    #[test]
    fn markdown_has_the_papers_columns_and_says_everything() {
        let text = table(Some(PublishedRows::Methods)).markdown();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("| Methods | DSC ↑ | HD ↓ | Aorta | Gallbladder | Kidney(L) |"), "{}", lines[0]);
        assert!(text.contains("| TransUNet | 77.48 | 31.69 | 87.23 |"), "{text}");
        assert!(text.contains("| full & more | "), "{text}");
        assert!(text.contains(" ± 7.07"), "{text}");
        assert!(lines[0].ends_with("| Stomach | Missed | Invented |"), "{}", lines[0]);
        let last = |method: &str| {
            lines.iter().filter(|line| line.starts_with(method)).map(|line| line.ends_with(" | 2 | 0 |")).collect::<Vec<_>>()
        };
        // Scores, distances and counts.
        assert_eq!(last("| full & more |"), [true; 3], "{text}");
        assert!(text.contains("| TransUNet | 77.48 | 31.69 |") && text.contains(" | – | – |\n"), "{text}");
        assert!(
            text.contains("For each organ that was missed or invented an HD of 0 was counted, the best value there is."),
            "{text}"
        );
        for part in ["95 % interval", "Missed", "Invented", "Wilcoxon", "Sources"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(!table(None).markdown().contains("TransUNet"));
    }

    #[test]
    fn latex_is_escaped_and_balanced() {
        let text = table(Some(PublishedRows::Methods)).latex();
        assert!(text.contains("\\begin{tabular}") && text.contains("\\end{tabular}"));
        assert!(text.contains("CNN\\_only") && text.contains("full \\& more"));
        let rows: Vec<&str> = text.lines().filter(|line| line.ends_with("\\\\")).collect();
        // Twelve numbers per row: an ampersand in a name neither adds nor removes a cell.
        assert!(rows.iter().all(|row| row.replace("\\&", "").matches('&').count() == 12), "{text}");
        assert!(text.contains(" & 2 & 0 \\\\\n") && text.contains("an HD of 0 was counted"), "{text}");
    }

    #[test]
    fn files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = table(Some(PublishedRows::Methods)).write(&dir.path().join("new"), "table1").unwrap();
        assert!(path.ends_with("table1.md"));
        let read: Vec<ResultRow> = sam_ladder_formats::rows::read_rows(&dir.path().join("new/table1.parquet")).unwrap();
        assert_eq!(read, table(Some(PublishedRows::Methods)).rows);
        // Its own files are replaced on request, and no others.
        let may = |name: &str, force| ResultsTable::may_write(&dir.path().join("new"), name, force).is_ok();
        assert_eq!([may("table1", false), may("table1", true), may("table2", false)], [false, true, true]);
        std::fs::write(dir.path().join("new/table2.tex"), "mine").unwrap();
        assert_eq!([may("table2", false), may("table2", true)], [false, false]);
    }
}
