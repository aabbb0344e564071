//! Compares two evaluations of the same cases: differences, their intervals over cases, and paired tests.

use crate::error::Result;
use crate::folder::{EvaluationFolder, create_dir};
use crate::organ_columns::{organ_columns, with_mean};
use crate::scores::{ScoreOf, Scores};
use crate::statistics::{Resampling, mean, permutation_test, wilcoxon_signed_rank};
use crate::summary::MEAN;
use crate::table_text::{cell, interval, markdown_table, minus, number, p_text, percent, signed};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{self, HTML_COMMENT, Origin, is_regular_file, origin_of_text, sealed};
use sam_ladder_formats::rows::{read_rows, write_rows};
use sam_ladder_schemas::eval::EmptyRule;
use sam_ladder_schemas::tables::ComparisonRow;
use std::path::{Path, PathBuf};

/// One row per organ and metric.
pub const COMPARISON_TABLE: &str = "comparison.parquet";
/// The same for people.
pub const COMPARISON_MARKDOWN: &str = "comparison.md";

/// Name of Dice in [`ComparisonRow::metric`].
const DICE: &str = "dice";
/// Name of HD95.
const HD95: &str = "hd95";

/// Compares two sides, each with one evaluation, or several of different seeds, which are averaged case by case. Rows are Dice, then HD95,
/// of each organ and of the mean. A case's value for the mean is its mean over the organs that both sides define. Pairs without both
/// values are left out.
///
/// # Errors
/// If an evaluation has another split, other organs, rules or cases than the first one.
pub fn compare(first: &[EvaluationFolder], second: &[EvaluationFolder]) -> Result<Vec<ComparisonRow>> {
    let all: Vec<&EvaluationFolder> = first.iter().chain(second).collect();
    let Some((reference, others)) = all.split_first() else { return Ok(Vec::new()) };
    others.iter().try_for_each(|other| reference.check_comparable(other))?;
    let class_names = &reference.info.class_names;
    let mut rows = Vec::new();
    for metric in [DICE, HD95] {
        let value: ScoreOf = if metric == DICE { |row| row.dice } else { |row| row.hd95 };
        let (first_side, second_side) = (first, second);
        let [first, second] = [first, second].map(|side| Side::new(side, class_names, value));
        let organ_pairs = |organ: usize| -> Vec<[f64; 2]> {
            let pair = |case: &String| Some([first.value(organ, case)?, second.value(organ, case)?]);
            first.cases().iter().filter_map(pair).collect()
        };
        let absent = |organ: Option<&str>| [absent_organs(first_side, organ), absent_organs(second_side, organ)];
        let organ_row = |(at, organ): (usize, &String)| row(organ, metric, &organ_pairs(at), absent(Some(organ)));
        rows.extend(class_names.iter().enumerate().map(organ_row));
        let case_mean = |case: &String| {
            let pairs =
                || (0..class_names.len()).filter_map(|organ| Some([first.value(organ, case)?, second.value(organ, case)?]));
            Some([mean(pairs().map(|pair| pair[0]))?, mean(pairs().map(|pair| pair[1]))?])
        };
        let means: Vec<[f64; 2]> = first.cases().iter().filter_map(case_mean).collect();
        rows.push(row(MEAN, metric, &means, absent(None)));
    }
    Ok(rows)
}

/// The evaluations of one side.
struct Side {
    seeds: Vec<Scores>,
}

impl Side {
    fn new(evaluations: &[EvaluationFolder], class_names: &[String], value: ScoreOf) -> Side {
        Side { seeds: evaluations.iter().map(|evaluation| Scores::new(&evaluation.cases, class_names, value)).collect() }
    }

    fn cases(&self) -> &[String] {
        self.seeds.first().map_or(&[], |scores| &scores.cases)
    }

    /// Mean over the seeds with a defined value.
    fn value(&self, organ: usize, case: &str) -> Option<f64> {
        mean(self.seeds.iter().filter_map(|scores| {
            let index = scores.cases.iter().position(|name| name == case)?;
            scores.get(organ, index)
        }))
    }
}

