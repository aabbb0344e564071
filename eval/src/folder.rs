//! The folder of a finished evaluation: the names of its files, and reading it back.

use crate::error::{EvalError, Result};
use crate::moves::finish_interrupted;
use crate::protocol::Scoring;
use crate::scored::Scored;
use sam_ladder_formats::Error;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One row per case and organ. It is written last: a folder with this file has the whole evaluation.
pub const CASES_TABLE: &str = "cases.parquet";
/// One row per organ, and the mean.
pub const SUMMARY_TABLE: &str = "summary.parquet";
/// The scores in the shape of the paper's Table I.
pub const TABLE_MARKDOWN: &str = "table.md";
/// How the scores were counted: an [`EvaluationInfo`].
pub const EVALUATION_JSON: &str = "evaluation.json";
/// The HTML page.
pub const REPORT: &str = "report.html";
/// Folder of the pictures, `<case>_slice<index>.png`.
pub const OVERLAYS: &str = "overlays";
/// Folder of the cases' pages, `<case>.html`.
pub const CASE_PAGES: &str = "cases";
/// Folder of the predicted masks, `<case>.nii.gz`.
pub const MASKS: &str = "masks";
/// Folder of a run's evaluation within the run's folder.
const BELOW_RUN: &str = "eval";

/// Content of `evaluation.json`: how the scores were computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationInfo {
    /// Name of the row in the tables.
    pub method: String,
    /// Names of the classes from 1.
    pub class_names: Vec<String>,
    /// How the scores were counted.
    pub scoring: Scoring,
    /// Which cases were scored; older versions scored only test scans, and did not record it.
    #[serde(default)]
    pub scored: Scored,
    /// What the report says of the run.
    pub run_info: Vec<RunFact>,
}

/// Something that another lab asks about an evaluation: its date, the model's settings, the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredFact")]
pub struct RunFact {
    /// What it belongs to: `Training`.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether it makes the scores worth little, such as random weights: the report shows it in red.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_caution: bool,
}

/// As it stands in `evaluation.json`; older versions wrote a name and a value.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredFact {
    Pair(String, String),
    Fact {
        group: String,
        name: String,
        value: String,
        #[serde(default)]
        is_caution: bool,
    },
}

impl From<StoredFact> for RunFact {
    fn from(stored: StoredFact) -> Self {
        match stored {
            StoredFact::Pair(name, value) => RunFact::new("Evaluation", &name, value),
            StoredFact::Fact { group, name, value, is_caution } => RunFact { group, name, value, is_caution },
        }
    }
}

impl RunFact {
    /// A fact without caution.
    pub fn new(group: &str, name: &str, value: impl Into<String>) -> Self {
        RunFact { group: group.into(), name: name.into(), value: value.into(), is_caution: false }
    }

    /// A fact that makes the scores worth little.
    pub fn caution(group: &str, name: &str, value: impl Into<String>) -> Self {
        RunFact { is_caution: true, ..RunFact::new(group, name, value) }
    }
}

/// A finished evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationFolder {
    /// The folder that holds the tables.
    pub path: PathBuf,
    /// How its scores were counted.
    pub info: EvaluationInfo,
    /// One row per case and organ.
    pub cases: Vec<CaseRow>,
}

impl EvaluationFolder {
    /// Reads an evaluation's folder, or that of a run whose evaluation is in `eval/`.
    ///
    /// # Errors
    /// If there is none, or its files cannot be read.
    pub fn open(path: &Path) -> Result<EvaluationFolder> {
        let places = [path.to_path_buf(), path.join(BELOW_RUN)];
        places.iter().for_each(|folder| finish_interrupted(folder));
        let found = places.into_iter().find(|folder| folder.join(CASES_TABLE).exists());
        let path = found.ok_or_else(|| EvalError::NoEvaluation { path: path.into(), missing: CASES_TABLE })?;
        let info = path.join(EVALUATION_JSON);
        if !info.exists() {
            return Err(EvalError::NoScoring { path, missing: EVALUATION_JSON });
        }
        let (cases, info) = (read_rows(&path.join(CASES_TABLE))?, read_json(&info)?);
        Ok(EvaluationFolder { path, info, cases })
    }

    /// Refuses an evaluation that cannot be compared with this one because its split, organs, rules or cases differ.
    ///
    /// # Errors
    /// Names both folders and what differs.
    pub(crate) fn check_comparable(&self, other: &EvaluationFolder) -> Result<()> {
        self.check_same_kind(other)?;
        let [first_cases, second_cases] = [self, other].map(EvaluationFolder::case_names);
        if first_cases != second_cases {
            let (first, second) = (self.path.clone(), other.path.clone());
            return Err(EvalError::OtherCases { first, second, first_cases, second_cases });
        }
        Ok(())
    }

    /// As [`Self::check_comparable`], whatever the cases are.
    ///
    /// # Errors
    /// Names both folders and what differs.
    pub(crate) fn check_same_kind(&self, other: &EvaluationFolder) -> Result<()> {
        let (first, second) = (self.path.clone(), other.path.clone());
        if self.info.scored.split != other.info.scored.split {
            let [first_split, second_split] = [self, other].map(|folder| folder.info.scored.split.name());
            return Err(EvalError::OtherSplits { first, second, first_split, second_split });
        }
        if self.info.class_names != other.info.class_names {
            let [first_organs, second_organs] = [self, other].map(|folder| folder.info.class_names.clone());
            return Err(EvalError::OtherOrgans { first, second, first_organs, second_organs });
        }
        if self.info.scoring != other.info.scoring {
            let [first_rules, second_rules] = [self, other].map(|folder| folder.info.scoring.options());
            return Err(EvalError::OtherRules { first, second, first_rules, second_rules });
        }
        Ok(())
    }

    /// The cases' names, sorted.
    pub(crate) fn case_names(&self) -> Vec<String> {
        let mut cases: Vec<String> = self.cases.iter().map(|row| row.case.clone()).collect();
        cases.sort_unstable();
        cases.dedup();
        cases
    }
}

/// Reads one of our JSON files.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| EvalError::Json { path: path.into(), source })
}

/// Creates a folder if necessary.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    Ok(std::fs::create_dir_all(path).map_err(Error::io("create", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_older_versions_are_read() {
        let json = r#"["seed", "1"]"#;
        assert_eq!(serde_json::from_str::<RunFact>(json).unwrap(), RunFact::new("Evaluation", "seed", "1"));
        for fact in [RunFact::new("Store", "place", "s.zarr"), RunFact::caution("Model", "weights", "random")] {
            let json = serde_json::to_string(&fact).unwrap();
            assert_eq!(serde_json::from_str::<RunFact>(&json).unwrap(), fact);
        }
    }
}
