//! The training loop. It trains a group of runs that draw the same batches; a single run is a group of one.
//!
//! Its two parameters are the source of the batches ([`BatchSource`]) and the kind of step ([`StepKind`]). Each batch is read and converted
//! to tensors once, and every run takes its step on it. A run's arithmetic is the same in any group, so on the CPU it ends with the same
//! bytes.

use super::batches::BatchSource;
use super::step::start_step;
use super::step_graph::StepGraph;
use super::tensors::BatchTensors;
use super::training_run::Run;
use crate::error::Result;
use sam_ladder_schemas::observer::Observer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How a step is taken.
pub(crate) enum StepKind {
    /// Operation by operation.
    Plain,
    /// Through a CUDA graph, which belongs to one run.
    Graph(StepGraph),
}

/// State shared by all groups that are trained at the same time.
pub(crate) struct Control<'a> {
    /// Set from outside: stop after the current steps.
    stop: &'a AtomicBool,
    /// Number of runs in training, which share the machine's time.
    live: AtomicUsize,
}

/// Trains the runs of a group, epoch by epoch, until each has reached its last step or all are stopped, and writes their checkpoints. All
/// runs must be at the same step of the same epoch. A run that fails or panics keeps its error, and the others continue.
///
/// # Errors
/// Those of reading the store, which end the group.
pub(crate) fn train_group(
    group: &mut [Run],
    source: &mut BatchSource,
    steps: &mut StepKind,
    control: &Control<'_>,
) -> Result<()> {
    let outcome = train_epochs(group, source, steps, control);
    // Whatever ended the loop, the training so far is saved.
    group.iter_mut().for_each(|run| run.attempt(Run::save));
    outcome
}

fn train_epochs(group: &mut [Run], source: &mut BatchSource, steps: &mut StepKind, control: &Control<'_>) -> Result<()> {
    while let Some(first) = control.next_to_train(group) {
        let (batches, shape) = (first.batches_left(), first.setup().shape);
        let sharing = control.share(group);
        each(group, |run| run.start_clock(sharing.runs()));
        for batch in source.batches(batches, shape) {
            steps.take(group, &batch?);
            if control.next_to_train(group).is_none() {
                break;
            }
        }
        let validation = control.next_to_train(group).map_or(Vec::new(), Run::validation_batches);
        for batch in source.batches(validation, shape) {
            let batch = batch?;
            each(group, |run| run.attempt(|run| run.validate(&batch)));
            if control.next_to_train(group).is_none() {
                break;
            }
        }
        each(group, |run| run.attempt(Run::end_epoch));
    }
    Ok(())
}

impl StepKind {
    /// Plain steps or a CUDA graph; `observer` learns whether the graph is used.
    pub(crate) fn new(cuda_graph: bool, observer: &Arc<dyn Observer>) -> Self {
        if cuda_graph { StepKind::Graph(StepGraph::new(observer.clone())) } else { StepKind::Plain }
    }

    /// Takes a step of every run in the group.
    fn take(&mut self, group: &mut [Run], batch: &BatchTensors) {
        match self {
            StepKind::Plain => each(group, |run| run.attempt(|run| run.step(batch, start_step))),
            StepKind::Graph(graph) => {
                for run in group {
                    run.attempt(|run| {
                        run.step(batch, |model, optimizer, batch, settings| graph.step(model, optimizer, batch, settings))
                    });
                }
            }
        }
    }
}

/// Calls `work` with every active run: the first on this thread, each other one on its own thread.
fn each(group: &mut [Run], work: impl Fn(&mut Run) + Sync) {
    let mut runs = group.iter_mut().filter(|run| run.is_under_way());
    let Some(first) = runs.next() else { return };
    std::thread::scope(|scope| {
        for run in runs {
            scope.spawn(|| work(run));
        }
        work(first);
    });
}

impl<'a> Control<'a> {
    /// Trains until `stop` is set.
    pub(crate) fn new(stop: &'a AtomicBool) -> Self {
        Control { stop, live: AtomicUsize::new(0) }
    }

    /// The first run that still needs training; `None` if all are finished or a stop is requested.
    fn next_to_train<'r>(&self, group: &'r [Run]) -> Option<&'r Run> {
        group.iter().find(|run| run.is_under_way() && !self.stop.load(Ordering::Relaxed))
    }

    /// Counts the group's runs among those that share the machine, while the returned guard lives.
    fn share(&self, group: &[Run]) -> Sharing<'_> {
        let runs = group.iter().filter(|run| run.is_under_way()).count();
        self.live.fetch_add(runs, Ordering::Relaxed);
        Sharing { live: &self.live, runs }
    }
}

/// Guard for a group's runs that are counted among those that share the machine.
struct Sharing<'a> {
    live: &'a AtomicUsize,
    runs: usize,
}

impl Sharing<'_> {
    /// Number of all runs that share the machine, of this group and others.
    fn runs(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

impl Drop for Sharing<'_> {
    fn drop(&mut self) {
        self.live.fetch_sub(self.runs, Ordering::Relaxed);
    }
}
