//! What an evaluation scored: the test scans, or the training cases that runs held out for validation.

use sam_ladder_schemas::eval::ScoredSplit;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which cases were scored, and of a validation by which runs; by default the test scans.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Test scans or held-out training cases.
    pub split: ScoredSplit,
    /// Of a validation: all settings of the runs and of their use, but for seeds and held-out cases. Folds of one cross-validation have the
    /// same.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// Of a validation: the seeds of the runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
}

impl Scored {
    /// Whether held-out training cases were scored.
    pub fn is_validation(&self) -> bool {
        self.split == ScoredSplit::Validation
    }
}

/// One sentence for tables and pages of a validation.
pub(crate) const OF_VALIDATION: &str = "Validation: scored are training cases that were held out, not test scans";
