//! A run's state between two steps: all that its checkpoint holds.

use super::checkpoint::{CheckpointInfo, Position, ResumeState, save_model};
use super::records::Records;
use crate::error::Result;
use crate::lock::Lock;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use sam_ladder_schemas::train::{CHECKPOINT, RESUME_STATE};
use std::path::Path;

/// State of a run between two steps.
pub(super) struct RunState {
    pub(super) model: LadderSam,
    pub(super) optimizer: Optimizer,
    pub(super) records: Records,
    pub(super) position: Position,
    /// Channels of the images, for the checkpoint's metadata.
    pub(super) channels: usize,
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
        let model = self.model.state_dict()?;
        ResumeState::save(&folder.join(RESUME_STATE), &self.position, &model, &self.optimizer.state()?)?;
        if with_model {
            save_model(&folder.join(CHECKPOINT), &model, &self.info())?;
        }
        Ok(())
    }

    /// Writes the model for the run's users.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn save_model(&self, path: &Path) -> Result<()> {
        save_model(path, &self.model.state_dict()?, &self.info())
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
            cache_id: self.position.cache_id.clone(),
            steps: self.position.steps,
            epochs: self.position.epoch,
            val_dice: self.records.epochs.last().and_then(|row| row.val_dice),
        }
    }
}
