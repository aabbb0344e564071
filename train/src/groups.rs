//! Which cases belong to one patient, folds that keep them together, and names that look as if several cases were of one.

use crate::error::{Result, TrainError};
use regex::Regex;
use sam_ladder_formats::csv::read_column;
use sam_ladder_schemas::group_by::GroupBy;
use std::collections::BTreeMap;

/// The column of a table that names the cases.
const CASE_COLUMN: &str = "case";
/// What stands before the number of one of several scans of a patient, in sets such as ACDC (`_frame`) and BIDS (`_ses`).
const MARKS: &str = "frame|visit|scan|session|ses|timepoint|time|phase|followup";

/// The patient of each training case; a case that has none is a patient of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups(BTreeMap<String, String>);

impl Groups {
    /// The patients as a run or a sweep has recorded them.
    pub fn recorded(groups: &BTreeMap<String, String>) -> Self {
        Groups(groups.clone())
    }

    /// The patient of each case, for a record.
    pub(crate) fn to_record(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }

    /// Finds the patient of each of `cases`.
    ///
    /// # Errors
    /// An expression that is none or does not match a case, a table that cannot be read or lacks a case; each names the case.
    pub fn resolve(by: &GroupBy, cases: &[String]) -> Result<Self> {
        match by {
            GroupBy::Regex(text) => {
                let invalid =
                    |error: regex::Error| TrainError::GroupExpression { expression: text.clone(), reason: reason(&error) };
                let expression = Regex::new(text).map_err(invalid)?;
                of_each(cases, |case| {
                    let unmatched = || TrainError::NotMatched { case: case.into(), expression: text.clone() };
                    group_in(&expression, case).ok_or_else(unmatched)
                })
            }
            GroupBy::Csv { file, column } => {
                let table = read_column(file, CASE_COLUMN, column)?;
                let groups = of_each(cases, |case| {
                    let missing = || TrainError::NotInTable { case: case.into(), table: file.clone() };
                    table.get(case).cloned().ok_or_else(missing)
                })?;
                match written_in_two_ways(groups.0.values()) {
                    Some([first, second]) => Err(TrainError::TwoWays { table: file.clone(), first, second }),
                    None => Ok(groups),
                }
            }
        }
    }

    fn of<'a>(&'a self, case: &'a String) -> &'a str {
        self.0.get(case).unwrap_or(case)
    }

    /// `cases` by patient.
    fn divide(&self, cases: &[String]) -> Vec<Vec<String>> {
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        cases.iter().for_each(|case| groups.entry(self.of(case)).or_default().push(case.clone()));
        groups.into_values().collect()
    }

