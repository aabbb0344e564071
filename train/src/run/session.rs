//! The loop: from where a run stands to its end.

use crate::error::{Result, TrainError};
use crate::model::LadderSam;
use crate::run::batches::for_each_batch;
use crate::run::checkpoint::{CheckpointInfo, ResumeState, save_model};
use crate::run::sampler::{Item, Sampler};
use crate::run::tensorboard::EventWriter;
use crate::run::trainer::{Geometry, StepSettings, batch_tensors, train_step};
use crate::run::validation::Validation;
use crate::run::{RunSummary, Standing, TrainArgs};
use crate::schedule::learning_rate;
use candle_core::{DType, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use sam_ladder_cache::{Batch, Reader};
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EVENTS_DIR, RESUME_STATE};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What does not change while a run goes on.
#[derive(Clone, Copy)]
pub(super) struct SessionPlan<'a> {
    pub(super) args: &'a TrainArgs,
    pub(super) geometry: Geometry,
    pub(super) sampler: &'a Sampler,
    pub(super) reader: &'a Reader,
    pub(super) validation: Option<&'a Validation<'a>>,
    /// Set from outside: stop after the step in flight.
    pub(super) stop: &'a AtomicBool,
}

/// A run that goes on.
pub(super) struct Session<'a> {
    plan: SessionPlan<'a>,
    standing: Standing,
    events: EventWriter,
    bar: ProgressBar,
    /// Batches of an epoch.
    epoch_batches: usize,
    /// Steps after which the run ends.
    last_step: u64,
    /// Steps behind the checkpoint on disk.
    checkpoint_step: u64,
    /// Since when `standing.position.epoch_seconds` misses time.
    clock: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(plan: SessionPlan<'a>, standing: Standing) -> Result<Self> {
        let config = &plan.args.config;
        let epoch_batches = plan.sampler.slices().div_ceil(config.batch_size);
        let all_steps = (config.epochs * epoch_batches) as u64;
        let last_step = config.max_steps.map_or(all_steps, |max| all_steps.min(max as u64));
        let events = EventWriter::create(&plan.args.run.join(EVENTS_DIR), standing.position.steps + 1)?;
        let bar = if plan.args.progress { progress_bar(last_step, standing.position.steps) } else { ProgressBar::hidden() };
        let checkpoint_step = standing.position.steps;
        Ok(Session { plan, standing, events, bar, epoch_batches, last_step, checkpoint_step, clock: Instant::now() })
    }

    /// Trains to the end of the run.
    pub(super) fn run(mut self) -> Result<RunSummary> {
        while self.standing.position.steps < self.last_step && !self.stopping() {
            self.epoch()?;
        }
        if self.checkpoint_step < self.standing.position.steps {
            self.checkpoint()?;
        }
        self.events.flush()?;
        if self.standing.position.steps < self.last_step {
            self.bar.abandon();
            let run = self.plan.args.run.clone();
            return Err(TrainError::Stopped { run, steps: self.standing.position.steps });
        }
        self.bar.finish();
        let records = &self.standing.records;
        Ok(RunSummary {
            steps: self.standing.position.steps,
            epochs: self.standing.position.epoch,
            last: records.steps.last().copied(),
            best_val_dice: records.best_val_dice(),
        })
    }

    /// The rest of the epoch under way, or of the run if that ends sooner.
    fn epoch(&mut self) -> Result<()> {
        self.clock = Instant::now();
        let items = self.plan.sampler.epoch(self.standing.position.epoch);
        let batches: Vec<&[Item]> = items.chunks(self.plan.args.config.batch_size).collect();
        let first = self.standing.position.batch.min(batches.len());
        let left = (self.last_step - self.standing.position.steps) as usize;
        let batches = &batches[first..batches.len().min(first + left)];
        for_each_batch(self.plan.reader, batches, |_, items, batch| {
            self.step(items, batch)?;
            Ok(if self.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if self.standing.position.batch == self.epoch_batches {
            self.end_epoch()?;
        }
        Ok(())
    }

    fn stopping(&self) -> bool {
        self.plan.stop.load(Ordering::Relaxed)
    }

    fn step(&mut self, items: &[Item], batch: &Batch) -> Result<()> {
        let config = &self.plan.args.config;
        let standing = &mut self.standing;
        let step = standing.position.steps;
        let max_iterations = config.epochs * self.epoch_batches;
        let lr = learning_rate(step as usize, config.lr, config.warmup, max_iterations);
        let tensors = batch_tensors(batch, items.len(), self.plan.geometry, &self.plan.args.device)?;
        let losses = train_step(&standing.model, &mut standing.optimizer, &tensors, StepSettings { lambda: config.lambda, lr })?;
        if let Some((what, value)) = losses.not_finite() {
            return Err(self.diverged(what.into(), value, lr));
        }
        let row = StepRow {
            step,
            epoch: standing.position.epoch,
            lr,
            loss: losses.total,
            ce: losses.ce,
            dice: losses.dice,
            alpha: standing.model.alpha()?,
            gate: standing.model.gate()?,
        };
        standing.records.steps.push(row);
        standing.position.steps += 1;
        standing.position.batch += 1;
        self.report(&row)?;
        let due = self.plan.args.checkpoint_every.is_some_and(|every| self.standing.position.steps.is_multiple_of(every as u64));
        // The end of an epoch brings a checkpoint of its own.
        if due && self.standing.position.batch < self.epoch_batches {
            self.checkpoint()?;
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
        let epochs = self.plan.args.config.epochs;
        self.bar.set_message(format!(
            "epoch {}/{epochs}  loss {:.4}  dice {:.4}  gate {:.4}",
            row.epoch + 1,
            row.loss,
            1.0 - row.dice,
            row.gate
        ));
        self.bar.inc(1);
        Ok(())
    }

    fn end_epoch(&mut self) -> Result<()> {
        let plan = self.plan;
        let val_dice = match plan.validation {
            Some(validation) => validation.score(&self.standing.model, plan.reader, plan.geometry, &plan.args.device)?,
            None => None,
        };
        self.tick();
        let standing = &mut self.standing;
        let best_before = standing.records.best_val_dice();
        let row = standing.records.close_epoch(standing.position.epoch, val_dice, standing.position.epoch_seconds);
        standing.position.epoch += 1;
        standing.position.batch = 0;
        standing.position.epoch_seconds = 0.0;
        if let Some(value) = row.val_dice {
            self.events.scalar("info/val_dice", row.steps, value as f32)?;
            if best_before.is_none_or(|best| value > best) {
                self.refuse_bad_weights()?;
                save_model(&plan.args.run.join(BEST_CHECKPOINT), &self.standing.model.state_dict()?, &info(&self.standing))?;
            }
        }
        self.checkpoint()
    }

    /// Adds the time since the last call to the epoch's.
    fn tick(&mut self) {
        self.standing.position.epoch_seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.refuse_bad_weights()?;
        if self.standing.position.batch > 0 {
            self.tick();
        }
        self.events.flush()?;
        write_checkpoint(&self.plan.args.run, &self.standing)?;
        self.checkpoint_step = self.standing.position.steps;
        Ok(())
    }

    /// A weight or running statistic that is not finite must not replace a good checkpoint.
    fn refuse_bad_weights(&self) -> Result<()> {
        for (name, tensor) in self.standing.model.state_dict()?.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            let sum: f32 = tensor.abs()?.sum_all()?.to_scalar()?;
            if !sum.is_finite() {
                let last = self.standing.records.steps.last();
                let lr = last.map_or(f64::NAN, |row| row.lr);
                return Err(self.diverged(format!("the sum over |{name}|"), sum, lr));
            }
        }
        Ok(())
    }

    fn diverged(&self, what: String, value: f32, lr: f64) -> TrainError {
        // The rows show how it came to it; resuming drops those beyond the checkpoint.
        if let Err(error) = self.standing.records.save() {
            return error;
        }
        TrainError::Diverged {
            step: self.standing.position.steps,
            what,
            value,
            lr,
            checkpoint_step: self.checkpoint_step,
            checkpoint: self.plan.args.run.join(CHECKPOINT),
        }
    }
}

/// Tables first, then the resume state that counts on them, then the model for readers of the run.
pub(super) fn write_checkpoint(run: &Path, standing: &Standing) -> Result<()> {
    standing.records.save()?;
    let model: Vec<(String, Tensor)> = standing.model.state_dict()?;
    ResumeState::save(&run.join(RESUME_STATE), &standing.position, &model, &standing.optimizer.state()?)?;
    save_model(&run.join(CHECKPOINT), &model, &info(standing))
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
        cache_id: standing.position.cache_id.clone(),
        steps: standing.position.steps,
        epochs: standing.position.epoch,
        val_dice: standing.records.epochs.last().and_then(|row| row.val_dice),
    }
}

/// Drawn on stderr, and only where that is a terminal.
fn progress_bar(last_step: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(last_step).with_position(done);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta_precise} left") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}
