//! Cross-validation: the evaluations of the folds, each on the cases that its run held out, become one evaluation of all cases.

use super::Method;
use crate::error::{EvalError, Result};
use crate::folder::EvaluationFolder;
use crate::scores::Scores;
use sam_ladder_schemas::differences::differences;
use serde_json::Value;

/// A method whose validations with the same seeds are one evaluation; one of test scans stays as it is.
///
/// # Errors
/// If the runs' settings differ, but for seeds and held-out cases; if two folds have scored the same case; if organs, rules or splits differ.
pub(super) fn pool(method: &Method) -> Result<Method> {
    let Some(first) = method.seeds.first().filter(|first| first.info.scored.is_validation()) else { return Ok(method.clone()) };
    let mut pooled: Vec<Vec<&EvaluationFolder>> = Vec::new();
    for fold in &method.seeds {
        first.check_same_kind(fold)?;
        check_same_settings(first, fold)?;
        match pooled.iter_mut().find(|folds| folds[0].info.scored.seeds == fold.info.scored.seeds) {
            Some(folds) => {
                folds.iter().try_for_each(|other| check_disjoint(other, fold))?;
                folds.push(fold);
            }
            None => pooled.push(vec![fold]),
        }
    }
    Ok(Method { name: method.name.clone(), seeds: pooled.iter().map(|folds| joined(folds)).collect() })
}

/// Number of folds of the first seed; `None` for evaluations of test scans.
pub(super) fn count(method: &Method) -> Option<u32> {
    let first = method.seeds.first().filter(|first| first.info.scored.is_validation())?;
    let of_seed = |fold: &&EvaluationFolder| fold.info.scored.seeds == first.info.scored.seeds;
    Some(method.seeds.iter().filter(of_seed).count() as u32)
}

/// An organ's defined values, one per case; without an organ each case's mean over the organs that are defined in it.
pub(super) fn case_values(scores: &Scores, organ: Option<usize>) -> Vec<f64> {
    match organ {
        Some(organ) => scores.of_organ(organ),
        None => (0..scores.cases.len()).filter_map(|case| scores.case_mean(case)).collect(),
    }
}

/// One evaluation with the rows of all folds.
fn joined(folds: &[&EvaluationFolder]) -> EvaluationFolder {
    let cases = folds.iter().flat_map(|fold| fold.cases.iter().cloned()).collect();
    EvaluationFolder { path: folds[0].path.clone(), info: folds[0].info.clone(), cases }
}

fn check_same_settings(first: &EvaluationFolder, second: &EvaluationFolder) -> Result<()> {
    let settings = |folder: &EvaluationFolder| Value::Object(folder.info.scored.settings.clone());
    let differing = differences(&settings(first), "the one has", &settings(second), "the other");
    if differing.is_empty() {
        return Ok(());
    }
    Err(EvalError::OtherSettings { first: first.path.clone(), second: second.path.clone(), differing })
}

