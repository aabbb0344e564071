//! A training run: from a store and initial weights to a run folder. The loop itself is in `training_loop`.
//!
//! | file | holds |
//! | --- | --- |
//! | `config.json` | every setting, the store's `cache_id`, hashes of the inputs |
//! | `steps.parquet`, `epochs.parquet` | one row per step, one row per epoch |
//! | `checkpoint.safetensors` | the model in the published names, as of the last checkpoint |
//! | `best.safetensors` | the model of the epoch with the highest validation Dice |
//! | `rung_projection.safetensors` | with a ladder, the store's maps from tokens to rungs |
//! | `state.safetensors` | all that `--resume` needs |
//! | `log.txt` | what the training has said, with times |
//! | `.lock` | locked by the process that trains |
//! | `tensorboard/` | the steps' scalars as TensorBoard events |

mod announce;
mod batches;
mod checkpoint;
mod device_items;
mod ema;
mod gpu;
mod hparams;
mod log;
mod open;
mod pending_losses;
mod random;
mod read_ahead;
mod records;
mod resume;
mod sampler;
mod slice_draws;
mod state;
mod step;
mod step_graph;
mod store_parts;
mod tensorboard;
mod tensors;
mod trained_cases;
mod training_loop;
mod training_run;
mod validation;

use announce::announce;
pub(crate) use batches::BatchSource;
pub use checkpoint::{CheckpointInfo, read_info};
pub(crate) use device_items::DeviceItems;
pub use gpu::{CudaGraph, DeviceStore};
pub(crate) use gpu::{records_steps, reserve};
pub(crate) use hparams::{SessionStatus, session_end};
use log::Log;
pub(crate) use open::open_run;
pub(crate) use random::{below, unit};
pub(crate) use resume::{check_same_encoder, check_same_rungs, held_out_case, input_file, whole_path};
pub use resume::{read_projection, read_record};
pub(crate) use sampler::identity_index;
pub use sampler::{Item, Sampler, VariantDraws};
pub use slice_draws::SliceDraws;
pub use step::{StepLosses, StepSettings, start_step, train_step};
pub use step_graph::StepGraph;
pub use store_parts::{check_parts, parts_of};
pub use tensors::{BatchShape, BatchTensors, input_tensors, rung_tensor};
pub(crate) use training_loop::{Control, StepKind, train_group};
pub(crate) use training_run::{Checkpoints, Report, Run};
pub(crate) use validation::check_cases;
pub use validation::{CaseVolume, Hd95, fold_cases, groups_of};

