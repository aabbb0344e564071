//! A training run: from a store and initial weights to a run directory.
//!
//! | file | holds |
//! | --- | --- |
//! | `config.json` | every setting, the store's `cache_id`, hashes of the inputs |
//! | `steps.parquet`, `epochs.parquet` | one row a step, one row an epoch |
//! | `checkpoint.safetensors` | the model in the published names, as of the last checkpoint |
//! | `best.safetensors` | the model of the epoch with the highest validation Dice |
//! | `state.safetensors` | all that `--resume` needs |
//! | `tensorboard/` | the steps' scalars as TensorBoard events |

mod batches;
pub mod checkpoint;
mod device_items;
mod gpu;
pub mod hparams;
pub mod records;
mod resume;
pub mod sampler;
mod training_loop;
pub mod step_graph;
pub mod tensorboard;
pub(crate) mod training_run;
pub mod step;
mod pending_losses;
mod validation;

pub use batches::for_each_batch;
pub use gpu::DeviceStore;
pub(crate) use resume::check_same_encoder;
pub(crate) use resume::input_file;
pub use resume::read_record;
pub use validation::{CaseVolume, Hd95, fold_cases};
pub(crate) use validation::{check_cases, numbered_fold};

use crate::error::{Result, TrainError, io};
use crate::init::{InitSources, initial_weights};
use crate::model::{LadderSam, ModelConfig, ModelWeights};
use crate::optimizer::Optimizer;
use crate::predict::identity_index;
use candle_core::Device;
use checkpoint::{Position, ResumeState, read_info};
use device_items::DeviceBatches;
use records::Records;
use resume::{Asked, check_same_run, write_record};
use sam_ladder_cache::atomic::{is_temporary_of, tidy};
use sam_ladder_cache::{ReadMode, TrainingSplit};
use sam_ladder_ops::gpu::has_kernels;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{
    CHECKPOINT, EPOCHS_TABLE, RESUME_STATE, RUN_CONFIG, RunInputs, RunRecord, STEPS_TABLE, TrainConfig,
};
use sampler::{Sampler, VariantDraws};
use training_loop::Session;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use step_graph::StepGraph;
use training_run::{Checkpoints, RunPlan, Trainee};
use step::Geometry;
use validation::Validation;

/// What `train` is asked to do.
#[derive(Debug, Clone)]
pub struct TrainArgs {
    /// The store.
    pub store: PathBuf,
    /// The run directory: made by a start, gone on with by a resume.
    pub run: PathBuf,
    /// Settings; on a resume all but `max_steps` must be the run's own (see [`read_record`]).
    pub config: TrainConfig,
    /// ResNet-18 under torchvision's names.
    pub cnn_checkpoint: Option<PathBuf>,
    /// A whole model in the published names.
    pub init: Option<PathBuf>,
    /// Go on with the run in `run`.
    pub resume: bool,
    /// Where the model lives.
    pub device: Device,
    /// Whether the store is read step by step or held in memory.
    pub read_mode: ReadMode,
    /// Whether training items live in the GPU's memory.
    pub device_store: DeviceStore,
    /// Whether the training step is a CUDA graph.
    pub cuda_graph: bool,
    /// A checkpoint every this many steps, beside one at each epoch's end.
    pub checkpoint_every: Option<usize>,
    /// Name, version and commit of the program, for `config.json`.
    pub program: String,
    /// Show a progress bar on stderr, where that is a terminal.
    pub progress: bool,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// Optimizer steps taken, those before a resume included.
    pub steps: u64,
    /// Whole epochs.
    pub epochs: u32,
    /// The last step's row; `None` without steps.
    pub last: Option<StepRow>,
    /// Highest validation Dice; `None` without validation cases.
    pub best_val_dice: Option<f64>,
}

/// Starts or resumes a run and trains to its end.
///
/// On the CPU a resumed run ends in the same bits as one that was never stopped.
///
/// # Errors
/// A setting, store, weights file or run directory that does not fit, naming it; a loss that is not finite
/// ([`TrainError::Diverged`]); whatever the file system refuses. The last checkpoint stays whole in each case.
pub fn train(args: &TrainArgs) -> Result<RunSummary> {
    train_until(args, &AtomicBool::new(false))
}

