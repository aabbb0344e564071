//! The training loop. It trains a group of runs that draw the same batches; a lone run is a group of one.
//!
//! Where the batches come from ([`BatchSource`]) and how a step is taken ([`StepKind`]) are its two parameters. Each batch is read, decompressed and turned
//! into tensors once, and every run takes its step on it: a run's arithmetic is the same in any group, so on the CPU it ends in the same bytes.

use super::batches::BatchSource;
use super::step::start_step;
use super::step_graph::StepGraph;
use super::tensors::BatchTensors;
use super::training_run::Run;
use crate::error::Result;
use sam_ladder_schemas::observer::Observer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How steps are taken.
pub(crate) enum StepKind {
    /// One operation after the other.
    Plain,
    /// By a CUDA graph, which belongs to one run.
    Graph(StepGraph),
}

/// What all groups that are trained at the same time share.
pub(crate) struct Control<'a> {
    /// Set from outside: stop after the steps in flight.
    stop: &'a AtomicBool,
    /// Runs that are being trained: they divide the machine's time.
    live: AtomicUsize,
}

/// Trains the runs of a group, epoch by epoch, to where each is to go or until they are stopped, and writes their checkpoints. They stand at the same step of
/// the same epoch. A run that fails or panics keeps its error, and the others are trained on.
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
    // Whatever ended the loop, what is trained is kept.
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
    /// Plain steps, or those of a CUDA graph; `observer` learns what became of the graph.
    pub(crate) fn new(cuda_graph: bool, observer: &Arc<dyn Observer>) -> Self {
        if cuda_graph { StepKind::Graph(StepGraph::new(observer.clone())) } else { StepKind::Plain }
    }

    /// Takes a step of every run of the group.
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

/// Calls `work` with every run that is under way, each on a thread of its own, the first on this one.
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

    /// The first of the runs that is to be trained on; none where all are at their end, or someone wants to stop.
    fn next_to_train<'r>(&self, group: &'r [Run]) -> Option<&'r Run> {
        group.iter().find(|run| run.is_under_way() && !self.stop.load(Ordering::Relaxed))
    }

    /// Counts the group's runs among those that share the machine, for as long as what is returned lives.
    fn share(&self, group: &[Run]) -> Sharing<'_> {
        let runs = group.iter().filter(|run| run.is_under_way()).count();
        self.live.fetch_add(runs, Ordering::Relaxed);
        Sharing { live: &self.live, runs }
    }
}

/// Runs of a group that are counted among those that share the machine.
struct Sharing<'a> {
    live: &'a AtomicUsize,
    runs: usize,
}

impl Sharing<'_> {
    /// All runs that share it, of this group and of others.
    fn runs(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

impl Drop for Sharing<'_> {
    fn drop(&mut self) {
        self.live.fetch_sub(self.runs, Ordering::Relaxed);
    }
}
