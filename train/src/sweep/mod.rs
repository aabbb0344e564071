//! A sweep: many trainings on one store, chosen by a search, in one process.
//!
//! The scheduler (`scheduler`) decides in rounds: of up to k trials it says how far each is trained next, those are trained beside one another
//! (`together`), and it is told what they came to. It knows nothing but the config and those results, and a run's results are on disk. To resume a
//! sweep is therefore to begin it anew: what a run has on record is told and not trained, and what it has not is trained from its last checkpoint. A
//! sweep that was killed decides as it would have without that, and ends in the same table.
//!
//! Validation cases come from [`TrainingSplit`], which cannot read the test cases.

mod file;
mod folder;
mod live;
mod lone;
mod ranking;
mod scheduler;
mod space;
mod together;
mod tpe;
mod trials;

pub use file::read_config;
pub use trials::gather;

use crate::error::{Result, TrainError};
use crate::run::{DeviceStore, Hd95, TrainArgs, check_cases, input_file, numbered_fold};
use candle_core::Device;
use folder::{Folder, check_same_sweep, point_of};
use sam_ladder_cache::{ReadMode, TrainingSplit};
use sam_ladder_schemas::sweep::{FINAL_RUN, FinalRecord, SweepRecord, TrialRow, TrialStatus, Validation};
use sam_ladder_schemas::train::{InputFile, RunInputs, TrainConfig};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use trials::Trials;

/// Trials at a time unless the user says otherwise.
const DEFAULT_JOBS: u32 = 2;

/// What `sweep` is asked to do.
#[derive(Clone)]
pub struct SweepArgs {
    /// The store.
    pub store: PathBuf,
    /// The sweep's folder: made by a start, gone on with by a resume.
    pub out: PathBuf,
    /// The sweep's TOML file; a resume needs none.
    pub config: Option<PathBuf>,
    /// Go on with the sweep in `out`.
    pub resume: bool,
    /// Trials that are trained at a time; a resume has those of the start.
    pub jobs: Option<u32>,
    /// Which worker of how many this is, from 1: each takes the trials of its own numbers.
    pub worker: (u32, u32),
    /// ResNet-18 under torchvision's names, for every run.
    pub cnn_checkpoint: Option<PathBuf>,
    /// A whole model in the published names, for every run.
    pub init: Option<PathBuf>,
    /// Where the models live.
    pub device: Device,
    /// Whether the store is read batch by batch or held in memory.
    pub read_mode: ReadMode,
    /// How HD95 is measured.
    pub hd95: Hd95,
    /// Name, version and commit of the program, for the records.
    pub program: String,
    /// Show a live table on stderr, or lines where that is no terminal.
    pub progress: bool,
}

/// What a sweep came to.
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

    /// The best trials: one, or the Pareto front of two objectives. Those alone that were trained to their last epoch.
    pub fn best(&self) -> Vec<&TrialRow> {
        self.trials.iter().filter(|row| row.rank == Some(1) && row.status == TrialStatus::Finished).collect()
    }
}

/// Makes a sweep's folder without training anything, for workers that go on with it.
///
/// # Errors
/// A bad file, by line and key; a folder that holds something; validation cases that the store's training split has not.
pub fn prepare(args: &SweepArgs) -> Result<SweepRecord> {
    let store = TrainingSplit::open(&args.store)?;
    start(args, &store)
}

/// Starts or resumes a sweep and goes on to its end.
///
/// # Errors
/// A bad file, store or folder; whatever the file system refuses. A trial that fails is recorded and no error.
pub fn sweep(args: &SweepArgs) -> Result<SweepSummary> {
    sweep_until(args, &AtomicBool::new(false))
}

/// As [`sweep`], until `stop` is set: the steps in flight are finished and checkpointed.
///
/// # Errors
/// As [`sweep`], and [`TrainError::SweepStopped`].
pub fn sweep_until(args: &SweepArgs, stop: &AtomicBool) -> Result<SweepSummary> {
    let store = TrainingSplit::open(&args.store)?;
    let record = if args.resume { resume(args, &store)? } else { start(args, &store)? };
    Trials::new(args, &store, &record)?.run(stop)
}

