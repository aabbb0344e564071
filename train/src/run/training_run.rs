//! A run that is trained: it is handed batches from outside, and keeps its records and checkpoints itself.

use crate::error::{Result, TrainError};
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use crate::run::Standing;
use crate::run::batches::for_each_batch;
use crate::run::checkpoint::{CheckpointInfo, Position, ResumeState, save_model};
use crate::run::hparams::session_start;
use crate::run::records::Records;
use crate::run::sampler::{Item, Sampler};
use crate::run::tensorboard::EventWriter;
use crate::run::step::{BatchTensors, Geometry, StepNumbers, StepSettings, batch_tensors, start_step};
use crate::run::pending_losses::{ReadStep, Taken, Unread};
use crate::run::validation::{Hd95, Scores, Validation, ValidationPass};
use crate::schedule::learning_rate;
use candle_core::{DType, Device, Tensor};
use sam_ladder_cache::Reader;
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EVENTS_DIR, RESUME_STATE, TrainConfig};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a run writes, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoints {
    /// A state every this many steps.
    pub(crate) every_steps: Option<usize>,
    /// A state at the end of an epoch, where the last one is at least this old.
    pub(crate) epochs_after: Duration,
    /// With each state the model for readers of the run, and the best model by validation.
    pub(crate) models: bool,
}

/// What does not change while a run goes on.
pub(crate) struct RunPlan {
    /// The run directory.
    pub(crate) run: PathBuf,
    pub(crate) config: TrainConfig,
    pub(crate) device: Device,
    pub(crate) geometry: Geometry,
    pub(crate) sampler: Sampler,
    pub(crate) validation: Option<Validation>,
    pub(crate) hd95: Option<Hd95>,
    pub(crate) checkpoints: Checkpoints,
}

/// A run that goes on.
pub(crate) struct Trainee {
    plan: RunPlan,
    standing: Standing,
    events: EventWriter,
    /// Batches of an epoch.
    epoch_batches: usize,
    /// Steps after which the run ends.
    last_step: u64,
    /// Steps behind the checkpoint on disk.
    checkpoint_step: u64,
    /// When that was written.
    checkpoint_time: Instant,
    /// Since when `standing.position.epoch_seconds` misses time.
    clock: Instant,
    /// Runs that have the machine's time together.
    beside: usize,
    /// Steps taken whose numbers are not recorded yet.
    unread: Unread,
}

impl Trainee {
    pub(super) fn new(plan: RunPlan, standing: Standing) -> Result<Self> {
        let config = &plan.config;
        let epoch_batches = plan.sampler.slices().div_ceil(config.batch_size);
        let all_steps = (config.epochs * epoch_batches) as u64;
        let last_step = config.max_steps.map_or(all_steps, |max| all_steps.min(max as u64));
        let events = EventWriter::create(&plan.run.join(EVENTS_DIR), standing.position.steps + 1)?;
        let checkpoint_step = standing.position.steps;
        let now = Instant::now();
        Ok(Trainee {
            plan,
            standing,
            events,
            epoch_batches,
            last_step,
            checkpoint_step,
            checkpoint_time: now,
            clock: now,
            beside: 1,
            unread: Unread::default(),
        })
    }

    /// Tells TensorBoard the settings of a run that starts; runs of one group are shown as one.
    pub(crate) fn tell_settings(&mut self, settings: &serde_json::Map<String, serde_json::Value>, group: &str) -> Result<()> {
        session_start(&mut self.events, settings, group)
    }

    pub(crate) fn plan(&self) -> &RunPlan {
        &self.plan
    }

    pub(crate) fn position(&self) -> &Position {
        &self.standing.position
    }

    pub(crate) fn records(&self) -> &Records {
        &self.standing.records
    }

    /// Steps after which the run ends.
    pub(crate) fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Whether no step is left.
    pub(crate) fn is_done(&self) -> bool {
        self.standing.position.steps >= self.last_step
    }

    /// What the epoch under way sees, from its first step.
    pub(crate) fn epoch_items(&self) -> Vec<Item> {
        self.plan.sampler.epoch(self.standing.position.epoch)
    }

