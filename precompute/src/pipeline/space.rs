//! Whether what is left to write fits on the disk: found out before anything is encoded, not hours later.

use super::plan::Plan;
use crate::disk::{free_bytes, in_words};
use crate::error::{Error, Result};
use sam_ladder_cache::{is_remote, stored};
use sam_ladder_schemas::precompute::Compression;
use std::fmt;
use std::path::Path;

/// What a store needs in addition to its tensors, as a part of them: checksums, tables, reference masks.
const OVERHEAD: f64 = 0.01;

/// What is left to write, and what is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that the store will take in addition to those that it has, without compression.
    pub needed: u64,
    /// Bytes that are free where it lies.
    pub free: u64,
}

impl Space {
    /// Of the store of a plan; `None` for a bucket, which has no end, and where the system does not say what is free or what is there is refused
    /// for another reason.
    pub fn of(plan: &Plan, store: &Path) -> Option<Self> {
        if is_remote(store) {
            return None;
        }
        let left = plan.layout.num_bytes().saturating_sub(stored(store, &plan.layout).ok()?.bytes);
        let needed = (left as f64 * (1.0 + OVERHEAD)) as u64;
        Some(Space { needed, free: free_bytes(store)? })
    }

    fn is_enough(self) -> bool {
        self.needed <= self.free
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_enough() { "" } else { "warning: not enough space: " };
        write!(f, "{what}{} left to write, {} free", in_words(self.needed), in_words(self.free))
    }
}

/// Compares what is left to write with what is free.
///
/// # Errors
/// [`Error::NoSpace`] where it does not fit. Compressed tensors may: then there is a warning, which is returned.
pub(super) fn check(plan: &Plan, store: &Path) -> Result<Option<String>> {
    let Some(space) = Space::of(plan, store).filter(|space| !space.is_enough()) else { return Ok(None) };
    let error = Error::NoSpace { store: store.into(), needed: space.needed, free: space.free };
    match plan.layout.attributes().config.compression {
        Compression::None => Err(error),
        _ => Ok(Some(format!("warning: {error}, unless compression saves as much"))),
    }
}
