//! The folder of a finished evaluation: its files' names, and its rows read back.

use crate::error::{EvalError, Result};
use crate::protocol::Scoring;
use sam_ladder_formats::Error;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One row per case and organ. It is written last: a folder that holds it holds the whole evaluation.
pub const CASES_TABLE: &str = "cases.parquet";
/// One row per organ, and the mean.
pub const SUMMARY_TABLE: &str = "summary.parquet";
/// The scores in the shape of the paper's Table I.
pub const TABLE_MARKDOWN: &str = "table.md";
/// How the scores were counted: an [`EvaluationInfo`].
pub const EVALUATION_JSON: &str = "evaluation.json";
/// The page.
pub const REPORT: &str = "report.html";
/// Folder of the pictures, `<case>_slice<index>.png`.
pub const OVERLAYS: &str = "overlays";
/// Folder of the predicted masks, `<case>.nii.gz`.
pub const MASKS: &str = "masks";
/// Folder of a run's evaluation below the run's own.
const BELOW_RUN: &str = "eval";

/// What `evaluation.json` holds: how the folder's tables were counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationInfo {
    /// Name of the row in the tables.
    pub method: String,
    /// Names of the classes from 1.
    pub class_names: Vec<String>,
    /// How the scores were counted.
    pub scoring: Scoring,
    /// What the report says about the run: pairs of a name and a value.
    pub run_info: Vec<(String, String)>,
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
        let found = [path.to_path_buf(), path.join(BELOW_RUN)].into_iter().find(|folder| folder.join(CASES_TABLE).exists());
        let path = found.ok_or_else(|| EvalError::NoEvaluation { path: path.into(), missing: CASES_TABLE })?;
        let info = path.join(EVALUATION_JSON);
        if !info.exists() {
            return Err(EvalError::NoScoring { path, missing: EVALUATION_JSON });
        }
        let (cases, info) = (read_rows(&path.join(CASES_TABLE))?, read_json(&info)?);
        Ok(EvaluationFolder { path, info, cases })
    }

    /// Refuses another evaluation whose numbers cannot be compared with these: of other organs, other rules or other cases.
    ///
    /// # Errors
    /// Names both folders and what differs.
    pub(crate) fn check_comparable(&self, other: &EvaluationFolder) -> Result<()> {
        let (first, second) = (self.path.clone(), other.path.clone());
        if self.info.class_names != other.info.class_names {
            let [first_organs, second_organs] = [self, other].map(|folder| folder.info.class_names.clone());
            return Err(EvalError::OtherOrgans { first, second, first_organs, second_organs });
        }
        if self.info.scoring != other.info.scoring {
            let [first_rules, second_rules] = [self, other].map(|folder| folder.info.scoring.options());
            return Err(EvalError::OtherRules { first, second, first_rules, second_rules });
        }
        let [first_cases, second_cases] = [self, other].map(EvaluationFolder::case_names);
        if first_cases != second_cases {
            return Err(EvalError::OtherCases { first, second, first_cases, second_cases });
        }
        Ok(())
    }

    /// The cases' names, sorted.
    fn case_names(&self) -> Vec<String> {
        let mut cases: Vec<String> = self.cases.iter().map(|row| row.case.clone()).collect();
        cases.sort_unstable();
        cases.dedup();
        cases
    }
}

/// What a JSON file of ours holds.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| EvalError::Json { path: path.into(), source })
}

/// Makes a folder, if it does not exist.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    Ok(std::fs::create_dir_all(path).map_err(Error::io("create", path))?)
}
