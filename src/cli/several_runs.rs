//! Commands that train several runs with much the same settings: each run in a folder of its own, continued where it was begun.

use super::cache::Cache;
use super::lines::with_lines;
use super::machine::Machine;
use super::progress::Terminal;
use super::typed::Typed;
use crate::error::Refusal;
use sam_ladder_formats::outputs::is_there;
use sam_ladder_schemas::train::{RUN_CONFIG, TrainConfig};
use sam_ladder_train::TrainError;
use sam_ladder_train::run::{self, RunSummary, TrainArgs};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Arguments of such a command: what its runs begin with, and how they use the machine.
#[derive(Debug, clap::Args)]
pub struct OfRuns {
    /// Initial weights of the side network, as torchvision or timm publish them, .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    pub cnn_checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub settings: Typed<TrainConfig>,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub cache: Cache,
}

/// What the runs have in common.
pub struct SeveralRuns<'a> {
    /// What they are for, as messages call it: `curve`.
    pub what: &'static str,
    /// Folder of all of them.
    pub out: &'a Path,
    /// The command's arguments.
    pub args: &'a OfRuns,
}

impl SeveralRuns<'_> {
    /// Trains one run, or continues it where it was begun; a finished one is not trained again.
    ///
    /// # Errors
    /// As [`run::train_until`], with what to do about all the runs.
    pub fn train(&self, store: &Path, run: &Path, config: TrainConfig, stop: &AtomicBool) -> anyhow::Result<RunSummary> {
        let OfRuns { cnn_checkpoint, machine, cache, .. } = self.args;
        let args = TrainArgs {
            config,
            groups: None,
            store: store.into(),
            run: run.into(),
            cnn_checkpoint: cnn_checkpoint.clone(),
            init: None,
            resume: is_there(&run.join(RUN_CONFIG)),
            device: machine.device.open()?,
            read_mode: machine.read,
            cache: Some(cache.options()),
            device_store: machine.device_store,
            cuda_graph: machine.cuda_graph,
            checkpoint_every: None,
            program: super::program(),
            observer: with_lines(Terminal::new()),
        };
        run::train_until(&args, stop).map_err(|error| self.of_all(error))
    }

    /// An error of one run, with what to do about all of them.
    fn of_all(&self, error: TrainError) -> anyhow::Error {
        let hint = match &error {
            TrainError::Stopped { .. } => format!("the same command continues the {}", self.what),
            TrainError::ResumeMismatch { .. } => {
                format!("repeat the command that began {} with all its settings, or choose another --out", self.out.display())
            }
            _ => return error.into(),
        };
        let message = error.to_string();
        anyhow::Error::from(error).context(Refusal { message, hint })
    }
}