/// As [`train`], until `stop` is set: the step in flight is finished and checkpointed.
///
/// # Errors
/// As [`train`], and [`TrainError::Stopped`].
pub fn train_until(args: &TrainArgs, stop: &AtomicBool) -> Result<RunSummary> {
    if args.checkpoint_every == Some(0) {
        return Err(TrainError::Setting("checkpoint-every must be at least 1 step, got 0".into()));
    }
    if args.cuda_graph && !has_kernels(&args.device) {
        let reason = "--cuda-graph needs a GPU, this device is the CPU: leave it out, or pass --device cuda:0 in a build with the feature `cuda`";
        return Err(TrainError::Setting(reason.into()));
    }
    let store = TrainingSplit::open(&args.store)?;
    let checkpoints = Checkpoints { every_steps: args.checkpoint_every, epochs_after: Duration::ZERO, models: true };
    let trainee = open_run(args, &store, checkpoints, None)?;
    let reader = store.reader(args.read_mode);
    let device_batches = load_on_device(args, &store, &trainee)?;
    let tell = |text: &str| {
        if args.progress {
            eprintln!("{text}");
        }
    };
    let step_graph = args.cuda_graph.then(|| StepGraph::new(tell));
    Session::new(trainee, &reader, args.progress, stop).with_device_batches(device_batches).with_step_graph(step_graph).run()
}

/// What a GPU keeps of the items that the run may draw; `None` on the CPU.
fn load_on_device(args: &TrainArgs, store: &TrainingSplit, trainee: &Trainee) -> Result<Option<DeviceBatches>> {
    // The host keeps no second copy of what the GPU holds.
    let once = store.reader(ReadMode::Stream);
    let tell = |text: &str| {
        if args.progress {
            eprintln!("{text}");
        }
    };
    let plan = trainee.plan();
    DeviceBatches::load(&once, &plan.sampler.items(), plan.geometry, (&args.device, args.device_store), tell)
}

/// A run that starts or resumes, ready for its next step.
pub(crate) fn open_run(args: &TrainArgs, store: &TrainingSplit, checkpoints: Checkpoints, hd95: Option<Hd95>) -> Result<Trainee> {
    args.config.validate().map_err(TrainError::Setting)?;
    if store.config().unlabelled {
        return Err(TrainError::Input(format!(
            "{} holds scans without labels: there is nothing to train on",
            args.store.display()
        )));
    }
    check_cases(store, &args.config.val_cases)?;
    let precompute = store.config();
    let geometry = Geometry::of(precompute).with_precision(gpu::set_up(&args.device, &args.config)?);
    let draws = VariantDraws::new(store.variants(), args.config.augment, precompute.rotation_step)?;
    let held_out = |case: &String| args.config.val_cases.contains(case);
    let rows = store.slices().iter().filter(|slice| !held_out(&slice.case)).map(|slice| slice.row).collect();
    let sampler = Sampler::new(rows, draws, args.config.order, args.config.seed);
    let identity = identity_index(store.variants(), store.path())?;
    let validation = Validation::new(store, &args.config.val_cases, identity, args.config.batch_size);
    let start = if args.resume {
        resume_run(args, store, geometry, checkpoints)?
    } else {
        start_run(args, store, geometry, checkpoints)?
    };
    let plan = RunPlan {
        run: args.run.clone(),
        config: args.config.clone(),
        device: args.device.clone(),
        geometry,
        sampler,
        validation,
        hd95,
        checkpoints,
    };
    Trainee::new(plan, start)
}

/// A run between two steps.
struct Standing {
    model: LadderSam,
    optimizer: Optimizer,
    records: Records,
    position: Position,
    /// Channels of the images, for the checkpoint's metadata.
    channels: usize,
}

/// Shape of the model that a run trains.
fn model_config(args: &TrainArgs, geometry: Geometry) -> ModelConfig {
    ModelConfig::of_run(&args.config, geometry.image_size, geometry.num_classes)
}

