//! Published weights on the command line: that a named file is there, before any work.

use crate::error::refusal;
use sam_ladder_formats::placeholder;
use std::path::Path;

/// Who can do without SAM's weights, and how.
pub const RANDOM_ENCODER: &str = "; for a trial, --random-encoder 0 does without";
/// The same of a side network's initial weights.
pub const RANDOM_SIDE_NETWORK: &str = "; without --cnn-checkpoint the side network begins with random weights";
/// Where published weights come from.
const DOWNLOAD: &str =
    "`make weights` downloads SAM's ViT-B and ResNet-18 into weights/ (MODEL=vit_l or vit_h: the larger encoders)";

/// An error unless there is a file of weights; `without` says how to do without.
///
/// # Errors
/// A file that is not there, or whose content was not fetched.
pub fn ensure_there(path: &Path, without: &str) -> anyhow::Result<()> {
    placeholder::refuse(path)?;
    // Anything but its absence is reported by who reads it.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(refusal(format!("the weights {} are not there", path.display()), format!("{DOWNLOAD}{without}")))
        }
        _ => Ok(()),
    }
}

/// The error for neither SAM's weights nor random ones.
pub fn none_given() -> anyhow::Error {
    refusal("the encoder needs weights: pass --sam-checkpoint FILE", format!("{DOWNLOAD}{RANDOM_ENCODER}"))
}
