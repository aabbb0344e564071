//! A finished evaluation, read back: its rows, and how they were counted.

use crate::error::{EvalError, Result};
use crate::evaluation::{CASES_TABLE, EVALUATION_JSON};
use crate::protocol::Scoring;
use crate::tables::read_cases;
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Folder of a run's evaluation below the run's own.
const BELOW_RUN: &str = "eval";

/// What `evaluation.json` holds: how the tables beside it were counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationInfo {
    /// Name of the row in the tables.
    pub method: String,
    /// Names of the classes from 1.
    pub class_names: Vec<String>,
    /// How the scores were counted.
    pub scoring: Scoring,
    /// What the report says of the run: pairs of a name and a value.
    pub run_info: Vec<(String, String)>,
}

/// A finished evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationFolder {
    /// The folder that holds the tables.
    pub path: PathBuf,
    /// How its scores were counted.
    pub info: EvaluationInfo,
    /// One row a case and organ.
    pub cases: Vec<CaseRow>,
}

impl EvaluationFolder {
    /// Reads an evaluation's folder, or that of a run whose evaluation is in `eval/`.
    ///
    /// # Errors
    /// Where there is none, or its files cannot be read.
    pub fn open(path: &Path) -> Result<EvaluationFolder> {
        let found = [path.to_path_buf(), path.join(BELOW_RUN)].into_iter().find(|folder| folder.join(CASES_TABLE).exists());
        let path = found.ok_or_else(|| EvalError::NoEvaluation { path: path.into() })?;
        let cases = read_cases(&path.join(CASES_TABLE))?;
        let file = path.join(EVALUATION_JSON);
        let unreadable = |reason: String| EvalError::Unreadable { path: file.clone(), reason };
        let bytes = std::fs::read(&file).map_err(|error| {
            unreadable(format!("cannot read how the scores were counted: {error}; evaluate again with --force"))
        })?;
        let info = serde_json::from_slice(&bytes).map_err(|error| unreadable(format!("is not what eval writes: {error}")))?;
        Ok(EvaluationFolder { path, info, cases })
    }

    /// Refuses another evaluation whose numbers cannot stand beside these: of other organs, other rules or other cases.
    ///
    /// # Errors
    /// Names both folders and what differs.
    pub fn check_comparable(&self, other: &EvaluationFolder) -> Result<()> {
        let differ =
            |reason: String| Err(EvalError::NotComparable { first: self.path.clone(), second: other.path.clone(), reason });
        if self.info.class_names != other.info.class_names {
            return differ(format!("organs {:?} and {:?}", self.info.class_names, other.info.class_names));
        }
        if self.info.scoring != other.info.scoring {
            let text = |scoring: &Scoring| {
                format!("{}, {} HD95 in {}, tolerance {} mm", scoring.empty, scoring.hd95, scoring.unit, scoring.tolerance_mm)
            };
            return differ(format!("scored by different rules ({} / {})", text(&self.info.scoring), text(&other.info.scoring)));
        }
        let names = |folder: &EvaluationFolder| {
            let mut cases: Vec<String> = folder.cases.iter().map(|row| row.case.clone()).collect();
            cases.sort_unstable();
            cases.dedup();
            cases
        };
        let (ours, theirs) = (names(self), names(other));
        if ours != theirs {
            return differ(format!("cases {ours:?} and {theirs:?}"));
        }
        Ok(())
    }
}
