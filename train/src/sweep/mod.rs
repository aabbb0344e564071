//! A sweep: many runs on one store, chosen by a search, in one process.
//!
//! A sweep works in rounds (`trials`). A worker reads what all workers have recorded in the folder (`ledger`), decides how far up to k trials
//! are trained next (`scheduler`), writes its decision down (`workers`), trains (`trainer`), and records the results. The records are the
//! sweep: tables and decisions are made from them, and nothing that is recorded leaves the tables. With one worker, a sweep that was killed
//! finishes the interrupted round, makes the same decisions as an uninterrupted one, and ends with the same table.
//!
//! Validation cases come from [`TrainingSplit`], which cannot read the test cases.

mod account;
mod domain;
mod file;
mod final_run;
mod folder;
mod ledger;
#[cfg(test)]
mod model_test;
mod ranking;
mod said_once;
mod scheduler;
mod space;
mod tpe;
mod trainer;
mod trials;
mod words;
mod workers;
#[cfg(test)]
mod writes;

pub use file::read_config;
pub use final_run::{FinalRun, mark_evaluated, refuse_second_final, train_final};

use crate::error::{Result, TrainError};
use crate::groups::{Groups, warning};
use crate::run::{CudaGraph, DeviceStore, Hd95, TrainArgs, check_cases, check_parts, input_file, records_steps, whole_path};
use candle_core::Device;
use folder::{Folder, check_same_sweep};
use ledger::Ledger;
use sam_ladder_cache::{CacheOptions, ReadMode, TrainingSplit};
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::sweep::{Objective, SweepRecord, TrialRow, TrialStatus, Validation};
use sam_ladder_schemas::train::{InputFile, RunInputs, TrainConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use trainer::{StoreTrainer, parts_of_any, resolutions_of};
use trials::Trials;
use workers::Workers;

/// Default number of trials at a time. Several trials share the reading of batches, but this saves less time than it costs if one step
/// keeps all cores busy.
const DEFAULT_JOBS: u32 = 1;

/// What `sweep` is to do.
#[derive(Clone)]
pub struct SweepArgs {
    /// The store.
    pub store: PathBuf,
    /// The sweep's folder: a start makes it, a resume continues it.
    pub out: PathBuf,
    /// The sweep's TOML file; a resume needs none.
    pub config: Option<PathBuf>,
    /// Continue the sweep in `out`.
    pub resume: bool,
    /// Trials that are trained at a time; a resume has those of the start.
    pub jobs: Option<u32>,
    /// This worker's number, from 1, and the number of workers. Each number is one process's place in the sweep's folder.
    pub worker: (u32, u32),
    /// ResNet-18 under torchvision's names, for every run.
    pub cnn_checkpoint: Option<PathBuf>,
    /// A whole model in the published names, for every run.
    pub init: Option<PathBuf>,
    /// The models' device.
    pub device: Device,
    /// Whether the store is read batch by batch or held in memory.
    pub read_mode: ReadMode,
    /// Where copies of the chunks of a store on S3 are kept; `None` keeps none.
    pub cache: Option<CacheOptions>,
    /// Whether training items are kept in the GPU's memory.
    pub device_store: DeviceStore,
    /// Whether training steps are launched as a CUDA graph.
    pub cuda_graph: CudaGraph,
    /// How HD95 is measured.
    pub hd95: Hd95,
    /// Name, version and commit of the program, for the records.
    pub program: String,
    /// Receives progress reports.
    pub observer: Arc<dyn Observer>,
}

/// Result of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepSummary {
    /// Every trial, best first; those without a value last.
    pub trials: Vec<TrialRow>,
}

impl SweepSummary {
    /// From the rows by number.
    fn new(mut trials: Vec<TrialRow>) -> Self {
        trials.sort_by_key(|row| (row.rank.unwrap_or(u32::MAX), row.number));
        SweepSummary { trials }
    }

    /// The best trials among those that were trained to their last epoch: one, or the Pareto front of two objectives.
    pub fn best(&self) -> Vec<&TrialRow> {
        self.trials.iter().filter(|row| row.rank == Some(1) && row.status == TrialStatus::Finished).collect()
    }
}

