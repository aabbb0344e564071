//! How a stage reports what it does, whoever shows it: the command line draws bars, a log has lines, a test is silent.

use std::fmt::Debug;
use std::sync::Arc;

/// Whoever follows a stage's work. Threads report at the same time.
pub trait Observer: Debug + Send + Sync {
    /// A line that a reader should see in any case: what was decided, what was left out.
    fn message(&self, text: &str);

    /// A phase of the work begins. It ends when what is returned is dropped.
    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress>;
}

/// A phase under way.
pub trait Progress: Debug + Send + Sync {
    /// So many units more are done.
    fn advance(&self, units: u64);

    /// What there is to say of the phase now: the case, the loss. It replaces what was said before.
    fn describe(&self, text: &str);
}

/// What a phase is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase<'a> {
    /// Its first description.
    pub name: &'a str,
    /// What is counted.
    pub unit: Unit,
    /// Units in all; `None` where that is not known.
    pub total: Option<u64>,
    /// Units that were done before, by an earlier start.
    pub done: u64,
}

impl<'a> Phase<'a> {
    /// A phase of which nothing is done yet.
    pub fn new(name: &'a str, unit: Unit, total: u64) -> Self {
        Phase { name, unit, total: Some(total), done: 0 }
    }
}

/// What a phase counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes that are read.
    Bytes,
    /// Files that are checked.
    Files,
    /// Tensors that are loaded.
    Tensors,
    /// Slices that are made or segmented.
    Slices,
    /// Images that are encoded.
    Images,
    /// Optimizer steps of a run.
    Steps,
    /// Epochs of one of several runs.
    Epochs,
    /// Trials of a sweep.
    Trials,
}

/// An observer that shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn message(&self, _: &str) {}

    fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
        Box::new(Silent)
    }
}

impl Progress for Silent {
    fn advance(&self, _: u64) {}

    fn describe(&self, _: &str) {}
}

/// An observer that shows nothing, to be shared.
pub fn silent() -> Arc<dyn Observer> {
    Arc::new(Silent)
}
