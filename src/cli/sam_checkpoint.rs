//! Whether a SAM checkpoint is the one that embeddings were made with.

use super::progress::Terminal;
use anyhow::{bail, ensure};
use sam_ladder_precompute::pipeline::identify_weights;
use sam_ladder_schemas::precompute::EncoderWeights;
use std::path::Path;

/// Compares a file's SHA-256 with the weights in the settings of `of`, a run or a store.
///
/// # Errors
/// Another file, or settings of a random encoder, which no file has.
pub fn ensure_same(path: &Path, weights: &EncoderWeights, of: &Path) -> anyhow::Result<()> {
    let expected = match weights {
        EncoderWeights::Checkpoint { sha256 } => sha256,
        EncoderWeights::Random { seed } => {
            bail!("{} comes from a random encoder (seed {seed}): leave --sam-checkpoint out", of.display())
        }
    };
    let (_, found) = identify_weights(path, &*Terminal::new())?;
    if let EncoderWeights::Checkpoint { sha256: found } = found {
        ensure!(
            found == *expected,
            "{} has SHA-256 {found}, {} was made with {expected}: pass that checkpoint",
            path.display(),
            of.display()
        );
    }
    Ok(())
}
