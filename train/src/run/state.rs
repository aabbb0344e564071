//! A run's state between two steps: all that its checkpoint holds.

use super::checkpoint::{CheckpointInfo, Position, ResumeState, StateTensors, save_model};
use super::ema::Ema;
use super::records::Records;
use crate::error::Result;
use crate::lock::Lock;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use candle_core::Tensor;
use sam_ladder_schemas::train::{CHECKPOINT, RESUME_STATE};
use std::path::Path;

/// State of a run between two steps.
pub(super) struct RunState {
    pub(super) model: LadderSam,
    pub(super) optimizer: Optimizer,
    /// The averaged model and its decay, in a run with `--ema`. The optimizer updates it.
    pub(super) ema: Option<(Ema, f64)>,
    pub(super) records: Records,
    pub(super) position: Position,
    /// Channels of the images, for the checkpoint's metadata.
    pub(super) channels: usize,
    /// SHA-256 of the rungs' projection, for the checkpoint's metadata, if the model has a ladder whose store has one.
    pub(super) rung_projection: Option<String>,
    /// Keeps other processes out of the run folder.
    pub(super) _lock: Lock,
}

impl RunState {
    /// Writes a checkpoint into the run folder: first the tables, then the resume state that relies on them, then the model for the run's users.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn save(&self, folder: &Path, with_model: bool) -> Result<()> {
        self.records.save()?;
        let (model, optimizer) = (self.model.state_dict()?, self.optimizer.state()?);
        let averages = self.ema.as_ref().map_or_else(|| Ok(Vec::new()), |(ema, _)| ema.averages())?;
        let tensors = StateTensors { model: &model, optimizer: &optimizer, averages: &averages };
        ResumeState::save(&folder.join(RESUME_STATE), &self.position, tensors)?;
        if with_model { self.save_model(&folder.join(CHECKPOINT)) } else { Ok(()) }
    }

    /// The model that is scored and that users of the run take: the average, if there is one.
    pub(super) fn users_model(&self) -> &LadderSam {
        self.ema.as_ref().map_or(&self.model, |(ema, _)| ema.model())
    }

    fn users_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        match &self.ema {
            Some((ema, _)) => ema.state_dict(&self.model),
            None => Ok(self.model.state_dict()?),
        }
    }

    /// Writes the model for the run's users.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn save_model(&self, path: &Path) -> Result<()> {
        save_model(path, &self.users_tensors()?, &self.info())
    }

    fn info(&self) -> CheckpointInfo {
        let config = self.model.config();
        CheckpointInfo {
            image_size: config.image_size,
            num_classes: config.num_classes,
            channels: self.channels,
            arm: config.arm,
            side_network: config.side_network,
            gate: config.gate,
            decoder: config.decoder,
            neighbours: u32::from(config.neighbours),
            embed_channels: config.embed_channels,
            ladder: config.ladder,
            rung_projection: self.rung_projection.clone(),
            cache_id: self.position.cache_id.clone(),
            steps: self.position.steps,
            epochs: self.position.epoch,
            val_dice: self.records.epochs.last().and_then(|row| row.val_dice),
            ema: self.ema.as_ref().map(|(_, decay)| *decay),
        }
    }
}