use crate::error::{Result, TrainError};
use crate::groups::Groups;
use candle_core::Device;
use sam_ladder_cache::{CacheOptions, ReadMode, TrainingSplit};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{RUN_LOG, TrainConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What `train` is to do.
#[derive(Debug, Clone)]
pub struct TrainArgs {
    /// The store.
    pub store: PathBuf,
    /// The run folder: a start makes it, a resume continues it.
    pub run: PathBuf,
    /// Settings; on a resume all except `max_steps` must be the run's (see [`read_record`]).
    pub config: TrainConfig,
    /// The patients of the training cases; `None` finds them by [`groups_of`].
    pub groups: Option<Groups>,
    /// ResNet-18 under torchvision's names.
    pub cnn_checkpoint: Option<PathBuf>,
    /// A whole model in the published names.
    pub init: Option<PathBuf>,
    /// Continue the run in `run`.
    pub resume: bool,
    /// The model's device.
    pub device: Device,
    /// Whether the store is read step by step or held in memory.
    pub read_mode: ReadMode,
    /// Where copies of the chunks of a store on S3 are kept; `None` keeps none.
    pub cache: Option<CacheOptions>,
    /// Whether training items are kept in the GPU's memory.
    pub device_store: DeviceStore,
    /// Whether training steps are launched as a CUDA graph.
    pub cuda_graph: CudaGraph,
    /// Steps between checkpoints, in addition to one at each epoch's end.
    pub checkpoint_every: Option<usize>,
    /// Name, version and commit of the program, for `config.json`.
    pub program: String,
    /// Receives progress reports.
    pub observer: Arc<dyn Observer>,
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSummary {
    /// Optimizer steps taken, including those before a resume.
    pub steps: u64,
    /// Whole epochs.
    pub epochs: u32,
    /// The last step's row; `None` without steps.
    pub last: Option<StepRow>,
    /// Highest validation Dice; `None` without validation cases.
    pub best_val_dice: Option<f64>,
    /// Number of the first epoch with it, from 1.
    pub best_epoch: Option<u32>,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Numbers that are trained.
    pub trained_parameters: usize,
    /// With a ladder, the gate of each rung after the last step, in the order of the encoder's blocks.
    pub rung_gates: Vec<f32>,
}

/// `gate 0.513`, or with a ladder `gate 0.513, rungs 0.49 0.51`.
pub fn gates_text(gate: f32, rungs: &[f32]) -> String {
    let rungs: String = rungs.iter().map(|gate| format!(" {gate:.2}")).collect();
    if rungs.is_empty() { format!("gate {gate:.3}") } else { format!("gate {gate:.3}, rungs{rungs}") }
}

/// Starts or resumes a run and trains to its end.
///
/// On the CPU a resumed run ends with the same bits as an uninterrupted one.
///
/// # Errors
/// Names a setting, store, weights file or run directory that does not fit; [`TrainError::Diverged`] for a loss that is not finite; those of
/// the file system. The last checkpoint stays intact in each case.
pub fn train(args: &TrainArgs) -> Result<RunSummary> {
    train_until(args, &AtomicBool::new(false))
}

/// As [`train`], until `stop` is set: then the current step is finished and checkpointed.
///
/// # Errors
/// As [`train`], and [`TrainError::Stopped`].
pub fn train_until(args: &TrainArgs, stop: &AtomicBool) -> Result<RunSummary> {
    if args.checkpoint_every == Some(0) {
        return Err(TrainError::CheckpointEvery);
    }
    let records = records_steps(&args.device, args.cuda_graph)?;
    let store = TrainingSplit::open_with(&args.store, args.cache.as_ref())?;
    let checkpoints = Checkpoints { every_steps: args.checkpoint_every, epochs_after: Duration::ZERO, models: true };
    let run = open_run(args, &store, checkpoints, None)?;
    // The host keeps no second copy of the items in the GPU's memory.
    let parts = parts_of(&args.config);
    let once = store.reader_with(ReadMode::Stream, parts)?;
    let reserved = reserve(&run.setup().config, run.setup().shape.image_size, records);
    let resident = (&args.device, args.device_store, reserved);
    let items = DeviceItems::load(&once, || run.setup().sampler.items(), resident, &*args.observer)?;
    let mut source = BatchSource::new(Arc::new(store.reader_with(args.read_mode, parts)?), &args.device, items)?;
    let file = Log::new(&args.run.join(RUN_LOG), args.observer.clone());
    let log: Arc<dyn Observer> = Arc::new(file.clone());
    announce(&*log, args, &store, &run);
    let mut steps = StepKind::new(records, &log);
    let phase = Phase { done: run.position().steps, ..Phase::new("first step", Unit::Steps, run.last_step()) };
    let mut group = [run.reporting(Report::Steps(log.begin(phase)))];
    train_group(&mut group, &mut source, &mut steps, &Control::new(stop))?;
    let [run] = group;
    let summary = run.summary();
    match &summary {
        Err(error) => file.write(&error.to_string()),
        Ok(RunSummary { stopped_early: true, epochs, .. }) => {
            let patience = counted(args.config.early_stopping, "epoch");
            file.write(&format!("stopped early, after epoch {epochs}: {patience} without a better validation Dice"));
        }
        Ok(_) => {}
    }
    summary
}
