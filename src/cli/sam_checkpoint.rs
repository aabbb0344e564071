//! Whether a SAM checkpoint is the one that embeddings were made with.

use super::progress::Terminal;
use super::weights;
use crate::error::refusal;
use sam_ladder_precompute::pipeline::identify_weights;
use sam_ladder_schemas::precompute::EncoderWeights;
use std::path::Path;

/// Compares a file's SHA-256 with the weights in the settings of `of`, a run or a store.
///
/// # Errors
/// Another file, or settings of a random encoder, which no file has.
pub fn ensure_same(path: &Path, expected: &EncoderWeights, of: &Path) -> anyhow::Result<()> {
    let expected = match expected {
        EncoderWeights::Checkpoint { sha256 } => sha256,
        EncoderWeights::Random { seed } => {
            return Err(refusal(
                format!("{} was made with a random encoder (seed {seed})", of.display()),
                "leave --sam-checkpoint out",
            ));
        }
    };
    weights::ensure_there(path, "")?;
    let (_, found) = identify_weights(path, &*Terminal::new())?;
    match found {
        EncoderWeights::Checkpoint { sha256 } if sha256 != *expected => Err(refusal(
            format!("{} has SHA-256 {sha256}, expected {expected} as in {}", path.display(), of.display()),
            "pass the checkpoint that it was made with",
        )),
        _ => Ok(()),
    }
}
