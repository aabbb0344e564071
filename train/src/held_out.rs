//! The training cases that runs held out: what a validation at full resolution may score, since no weight depends on them.

use crate::error::{Result, TrainError};
use crate::run::{held_out_case, read_record};
use sam_ladder_cache::Store;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::train::{InputFile, RunRecord};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What some runs held out.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// The cases, sorted; every one of the runs held out all of them.
    pub cases: Vec<String>,
    /// Store, settings and initial weights of each run, but for seed and held-out cases: folds of one cross-validation have the same.
    pub settings: Map<String, Value>,
    /// Seed of each run.
    pub seeds: Vec<u64>,
}

/// What the runs held out, as they have recorded it.
///
/// # Errors
/// A folder that is not a run; a run without held-out cases; runs that held out different cases, since one has then trained on what is to be
/// scored; a store that lacks a case, or has another scan of its name.
pub fn held_out(runs: &[PathBuf], store: &Store) -> Result<HeldOut> {
    let mut all: Option<HeldOut> = None;
    for (number, run) in (1..).zip(runs) {
        let record = read_record(run)?;
        let cases = cases_of(run, &record, store)?;
        let name = if runs.len() == 1 { "run".into() } else { format!("run {number}") };
        match &mut all {
            None => {
                all = Some(HeldOut {
                    cases,
                    settings: Map::from_iter([(name, settings(&record))]),
                    seeds: vec![record.config.seed],
                })
            }
            Some(all) if all.cases == cases => {
                all.settings.insert(name, settings(&record));
                all.seeds.push(record.config.seed);
            }
            Some(all) => {
                let (first, second) = (runs[0].clone(), run.clone());
                return Err(TrainError::OtherHeldOut { first, first_cases: all.cases.clone(), second, second_cases: cases });
            }
        }
    }
    all.ok_or(TrainError::NoModel)
}

/// The cases of one run, sorted, each the scan that the run held out.
fn cases_of(run: &Path, record: &RunRecord, store: &Store) -> Result<Vec<String>> {
    let mut cases = record.config.val_cases.clone();
    if cases.is_empty() {
        return Err(TrainError::NoHeldOut(run.into()));
    }
    cases.sort_unstable();
    cases.dedup();
    for case in &cases {
        store.case_rows(Split::Train, case)?;
        let same = record.held_out.contains(&held_out_case(store.attributes(), case));
        if record.cache_id != store.attributes().cache_id && !same {
            return Err(TrainError::OtherScan { run: run.into(), store: store.path().into(), case: case.clone() });
        }
    }
    Ok(cases)
}

fn settings(record: &RunRecord) -> Value {
    let mut config = json!(record.config);
    if let Some(config) = config.as_object_mut() {
        config.shift_remove("val_cases");
        config.shift_remove("seed");
    }
    let sha256 = |file: &Option<InputFile>| file.as_ref().map(|file| file.sha256.clone());
    json!({
        "store": record.cache_id,
        "config": config,
        "cnn_checkpoint": sha256(&record.inputs.cnn_checkpoint),
        "init": sha256(&record.inputs.init),
    })
}