/// Makes a sweep's folder without training anything, for workers that continue it.
///
/// # Errors
/// A bad file, by line and key; a folder that is not empty; validation cases that the store's training split lacks.
pub fn prepare(args: &SweepArgs) -> Result<SweepRecord> {
    let store = TrainingSplit::open_with(&args.store, args.cache.as_ref())?;
    start(args, &store)
}

/// Starts or resumes a sweep and trains to its end.
///
/// # Errors
/// A bad file, store or folder; those of the file system. A trial that fails is recorded and is not an error.
pub fn sweep(args: &SweepArgs) -> Result<SweepSummary> {
    sweep_until(args, &AtomicBool::new(false))
}

/// As [`sweep`], until `stop` is set: then the current steps are finished and checkpointed.
///
/// # Errors
/// As [`sweep`], and [`TrainError::SweepStopped`].
pub fn sweep_until(args: &SweepArgs, stop: &AtomicBool) -> Result<SweepSummary> {
    records_steps(&args.device, args.cuda_graph)?;
    let store = TrainingSplit::open_with(&args.store, args.cache.as_ref())?;
    let record = if args.resume { resume(args, &store)? } else { start(args, &store)? };
    let folder = Folder::new(&args.out);
    let workers = Workers::join(&folder, args.worker, &*args.observer)?;
    let args = &with_inputs_of(args, &record);
    let trainer = StoreTrainer::new(args, &store, &record)?;
    let ledger = Ledger::new(folder, &record, args.observer.clone())?;
    let rows = Trials::new(&record, ledger, workers, trainer, args.observer.clone()).run(stop)?;
    Ok(SweepSummary::new(rows))
}

fn start(args: &SweepArgs, store: &TrainingSplit) -> Result<SweepRecord> {
    let Some(path) = &args.config else {
        return Err(TrainError::NoSweepFile);
    };
    let config = read_config(path)?;
    if config.objectives.contains(&Objective::Hd95) {
        check_spacing(store)?;
    }
    check_parts(parts_of_any(&config), store)?;
    let groups = config.group_by.as_ref().map(|by| Groups::resolve(by, &store.cases())).transpose()?.unwrap_or_default();
    let folds = validation_cases(store, &config.validation, &groups)?;
    let warning = warning(&store.cases(), &folds, |by| format!("group_by = {by} in [validation]"));
    let folder = Folder::new(&args.out);
    let text = std::fs::read(path).map_err(crate::error::io(path))?;
    folder.refuse_taken(&text)?;
    let record = SweepRecord {
        program: args.program.clone(),
        cache_id: store.attributes().cache_id.clone(),
        jobs: args.jobs.unwrap_or(DEFAULT_JOBS).max(1),
        folds,
        groups: groups.to_record(),
        inputs: RunInputs {
            sam_decoder: input_file(&store.decoder_path())?,
            cnn_checkpoint: args.cnn_checkpoint.as_deref().map(input_file).transpose()?,
            init: args.init.as_deref().map(input_file).transpose()?,
            // Each run keeps its own.
            rung_projection: None,
        },
        config,
        store_path: Some(whole_path(&args.store)),
    };
    // Of several that start it at once, one does.
    let _turn = workers::turn(&folder)?;
    folder.create(&record, &text)?;
    if resolutions_of(&record.config) > 1 {
        let message = "warning: trials with --decoder skips-half are validated at half the image's side and the others at a quarter, so their \
                       rank is not only the model's; compare the best of each by `eval`";
        args.observer.message(message);
    }
    if let Some(warning) = warning.filter(|_| record.config.group_by.is_none()) {
        args.observer.message(&warning);
    }
    Ok(record)
}

fn resume(args: &SweepArgs, store: &TrainingSplit) -> Result<SweepRecord> {
    let folder = Folder::new(&args.out);
    let mut record = folder.read_record()?;
    let cache_id = &store.attributes().cache_id;
    if !store.attributes().is_or_was(&record.cache_id) {
        return Err(TrainError::SweepInputMismatch {
            out: args.out.clone(),
            what: "the store's cache_id",
            stored: record.cache_id,
            given: format!("{cache_id} ({})", store.path().display()),
        });
    }
    let mut changed = false;
    if let Some(path) = &args.config {
        let config = read_config(path)?;
        check_same_sweep(&folder, &record.config, &config)?;
        changed |= record.config != config;
        record.config = config;
    }
    if let Some(jobs) = args.jobs.filter(|&jobs| jobs != record.jobs) {
        (record.jobs, changed) = (jobs.max(1), true);
    }
    same_input(&args.out, "--cnn-checkpoint", &mut record.inputs.cnn_checkpoint, args.cnn_checkpoint.as_deref(), &mut changed)?;
    same_input(&args.out, "--init", &mut record.inputs.init, args.init.as_deref(), &mut changed)?;
    let store_path = Some(whole_path(&args.store));
    if record.store_path != store_path {
        (record.store_path, changed) = (store_path, true);
    }
    if changed {
        folder.write_record(&record)?;
    }
    Ok(record)
}