/// Numbers of missed and of invented organs of a side, of one organ or of all.
fn absent_organs(side: &[EvaluationFolder], organ: Option<&str>) -> [u32; 2] {
    let rows = || side.iter().flat_map(|seed| &seed.cases).filter(|row| organ.is_none_or(|organ| row.organ == organ));
    let missed = rows().filter(|row| row.reference_voxels > 0 && row.predicted_voxels == 0).count();
    let invented = rows().filter(|row| row.reference_voxels == 0 && row.predicted_voxels > 0).count();
    [missed as u32, invented as u32]
}

/// `absent` are the missed and the invented organs of each side.
fn row(organ: &str, metric: &str, pairs: &[[f64; 2]], absent: [[u32; 2]; 2]) -> ComparisonRow {
    let differences: Vec<f64> = pairs.iter().map(|[first, second]| second - first).collect();
    let of = |cases: &[u32]| mean(cases.iter().map(|&case| differences[case as usize]));
    let interval = Resampling::new(differences.len()).interval(of);
    ComparisonRow {
        organ: organ.into(),
        metric: metric.into(),
        pairs: pairs.len() as u32,
        first: mean(pairs.iter().map(|pair| pair[0])),
        second: mean(pairs.iter().map(|pair| pair[1])),
        difference: mean(differences.iter().copied()),
        difference_low: interval.map(|interval| interval.low),
        difference_high: interval.map(|interval| interval.high),
        wilcoxon_p: wilcoxon_signed_rank(&differences).map(|test| test.p),
        permutation_p: permutation_test(&differences),
        first_missed: absent[0][0],
        first_invented: absent[0][1],
        second_missed: absent[1][0],
        second_invented: absent[1][1],
    }
}

/// The two sides of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// Name of the first side.
    pub first: &'a str,
    /// Name of the second.
    pub second: &'a str,
    /// Names of the classes from 1.
    pub class_names: &'a [String],
    /// Unit of HD95.
    pub unit: &'a str,
    /// What was counted for organs that a mask lacks.
    pub empty: EmptyRule,
}

/// One Markdown table per metric, and a paragraph that explains the numbers.
pub fn markdown(rows: &[ComparisonRow], sides: &Sides) -> String {
    let mut text = String::new();
    for metric in [DICE, HD95] {
        text += &metric_table(rows, sides, metric);
        text.push('\n');
    }
    text += "Means over the cases in which both sides have a value, and their difference, second minus first, with its percentile \
             bootstrap interval over cases, where there are at least six. Both tests are two-sided and pair the cases: Wilcoxon's \
             signed-rank test, and the permutation test of the mean difference. No correction is made for the number of rows. Missed \
             (only in the reference) and invented (only in the prediction): organs of the first and of the second side, over all cases.";
    text += counted_as(rows, sides.empty);
    text.push('\n');
    text
}

/// What was counted as HD for organs that a mask lacks, if there are any.
fn counted_as(rows: &[ComparisonRow], empty: EmptyRule) -> &'static str {
    let absent = |row: &ComparisonRow| row.first_missed + row.first_invented + row.second_missed + row.second_invented;
    match empty {
        _ if rows.iter().all(|row| absent(row) == 0) => "",
        EmptyRule::Published => " For each of them an HD of 0 was counted, the best value there is.",
        EmptyRule::LeaveOut => " Their HD is left out.",
        EmptyRule::Penalise => " The scan's diagonal was counted as their HD.",
    }
}

