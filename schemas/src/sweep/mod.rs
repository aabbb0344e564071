//! A hyperparameter sweep: what is searched and how, the names of its files, and its tables.
//!
//! A *trial* is one point of the search space. It is trained once per seed and fold; each of these *runs* has a run folder as `train` makes
//! it. Validation cases come only from the store's training split.

mod file;
mod settings_table;
mod tables;

pub use file::{SweepFile, parse_sweep};
pub use tables::{CurveRow, RETIRED_TRIAL_COLUMNS, TrialRow, TrialStatus};

use crate::group_by::GroupBy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The sweep as it was requested: a [`SweepRecord`].
pub const SWEEP_CONFIG: &str = "sweep.json";
/// The configuration as the user wrote it.
pub const SWEEP_FILE: &str = "sweep.toml";
/// One row per trial: [`TrialRow`].
pub const TRIALS_TABLE: &str = "trials.parquet";
/// One row per epoch of each run of each trial: [`CurveRow`].
pub const CURVES_TABLE: &str = "curves.parquet";
/// The sweep's HTML page.
pub const SWEEP_PAGE: &str = "sweep.html";
/// Folder of the trials: `trials/<id>/` holds the trial's own record and its runs.
pub const TRIALS_DIR: &str = "trials";
/// A trial's record in its folder: one [`TrialRow`]. The sweep's tables are made from these.
pub const TRIAL_RECORD: &str = "trial.parquet";
/// Locks of the workers that share the folder, and what each is training.
pub const WORKERS_DIR: &str = "workers";
/// Where damaged parts of trials are kept.
pub const SET_ASIDE_DIR: &str = "set-aside";
/// What `--final` did: a [`FinalRecord`]. Once it says that the test cases were evaluated, they are not evaluated again.
pub const FINAL_RECORD: &str = "final.json";
/// Run folder of the best setting, trained on all training cases.
pub const FINAL_RUN: &str = "final/run";
/// Evaluation of [`FINAL_RUN`] on the test cases.
pub const FINAL_EVAL: &str = "final/eval";
/// Length of a trial's id in characters.
const ID_LENGTH: usize = 12;

/// Folder of a run within the sweep's: `trials/<id>/seed-<seed>-fold-<fold>`, folds counted from 1.
pub fn run_dir(trial: &str, seed: u64, fold: u32) -> String {
    format!("{TRIALS_DIR}/{trial}/seed-{seed}-fold-{fold}")
}

/// A trial's id: the first twelve hexadecimal digits of the SHA-256 of its settings as JSON with sorted keys.
pub fn trial_id(settings: &Map<String, Value>) -> String {
    let sorted: BTreeMap<&String, &Value> = settings.iter().collect();
    let text = serde_json::to_string(&sorted).unwrap_or_default();
    let hash = Sha256::digest(text.as_bytes());
    let mut id: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    id.truncate(ID_LENGTH);
    id
}

/// How the values of a range are spaced
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Evenly
    Linear,
    /// Evenly in the logarithm
    Log,
    /// Evenly, and only whole numbers
    Integer,
}

/// The values that a setting may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The same value in every trial.
    Fixed(Value),
    /// One of these, unordered.
    List(Vec<Value>),
    /// Any number from `min` to `max`, both included.
    Range {
        /// Lowest.
        min: f64,
        /// Highest.
        max: f64,
        /// How the numbers in between are spaced.
        scale: Scale,
        /// Whether the setting takes whole numbers only.
        integer: bool,
        /// Number of values that a grid takes from it, both ends included.
        points: Option<u32>,
    },
}

/// A setting is searched only if another setting has one of these values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The other setting, which must come earlier in the file.
    pub setting: String,
    /// Its values.
    pub values: Vec<Value>,
}

/// One setting of the training config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Name, as in a run's `config.json`.
    pub name: String,
    /// Its values.
    pub domain: Domain,
    /// All must hold; otherwise the setting keeps its default.
    pub when: Vec<Condition>,
}

impl Setting {
    /// Whether it differs between trials.
    pub fn is_searched(&self) -> bool {
        !matches!(self.domain, Domain::Fixed(_)) || !self.when.is_empty()
    }
}

/// How points of the search space are chosen
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SearchMethod {
    /// All combinations, in the file's order; the last setting changes fastest
    Grid,
    /// At random, each setting by its scale
    Random,
    /// Tree-structured Parzen estimators (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011): near the best trials so far
    Tpe,
}

