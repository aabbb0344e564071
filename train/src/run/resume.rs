//! A run folder's record, and whether a call that resumes it has the same settings and inputs.

use super::checkpoint::CheckpointInfo;
use crate::error::{Result, TrainError, io, unwritable};
use sam_ladder_cache::{Store, is_remote, read_file};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::hash::{sha256_hex, sha256_of_file};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::{RUNG_PROJECTION, StoreAttributes};
use sam_ladder_schemas::train::{HeldOutCase, InputFile, RUN_CONFIG, RunRecord, TrainConfig};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Settings that may change on a resume, since no step depends on them.
const FREE_SETTINGS: [&str; 1] = ["max_steps"];

/// Reads a run directory's `config.json`.
///
/// # Errors
/// If there is none, or it was written by another version of the program.
pub fn read_record(run: &Path) -> Result<RunRecord> {
    let path = run.join(RUN_CONFIG);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(TrainError::NotARun(run.into()));
        }
        other => other.map_err(io(&path))?,
    };
    serde_json::from_str(&text)
        .map_err(|error| TrainError::RunDamaged { path, reason: format!("not the settings of a run ({error})") })
}

/// Writes a run directory's `config.json`.
pub(crate) fn write_record(run: &Path, record: &RunRecord) -> Result<()> {
    let mut text = serde_json::to_string_pretty(record).map_err(unwritable("the settings of a run"))?;
    text.push('\n');
    Ok(write_atomic(&run.join(RUN_CONFIG), text.as_bytes())?)
}

/// Records after how many epochs early stopping ended a run.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn note_early_stop(run: &Path, epochs: u32) -> Result<()> {
    let record = read_record(run)?;
    if record.stopped_early == Some(epochs) {
        return Ok(());
    }
    write_record(run, &RunRecord { stopped_early: Some(epochs), ..record })
}

/// Settings and inputs of a call that resumes a run.
pub(crate) struct Wanted<'a> {
    pub(crate) config: &'a TrainConfig,
    /// The store's manifest.
    pub(crate) store: &'a StoreAttributes,
    /// Files that the call names again; files that it leaves out are taken from the run.
    pub(crate) cnn_checkpoint: Option<InputFile>,
    pub(crate) init: Option<InputFile>,
    /// SHA-256 of the store's projection of rungs, if it has one.
    pub(crate) rung_projection: Option<&'a str>,
}

/// Checks that the run's settings and inputs are those of the call.
///
/// # Errors
/// [`TrainError::ResumeMismatch`] for the first difference, with both values.
pub(crate) fn check_same_run(run: &Path, record: &RunRecord, wanted: &Wanted) -> Result<()> {
    let differs = |what: &str, stored: String, given: String, advice: &'static str| {
        Err(TrainError::ResumeMismatch { run: run.to_path_buf(), what: what.into(), stored, given, advice })
    };
    if !wanted.store.is_or_was(&record.cache_id) {
        let advice =
            "run `sam-ladder train --resume` with the --store that the run was started with, or start another --run on this one";
        let mut what = "the store's cache_id".to_string();
        let settings = differences(&json!(record.store), "the run's", &json!(wanted.store.config), "this one's");
        if !settings.is_empty() {
            what = format!("{what} ({settings})");
        }
        return differs(&what, record.cache_id.clone(), wanted.store.cache_id.clone(), advice);
    }
    let json = |config: &TrainConfig| serde_json::to_value(config).unwrap_or_default();
    let (stored, given) = (json(&record.config), json(wanted.config));
    // A setting that one of them leaves out has its default there.
    let settings = [&stored, &given].into_iter().filter_map(|config| config.as_object()).flat_map(|config| config.keys());
    for setting in settings.filter(|setting| !FREE_SETTINGS.contains(&setting.as_str())) {
        let [stored, given] = [&stored, &given].map(|config| TrainConfig::value_in(config, setting));
        if stored != given {
            let advice = "leave the option out to resume as before, or start another --run";
            return differs(setting, stored.to_string(), given.to_string(), advice);
        }
    }
    if let Some(stored) = &record.inputs.rung_projection
        && wanted.rung_projection != Some(&stored.sha256)
    {
        let advice =
            "resume on the store that the run was started with: one that was made again of more or other scans has other rungs";
        let given = wanted.rung_projection.unwrap_or("none").to_string();
        return differs("the SHA-256 of the rungs' projection", stored.sha256.clone(), given, advice);
    }
    let files = [
        ("--cnn-checkpoint", &record.inputs.cnn_checkpoint, &wanted.cnn_checkpoint),
        ("--init", &record.inputs.init, &wanted.init),
    ];
    for (what, stored, given) in files {
        if let Some(given) = given
            && stored.as_ref().is_none_or(|stored| stored.sha256 != given.sha256)
        {
            let words = |file: &InputFile| format!("{} (SHA-256 {})", file.name, file.sha256);
            let advice = "leave the option out, the run has its weights already, or start another --run";
            return differs(what, stored.as_ref().map_or("none".into(), words), words(given), advice);
        }
    }
    Ok(())
}

