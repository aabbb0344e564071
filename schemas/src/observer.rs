//! How a stage reports its progress. The observer decides how to show it: as bars, as lines of a log, or not at all.

use std::fmt::Debug;
use std::sync::Arc;

/// Receives a stage's reports. Several threads may report at the same time.
pub trait Observer: Debug + Send + Sync {
    /// A line that the user should always see: a decision, or something left out.
    fn message(&self, text: &str);

    /// Begins a phase of the work, which ends when the returned value is dropped.
    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress>;
}

/// A phase under way.
pub trait Progress: Debug + Send + Sync {
    /// Reports that `units` more units are done.
    fn advance(&self, units: u64);

    /// The phase's state, such as the case or the loss; replaces the last description.
    fn describe(&self, text: &str);

    /// A line for a log, such as an epoch's result. A bar need not show it, since it describes the same.
    fn note(&self, _text: &str) {}
}

/// What a phase does and how its progress is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase<'a> {
    /// Its first description.
    pub name: &'a str,
    /// The unit that is counted.
    pub unit: Unit,
    /// Total number of units; `None` if unknown.
    pub total: Option<u64>,
    /// Units that an earlier start has done.
    pub done: u64,
}

impl<'a> Phase<'a> {
    /// A phase of which nothing has been done.
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

/// A shared observer that shows nothing.
pub fn silent() -> Arc<dyn Observer> {
    Arc::new(Silent)
}
