//! `sam-ladder train`.

use super::cache::Cache;
use super::checkpoint_names::note_names;
use super::lines::with_lines;
use super::machine::Machine;
use super::profile::Profile;
use super::progress::{self, Terminal};
use super::typed::Typed;
use super::weights;
use crate::error::refusal;
use crate::interrupt;
use crate::print::print_note;
use sam_ladder_cache::{TrainingSplit, is_remote};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_train::run::{self, TrainArgs, gates_text};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder train --store synapse.zarr --run runs/first \\
      --cnn-checkpoint weights/resnet18-f37072fd.pth
  sam-ladder train --run runs/first --resume
  sam-ladder train --store synapse.zarr --run runs/lower --lr 5e-4 --lambda 0.9 \\
      --val-cases 0005,0006
")]
pub struct Args {
    /// Store to train on: a folder, or s3://bucket/key. With --resume, the run's store unless given
    #[arg(long, value_name = "STORE.zarr", required_unless_present = "resume")]
    store: Option<PathBuf>,
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
    /// The store that was typed, or with `--resume` the run's.
    fn store(&self) -> anyhow::Result<PathBuf> {
        match &self.store {
            Some(store) => Ok(store.clone()),
            None => recorded_store(run::read_record(&self.run)?.store_path, &self.run),
        }
    }

    /// The run's settings: what was typed over the run's own with `--resume`, otherwise over the published ones.
    fn config(&self, store: &Path) -> anyhow::Result<TrainConfig> {
        let record = if self.resume { Some(run::read_record(&self.run)?) } else { None };
        let base = record.as_ref().map_or_else(TrainConfig::default, |record| record.config.clone());
        let mut config = self.settings.over(base)?;
        config.val_cases = each_once("--val-cases", &config.val_cases);
        config.train_cases = each_once("--train-cases", &config.train_cases);
        if let Some(fold) = &self.fold {
            let store = TrainingSplit::open(store)?;
            config.val_cases = run::fold_cases(&store, fold, &run::groups_of(&config, record.as_ref(), &store)?)?;
        }
        Ok(config)
    }

    /// Trains.
    pub fn run(self) -> anyhow::Result<()> {
        let _profile = self.profile.start()?;
        if let Some(path) = self.cnn_checkpoint.as_deref().filter(|_| !self.resume) {
            weights::ensure_there(path, weights::RANDOM_SIDE_NETWORK)?;
        }
        let store = self.store()?;
        let config = self.config(&store)?;
        [&self.cnn_checkpoint, &self.init].into_iter().flatten().for_each(|path| note_names(path));
        let args = TrainArgs {
            config,
            groups: None,
            store,
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
            observer: with_lines(Terminal::new()),
        };
        let stop = interrupt::stop_flag("the step in flight is finished and saved")?;
        let started = Instant::now();
        let summary = run::train_until(&args, &stop)?;
        let time = progress::duration(started.elapsed().as_secs_f64());
        let at = match summary.last {
            Some(row) => format!(", loss {:.4}, {}", row.loss, gates_text(row.gate, &summary.rung_gates)),
            None => String::new(),
        };
        let best = match summary.best_val_dice.zip(summary.best_epoch) {
            Some((dice, epoch)) => format!("; the best epoch is {epoch}, with a validation Dice of {dice:.4}"),
            None => String::new(),
        };
        let patience = counted(args.config.early_stopping, "epoch");
        let early = match summary.stopped_early {
            true => format!("; stopped early, after epoch {}: {patience} without a better one", summary.epochs),
            false => String::new(),
        };
        print_note!("{}{at}{best}{early}, {time}: {}", counted(summary.steps, "step"), self.run.display());
        Ok(())
    }
}

/// The names of an option without the spaces around them; one that is named twice counts once, and a message says so.
fn each_once(option: &str, names: &[String]) -> Vec<String> {
    let mut once: Vec<String> = Vec::with_capacity(names.len());
    for name in names.iter().map(|name| name.trim()) {
        if once.iter().any(|known| known == name) {
            print_note!("{option} names {name} twice: it counts once");
        } else {
            once.push(name.into());
        }
    }
    once
}

/// The store that the record of a run or a sweep in `folder` names.
///
/// # Errors
/// If it names none, or one that is not there any more.
pub fn recorded_store(recorded: Option<PathBuf>, folder: &Path) -> anyhow::Result<PathBuf> {
    let Some(store) = recorded else {
        let message = format!("{} does not record where its store is: an older version started it", folder.display());
        return Err(refusal(message, "pass --store"));
    };
    if !is_remote(&store) && !store.exists() {
        let message = format!("the store of {} was {}, which is not there now", folder.display(), store.display());
        return Err(refusal(message, "pass --store with its new place"));
    }
    Ok(store)
}