fn metric_table(rows: &[ComparisonRow], sides: &Sides, metric: &str) -> String {
    let dice = metric == DICE;
    let text_of = if dice { percent } else { number };
    let metric_heading = if dice { "DSC, percent".into() } else { format!("HD95, {}", sides.unit) };
    let (first, second) = (cell(sides.first), cell(sides.second));
    let headings = [
        &*metric_heading,
        &first,
        &second,
        "Difference",
        "95 % interval",
        "Pairs",
        "p, Wilcoxon",
        "p, permutation",
        "Missed",
        "Invented",
    ];
    let columns = organ_columns(sides.class_names);
    let rows = with_mean(&columns).filter_map(|organ| {
        let row = rows.iter().find(|row| row.metric == metric && row.organ == organ)?;
        Some(vec![
            cell(organ),
            text_of(row.first),
            text_of(row.second),
            signed(row.difference.map(|value| if dice { 100.0 * value } else { value })),
            minus(&interval(row.difference_low, row.difference_high, text_of)),
            row.pairs.to_string(),
            p_text(row.wilcoxon_p),
            p_text(row.permutation_p),
            format!("{}, {}", row.first_missed, row.second_missed),
            format!("{}, {}", row.first_invented, row.second_invented),
        ])
    });
    markdown_table(&headings, rows)
}

/// Refuses to write into a folder whose files of these names are not to be replaced.
///
/// # Errors
/// [`sam_ladder_formats::Error::Exists`] unless `force` is set; [`sam_ladder_formats::Error::Foreign`] for files of another origin;
/// [`sam_ladder_formats::Error::Changed`] for a text that someone has edited.
pub fn may_write(folder: &Path, force: bool) -> Result<()> {
    let [table, text] = [COMPARISON_TABLE, COMPARISON_MARKDOWN].map(|name| folder.join(name));
    let origin = |path: &Path| match path == table {
        true => Origin::ours_if(is_regular_file(path) && read_rows::<ComparisonRow>(path).is_ok()),
        false => origin_of_text(path, HTML_COMMENT),
    };
    Ok(outputs::may_write(&[text, table.clone()], force, "a comparison by sam-ladder", origin)?)
}

