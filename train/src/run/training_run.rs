//! A run in training: it receives batches, and keeps its records and checkpoints itself.

use super::checkpoint::Position;
use super::hparams::session_start;
use super::pending_losses::{PendingLosses, RecordedStep, TakenStep};
use super::resume::note_early_stop;
use super::sampler::{Item, Sampler};
use super::state::RunState;
use super::step::{StepLosses, StepSettings};
use super::tensorboard::EventWriter;
use super::tensors::{BatchShape, BatchTensors};
use super::validation::{Hd95, HeldOutSlices, Scores, ValidationPass};
use super::{RunSummary, gates_text};
use crate::error::{Result, TrainError, guarded};
use crate::loss::LadderLoss;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use crate::schedule::scheduled_rate;
use candle_core::{DType, Tensor};
use sam_ladder_schemas::observer::Progress;
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EVENTS_DIR, TrainConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When a run writes checkpoints, and which files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoints {
    /// Steps between states.
    pub(crate) every_steps: Option<usize>,
    /// A state is written at the end of an epoch if the last one is at least this old.
    pub(crate) epochs_after: Duration,
    /// Whether to write, with each state, the model for the run's users, and the best model by validation.
    pub(crate) models: bool,
}

/// The part of a run that training does not change.
pub(crate) struct RunSetup {
    /// The run folder.
    pub(crate) folder: PathBuf,
    pub(crate) config: TrainConfig,
    pub(crate) shape: BatchShape,
    /// The cases that are trained on.
    pub(crate) trained_cases: Vec<String>,
    pub(crate) sampler: Sampler,
    pub(crate) loss: LadderLoss,
    pub(crate) validation: Option<Arc<HeldOutSlices>>,
    pub(crate) hd95: Option<Hd95>,
    pub(crate) checkpoints: Checkpoints,
}

/// How a run reports its progress.
pub(crate) enum Report {
    /// Not at all.
    Nothing,
    /// Each step, with its losses.
    Steps(Box<dyn Progress>),
    /// Each epoch, with its scores.
    Epochs(Arc<dyn Progress>),
}

/// A run in training.
pub(crate) struct Run {
    setup: RunSetup,
    state: RunState,
    events: EventWriter,
    report: Report,
    /// Batches per epoch.
    epoch_batches: usize,
    /// Steps after which the run ends.
    last_step: u64,
    /// Epochs after which it pauses.
    until: u32,
    /// Steps of the checkpoint on disk.
    checkpoint_step: u64,
    /// When that checkpoint was written.
    checkpoint_time: Instant,
    /// Up to when `state.position.epoch_seconds` counts time.
    clock: Instant,
    /// Number of runs that share the machine's time.
    sharing: usize,
    /// Steps whose losses are not recorded yet.
    pending: PendingLosses,
    /// The current validation.
    scoring: Option<ValidationPass>,
    /// Why it ended early.
    error: Option<TrainError>,
}

impl Run {
    pub(super) fn new(setup: RunSetup, state: RunState) -> Result<Self> {
        let config = &setup.config;
        let epoch_batches = setup.sampler.slices().div_ceil(config.batch_size);
        let all_steps = (config.epochs * epoch_batches) as u64;
        let last_step = config.max_steps.map_or(all_steps, |max| all_steps.min(max as u64));
        let events = EventWriter::create(&setup.folder.join(EVENTS_DIR), state.position.steps + 1)?;
        let now = Instant::now();
        Ok(Run {
            checkpoint_step: state.position.steps,
            setup,
            state,
            events,
            report: Report::Nothing,
            epoch_batches,
            last_step,
            until: u32::MAX,
            checkpoint_time: now,
            clock: now,
            sharing: 1,
            pending: PendingLosses::default(),
            scoring: None,
            error: None,
        })
    }

    /// The same run, with progress reports.
    pub(crate) fn reporting(self, report: Report) -> Self {
        Run { report, ..self }
    }

    /// The same run, which pauses after `until` epochs.
    pub(crate) fn until(self, until: u32) -> Self {
        Run { until, ..self }
    }

