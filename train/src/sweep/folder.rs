//! The sweep's folder. Each trial's folder holds its record and its runs, which are authoritative; the sweep's tables are made from them.
//! Every file is replaced atomically, so that a sweep killed at any time can be resumed.

use super::space::Point;
use crate::error::{Result, TrainError, io, unwritable};
use sam_ladder_formats::atomic::{is_temporary_of, sync_folder, tidy, write_atomic};
use sam_ladder_formats::outputs::{is_real_folder, is_regular_file};
use sam_ladder_formats::rows::{read_rows, read_rows_without, write_rows};
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::sweep::{
    CURVES_TABLE, CurveRow, FINAL_RECORD, FinalRecord, RETIRED_TRIAL_COLUMNS, SWEEP_CONFIG, SWEEP_FILE, SweepConfig, SweepRecord,
    TRIAL_RECORD, TRIALS_DIR, TRIALS_TABLE, TrialRow, run_dir,
};
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{EPOCHS_TABLE, RESUME_STATE, RUN_CONFIG};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A sweep's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Folder(path.to_path_buf())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether a sweep was started here.
    pub(crate) fn is_begun(&self) -> bool {
        self.0.join(SWEEP_CONFIG).exists()
    }

    /// Makes the folder. The record is written last: a folder that has one can be resumed.
    ///
    /// # Errors
    /// A folder that holds anything except an interrupted start.
    pub(crate) fn create(&self, record: &SweepRecord, file: &[u8]) -> Result<()> {
        if self.is_begun() {
            return Err(TrainError::SweepExists(self.0.clone()));
        }
        match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                for entry in other.map_err(io(&self.0))? {
                    let name = entry.map_err(io(&self.0))?.file_name();
                    let name = name.to_string_lossy();
                    let path = self.0.join(&*name);
                    // What an interrupted start leaves: the same file, and a folder without a trial.
                    let is_begun = match &*name {
                        SWEEP_FILE => is_regular_file(&path) && std::fs::read(&path).is_ok_and(|found| found == file),
                        TRIALS_DIR => {
                            is_real_folder(&path) && std::fs::read_dir(&path).is_ok_and(|mut trials| trials.next().is_none())
                        }
                        _ => is_temporary_of(&name, SWEEP_FILE) || is_temporary_of(&name, SWEEP_CONFIG),
                    };
                    if !is_begun {
                        return Err(TrainError::SweepFolderTaken(self.0.clone()));
                    }
                }
            }
        }
        std::fs::create_dir_all(self.0.join(TRIALS_DIR)).map_err(io(&self.0))?;
        write_atomic(&self.0.join(SWEEP_FILE), file)?;
        self.write_record(record)
    }

    pub(crate) fn write_record(&self, record: &SweepRecord) -> Result<()> {
        self.write_json(SWEEP_CONFIG, record)?;
        tidy(&self.0)?;
        Ok(sync_folder(&self.0)?)
    }

    /// # Errors
    /// If no sweep was started here, or its record was written by another version of the program.
    pub(crate) fn read_record(&self) -> Result<SweepRecord> {
        if !self.is_begun() {
            return Err(TrainError::NotASweep(self.0.clone()));
        }
        self.read_json(SWEEP_CONFIG)
    }

    /// What `--final` did; `None` before.
    pub(crate) fn read_final(&self) -> Result<Option<FinalRecord>> {
        if self.0.join(FINAL_RECORD).exists() { self.read_json(FINAL_RECORD).map(Some) } else { Ok(None) }
    }

    pub(crate) fn write_final(&self, record: &FinalRecord) -> Result<()> {
        self.write_json(FINAL_RECORD, record)?;
        Ok(sync_folder(&self.0)?)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(unwritable("a record of a sweep"))?;
        text.push('\n');
        Ok(write_atomic(&self.0.join(name), text.as_bytes())?)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.0.join(name);
        let text = std::fs::read_to_string(&path).map_err(io(&path))?;
        serde_json::from_str(&text)
            .map_err(|error| TrainError::RunDamaged { path, reason: format!("not a record of a sweep ({error})") })
    }

    /// Folder of a run.
    pub(crate) fn run(&self, trial: &str, seed: u64, fold: u32) -> PathBuf {
        self.0.join(run_dir(trial, seed, fold))
    }

    /// The records of all started trials, by number.
    ///
    /// # Errors
    /// A damaged record.
    pub(crate) fn read_trials(&self) -> Result<Vec<TrialRow>> {
        let folder = self.0.join(TRIALS_DIR);
        let mut rows: Vec<TrialRow> = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io(&folder))? {
            let path = entry.map_err(io(&folder))?.path().join(TRIAL_RECORD);
            // A trial that was interrupted before its first record does not count as started.
            if path.exists() {
                rows.extend(read_rows_without(&path, &RETIRED_TRIAL_COLUMNS)?);
            }
        }
        rows.sort_by_key(|row| row.number);
        Ok(rows)
    }

    pub(crate) fn write_trial(&self, row: &TrialRow) -> Result<()> {
        let folder = self.0.join(TRIALS_DIR).join(&row.trial);
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        write_rows(&folder.join(TRIAL_RECORD), std::slice::from_ref(row))?;
        Ok(tidy(&folder)?)
    }

    /// Writes the sweep's tables.
    pub(crate) fn write_tables(&self, trials: &[TrialRow], curves: &[CurveRow]) -> Result<()> {
        write_rows(&self.0.join(TRIALS_TABLE), trials)?;
        Ok(write_rows(&self.0.join(CURVES_TABLE), curves)?)
    }

    /// A run's recorded epochs; empty if it was not started.
    ///
    /// # Errors
    /// A damaged table.
    pub(crate) fn read_run(&self, trial: &str, seed: u64, fold: u32) -> Result<Vec<EpochRow>> {
        let path = self.run(trial, seed, fold).join(EPOCHS_TABLE);
        if path.exists() { Ok(read_rows(&path)?) } else { Ok(Vec::new()) }
    }

    /// Removes what only a resume needs.
    pub(crate) fn drop_state(&self, trial: &str, seed: u64, fold: u32) -> Result<()> {
        let path = self.run(trial, seed, fold).join(RESUME_STATE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// Whether a run's folder can be resumed. A folder that cannot is an interrupted start, or a run whose state was removed.
pub(crate) fn can_resume(run: &Path) -> bool {
    run.join(RUN_CONFIG).exists() && run.join(RESUME_STATE).exists()
}

/// Checks that a sweep is resumed with the settings with which it was started. Budget and retries may change, since no trial depends on them.
///
/// # Errors
/// Every difference, with both values.
pub(crate) fn check_same_sweep(folder: &Folder, stored: &SweepConfig, given: &SweepConfig) -> Result<()> {
    let shaping = |config: &SweepConfig| {
        let mut value = json!(config);
        if let Some(map) = value.as_object_mut() {
            map.remove("budget");
            map.remove("retries");
        }
        value
    };
    let differing = differences(&shaping(stored), "the sweep's", &shaping(given), "the file's");
    if differing.is_empty() {
        return Ok(());
    }
    Err(TrainError::SweepMismatch { out: folder.path().into(), differing })
}

/// The point of a trial's record.
///
/// # Errors
/// Settings that are not a JSON object.
pub(crate) fn point_of(config: &SweepConfig, row: &TrialRow) -> Result<Point> {
    let searched = serde_json::from_str(&row.settings).map_err(|error| TrainError::TrialSettings {
        trial: row.trial.clone(),
        settings: row.settings.clone(),
        reason: error.to_string(),
    })?;
    Ok(Point::of_searched(config, &searched))
}