/// Makes the run directory. Its `config.json` comes last: a directory that has one can be resumed.
fn start_run(args: &TrainArgs, store: &TrainingSplit, geometry: Geometry, checkpoints: Checkpoints) -> Result<Standing> {
    refuse_existing(&args.run)?;
    let sources = InitSources {
        sam_decoder: store.decoder_path(),
        cnn_checkpoint: args.cnn_checkpoint.clone(),
        init: args.init.clone(),
        seed: args.config.seed,
    };
    let config = model_config(args, geometry);
    let model = LadderSam::new(&config, &initial_weights(&config, &sources)?, &args.device)?;
    let optimizer = Optimizer::new(args.config.optimizer, args.config.weight_decay, model.trainable())?;
    let inputs = RunInputs {
        sam_decoder: input_file(&sources.sam_decoder)?,
        cnn_checkpoint: sources.cnn_checkpoint.as_deref().map(input_file).transpose()?,
        init: sources.init.as_deref().map(input_file).transpose()?,
    };
    let cache_id = store.attributes().cache_id.clone();
    let record = RunRecord {
        program: args.program.clone(),
        cache_id: cache_id.clone(),
        store: store.config().clone(),
        image_size: geometry.image_size,
        num_classes: geometry.num_classes,
        config: args.config.clone(),
        inputs,
    };
    std::fs::create_dir_all(&args.run).map_err(io(&args.run))?;
    tidy(&args.run)?;
    let position = Position { cache_id, steps: 0, epoch: 0, batch: 0, epoch_seconds: 0.0 };
    let standing = Standing { model, optimizer, records: Records::new(&args.run), position, channels: geometry.channels };
    if checkpoints.models {
        training_run::write_checkpoint(&args.run, &standing, true)?;
    }
    write_record(&args.run, &record)?;
    Ok(standing)
}

/// Reads back where a run stands, after checking that it is the run asked for.
fn resume_run(args: &TrainArgs, store: &TrainingSplit, geometry: Geometry, checkpoints: Checkpoints) -> Result<Standing> {
    let mut record = read_record(&args.run)?;
    let asked = Asked {
        config: &args.config,
        cache_id: &store.attributes().cache_id,
        store: store.config(),
        cnn_checkpoint: args.cnn_checkpoint.as_deref().map(input_file).transpose()?,
        init: args.init.as_deref().map(input_file).transpose()?,
    };
    check_same_run(&args.run, &record, &asked)?;
    tidy(&args.run)?;
    let path = args.run.join(RESUME_STATE);
    let ResumeState { position, model, optimizer: optimizer_state } = ResumeState::load(&path)?;
    if position.cache_id != record.cache_id {
        let reason = format!("is of another run, its store is {}, expected {}; start anew", position.cache_id, record.cache_id);
        return Err(TrainError::RunDamaged { path, reason });
    }
    let records = Records::resume(&args.run, position.steps, position.epoch)?;
    let model = LadderSam::new(&model_config(args, geometry), &ModelWeights(model), &args.device)?;
    let mut optimizer = Optimizer::new(args.config.optimizer, args.config.weight_decay, model.trainable())?;
    optimizer.load_state(&optimizer_state)?;
    if record.config.max_steps != args.config.max_steps {
        record.config.max_steps = args.config.max_steps;
        write_record(&args.run, &record)?;
    }
    let standing = Standing { model, optimizer, records, position, channels: geometry.channels };
    // A run that was killed between the two files of its checkpoint has a model behind its state, and may have no step left to
    // write another.
    let model = read_info(&args.run.join(CHECKPOINT)).ok().flatten();
    if checkpoints.models
        && model.is_none_or(|info| (info.steps, info.epochs) != (standing.position.steps, standing.position.epoch))
    {
        training_run::write_model(&args.run, &standing)?;
    }
    Ok(standing)
}

/// A start needs a directory of its own: one that is not there, is empty, or holds no more than a start that was interrupted
/// before its `config.json`.
fn refuse_existing(run: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(run) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io(run))?,
    };
    for entry in entries {
        let name = entry.map_err(io(run))?.file_name();
        let name = name.to_string_lossy();
        let begun = [STEPS_TABLE, EPOCHS_TABLE, RESUME_STATE, CHECKPOINT];
        let aside = |of: &&str| is_temporary_of(&name, of);
        if !begun.contains(&&*name) && !begun.iter().any(aside) && !aside(&RUN_CONFIG) {
            return Err(TrainError::RunExists(run.to_path_buf()));
        }
    }
    Ok(())
}