    /// The batches of [`Self::epoch_items`] that are still to come.
    pub(crate) fn batches_left<'i>(&self, items: &'i [Item]) -> Vec<&'i [Item]> {
        let position = &self.standing.position;
        let left = (self.last_step - position.steps) as usize;
        items.chunks(self.plan.config.batch_size).skip(position.batch).take(left).collect()
    }

    /// Time counts from now on, and is divided by the runs that have the machine together.
    pub(crate) fn start_clock(&mut self, beside: usize) {
        self.clock = Instant::now();
        self.beside = beside.max(1);
    }

    /// The next step, on the next of [`Self::batches_left`]; on a GPU without waiting for it. The step's row, and what there is to say of a loss that
    /// is not finite, may come some steps later.
    ///
    /// # Errors
    /// [`TrainError::Diverged`]; those of the tensor operations and of the file system.
    pub(crate) fn step(&mut self, tensors: &BatchTensors) -> Result<()> {
        self.step_by(tensors, start_step)
    }

    /// As [`Self::step`], by something that does what [`start_step`] does.
    pub(super) fn step_by(
        &mut self,
        tensors: &BatchTensors,
        take: impl FnOnce(&LadderSam, &mut Optimizer, &BatchTensors, StepSettings) -> Result<StepNumbers>,
    ) -> Result<()> {
        let config = &self.plan.config;
        let standing = &mut self.standing;
        let step = standing.position.steps;
        let max_iterations = config.epochs * self.epoch_batches;
        let lr = learning_rate(step as usize, config.lr, config.warmup, max_iterations);
        let settings = StepSettings { lambda: config.lambda, lr };
        let numbers = take(&standing.model, &mut standing.optimizer, tensors, settings)?;
        self.unread.push(Taken { step, epoch: standing.position.epoch, lr }, numbers, &standing.model)?;
        standing.position.steps += 1;
        standing.position.batch += 1;
        if self.unread.is_due() {
            self.settle()?;
        }
        let due =
            self.plan.checkpoints.every_steps.is_some_and(|every| self.standing.position.steps.is_multiple_of(every as u64));
        // The end of an epoch brings a checkpoint of its own.
        if due && self.standing.position.batch < self.epoch_batches {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Records the steps that were taken since the last call. On a GPU this waits for it.
    fn settle(&mut self) -> Result<()> {
        let arm = self.standing.model.config().arm;
        for ReadStep { taken: Taken { step, epoch, lr }, losses, alpha, gate } in self.unread.read(arm)? {
            if let Some((what, value)) = losses.not_finite() {
                return Err(self.diverged(step, what.into(), value, lr));
            }
            let row = StepRow { step, epoch, lr, loss: losses.total, ce: losses.ce, dice: losses.dice, alpha, gate };
            self.standing.records.steps.push(row);
            self.report(&row)?;
        }
        Ok(())
    }

    /// A step's scalars under the published code's tags, numbered from 1 as there, and the gate beside them.
    fn report(&mut self, row: &StepRow) -> Result<()> {
        let scalars = [
            ("info/lr", row.lr as f32),
            ("info/total_loss", row.loss),
            ("info/loss_ce", row.ce),
            ("info/loss_dice", row.dice),
            ("info/gate", row.gate),
        ];
        for (tag, value) in scalars {
            self.events.scalar(tag, row.step + 1, value)?;
        }
        Ok(())
    }

    /// Whether the last step of the epoch under way is done: it is to be validated and closed.
    pub(crate) fn epoch_is_whole(&self) -> bool {
        self.standing.position.batch >= self.epoch_batches
    }

    /// Scores the model on the validation cases, where there are some.
    ///
    /// # Errors
    /// Those of reading the slices and of the tensor operations.
    pub(crate) fn validate(&self, reader: &Reader) -> Result<Scores> {
        let Some(validation) = &self.plan.validation else { return Ok(Scores::default()) };
        let mut pass = self.validation_pass(validation);
        for_each_batch(reader, &validation.batches(), |_, items, batch| {
            let tensors = batch_tensors(batch, items.len(), self.plan.geometry, &self.plan.device)?;
            pass.add(&self.standing.model, &tensors, &batch.labels)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(pass.scores())
    }

    /// A validation whose batches come from outside; see [`Self::score`].
    pub(crate) fn validation_pass<'v>(&self, validation: &'v Validation) -> ValidationPass<'v> {
        validation.pass(self.plan.geometry, self.plan.hd95.clone())
    }

    /// Adds the next of [`Validation::batches`] to a validation.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn score(&self, pass: &mut ValidationPass<'_>, tensors: &BatchTensors, labels: &[u8]) -> Result<()> {
        pass.add(&self.standing.model, tensors, labels)
    }

    /// Closes the epoch whose last step is done, and writes what is due.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub(crate) fn close_epoch(&mut self, scores: Scores) -> Result<EpochRow> {
        self.settle()?;
        self.tick();
        let standing = &mut self.standing;
        let best_before = standing.records.best_val_dice();
        let row = standing.records.close_epoch(standing.position.epoch, scores, standing.position.epoch_seconds);
        standing.position.epoch += 1;
        standing.position.batch = 0;
        standing.position.epoch_seconds = 0.0;
        if let Some(value) = row.val_hd95 {
            self.events.scalar("info/val_hd95", row.steps, value as f32)?;
        }
        if let Some(value) = row.val_dice {
            self.events.scalar("info/val_dice", row.steps, value as f32)?;
            if self.plan.checkpoints.models && best_before.is_none_or(|best| value > best) {
                self.refuse_bad_weights()?;
                let path = self.plan.run.join(BEST_CHECKPOINT);
                save_model(&path, &self.standing.model.state_dict()?, &info(&self.standing))?;
            }
        }
        if self.checkpoint_time.elapsed() >= self.plan.checkpoints.epochs_after {
            self.checkpoint()?;
        }
        Ok(row)
    }

    /// Adds the time since the last call to the epoch's.
    fn tick(&mut self) {
        self.standing.position.epoch_seconds += self.clock.elapsed().as_secs_f64() / self.beside as f64;
        self.clock = Instant::now();
    }

    /// Writes a checkpoint, unless the one on disk has the last step already.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub(crate) fn save(&mut self) -> Result<()> {
        if self.checkpoint_step < self.standing.position.steps {
            self.checkpoint()?;
        }
        self.events.flush()
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.settle()?;
        self.refuse_bad_weights()?;
        if self.standing.position.batch > 0 {
            self.tick();
        }
        self.events.flush()?;
        write_checkpoint(&self.plan.run, &self.standing, self.plan.checkpoints.models)?;
        self.checkpoint_step = self.standing.position.steps;
        self.checkpoint_time = Instant::now();
        Ok(())
    }

    /// A weight or running statistic that is not finite must not replace a good checkpoint.
    fn refuse_bad_weights(&self) -> Result<()> {
        for (name, tensor) in self.standing.model.state_dict()?.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            let sum: f32 = tensor.abs()?.sum_all()?.to_scalar()?;
            if !sum.is_finite() {
                let last = self.standing.records.steps.last();
                let lr = last.map_or(f64::NAN, |row| row.lr);
                return Err(self.diverged(self.standing.position.steps, format!("the sum over |{name}|"), sum, lr));
            }
        }
        Ok(())
    }

    fn diverged(&self, step: u64, what: String, value: f32, lr: f64) -> TrainError {
        // The rows show how it came to it; resuming drops those beyond the checkpoint.
        if let Err(error) = self.standing.records.save() {
            return error;
        }
        TrainError::Diverged {
            step,
            what,
            value,
            lr,
            checkpoint_step: self.checkpoint_step,
            checkpoint: self.plan.run.join(CHECKPOINT),
        }
    }
}

