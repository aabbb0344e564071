//! What the model takes of SAM.

use candle_core::Tensor;

/// What SAM's frozen encoder made of a batch of images.
#[derive(Debug, Clone, Copy)]
pub struct OfSam<'a> {
    /// `[b, 256, s/16, s/16]`, or of the slices before, at and after `[b, 3, 256, s/16, s/16]`.
    pub embeddings: &'a Tensor,
    /// `[b, rung, c, s/16, s/16]`, for a model with a ladder.
    pub rungs: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for OfSam<'a> {
    /// Embeddings only.
    fn from(embeddings: &'a Tensor) -> Self {
        OfSam { embeddings, rungs: None }
    }
}