/// How points are chosen, from which seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// The method.
    pub method: SearchMethod,
    /// Seed of the draws.
    pub seed: u64,
    /// Trials drawn at random before TPE follows what it has seen.
    pub startup: u32,
}

/// When a trial is stopped before its last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub enum Pruning {
    /// Never.
    None,
    /// Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2018).
    Asha {
        /// Epochs of the lowest rung.
        min_epochs: u32,
        /// η: one trial in η continues to the next rung, which has η times the epochs.
        reduction: u32,
    },
    /// When it is worse than the median of earlier trials at the same epoch (Golovin et al., "Google Vizier", 2017).
    Median {
        /// First epoch at which trials are compared.
        min_epochs: u32,
        /// Epochs between comparisons.
        interval: u32,
        /// Trials that must have reached that epoch before.
        startup: u32,
    },
}

/// What is optimised; two of them make a Pareto front
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Dice on the validation cases, mean over organs; higher is better
    Dice,
    /// HD95 on the validation cases in millimetres, mean over organs; lower is better
    Hd95,
}

/// Which training cases validate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validation {
    /// All of k folds, one run for each.
    Folds(u32),
    /// Only fold i of n, i from 1.
    Fold(u32, u32),
    /// These cases.
    Cases(Vec<String>),
}

/// When the sweep ends: at the first of these that is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Trials
    #[schemars(range(min = 1))]
    pub trials: Option<u32>,
    /// Epochs, over all runs of all trials
    #[schemars(range(min = 1))]
    pub epochs: Option<u64>,
    /// Hours of training of all trials, over all starts and resumes: the sum of the recorded times of their epochs
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub hours: Option<f64>,
}

/// A sweep's configuration, as in its TOML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// The settings, in the file's order. Others have the default of `train`.
    pub settings: Vec<Setting>,
    /// How points are chosen.
    pub search: Search,
    /// When a trial is stopped early.
    pub pruning: Pruning,
    /// One objective, or two for a Pareto front.
    pub objectives: Vec<Objective>,
    /// Which training cases validate.
    pub validation: Validation,
    /// How the cases of one patient are recognised, which are kept together. Older versions did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<GroupBy>,
    /// Each setting is trained from each of these.
    pub seeds: Vec<u64>,
    /// When the sweep ends.
    pub budget: Budget,
    /// Times that a failed trial is tried again.
    pub retries: u32,
}

impl SweepConfig {
    /// Runs of each trial: seeds times folds.
    pub fn runs_per_trial(&self) -> usize {
        let folds = match self.validation {
            Validation::Folds(count) => count as usize,
            Validation::Fold(..) | Validation::Cases(_) => 1,
        };
        folds * self.seeds.len()
    }

    /// The settings in which trials differ, in the file's order.
    pub fn searched(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter().filter(|setting| setting.is_searched())
    }
}

/// Content of `sweep.json` in a sweep folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepRecord {
    /// Name, version and commit of the program that started the sweep.
    pub program: String,
    /// The store's `cache_id`.
    pub cache_id: String,
    /// The sweep.
    pub config: SweepConfig,
    /// Trials that are trained at the same time. The decisions of TPE and pruning depend on it.
    pub jobs: u32,
    /// Validation cases of each fold.
    pub folds: Vec<Vec<String>>,
    /// The patient of each training case, as `group_by` gave it at the start; empty without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, String>,
    /// SHA-256 of the files that runs start from.
    pub inputs: crate::train::RunInputs,
    /// Where the store was: a folder's whole path, or `s3://bucket/key`. Older versions did not record it.
    #[serde(default)]
    pub store_path: Option<std::path::PathBuf>,
}

/// What `--final` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalRecord {
    /// The trial whose setting was trained on all training cases.
    pub trial: String,
    /// Its settings.
    pub settings: Map<String, Value>,
    /// Whether the test cases were evaluated; this is done only once.
    pub evaluated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_follow_the_settings_and_not_their_order() {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        let id = trial_id(&map(json!({"lr": 1e-3, "lambda": 0.8})));
        assert_eq!(id, trial_id(&map(json!({"lambda": 0.8, "lr": 0.001}))));
        assert_ne!(id, trial_id(&map(json!({"lambda": 0.8, "lr": 0.002}))));
        // sha256 of {"lambda":0.8,"lr":0.001}
        assert_eq!(id.len(), ID_LENGTH);
    }
}
