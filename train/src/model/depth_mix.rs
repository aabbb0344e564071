//! `--neighbours 1`: the embeddings of a slice and of the slices before and after it in the scan, mixed along depth before the gate, each channel
//! by three weights of its own (a depthwise convolution of three slices):
//!
//! ```text
//! x_sam[c] = w[c, 0]·before[c] + w[c, 1]·slice[c] + w[c, 2]·after[c]
//! ```
//!
//! The weights, `sam.neighbours.weight` `[256, 3]` (of another encoder than SAM's a row for each of its channels), start at (0, 1, 0), so that the model begins as that of the slice. The embeddings are the
//! frozen encoder's and need no gradient. No published checkpoint has such weights.

use candle_core::{DType, Result, Tensor, bail};
use sam_ladder_ops::{Tape, Value, contiguous, record};

use super::error::ModelError;
use super::names::Names;
use super::parameters::{Parameters, Trainable};

const NAME: &str = "sam.neighbours.weight";
/// Slices that are mixed.
const SLICES: usize = 3;

/// The weights of the slices.
pub(super) struct DepthMix {
    /// [channels, 3]
    weight: Trainable,
    channels: usize,
}

impl DepthMix {
    pub(super) fn new(channels: usize, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(DepthMix { weight: parameters.trainable_tensor(NAME)?, channels })
    }

    /// `[b, 3, channels, g, g]`, before, slice and after → `[b, channels, g, g]`
    pub(super) fn forward(&self, embeddings: &Tensor, tape: Option<&Tape>) -> Result<Value> {
        let (_, slices, channels, _, _) = embeddings.dims5()?;
        if (slices, channels) != (SLICES, self.channels) {
            bail!("expected embeddings of {SLICES} slices and {} channels, found {:?}", self.channels, embeddings.dims());
        }
        let weight = contiguous(&self.weight.tensor().t()?)?.reshape((1, SLICES, channels, 1, 1))?;
        let mixed = embeddings.broadcast_mul(&weight.to_dtype(embeddings.dtype())?)?.sum(1)?;
        let embeddings = embeddings.clone();
        record(mixed, &[&self.weight.on(tape)], move |gradient, _| {
            let products = embeddings.broadcast_mul(&gradient.unsqueeze(1)?)?.to_dtype(DType::F32)?;
            let sums = products.flatten_from(3)?.sum(3)?.sum(0)?; // [3, 256]
            Ok(vec![Some(contiguous(&sums.t()?)?)])
        })
    }
}

/// Names and shapes of the weights.
pub(super) fn depth_mix_names(list: &mut Names, channels: usize) {
    list.add(NAME, &[channels, SLICES]);
}