/// Checks an input file, which runs that have not started yet need: the one that is given, or the one with which the sweep was started.
fn same_input(
    out: &Path,
    option: &'static str,
    stored: &mut Option<InputFile>,
    given: Option<&Path>,
    changed: &mut bool,
) -> Result<()> {
    let of_start = stored.as_ref().and_then(|file| file.path.as_deref());
    let given = given.or(of_start).map(input_file).transpose()?;
    let hash = |file: &Option<InputFile>| file.as_ref().map(|file| file.sha256.clone());
    if hash(stored) == hash(&given) {
        *changed |= *stored != given;
        *stored = given;
        return Ok(());
    }
    let words =
        |file: &Option<InputFile>| file.as_ref().map_or("none".into(), |file| format!("{} (SHA-256 {})", file.name, file.sha256));
    Err(TrainError::SweepInputMismatch { out: out.into(), what: option, stored: words(stored), given: words(&given) })
}

/// HD95 is measured in millimetres, which needs the scans' spacing.
fn check_spacing(store: &TrainingSplit) -> Result<()> {
    match store.slices().iter().find(|slice| slice.spacing_mm.is_none()) {
        Some(slice) => Err(TrainError::NoSpacing { store: store.path().into(), case: slice.case.clone() }),
        None => Ok(()),
    }
}

/// The arguments with the files that runs start from, which a resume need not name.
fn with_inputs_of(args: &SweepArgs, record: &SweepRecord) -> SweepArgs {
    let path = |file: &Option<InputFile>| file.as_ref().and_then(|file| file.path.clone());
    SweepArgs {
        cnn_checkpoint: args.cnn_checkpoint.clone().or(path(&record.inputs.cnn_checkpoint)),
        init: args.init.clone().or(path(&record.inputs.init)),
        ..args.clone()
    }
}

/// Where the store of the sweep in `out` was; `None` for a sweep of an older version, which did not record it.
///
/// # Errors
/// If there is no sweep, or its record was written by another version of the program.
pub fn store_of(out: &Path) -> Result<Option<PathBuf>> {
    Ok(Folder::new(out).read_record()?.store_path)
}

/// The validation cases of each fold, all of them training cases of the store.
fn validation_cases(store: &TrainingSplit, validation: &Validation, groups: &Groups) -> Result<Vec<Vec<String>>> {
    let divide = |count: u32| groups.folds(&store.cases(), "validation", count as usize);
    let folds = match validation {
        Validation::Folds(count) => divide(*count)?,
        Validation::Fold(index, count) => vec![divide(*count)?.swap_remove(*index as usize - 1)],
        Validation::Cases(cases) => vec![cases.clone()],
    };
    for cases in &folds {
        check_cases(store, cases)?;
        groups.check_whole(&store.cases(), cases)?;
    }
    Ok(folds)
}

/// The arguments of one run of the sweep.
fn train_args(args: &SweepArgs, run: &Path, config: TrainConfig, groups: Option<Groups>) -> TrainArgs {
    TrainArgs {
        store: args.store.clone(),
        run: run.to_path_buf(),
        config,
        groups,
        cnn_checkpoint: args.cnn_checkpoint.clone(),
        init: args.init.clone(),
        resume: run.join(sam_ladder_schemas::train::RUN_CONFIG).exists(),
        device: args.device.clone(),
        read_mode: args.read_mode,
        cache: args.cache.clone(),
        device_store: args.device_store,
        cuda_graph: args.cuda_graph,
        checkpoint_every: None,
        program: args.program.clone(),
        observer: args.observer.clone(),
    }
}