/// Checks that a run's model can use a store's tensors: same encoder, same weights, same image preparation. Scans, variants and number
/// format may differ.
///
/// # Errors
/// [`TrainError::OtherEncoder`] with both values of each setting that differs.
pub(crate) fn check_same_encoder(run: &Path, record: &RunRecord, store: &Store) -> Result<()> {
    if record.cache_id == store.attributes().cache_id {
        return Ok(());
    }
    let shaping = |config: &PrecomputeConfig| {
        let PrecomputeConfig { encoder, weights, image_size, data_size, preprocessing, class_names, .. } = config;
        let pixel_normalisation = config.pixel_normalisation;
        json!({
            "encoder": encoder, "weights": weights, "image_size": image_size, "data_size": data_size,
            "preprocessing": preprocessing, "class_names": class_names, "pixel_normalisation": pixel_normalisation
        })
    };
    let differing = differences(&shaping(&record.store), "the run has", &shaping(store.config()), "the store has");
    if differing.is_empty() {
        return Ok(());
    }
    Err(TrainError::OtherEncoder { run: run.into(), store: store.path().into(), differing })
}

/// The bytes of the rungs' projection that a run keeps; `None` if it has no ladder, or rungs are the tokens as they are.
///
/// # Errors
/// [`TrainError::RunDamaged`] for a file that is not the recorded one; the operating system's.
pub fn read_projection(run: &Path, record: &RunRecord) -> Result<Option<Vec<u8>>> {
    let Some(recorded) = &record.inputs.rung_projection else { return Ok(None) };
    let path = run.join(RUNG_PROJECTION);
    let bytes = std::fs::read(&path).map_err(io(&path))?;
    let found = sha256_hex(&bytes);
    if found == recorded.sha256 {
        return Ok(Some(bytes));
    }
    let reason = format!("is damaged: its SHA-256 is {found}, expected {}", recorded.sha256);
    Err(TrainError::RunDamaged { path, reason })
}

/// Checks that a model with a ladder can use a store's rungs: the same blocks, channels and projection.
///
/// # Errors
/// [`TrainError::OtherRungs`] with both values of each that differs.
pub(crate) fn check_same_rungs(model: &Path, info: &CheckpointInfo, store: &Store) -> Result<()> {
    let Some(rungs) = info.ladder else { return Ok(()) };
    let found = store.config().stored_rungs();
    let trained = json!({"rungs": rungs, "projection": info.rung_projection});
    let of_store = json!({"rungs": found, "projection": store.rung_projection_sha256()});
    let differing = differences(&trained, "the model has", &of_store, "the store has");
    if differing.is_empty() {
        return Ok(());
    }
    Err(TrainError::OtherRungs { model: model.into(), store: store.path().into(), differing })
}

/// A training case of a store, by its name and its files' bytes.
pub(crate) fn held_out_case(store: &StoreAttributes, case: &str) -> HeldOutCase {
    let of_case = store.cases.iter().find(|found| found.split == Split::Train && found.case == case);
    let sources = of_case.iter().flat_map(|found| &found.sources);
    let hash = |path: &String| store.sources.iter().find(|source| source.path == *path).map(|source| source.sha256.as_str());
    let hashes: Vec<&str> = sources.filter_map(hash).collect();
    HeldOutCase { case: case.into(), sha256: sha256_hex(hashes.join("\n").as_bytes()) }
}

/// Name, SHA-256 and whole path of an input file.
///
/// # Errors
/// The operating system's, naming the file.
pub(crate) fn input_file(path: &Path) -> Result<InputFile> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let sha256 = if is_remote(path) { sha256_hex(&read_file(path)?) } else { sha256_of_file(path, |_| ())? };
    Ok(InputFile { name, sha256, path: Some(whole_path(path)) })
}

/// A path that means the same from every working directory; one of a bucket does already.
pub(crate) fn whole_path(path: &Path) -> PathBuf {
    if is_remote(path) { path.into() } else { std::path::absolute(path).unwrap_or_else(|_| path.into()) }
}
