//! What a run reads of its store, in addition to embeddings, images and labels, and whether the store has it.

use crate::error::{Result, TrainError};
use sam_ladder_cache::{BatchParts, TrainingSplit};
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_schemas::train_choices::LadderKind;

/// What batches of these settings take: rungs for a ladder, labels at half the image's side for logits there.
pub fn parts_of(config: &TrainConfig) -> BatchParts {
    BatchParts { rungs: config.ladder == LadderKind::Gated, half_labels: config.decoder.logits_stride() == 2 }
}

/// Checks that a store has what batches take.
///
/// # Errors
/// A store without rungs, or without labels at half the image's side.
pub fn check_parts(parts: BatchParts, store: &TrainingSplit) -> Result<()> {
    if parts.rungs && store.config().stored_rungs().is_none() {
        return Err(TrainError::NoRungs(store.path().into()));
    }
    if parts.half_labels && !store.config().half_labels {
        return Err(TrainError::NoHalfLabels(store.path().into()));
    }
    Ok(())
}
