//! `sam-ladder train`.

use super::cache::Cache;
use super::checkpoint_names::note_prefix;
use super::machine::Machine;
use super::profile::Profile;
use super::progress::Terminal;
use super::typed::Typed;
use crate::interrupt;
use crate::print::print_note;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_train::run::{self, TrainArgs};
use std::path::PathBuf;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder train --store synapse.zarr --run runs/first \\
      --cnn-checkpoint weights/resnet18-f37072fd.pth
  sam-ladder train --store synapse.zarr --run runs/first --resume
  sam-ladder train --store synapse.zarr --run runs/lower --lr 5e-4 --lambda 0.9 \\
      --val-cases 0005,0006
")]
pub struct Args {
    /// Store to train on: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Run folder: a new one, or with --resume the one to continue
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Continue the run in --run from its last checkpoint. It keeps its own settings; a different value is refused, except for --max-steps
    #[arg(long)]
    resume: bool,
    /// Initial weights of the side network, as torchvision or timm publish them, .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    cnn_checkpoint: Option<PathBuf>,
    /// Initial weights of the whole model, in the published code's names
    #[arg(long, value_name = "FILE", conflicts_with = "cnn_checkpoint")]
    init: Option<PathBuf>,
    #[command(flatten)]
    settings: Typed<TrainConfig>,
    /// Hold out one fold of the training cases for validation, instead of naming cases: the I-th of N
    #[arg(long, value_name = "I/N", conflicts_with = "val_cases")]
    fold: Option<String>,
    /// Write a checkpoint every STEPS steps, in addition to the one at the end of each epoch
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<usize>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    cache: Cache,
    #[command(flatten)]
    profile: Profile,
}

impl Args {
    /// The run's settings: what was typed over the run's own with `--resume`, otherwise over the published ones.
    fn config(&self) -> anyhow::Result<TrainConfig> {
        let base = if self.resume { run::read_record(&self.run)?.config } else { TrainConfig::default() };
        let mut config = self.settings.over(base)?;
        if let Some(fold) = &self.fold {
            config.val_cases = run::fold_cases(&TrainingSplit::open(&self.store)?, fold)?;
        }
        Ok(config)
    }

    /// Trains.
    pub fn run(self) -> anyhow::Result<()> {
        let _profile = self.profile.start()?;
        let config = self.config()?;
        [&self.cnn_checkpoint, &self.init].into_iter().flatten().for_each(|path| note_prefix(path));
        let args = TrainArgs {
            config,
            store: self.store,
            run: self.run.clone(),
            cnn_checkpoint: self.cnn_checkpoint,
            init: self.init,
            resume: self.resume,
            device: self.machine.device.open()?,
            read_mode: self.machine.read,
            cache: Some(self.cache.options()),
            device_store: self.machine.device_store,
            cuda_graph: self.machine.cuda_graph,
            checkpoint_every: self.checkpoint_every,
            program: super::program(),
            observer: Terminal::new(),
        };
        let stop = interrupt::stop_flag("the step in flight is finished and saved")?;
        let summary = run::train_until(&args, &stop)?;
        let at = match summary.last {
            Some(row) => format!(", loss {:.4}, gate {:.3}", row.loss, row.gate),
            None => String::new(),
        };
        print_note!("{} steps{at}: {}", summary.steps, self.run.display());
        Ok(())
    }
}