fn start(args: &SweepArgs, store: &TrainingSplit) -> Result<SweepRecord> {
    let Some(path) = &args.config else {
        return Err(TrainError::Input("a sweep starts from a file: give --config sweep.toml, or --resume with --out".into()));
    };
    let config = read_config(path)?;
    let folds = validation_cases(store, &config.validation)?;
    let record = SweepRecord {
        program: args.program.clone(),
        cache_id: store.attributes().cache_id.clone(),
        jobs: args.jobs.unwrap_or(DEFAULT_JOBS).max(1),
        folds,
        inputs: RunInputs {
            sam_decoder: input_file(&store.decoder_path())?,
            cnn_checkpoint: args.cnn_checkpoint.as_deref().map(input_file).transpose()?,
            init: args.init.as_deref().map(input_file).transpose()?,
        },
        config,
    };
    let text = std::fs::read(path).map_err(crate::error::io(path))?;
    Folder::new(&args.out).create(&record, &text)?;
    Ok(record)
}

fn resume(args: &SweepArgs, store: &TrainingSplit) -> Result<SweepRecord> {
    let folder = Folder::new(&args.out);
    let mut record = folder.read_record()?;
    let cache_id = &store.attributes().cache_id;
    if record.cache_id != *cache_id {
        return Err(TrainError::Input(format!(
            "{}: cannot resume on another store: the sweep's cache_id is {}, that of {} is {cache_id}",
            args.out.display(),
            record.cache_id,
            store.path().display()
        )));
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
    same_input(&args.out, "--cnn-checkpoint", &record.inputs.cnn_checkpoint, args.cnn_checkpoint.as_deref())?;
    same_input(&args.out, "--init", &record.inputs.init, args.init.as_deref())?;
    if changed {
        folder.write_record(&record)?;
    }
    Ok(record)
}

/// Runs that are still to begin need the file that the sweep was started with.
fn same_input(out: &Path, option: &str, stored: &Option<InputFile>, given: Option<&Path>) -> Result<()> {
    let given = given.map(input_file).transpose()?;
    let hash = |file: &Option<InputFile>| file.as_ref().map(|file| file.sha256.clone());
    if hash(stored) == hash(&given) {
        return Ok(());
    }
    let words =
        |file: &Option<InputFile>| file.as_ref().map_or("none".into(), |file| format!("{} (SHA-256 {})", file.name, file.sha256));
    Err(TrainError::Input(format!(
        "{}: cannot resume, {option} differs: the sweep has {}, this call has {}",
        out.display(),
        words(stored),
        words(&given)
    )))
}

/// The validation cases of each fold, all of them training cases of the store.
fn validation_cases(store: &TrainingSplit, validation: &Validation) -> Result<Vec<Vec<String>>> {
    let fold = |index: u32, count: u32| {
        numbered_fold(store, index as usize, count as usize)
            .map_err(|reason| TrainError::Setting(format!("validation: {reason}")))
    };
    let folds = match validation {
        Validation::Folds(count) => (1..=*count).map(|index| fold(index, *count)).collect::<Result<_>>()?,
        Validation::Fold(index, count) => vec![fold(*index, *count)?],
        Validation::Cases(cases) => vec![cases.clone()],
    };
    for cases in &folds {
        check_cases(store, cases)?;
    }
    Ok(folds)
}

/// The training of the best setting on all training cases, for `--final`.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalRun {
    /// Its run folder.
    pub run: PathBuf,
    /// What is on record of it.
    pub record: FinalRecord,
}