fn check_disjoint(first: &EvaluationFolder, second: &EvaluationFolder) -> Result<()> {
    let there = first.case_names();
    match second.case_names().into_iter().find(|case| there.contains(case)) {
        Some(case) => Err(EvalError::TwoFolds { case, first: first.path.clone(), second: second.path.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ResultsTable, tabulate};
    use super::*;
    use crate::folder::EvaluationInfo;
    use crate::protocol::Scoring;
    use crate::scored::Scored;
    use crate::summary::MEAN;
    use sam_ladder_schemas::eval::PublishedRows;
    use sam_ladder_schemas::eval::{Protocol, ScoredSplit};
    use sam_ladder_schemas::tables::{CaseRow, ResultRow};
    use serde_json::json;

    /// A fold of these cases, each with the Dice of liver and spleen.
    fn fold(path: &str, seed: u64, cases: &[(&str, [Option<f64>; 2])]) -> EvaluationFolder {
        let class_names = ["liver", "spleen"].map(String::from).to_vec();
        let settings = json!({ "run": { "lr": 0.5 } }).as_object().unwrap().clone();
        let scored = Scored { split: ScoredSplit::Validation, settings, seeds: vec![seed] };
        let row = |case: &str, organ: usize, dice: Option<f64>| CaseRow {
            case: case.into(),
            organ: class_names[organ].clone(),
            dice,
            hd95: dice.map(|dice| 10.0 * (1.0 - dice)),
            reference_voxels: 9,
            predicted_voxels: if dice == Some(0.0) { 0 } else { 9 },
            ..CaseRow::default()
        };
        let cases = cases.iter().flat_map(|(case, [liver, spleen])| [row(case, 0, *liver), row(case, 1, *spleen)]).collect();
        let scoring = Scoring::of(Protocol::Standard);
        let info = EvaluationInfo { method: "ours".into(), class_names, scoring, scored, run_info: Vec::new() };
        EvaluationFolder { path: path.into(), info, cases }
    }

    /// Two folds, of one case and of two.
    fn two_folds(seed: u64) -> Vec<EvaluationFolder> {
        let second = [("0002", [Some(0.75), None]), ("0003", [Some(1.0), Some(0.0)])];
        vec![fold("b", seed, &second), fold("a", seed, &[("0001", [Some(0.5), Some(0.25)])])]
    }

    fn table(seeds: Vec<EvaluationFolder>) -> Result<ResultsTable> {
        tabulate(&[Method { name: "cv".into(), seeds }], None, None)
    }

    fn rows(table: &ResultsTable) -> [&ResultRow; 3] {
        ["liver", "spleen", MEAN].map(|organ| table.rows.iter().find(|row| row.organ == organ).unwrap())
    }

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-12)
    }

    #[test]
    fn folds_are_one_row_over_all_cases() {
        let table = table(two_folds(1)).unwrap();
        let [liver, spleen, mean] = rows(&table);
        assert_eq!((mean.seeds, mean.folds, mean.cases, mean.missed), (Some(1), Some(2), Some(3), Some(1)));
        // Liver: 0.5, 0.75, 1: mean 0.75 and not the 0.6875 of the folds' means; deviation sqrt((1/16 + 1/16) / 2) = 1/4.
        assert!(close(liver.dice, 0.75) && close(liver.dice_sd, 0.25), "{liver:?}");
        // Spleen: 0.25 and 0: mean 1/8, deviation sqrt(2 / 64) = sqrt(2) / 8.
        assert!(close(spleen.dice, 0.125) && close(spleen.dice_sd, 2f64.sqrt() / 8.0), "{spleen:?}");
        // Over organs (0.75 + 0.125) / 2. The cases' means are 3/8, 3/4, 1/2, whose mean is 13/24, in 24ths 9, 18, 12:
        // deviation sqrt((16 + 25 + 1) / 2) / 24.
        assert!(close(mean.dice, 0.4375) && close(mean.dice_sd, 21f64.sqrt() / 24.0), "{mean:?}");
        // HD95 is ten times what Dice lacks.
        assert!(close(liver.hd95, 2.5) && close(liver.hd95_sd, 2.5), "{liver:?}");
        let text = table.markdown();
        assert!(text.contains("Validation: scored are training cases") && text.contains("Folds of a cross-validation"), "{text}");
        assert!(text.contains("| cv | 43.75 ± 19.09 |"), "{text}");
    }

    #[test]
    fn seeds_of_a_cross_validation_stay_seeds() {
        let better = |mut folds: Vec<EvaluationFolder>| {
            let rows = folds.iter_mut().flat_map(|fold| &mut fold.cases);
            rows.filter(|row| row.organ == "liver").for_each(|row| row.dice = row.dice.map(|dice| dice - 0.25));
            folds
        };
        let mut four = two_folds(1);
        // In another order.
        four.extend(better(two_folds(2)).into_iter().rev());
        let table = table(four).unwrap();
        let [liver, ..] = rows(&table);
        assert_eq!((liver.seeds, liver.folds, liver.cases), (Some(2), Some(2), Some(3)));
        // Means 0.75 and 0.5: their deviation is over the seeds.
        assert!(close(liver.dice, 0.625) && close(liver.dice_sd, 0.25 / 2f64.sqrt()), "{liver:?}");
    }

    #[test]
    fn methods_are_tested_on_the_cases_of_all_folds() {
        let method = |name: &str, seeds| Method { name: name.into(), seeds };
        let table = tabulate(&[method("a", two_folds(1)), method("b", two_folds(7))], None, Some("b")).unwrap();
        let liver = &table.comparisons[0].rows[0];
        assert_eq!((liver.organ.as_str(), liver.pairs, liver.difference), ("liver", 3, Some(0.0)));
    }

    #[test]
    fn what_are_no_folds_is_refused() {
        let message = |seeds: Vec<EvaluationFolder>| {
            let error = table(seeds).unwrap_err();
            assert!(error.hint().is_some());
            error.to_string()
        };
        let mut twice = two_folds(1);
        twice.push(fold("c", 1, &[("0003", [Some(0.5), Some(0.5)])]));
        assert_eq!(message(twice), "case 0003 is in two folds: b and c");
        let mut other = two_folds(1);
        other[1].info.scored.settings = json!({ "run": { "lr": 0.25 } }).as_object().unwrap().clone();
        assert_eq!(message(other), "b and a are no folds of one cross-validation: run.lr: the one has 0.5, the other 0.25");
        let mut of_test = two_folds(1);
        of_test[1].info.scored = Scored::default();
        assert!(message(of_test.clone()).contains("the one scored the split validation, the other test"));
        of_test.reverse();
        assert!(message(of_test).contains("the one scored the split test, the other validation"));
        // A fold whose seed differs is another seed, which lacks cases.
        let mut seeds = two_folds(1);
        seeds[1].info.scored.seeds = vec![2];
        assert!(message(seeds).contains("they have the cases"));
        let published = tabulate(&[Method { name: "cv".into(), seeds: two_folds(1) }], Some(PublishedRows::Methods), None)
            .unwrap_err()
            .to_string();
        assert!(published.starts_with("the published rows are scores of test scans"), "{published}");
    }
}