/// Tables first, then the resume state that counts on them, then the model for readers of the run.
pub(super) fn write_checkpoint(run: &Path, standing: &Standing, with_model: bool) -> Result<()> {
    standing.records.save()?;
    let model: Vec<(String, Tensor)> = standing.model.state_dict()?;
    ResumeState::save(&run.join(RESUME_STATE), &standing.position, &model, &standing.optimizer.state()?)?;
    if with_model {
        save_model(&run.join(CHECKPOINT), &model, &info(standing))?;
    }
    Ok(())
}

/// The model for readers of the run.
pub(super) fn write_model(run: &Path, standing: &Standing) -> Result<()> {
    save_model(&run.join(CHECKPOINT), &standing.model.state_dict()?, &info(standing))
}

fn info(standing: &Standing) -> CheckpointInfo {
    let model: &LadderSam = &standing.model;
    CheckpointInfo {
        image_size: model.config().image_size,
        num_classes: model.config().num_classes,
        channels: standing.channels,
        arm: model.config().arm,
        side_network: model.config().side_network,
        gate: model.config().gate,
        cache_id: standing.position.cache_id.clone(),
        steps: standing.position.steps,
        epochs: standing.position.epoch,
        val_dice: standing.records.epochs.last().and_then(|row| row.val_dice),
    }
}
