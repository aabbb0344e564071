//! The loop of a lone run: from where it stands to its end.

use crate::error::{Result, TrainError};
use crate::run::RunSummary;
use crate::run::batches::for_each_batch;
use crate::run::device_items::DeviceBatches;
use crate::run::sampler::Item;
use crate::run::step_graph::StepGraph;
use crate::run::training_run::Trainee;
use crate::run::step::batch_tensors;
use indicatif::{ProgressBar, ProgressStyle};
use sam_ladder_cache::{Batch, Reader};
use sam_ladder_schemas::tables::StepRow;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A run that has the machine to itself.
pub(super) struct Session<'a> {
    trainee: Trainee,
    reader: &'a Reader,
    /// Set from outside: stop after the step in flight.
    stop: &'a AtomicBool,
    bar: ProgressBar,
    /// Where batches come from on a GPU.
    device_batches: Option<DeviceBatches>,
    /// Takes the steps where they are to be a CUDA graph.
    step_graph: Option<StepGraph<'a>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(trainee: Trainee, reader: &'a Reader, progress: bool, stop: &'a AtomicBool) -> Self {
        let (last_step, done) = (trainee.last_step(), trainee.position().steps);
        let bar = if progress { progress_bar(last_step, done) } else { ProgressBar::hidden() };
        Session { trainee, reader, stop, bar, device_batches: None, step_graph: None }
    }

    /// The same with batches of a GPU's own.
    pub(super) fn with_device_batches(self, device_batches: Option<DeviceBatches>) -> Self {
        Session { device_batches, ..self }
    }

    /// The same with steps through a CUDA graph.
    pub(super) fn with_step_graph(self, step_graph: Option<StepGraph<'a>>) -> Self {
        Session { step_graph, ..self }
    }

    /// Trains to the end of the run.
    pub(super) fn run(mut self) -> Result<RunSummary> {
        while !self.trainee.is_done() && !self.stopping() {
            self.epoch()?;
        }
        self.trainee.save()?;
        let position = self.trainee.position();
        if !self.trainee.is_done() {
            self.bar.abandon();
            return Err(TrainError::Stopped { run: self.trainee.plan().run.clone(), steps: position.steps });
        }
        self.bar.finish();
        let records = self.trainee.records();
        Ok(RunSummary {
            steps: position.steps,
            epochs: position.epoch,
            last: records.steps.last().copied(),
            best_val_dice: records.best_val_dice(),
        })
    }

    /// The rest of the epoch under way, or of the run if that ends sooner.
    fn epoch(&mut self) -> Result<()> {
        self.trainee.start_clock(1);
        let items = self.trainee.epoch_items();
        let batches = self.trainee.batches_left(&items);
        let reader = self.reader;
        // What is in the GPU's memory is not read.
        let missing: Option<Vec<Vec<Item>>> =
            self.device_batches.as_ref().map(|on_device| batches.iter().map(|items| on_device.missing(items)).collect());
        let to_read = missing.as_ref().map_or(batches.clone(), |missing| missing.iter().map(Vec::as_slice).collect());
        for_each_batch(reader, &to_read, |index, _, batch| {
            self.step(batches[index], batch)?;
            Ok(if self.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if self.trainee.epoch_is_whole() {
            let scores = self.trainee.validate(reader)?;
            self.trainee.close_epoch(scores)?;
        }
        Ok(())
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn step(&mut self, items: &[Item], batch: &Batch) -> Result<()> {
        let plan = self.trainee.plan();
        let tensors = match &mut self.device_batches {
            Some(on_device) => on_device.tensors(items, batch)?,
            None => batch_tensors(batch, items.len(), plan.geometry, &plan.device)?,
        };
        match &mut self.step_graph {
            Some(graph) => self
                .trainee
                .step_by(&tensors, |model, optimizer, batch, settings| graph.step(model, optimizer, batch, settings))?,
            None => self.trainee.step(&tensors)?,
        }
        self.bar.inc(1);
        if let Some(row) = self.trainee.records().steps.last() {
            self.show(row);
        }
        Ok(())
    }

    fn show(&self, row: &StepRow) {
        let epochs = self.trainee.plan().config.epochs;
        self.bar.set_message(format!(
            "epoch {}/{epochs}  loss {:.4}  dice {:.4}  gate {:.4}",
            row.epoch + 1,
            row.loss,
            1.0 - row.dice,
            row.gate
        ));
    }
}

/// Drawn on stderr, and only where that is a terminal.
fn progress_bar(last_step: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(last_step).with_position(done);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta_precise} left") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar.set_message("first step");
    // Drawn at once, and again while a long step or a validation goes on.
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
