//! Commands that train several runs with much the same settings: each run in a folder of its own, continued where it was begun.

use super::cache::Cache;
use super::lines::with_lines;
use super::machine::Machine;
use super::progress::Terminal;
use crate::error::Refusal;
use sam_ladder_formats::outputs::is_there;
use sam_ladder_schemas::train::{RUN_CONFIG, TrainConfig};
use sam_ladder_train::TrainError;
use sam_ladder_train::run::{self, RunSummary, TrainArgs};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// What the runs have in common.
pub struct SeveralRuns<'a> {
    /// What they are for, as messages call it: `curve`.
    pub what: &'static str,
    /// Folder of all of them.
    pub out: &'a Path,
    /// Initial weights of the side network.
    pub cnn_checkpoint: Option<&'a Path>,
    /// How training uses the machine.
    pub machine: &'a Machine,
    /// Where copies of a bucket's chunks are kept.
    pub cache: &'a Cache,
}

impl SeveralRuns<'_> {
    /// Trains one run, or continues it where it was begun; a finished one is not trained again.
    ///
    /// # Errors
    /// As [`run::train_until`], with what to do about all the runs.
    pub fn train(&self, store: &Path, run: &Path, config: TrainConfig, stop: &AtomicBool) -> anyhow::Result<RunSummary> {
        let args = TrainArgs {
            config,
            groups: None,
            store: store.into(),
            run: run.into(),
            cnn_checkpoint: self.cnn_checkpoint.map(Path::to_path_buf),
            init: None,
            resume: is_there(&run.join(RUN_CONFIG)),
            device: self.machine.device.open()?,
            read_mode: self.machine.read,
            cache: Some(self.cache.options()),
            device_store: self.machine.device_store,
            cuda_graph: self.machine.cuda_graph,
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