    /// Writes the settings of a new run to its TensorBoard events; runs of one group are shown as one.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(crate) fn write_settings(&mut self, settings: &serde_json::Map<String, serde_json::Value>, group: &str) -> Result<()> {
        session_start(&mut self.events, settings, group)
    }

    pub(crate) fn setup(&self) -> &RunSetup {
        &self.setup
    }

    pub(crate) fn position(&self) -> &Position {
        &self.state.position
    }

    /// Steps after which the run ends.
    pub(crate) fn last_step(&self) -> u64 {
        self.last_step
    }

    /// The run's result.
    ///
    /// # Errors
    /// The error that ended it early; [`TrainError::Stopped`].
    pub(super) fn summary(self) -> Result<RunSummary> {
        let (is_finished, records, position) = (self.is_finished(), &self.state.records, &self.state.position);
        let summary = RunSummary {
            steps: position.steps,
            epochs: position.epoch,
            last: records.steps.last().copied(),
            best_val_dice: records.best_val_dice(),
            best_epoch: records.best_epoch(),
            stopped_early: self.stopped_early(),
            trained_parameters: self.state.model.trainable().iter().map(|(_, var)| var.elem_count()).sum(),
            rung_gates: records.last_rung_gates(),
        };
        match self.error {
            Some(error) => Err(error),
            None if is_finished => Ok(summary),
            None => Err(TrainError::Stopped { run: self.setup.folder, steps: summary.steps }),
        }
    }

    /// Why it ended early.
    pub(crate) fn take_error(&mut self) -> Option<TrainError> {
        self.error.take()
    }

    /// Whether it has reached its last step, or the epoch at which it pauses, and all its epochs are closed.
    pub(crate) fn is_finished(&self) -> bool {
        let Position { steps, epoch, .. } = self.state.position;
        !self.epoch_is_whole() && (steps >= self.last_step || epoch >= self.until || self.stopped_early())
    }

    /// Whether early stopping has ended it before its last step. That follows from the recorded epochs, so a resumed run ends at the same one.
    pub(crate) fn stopped_early(&self) -> bool {
        let patience = self.setup.config.early_stopping as usize;
        let is_over = patience > 0 && self.state.records.epochs_without_better() >= patience;
        is_over && self.state.position.batch == 0 && self.state.position.steps < self.last_step
    }

    /// Whether it is neither finished nor failed.
    pub(crate) fn is_under_way(&self) -> bool {
        self.error.is_none() && !self.is_finished()
    }

    /// Does a part of the run's work. An error or a panic ends only this run.
    pub(crate) fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if self.error.is_none() {
            self.error = guarded(|| work(self)).err();
        }
    }

    /// The remaining batches of the current epoch.
    pub(crate) fn batches_left(&self) -> Vec<Vec<Item>> {
        let position = &self.state.position;
        let left = (self.last_step - position.steps) as usize;
        let items = self.setup.sampler.epoch(position.epoch);
        items.chunks(self.setup.config.batch_size).skip(position.batch).take(left).map(<[Item]>::to_vec).collect()
    }

    /// The batches for validation, once the epoch's last step is done.
    pub(crate) fn validation_batches(&self) -> Vec<Vec<Item>> {
        let validation = self.setup.validation.as_ref().filter(|_| self.epoch_is_whole());
        validation.map_or(Vec::new(), |validation| validation.batches())
    }

    /// Starts counting time, which is divided by the number of runs that share the machine.
    pub(crate) fn start_clock(&mut self, sharing: usize) {
        self.clock = Instant::now();
        self.sharing = sharing.max(1);
    }

    /// Takes the next step by `take`, on the next of [`Self::batches_left`]; does not wait for a GPU. The step's row, or the error for a loss
    /// that is not finite, may come some steps later.
    ///
    /// # Errors
    /// [`TrainError::Diverged`]; those of the tensor operations and of the file system.
    pub(crate) fn step(
        &mut self,
        batch: &BatchTensors,
        take: impl FnOnce(&LadderSam, &mut Optimizer, &BatchTensors, StepSettings<'_>) -> Result<Tensor>,
    ) -> Result<()> {
        let config = &self.setup.config;
        let state = &mut self.state;
        let step = state.position.steps;
        let all_steps = config.epochs * self.epoch_batches;
        let lr = scheduled_rate(config.lr_schedule, step as usize, config.lr, config.warmup, all_steps);
        let losses = take(&state.model, &mut state.optimizer, batch, StepSettings { loss: &self.setup.loss, lr })?;
        self.pending.push(TakenStep { step, epoch: state.position.epoch, lr }, &losses, &state.model)?;
        state.position.steps += 1;
        state.position.batch += 1;
        if self.pending.is_due() {
            self.record_steps()?;
        }
        self.report_step();
        let due = self.setup.checkpoints.every_steps.is_some_and(|every| self.state.position.steps.is_multiple_of(every as u64));
        // The end of an epoch writes its own checkpoint.
        if due && !self.epoch_is_whole() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Records the steps since the last call; waits for a GPU.
    fn record_steps(&mut self) -> Result<()> {
        for RecordedStep { row, rung_gates } in self.pending.read(self.state.model.config().arm)? {
            let losses = StepLosses { total: row.loss, ce: row.ce, dice: row.dice };
            if let Some((what, value)) = losses.not_finite() {
                return Err(self.diverged(row.step, what.into(), value, row.lr));
            }
            self.state.records.push(row, &rung_gates);
            self.write_scalars(&row)?;
            for ((column, _), gate) in self.state.records.rung_gates.iter().zip(rung_gates) {
                self.events.scalar(&format!("info/{column}"), row.step + 1, gate)?;
            }
        }
        Ok(())
    }

    /// Writes a step's scalars, under the published code's tags and numbered from 1 as there, and the gate.
    fn write_scalars(&mut self, row: &StepRow) -> Result<()> {
        let scalars = [
            ("info/lr", row.lr as f32),
            ("info/total_loss", row.loss),
            ("info/loss_ce", row.ce),
            ("info/loss_dice", row.dice),
            ("info/gate", row.gate),
        ];
        scalars.into_iter().try_for_each(|(tag, value)| self.events.scalar(tag, row.step + 1, value))
    }

    fn report_step(&self) {
        if let Report::Steps(progress) = &self.report {
            progress.advance(1);
            self.report_step_of(&**progress);
        }
    }

    /// Describes the last step, and the last validation.
    fn report_step_of(&self, progress: &dyn Progress) {
        if let Some(StepRow { epoch, loss, dice, gate, .. }) = self.state.records.steps.last() {
            let (epoch, epochs) = (epoch + 1, self.setup.config.epochs);
            let validation = match self.state.records.epochs.last().and_then(|row| row.val_dice) {
                Some(dice) => format!(", val dice {dice:.4}"),
                None => String::new(),
            };
            let gates = gates_text(*gate, &self.state.records.last_rung_gates());
            progress.describe(&format!("epoch {epoch}/{epochs}, loss {loss:.4}, dice loss {dice:.4}{validation}, {gates}"));
        }
    }

    /// `epoch 3/20: loss 0.1234, dice loss 0.0987, val dice 0.8123 (best 0.8200, epoch 2), gate 0.513, 12.3 s`.
    fn epoch_text(&self, row: &EpochRow) -> String {
        let records = &self.state.records;
        let best = records.best_val_dice().zip(records.best_epoch());
        let validation = match row.val_dice.zip(best) {
            Some((dice, (best, epoch))) => format!(", val dice {dice:.4} (best {best:.4}, epoch {epoch})"),
            None => String::new(),
        };
        let (epoch, epochs) = (row.epoch + 1, self.setup.config.epochs);
        let EpochRow { loss, dice, gate, seconds, .. } = row;
        let gates = gates_text(*gate, &records.last_rung_gates());
        format!("epoch {epoch}/{epochs}: loss {loss:.4}, dice loss {dice:.4}{validation}, {gates}, {seconds:.1} s")
    }

    /// Whether the last step of the current epoch is done, so that it can be validated and closed.
    fn epoch_is_whole(&self) -> bool {
        self.state.position.batch >= self.epoch_batches
    }

    /// Scores the model on the next of [`Self::validation_batches`].
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn validate(&mut self, batch: &BatchTensors) -> Result<()> {
        let Some(validation) = &self.setup.validation else { return Ok(()) };
        let pass = self.scoring.get_or_insert_with(|| validation.pass(self.setup.shape, self.setup.hd95.clone()));
        pass.add(self.state.users_model(), batch)
    }

    /// Closes the current epoch if its steps and its validation are done; otherwise a stop interrupted it, and a resume continues it.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub(crate) fn end_epoch(&mut self) -> Result<()> {
        let scoring = self.scoring.take();
        let is_scored = self.setup.validation.is_none() || scoring.as_ref().is_some_and(ValidationPass::is_whole);
        if !self.epoch_is_whole() || !is_scored {
            return Ok(());
        }
        let row = self.close_epoch(scoring.map(ValidationPass::scores).unwrap_or_default())?;
        match &self.report {
            Report::Nothing => {}
            Report::Steps(progress) => {
                self.report_step_of(&**progress);
                progress.note(&self.epoch_text(&row));
            }
            Report::Epochs(progress) => {
                let dice = row.val_dice.map_or("–".into(), |dice| format!("{dice:.4}"));
                let gates = gates_text(row.gate, &self.state.records.last_rung_gates());
                progress.describe(&format!("loss {:.4}, val dice {dice}, {gates}", row.loss));
                progress.advance(1);
            }
        }
        if self.is_finished() { self.save() } else { Ok(()) }
    }

    /// Records the epoch, and writes the files that are due.
    fn close_epoch(&mut self, scores: Scores) -> Result<EpochRow> {
        self.record_steps()?;
        self.count_time();
        let state = &mut self.state;
        let best_before = state.records.best_val_dice();
        let row = state.records.close_epoch(state.position.epoch, scores, state.position.epoch_seconds);
        state.position.epoch += 1;
        state.position.batch = 0;
        state.position.epoch_seconds = 0.0;
        if let Some(value) = row.val_hd95 {
            self.events.scalar("info/val_hd95", row.steps, value as f32)?;
        }
        if let Some(value) = row.val_dice {
            self.events.scalar("info/val_dice", row.steps, value as f32)?;
            if self.setup.checkpoints.models && best_before.is_none_or(|best| value > best) {
                self.refuse_bad_weights()?;
                self.state.save_model(&self.setup.folder.join(BEST_CHECKPOINT))?;
            }
        }
        if self.checkpoint_time.elapsed() >= self.setup.checkpoints.epochs_after {
            self.checkpoint()?;
        }
        Ok(row)
    }

    /// Adds the time since the last call to the epoch's time.
    fn count_time(&mut self) {
        self.state.position.epoch_seconds += self.clock.elapsed().as_secs_f64() / self.sharing as f64;
        self.clock = Instant::now();
    }

    /// Writes a checkpoint, unless the one on disk already has the last step; and into the run's record that it has stopped early, if it has.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub(crate) fn save(&mut self) -> Result<()> {
        if self.checkpoint_step < self.state.position.steps {
            self.checkpoint()?;
        }
        if self.stopped_early() {
            note_early_stop(&self.setup.folder, self.state.position.epoch)?;
        }
        self.events.flush()
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.record_steps()?;
        self.refuse_bad_weights()?;
        if self.state.position.batch > 0 {
            self.count_time();
        }
        self.events.flush()?;
        self.state.save(&self.setup.folder, self.setup.checkpoints.models)?;
        self.checkpoint_step = self.state.position.steps;
        self.checkpoint_time = Instant::now();
        Ok(())
    }

    /// Refuses a weight or running statistic that is not finite, which must not replace a good checkpoint.
    fn refuse_bad_weights(&self) -> Result<()> {
        for (name, tensor) in self.state.model.state_dict()?.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
            let sum: f32 = tensor.abs()?.sum_all()?.to_scalar()?;
            if !sum.is_finite() {
                let lr = self.state.records.steps.last().map_or(f64::NAN, |row| row.lr);
                return Err(self.diverged(self.state.position.steps, format!("the sum over |{name}|"), sum, lr));
            }
        }
        Ok(())
    }

    fn diverged(&self, step: u64, what: String, value: f32, lr: f64) -> TrainError {
        // The rows show how it happened; a resume drops the rows after the checkpoint.
        if let Err(error) = self.state.records.save() {
            return error;
        }
        TrainError::Diverged {
            step,
            what,
            value,
            lr,
            checkpoint_step: self.checkpoint_step,
            checkpoint: self.setup.folder.join(CHECKPOINT),
        }
    }
}