    /// Divides sorted cases into `count` folds of about the same number of cases: the patients with most cases first, each into the fold that
    /// has the fewest so far. Depends on nothing else, so that the folds of runs with other seeds fit together. If each case is a patient of
    /// its own, fold i has every `count`-th case.
    ///
    /// # Errors
    /// If there are fewer patients than folds; `wanted` names the source of the folds.
    pub(crate) fn folds(&self, cases: &[String], wanted: &str, count: usize) -> Result<Vec<Vec<String>>> {
        let mut groups = self.divide(cases);
        if groups.len() < count {
            return Err(match self.0.is_empty() {
                true => TrainError::TooManyFolds { wanted: wanted.into(), cases: cases.len(), folds: count },
                false => {
                    TrainError::TooFewGroups { wanted: wanted.into(), groups: groups.len(), cases: cases.len(), folds: count }
                }
            });
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        let mut folds = vec![Vec::new(); count];
        for group in groups {
            if let Some(fold) = folds.iter_mut().min_by_key(|fold: &&mut Vec<String>| fold.len()) {
                fold.extend(group);
            }
        }
        folds.iter_mut().for_each(|fold| fold.sort());
        Ok(folds)
    }

    /// Checks that no patient has cases both among those held out and among the others.
    ///
    /// # Errors
    /// Names the patient and a case of each kind.
    pub(crate) fn check_whole(&self, cases: &[String], held_out: &[String]) -> Result<()> {
        match divided(&self.divide(cases), held_out) {
            Some((held_out, trained)) => Err(TrainError::GroupDivided {
                group: self.of(held_out).into(),
                held_out: held_out.clone(),
                trained: trained.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// Two patients that are probably one: `P1` and `p1`, or `01`, `1` and `1.0`, as spreadsheets write numbers.
fn written_in_two_ways<'a>(patients: impl Iterator<Item = &'a String>) -> Option<[String; 2]> {
    let mut seen: BTreeMap<String, &String> = BTreeMap::new();
    for patient in patients {
        let text = patient.to_lowercase();
        let whole = text.strip_suffix(".0").unwrap_or(&text);
        let is_number = !whole.is_empty() && whole.bytes().all(|byte| byte.is_ascii_digit());
        let key = if is_number { whole.trim_start_matches('0').to_owned() } else { text };
        match seen.insert(key, patient) {
            Some(first) if first != patient => return Some([first.clone(), patient.clone()]),
            _ => {}
        }
    }
    None
}

/// A case that is held out and one of the same group that is not.
fn divided<'a>(groups: &'a [Vec<String>], held_out: &[String]) -> Option<(&'a String, &'a String)> {
    groups.iter().find_map(|group| {
        let is_out = |case: &&String| held_out.contains(case);
        Some((group.iter().find(is_out)?, group.iter().find(|case| !is_out(case))?))
    })
}

/// What `patient` says of each case.
fn of_each(cases: &[String], patient: impl Fn(&str) -> Result<String>) -> Result<Groups> {
    cases.iter().map(|case| Ok((case.clone(), patient(case)?))).collect::<Result<_>>().map(Groups)
}

/// What the first capture group of an expression matches, or all of it if it has none; `None` if that is nothing.
fn group_in(expression: &Regex, case: &str) -> Option<String> {
    let found = expression.captures(case)?;
    let part = if found.len() > 1 { found.get(1) } else { found.get(0) };
    part.map(|part| part.as_str().to_string()).filter(|part| !part.is_empty())
}

/// The library's message in one line: its last, which says what is wrong, without the drawing above it.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).into()
}

/// A warning if cases that share the beginning of their names, up to `_frame`, `_visit`, `_scan`…, are held out and trained on, for the
/// validation cases of each fold. `option` writes the expression as the user would: an option, or a key of the sweep's file.
pub(crate) fn warning(cases: &[String], folds: &[Vec<String>], option: impl Fn(&str) -> String) -> Option<String> {
    let mark = Regex::new(&format!("(?i)^(.+?)([_-](?:{MARKS}))(?:[^a-z]|[a-z]?$)")).ok()?;
    let marks = cases.iter().filter_map(|case| Some(mark.captures(case)?[2].to_string()));
    let marks: std::collections::BTreeSet<String> = marks.collect();
    if marks.is_empty() {
        return None;
    }
    let marks: Vec<String> = marks.into_iter().collect();
    let any = if let [one] = marks.as_slice() { one.clone() } else { format!("(?:{})", marks.join("|")) };
    let expression = format!("^(.+?)(?:{any}.*)?$");
    let groups = Groups::resolve(&GroupBy::Regex(expression.clone()), cases).ok()?.divide(cases);
    let (held_out, trained) = folds.iter().find_map(|held_out| divided(&groups, held_out))?;
    let option = option(&format!("'regex:{expression}'"));
    Some(format!(
        "warning: {held_out} is held out for validation and {trained} is trained on: if cases that share the name before {} are of one \
         patient, keep them together with {option}",
        marks.join(" or ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn by_regex(expression: &str, cases: &[String]) -> Result<Groups> {
        Groups::resolve(&GroupBy::Regex(expression.into()), cases)
    }

    #[test]
    fn the_first_capture_group_or_the_whole_match_is_the_patient() {
        let cases = names(&["a1_x", "a2_y"]);
        let patients = |expression: &str| by_regex(expression, &cases).map(|groups| groups.0.into_values().collect::<Vec<_>>());
        assert_eq!(patients(r"^(.)\d_(.)").unwrap(), ["a", "a"]);
        assert_eq!(patients(r"^.\d").unwrap(), ["a1", "a2"]);
        for (expression, expected) in [
            ("^a1", "case a2_y does not match ^a1"),
            ("^a1|(a2)", "case a1_x does not match"),
            ("z*", "case a1_x does not match"),
            ("(", "( is not a regular expression: unclosed group"),
        ] {
            assert!(patients(expression).unwrap_err().to_string().contains(expected), "{expression}");
        }
    }

    /// Hand-divided: p1 has 3 cases, p2 and p3 two each, p4 one. The largest first, into the fold with the fewest: p1 | p2 | p3, then p4 to p2.
    #[test]
    fn a_patient_written_in_two_ways_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("patients.csv");
        let groups = |patients: [&str; 3]| {
            let lines: String =
                patients.iter().zip(["a", "b", "c"]).map(|(patient, case)| format!("{case},{patient}\n")).collect();
            std::fs::write(&file, format!("case,patient\n{lines}")).unwrap();
            let by = GroupBy::Csv { file: file.clone(), column: "patient".into() };
            Groups::resolve(&by, &names(&["a", "b", "c"])).map_err(|error| error.to_string())
        };
        for (patients, said) in [
            (["P1", "P2", "p1"], "P1 and p1"),
            (["1", "2", "01"], "1 and 01"),
            (["7.0", "10", "7"], "7.0 and 7"),
            (["0", "00", "1"], "0 and 00"),
        ] {
            assert!(groups(patients).unwrap_err().contains(&format!("{said} are probably one patient")), "{patients:?}");
        }
        for patients in [["P1", "P1", "P2"], ["1", "10", "100"], ["P1.0", "P1", "P01"]] {
            assert!(groups(patients).is_ok(), "{patients:?}");
        }
        for nothing in ["NA", "n/a", "NaN", "None", "null"] {
            assert!(groups(["P1", nothing, nothing]).unwrap_err().contains("line 3 has no patient"), "{nothing}");
        }
    }

    #[test]
    fn folds_keep_patients_together_and_are_balanced() {
        let cases = names(&["p1_a", "p1_b", "p1_c", "p2_a", "p2_b", "p3_a", "p3_b", "p4_a"]);
        let groups = by_regex("^(p.)", &cases).unwrap();
        let folds = groups.folds(&cases, "validation", 3).unwrap();
        assert_eq!(folds, [names(&["p1_a", "p1_b", "p1_c"]), names(&["p2_a", "p2_b", "p4_a"]), names(&["p3_a", "p3_b"])]);
        let error = groups.folds(&cases, "--fold 1/5", 5).unwrap_err().to_string();
        assert_eq!(error, "--fold 1/5: the store has 8 training cases of 4 patients, fewer than 5 folds");
        groups.check_whole(&cases, &folds[0]).unwrap();
        let error = groups.check_whole(&cases, &names(&["p2_b", "p4_a"])).unwrap_err().to_string();
        assert!(error.contains("p2_b is held out") && error.contains("p2_a is trained on") && error.contains("p2"), "{error}");
    }

    /// No fold has more cases than another by more than the largest patient has, and every case is in one fold.
    #[test]
    fn folds_are_balanced_whatever_the_patients_are() {
        for seed in 1u64..200 {
            let mut cases: Vec<String> =
                (0..40u64).map(|i| format!("{:02}_{i:02}", i.wrapping_mul(seed * 7 + 1) * 31 % (3 + seed % 17))).collect();
            cases.sort();
            let groups = by_regex("^(..)", &cases).unwrap();
            let largest = groups.divide(&cases).iter().map(Vec::len).max().unwrap();
            let Ok(folds) = groups.folds(&cases, "v", 3) else { continue };
            let sizes: Vec<usize> = folds.iter().map(Vec::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= largest, "{seed}: {sizes:?}");
            let mut all = folds.concat();
            all.sort();
            assert_eq!(all, cases);
        }
    }

    #[test]
    fn without_patients_a_fold_has_every_nth_case() {
        let cases = names(&["a", "b", "c", "d", "e"]);
        let folds = Groups::default().folds(&cases, "v", 2).unwrap();
        assert_eq!(folds, [names(&["a", "c", "e"]), names(&["b", "d"])]);
    }

    #[test]
    fn names_of_one_patient_are_noticed_and_what_is_advised_works() {
        let option = |expression: &str| format!("--group-by {expression}");
        let acdc = names(&["patient001_frame01", "patient001_frame12", "patient002_frame01", "control"]);
        let warned = warning(&acdc, &[names(&["patient001_frame01"])], option).unwrap();
        assert!(
            warned.contains("patient001_frame01 is held out") && warned.contains("patient001_frame12 is trained on"),
            "{warned}"
        );
        let advised = warned.split_once("--group-by 'regex:").unwrap().1.trim_end_matches('\'');
        let groups = by_regex(advised, &acdc).unwrap();
        let patients: Vec<&str> = acdc.iter().map(|case| groups.of(case)).collect();
        assert_eq!(patients, ["patient001", "patient001", "patient002", "control"]);
        // Whole patients are held out.
        assert_eq!(warning(&acdc, &[names(&["patient001_frame01", "patient001_frame12"])], option), None);
        assert_eq!(warning(&names(&["0005", "0006"]), &[names(&["0005"])], option), None);
        // `_scanner` is no mark.
        assert_eq!(warning(&names(&["a_scanner1", "a_scanner2"]), &[names(&["a_scanner1"])], option), None);
        let mixed = names(&["s1-Visit-A", "s1-Visit-B", "s2_ses-01", "s2_ses-02"]);
        let warned = warning(&mixed, &[Vec::new(), names(&["s2_ses-01"])], option).unwrap();
        assert!(warned.contains("'regex:^(.+?)(?:(?:-Visit|_ses).*)?$'"), "{warned}");
    }
}