/// Trains a trial's setting, from the sweep's first seed, on all training cases; the best one where `trial` names none.
///
/// # Errors
/// A sweep that has no trained trial, several best ones and none named, or another one named before; a sweep whose test cases were evaluated; those of
/// training.
pub fn train_final(args: &SweepArgs, summary: &SweepSummary, trial: Option<&str>, stop: &AtomicBool) -> Result<FinalRun> {
    let folder = Folder::new(&args.out);
    let sweep = folder.read_record()?;
    let found = folder.read_final()?;
    let chosen = choose(summary, trial, sweep.config.objectives.len() > 1, &args.out)?;
    if let Some(found) = &found {
        refuse_second(&args.out, found)?;
        if found.trial != chosen.trial {
            return Err(TrainError::Input(format!(
                "{}: --final was begun with trial {}, and the best is {} now: give --trial {} to go on, or remove {FINAL_RUN} and final.json",
                args.out.display(),
                found.trial,
                chosen.trial,
                found.trial
            )));
        }
    }
    let point = point_of(&sweep.config, chosen)?;
    let record = FinalRecord { trial: chosen.trial.clone(), settings: point.settings.clone(), evaluated: false };
    folder.write_final(&record)?;
    let run = args.out.join(FINAL_RUN);
    let config = point.config()?;
    let config = TrainConfig { seed: sweep.config.seeds[0], val_cases: Vec::new(), ..config };
    crate::run::train_until(&train_args(args, &run, config), stop)?;
    Ok(FinalRun { run, record })
}

fn choose<'a>(summary: &'a SweepSummary, trial: Option<&str>, front: bool, out: &Path) -> Result<&'a TrialRow> {
    if let Some(id) = trial {
        let found = summary.trials.iter().find(|row| row.trial == id && row.status == TrialStatus::Finished);
        return found.ok_or_else(|| TrainError::Input(format!("{}: has no trial {id} that was trained out", out.display())));
    }
    match summary.best().as_slice() {
        [] => {
            Err(TrainError::Input(format!("{}: no trial was trained to its last epoch, so there is no best one", out.display())))
        }
        [best] => Ok(best),
        // Equal in the one objective: the one that was begun first.
        [best, ..] if !front => Ok(best),
        several => {
            let ids: Vec<&str> = several.iter().map(|row| row.trial.as_str()).collect();
            Err(TrainError::Input(format!(
                "{}: {} trials stand first, choose with --trial: {}",
                out.display(),
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

/// Refuses a sweep whose test cases were evaluated: a second look would select by them.
///
/// # Errors
/// Naming what was evaluated.
pub fn refuse_second_final(out: &Path) -> Result<()> {
    match Folder::new(out).read_final()? {
        Some(found) => refuse_second(out, &found),
        None => Ok(()),
    }
}

fn refuse_second(out: &Path, found: &FinalRecord) -> Result<()> {
    if !found.evaluated {
        return Ok(());
    }
    Err(TrainError::Input(format!(
        "{}: the test cases were evaluated with trial {} already, and are evaluated once: the result is in {}",
        out.display(),
        found.trial,
        out.join(sam_ladder_schemas::sweep::FINAL_EVAL).display()
    )))
}

/// Records that the test cases were evaluated.
///
/// # Errors
/// The operating system's, naming the file.
pub fn mark_evaluated(out: &Path, record: &FinalRecord) -> Result<()> {
    Folder::new(out).write_final(&FinalRecord { evaluated: true, ..record.clone() })
}

/// The arguments of one run of the sweep.
fn train_args(args: &SweepArgs, run: &Path, config: TrainConfig) -> TrainArgs {
    TrainArgs {
        store: args.store.clone(),
        run: run.to_path_buf(),
        config,
        cnn_checkpoint: args.cnn_checkpoint.clone(),
        init: args.init.clone(),
        resume: run.join(sam_ladder_schemas::train::RUN_CONFIG).exists(),
        device: args.device.clone(),
        read_mode: args.read_mode,
        // Trials share batches, which come from the host.
        device_store: DeviceStore::Off,
        cuda_graph: false,
        checkpoint_every: None,
        program: args.program.clone(),
        progress: args.progress,
    }
}
