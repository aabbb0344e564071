//! Whether frozen weights are those that embeddings were made with.

use super::progress::Terminal;
use super::weights;
use crate::error::refusal;
use sam_ladder_precompute::pipeline::{identify_encoder, identify_weights};
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use std::path::{Path, PathBuf};

/// Files of frozen weights that were typed.
#[derive(Debug, Clone, Copy)]
pub struct TypedWeights<'a> {
    /// `--sam-checkpoint`.
    pub sam: Option<&'a Path>,
    /// `--encoder-checkpoint`.
    pub encoder: Option<&'a Path>,
}

/// The files that the encoder and SAM's decoder are read from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WeightFiles {
    /// The encoder's.
    pub encoder: Option<PathBuf>,
    /// The decoder's, if it is another.
    pub decoder: Option<PathBuf>,
}

impl TypedWeights<'_> {
    /// The files, compared by their SHA-256 with the settings of `of`, a run or a store. What was not typed is missing.
    ///
    /// # Errors
    /// Another file, or one for which the settings have no place.
    pub fn checked(self, config: &PrecomputeConfig, of: &Path) -> anyhow::Result<WeightFiles> {
        let own = |path: Option<&Path>| path.map(Path::to_path_buf);
        if config.encoder.is_sam() {
            if let Some(path) = self.encoder {
                let message =
                    format!("{} was made with {} of SAM, not with {}", of.display(), config.encoder.name(), path.display());
                return Err(refusal(message, "pass SAM's checkpoint with --sam-checkpoint, and leave --encoder-checkpoint out"));
            }
            self.sam.map(|path| ensure_same(path, &config.weights, of)).transpose()?;
            return Ok(WeightFiles { encoder: own(self.sam), decoder: None });
        }
        if let Some(path) = self.encoder {
            ensure_same_as(path, &config.weights, of, "--encoder-checkpoint")?;
        }
        if let Some(path) = self.sam {
            ensure_same(path, config.decoder_weights.as_ref().unwrap_or(&config.weights), of)?;
        }
        Ok(WeightFiles { encoder: own(self.encoder), decoder: own(self.sam) })
    }
}

/// Compares a SAM checkpoint's SHA-256 with the weights in the settings of `of`, a run or a store.
///
/// # Errors
/// Another file, or settings of random weights, which no file has.
pub fn ensure_same(path: &Path, expected: &EncoderWeights, of: &Path) -> anyhow::Result<()> {
    ensure_same_as(path, expected, of, "--sam-checkpoint")
}

fn ensure_same_as(path: &Path, expected: &EncoderWeights, of: &Path, option: &str) -> anyhow::Result<()> {
    let expected = match expected {
        EncoderWeights::Checkpoint { sha256 } => sha256,
        EncoderWeights::Random { seed } => {
            return Err(refusal(
                format!("{} was made with a random encoder (seed {seed})", of.display()),
                format!("leave {option} out"),
            ));
        }
    };
    weights::ensure_there(path, "")?;
    let identify = if option == "--sam-checkpoint" { identify_weights } else { identify_encoder };
    let (_, found) = identify(path, &*Terminal::new())?;
    match found {
        EncoderWeights::Checkpoint { sha256 } if sha256 != *expected => Err(refusal(
            format!("{} has SHA-256 {sha256}, expected {expected} as in {}", path.display(), of.display()),
            "pass the checkpoint that it was made with",
        )),
        _ => Ok(()),
    }
}
