//! The sweep's folder. Each trial's folder holds its record and its runs, which are authoritative; the sweep's tables are made from them.
//! Every file is replaced atomically, so that a sweep killed at any time can be resumed. What is damaged is kept aside, and never removed.

use super::space::Point;
use super::words::differences;
use crate::error::{Result, TrainError, io, unwritable};
use sam_ladder_formats::atomic::{is_temporary_of, sync_folder, tidy, write_atomic};
use sam_ladder_formats::outputs::{is_real_folder, is_regular_file};
use sam_ladder_formats::rows::{read_rows, read_rows_without, write_rows};
use sam_ladder_schemas::sweep::{
    CURVES_TABLE, CurveRow, FINAL_RECORD, FinalRecord, RETIRED_TRIAL_COLUMNS, SET_ASIDE_DIR, SWEEP_CONFIG, SWEEP_FILE,
    SweepConfig, SweepRecord, TRIAL_RECORD, TRIALS_DIR, TRIALS_TABLE, TrialRow, WORKERS_DIR, run_dir,
};
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{EPOCHS_TABLE, RESUME_STATE, RUN_CONFIG};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A sweep's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    #[cfg(test)]
    pub(super) writes: super::writes::Writes,
}

/// The records of a sweep's trials.
#[derive(Debug, Default)]
pub(crate) struct FoundTrials {
    /// By number.
    pub(crate) rows: Vec<TrialRow>,
    /// Ids of those whose record is damaged, with the reason.
    pub(crate) damaged: Vec<(String, TrainError)>,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Folder {
            path: path.to_path_buf(),
            #[cfg(test)]
            writes: Default::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Folder of the workers' locks and plans.
    pub(crate) fn workers(&self) -> PathBuf {
        self.path.join(WORKERS_DIR)
    }

    /// Called before each change of the folder: the place where a test stops a sweep as a kill would.
    #[cfg(test)]
    pub(super) fn may_write(&self) -> Result<()> {
        self.writes.next()
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // the test's version uses it
    fn may_write(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a sweep was started here.
    pub(crate) fn is_begun(&self) -> bool {
        self.path.join(SWEEP_CONFIG).exists()
    }

    /// Refuses a folder that holds a sweep, or anything except an interrupted start.
    ///
    /// # Errors
    /// [`TrainError::SweepExists`], [`TrainError::SweepFolderTaken`].
    pub(crate) fn refuse_taken(&self, file: &[u8]) -> Result<()> {
        if self.is_begun() {
            return Err(TrainError::SweepExists(self.path.clone()));
        }
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io(&self.path))?,
        };
        for entry in entries {
            let name = entry.map_err(io(&self.path))?.file_name();
            let name = name.to_string_lossy();
            let path = self.path.join(&*name);
            // What an interrupted start leaves: the same file, and folders without a trial.
            let of_start = match &*name {
                SWEEP_FILE => is_regular_file(&path) && std::fs::read(&path).is_ok_and(|found| found == file),
                TRIALS_DIR => is_real_folder(&path) && std::fs::read_dir(&path).is_ok_and(|mut trials| trials.next().is_none()),
                WORKERS_DIR => is_real_folder(&path),
                _ => is_temporary_of(&name, SWEEP_FILE) || is_temporary_of(&name, SWEEP_CONFIG),
            };
            if !of_start {
                return Err(TrainError::SweepFolderTaken(self.path.clone()));
            }
        }
        Ok(())
    }

    /// Makes the folder. The record is written last: a folder that has one can be resumed.
    ///
    /// # Errors
    /// As [`Self::refuse_taken`]; the operating system's, naming the file.
    pub(crate) fn create(&self, record: &SweepRecord, file: &[u8]) -> Result<()> {
        self.refuse_taken(file)?;
        let trials = self.path.join(TRIALS_DIR);
        std::fs::create_dir_all(&trials).map_err(io(&trials))?;
        write_atomic(&self.path.join(SWEEP_FILE), file)?;
        self.write_record(record)
    }

    pub(crate) fn write_record(&self, record: &SweepRecord) -> Result<()> {
        self.write_json(SWEEP_CONFIG, record)?;
        tidy(&self.path)?;
        Ok(sync_folder(&self.path)?)
    }

    /// # Errors
    /// If no sweep was started here, or its record was written by another version of the program.
    pub(crate) fn read_record(&self) -> Result<SweepRecord> {
        if !self.is_begun() {
            return Err(TrainError::NotASweep(self.path.clone()));
        }
        self.read_json(SWEEP_CONFIG)
    }

    /// What `--final` did; `None` before.
    pub(crate) fn read_final(&self) -> Result<Option<FinalRecord>> {
        if self.path.join(FINAL_RECORD).exists() { self.read_json(FINAL_RECORD).map(Some) } else { Ok(None) }
    }

    pub(crate) fn write_final(&self, record: &FinalRecord) -> Result<()> {
        self.write_json(FINAL_RECORD, record)?;
        Ok(sync_folder(&self.path)?)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(unwritable("a record of a sweep"))?;
        text.push('\n');
        Ok(write_atomic(&self.path.join(name), text.as_bytes())?)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path.join(name);
        let text = std::fs::read_to_string(&path).map_err(io(&path))?;
        serde_json::from_str(&text)
            .map_err(|error| TrainError::RunDamaged { path, reason: format!("not a record of a sweep ({error})") })
    }

    /// Folder of a run.
    pub(crate) fn run(&self, trial: &str, seed: u64, fold: u32) -> PathBuf {
        self.path.join(run_dir(trial, seed, fold))
    }

    /// The records of all started trials.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(crate) fn read_trials(&self) -> Result<FoundTrials> {
        let folder = self.path.join(TRIALS_DIR);
        let mut found = FoundTrials::default();
        for entry in std::fs::read_dir(&folder).map_err(io(&folder))? {
            let entry = entry.map_err(io(&folder))?;
            let (id, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path().join(TRIAL_RECORD));
            // A trial that was interrupted before its first record does not count as started.
            if !path.exists() {
                continue;
            }
            match read_rows_without::<TrialRow>(&path, &RETIRED_TRIAL_COLUMNS).map_err(TrainError::from) {
                Ok(rows) if rows.len() == 1 => found.rows.extend(rows),
                Ok(rows) => {
                    let reason = format!("has {} rows, expected 1", rows.len());
                    found.damaged.push((id, TrainError::RunDamaged { path, reason }));
                }
                Err(error) if error.is_damage() => found.damaged.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        found.rows.sort_by_key(|row| row.number);
        Ok(found)
    }

    /// A trial's row in the sweep's table, without its rank; `None` if the table lacks it or cannot be read.
    pub(crate) fn row_of_table(&self, trial: &str) -> Option<TrialRow> {
        let rows: Vec<TrialRow> = read_rows_without(&self.path.join(TRIALS_TABLE), &RETIRED_TRIAL_COLUMNS).ok()?;
        rows.into_iter().find(|row| row.trial == trial).map(|row| TrialRow { rank: None, ..row })
    }

    pub(crate) fn write_trial(&self, row: &TrialRow) -> Result<()> {
        self.may_write()?;
        let folder = self.path.join(TRIALS_DIR).join(&row.trial);
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        write_rows(&folder.join(TRIAL_RECORD), std::slice::from_ref(row))?;
        Ok(tidy(&folder)?)
    }

    /// Writes a worker's plan, or removes it if it is empty.
    pub(crate) fn write_plan<P: Serialize>(&self, path: &Path, plan: &[P]) -> Result<()> {
        self.may_write()?;
        if plan.is_empty() {
            return remove(path);
        }
        let text = serde_json::to_string(plan).map_err(unwritable("a worker's plan"))?;
        Ok(write_atomic(path, text.as_bytes())?)
    }

    /// Moves a damaged file or folder of the sweep to a folder set aside for it, whose path is returned.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(crate) fn set_aside(&self, damaged: &Path) -> Result<PathBuf> {
        self.may_write()?;
        let folder = self.path.join(SET_ASIDE_DIR);
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        let trials = self.path.join(TRIALS_DIR);
        let name = damaged.strip_prefix(&trials).unwrap_or(damaged).to_string_lossy().replace(std::path::MAIN_SEPARATOR, "-");
        let free = (1..).map(|number| folder.join(format!("{name}-{number}"))).find(|path| !path.exists());
        let aside = free.unwrap_or(folder);
        std::fs::rename(damaged, &aside).map_err(io(damaged))?;
        Ok(aside)
    }

    /// Removes a run that cannot be resumed, before it starts again.
    ///
    /// # Errors
    /// The operating system's, naming the folder.
    pub(crate) fn remove_run(&self, run: &Path) -> Result<()> {
        self.may_write()?;
        std::fs::remove_dir_all(run).map_err(io(run))
    }

    /// Writes the sweep's tables.
    pub(crate) fn write_tables(&self, trials: &[TrialRow], curves: &[CurveRow]) -> Result<()> {
        self.may_write()?;
        write_rows(&self.path.join(TRIALS_TABLE), trials)?;
        Ok(write_rows(&self.path.join(CURVES_TABLE), curves)?)
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
        self.may_write()?;
        remove(&self.run(trial, seed, fold).join(RESUME_STATE))
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
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
    match differences(stored, given) {
        Some(differing) => Err(TrainError::SweepMismatch { out: folder.path().into(), differing }),
        None => Ok(()),
    }
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