/// Writes a comparison's two files into a folder, which is created if necessary; returns the path of the Markdown file.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, rows: &[ComparisonRow], sides: &Sides) -> Result<PathBuf> {
    create_dir(folder)?;
    write_rows(&folder.join(COMPARISON_TABLE), rows)?;
    let path = folder.join(COMPARISON_MARKDOWN);
    write_atomic(&path, sealed(&format!("{}\n", markdown(rows, sides)), HTML_COMMENT).as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::EvaluationInfo;
    use crate::protocol::Scoring;
    use crate::scored::Scored;
    use sam_ladder_schemas::eval::{EmptyRule, Protocol, ScoredSplit};
    use sam_ladder_schemas::tables::CaseRow;

    fn evaluation(name: &str, dice: [[Option<f64>; 2]; 3]) -> EvaluationFolder {
        let class_names: Vec<String> = ["liver", "spleen"].map(String::from).to_vec();
        let row = |case: usize, organ: usize| CaseRow {
            case: format!("000{case}"),
            organ: class_names[organ].clone(),
            dice: dice[case][organ],
            hd95: dice[case][organ].map(|dice| 10.0 * (1.0 - dice)),
            ..CaseRow::default()
        };
        let cases = (0..3).flat_map(|case| [row(case, 0), row(case, 1)]).collect();
        let scoring = Scoring::of(Protocol::Standard);
        let info = EvaluationInfo { method: name.into(), class_names, scoring, scored: Scored::default(), run_info: Vec::new() };
        EvaluationFolder { path: name.into(), info, cases }
    }

    fn half_and_more() -> [EvaluationFolder; 2] {
        let first = evaluation("a", [[Some(0.5), Some(0.5)], [Some(0.5), None], [Some(0.5), Some(0.25)]]);
        let second = evaluation("b", [[Some(0.75), Some(0.5)], [Some(0.75), Some(0.9)], [Some(1.0), Some(0.5)]]);
        [first, second]
    }

    #[test]
    fn pairs_are_of_cases_that_both_define() {
        let [first, second] = half_and_more();
        let rows = compare(&[first], &[second]).unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row.organ.as_str(), row.metric.as_str(), row.pairs, row.difference)).collect();
        // Case means: 0.5 → 0.625, 0.5 → 0.75, 0.375 → 0.75.
        let dice = [("liver", "dice", 3, Some(1.0 / 3.0)), ("spleen", "dice", 2, Some(0.125)), ("mean", "dice", 3, Some(0.25))];
        for (found, expected) in found[..3].iter().zip(dice) {
            assert_eq!((found.0, found.1, found.2), (expected.0, expected.1, expected.2));
            assert!((found.3.unwrap() - expected.3.unwrap()).abs() < 1e-12, "{found:?}");
        }
        assert_eq!(rows[3].metric, "hd95");
        // Three positive differences: two of eight sign patterns are as extreme.
        assert_eq!((rows[0].wilcoxon_p, rows[0].permutation_p), (Some(0.25), Some(0.25)));
        // The spleen's differ in only one case.
        assert_eq!((rows[1].wilcoxon_p, rows[1].permutation_p), (Some(1.0), Some(1.0)));
    }

    #[test]
    fn seeds_are_averaged_case_by_case() {
        let [first, second] = half_and_more();
        let rows = compare(&[first.clone(), second.clone()], &[second]).unwrap();
        assert!((rows[0].difference.unwrap() - 1.0 / 6.0).abs() < 1e-12, "{:?}", rows[0]);
        let same = compare(std::slice::from_ref(&first), std::slice::from_ref(&first)).unwrap();
        assert_eq!((same[0].difference, same[0].wilcoxon_p, same[0].permutation_p), (Some(0.0), None, Some(1.0)));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let [first, second] = half_and_more();
        let mut other = second.clone();
        other.info.scoring.empty = EmptyRule::Penalise;
        let error = compare(std::slice::from_ref(&first), &[other]).unwrap_err().to_string();
        assert!(error.contains("leave-out") && error.contains("penalise"), "{error}");
        let mut other = second.clone();
        other.info.scored.split = ScoredSplit::Validation;
        let error = compare(std::slice::from_ref(&first), &[other]).unwrap_err().to_string();
        assert!(error.ends_with("the one scored the split test, the other validation"), "{error}");
        let mut other = second;
        other.cases.retain(|row| row.case != "0002");
        assert!(compare(&[first], &[other]).unwrap_err().to_string().contains("0002"));
    }

    #[test]
    fn the_table_says_what_was_found() {
        let [first, second] = half_and_more();
        let names = first.info.class_names.clone();
        let rows = compare(&[first], &[second]).unwrap();
        let text = markdown(
            &rows,
            &Sides { first: "CNN|only", second: "full", class_names: &names, unit: "mm", empty: EmptyRule::LeaveOut },
        );
        assert!(text.contains("| DSC, percent | CNN\\|only | full |") && text.contains("| HD95, mm |"), "{text}");
        assert!(
            text.contains("| liver | 50.00 | 83.33 | +33.33 |") && text.contains("| liver | 5.00 | 1.67 | −3.33 |"),
            "{text}"
        );
    }

    /// The first side misses a spleen, and the second invents one: their counts stand in every row of the organ and of the mean.
    #[test]
    fn missed_and_invented_organs_are_counted() {
        let [mut first, mut second] = half_and_more();
        (first.cases[1].reference_voxels, second.cases[1].reference_voxels, second.cases[1].predicted_voxels) = (7, 7, 6);
        second.cases[3].predicted_voxels = 4;
        let names = first.info.class_names.clone();
        let rows = compare(&[first], &[second]).unwrap();
        let counts: Vec<_> =
            rows.iter().map(|row| [row.first_missed, row.first_invented, row.second_missed, row.second_invented]).collect();
        assert_eq!(counts, [[0; 4], [1, 0, 0, 1], [1, 0, 0, 1], [0; 4], [1, 0, 0, 1], [1, 0, 0, 1]]);
        for (empty, said) in [
            (EmptyRule::Published, "an HD of 0 was counted"),
            (EmptyRule::Penalise, "diagonal"),
            (EmptyRule::LeaveOut, "left out"),
        ] {
            let text = markdown(&rows, &Sides { first: "a", second: "b", class_names: &names, unit: "mm", empty });
            assert_eq!(text.matches("| 1, 0 | 0, 1 |\n").count(), 4, "{text}");
            assert!(text.lines().last().unwrap().contains(said), "{text}");
        }
    }
}
