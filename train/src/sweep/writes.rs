//! For tests: how many writes a worker may do before it is stopped as by a kill.

use crate::error::{Result, TrainError};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Writes that are left; by default there is no limit.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes(Option<Arc<AtomicI64>>);

impl Writes {
    pub(super) fn kill_after(writes: i64) -> Self {
        Writes(Some(Arc::new(AtomicI64::new(writes))))
    }

    /// Counts a write; once none is left, all are refused.
    pub(super) fn next(&self) -> Result<()> {
        match &self.0 {
            // A fault of the machine, which ends the worker as a kill does.
            Some(left) if left.fetch_sub(1, Ordering::Relaxed) <= 0 => {
                Err(TrainError::Io { path: "killed".into(), source: ErrorKind::OutOfMemory.into() })
            }
            _ => Ok(()),
        }
    }
}
