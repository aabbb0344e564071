//! Batches as tensors, for the model and the loss.

use crate::error::Result;
use candle_core::{Device, Tensor};
use sam_ladder_cache::Batch;
use sam_ladder_ops::Numerics;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};
use sam_ladder_schemas::precompute::PrecomputeConfig;

/// Sizes and precision of a batch's tensors, which follow from the store and the run's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Pixels along the side of the network's input.
    pub image_size: usize,
    /// Classes including background.
    pub num_classes: usize,
    /// Channels of the images, 1 to 3.
    pub channels: usize,
    /// How exactly a GPU computes.
    pub precision: Numerics,
}

impl BatchShape {
    /// The shape for a store of this config, in float32.
    pub fn of(config: &PrecomputeConfig) -> Self {
        BatchShape {
            image_size: config.image_size,
            num_classes: config.num_classes(),
            channels: config.num_channels(),
            precision: Numerics::F32,
        }
    }

    /// Tokens along the side of the embeddings.
    pub fn grid_size(self) -> usize {
        self.image_size / PATCH_SIZE
    }

    /// Pixels along the side of labels and low-resolution logits.
    pub fn low_res_size(self) -> usize {
        self.image_size / 4
    }
}

/// A batch as tensors, for the model and the loss.
#[derive(Debug, Clone)]
pub struct BatchTensors {
    /// `[b, c, s, s]`, in [0, 1].
    pub images: Tensor,
    /// `[b, 256, s/16, s/16]`.
    pub embeddings: Tensor,
    /// `[b, s/4, s/4]`, classes as u8.
    pub labels: Tensor,
}

/// Converts `count` slices read from a store to tensors on `device`.
///
/// # Errors
/// When the buffers are of another size.
pub(crate) fn batch_tensors(batch: &Batch, count: usize, shape: BatchShape, device: &Device) -> Result<BatchTensors> {
    let low = shape.low_res_size();
    let (images, embeddings) = input_tensors(batch, count, shape, device)?;
    Ok(BatchTensors { images, embeddings, labels: Tensor::from_slice(&batch.labels, (count, low, low), device)? })
}

/// The model's input for `count` slices: images `[count, c, s, s]` and embeddings `[count, 256, s/16, s/16]`.
///
/// # Errors
/// When the buffers are of another size.
pub fn input_tensors(batch: &Batch, count: usize, shape: BatchShape, device: &Device) -> Result<(Tensor, Tensor)> {
    let (s, g) = (shape.image_size, shape.grid_size());
    let images = Tensor::from_vec(batch.images.to_vec(), (count, shape.channels, s, s), device)?;
    let embeddings = Tensor::from_vec(batch.embeddings.to_vec(), (count, EMBED_CHANNELS, g, g), device)?;
    let dtype = shape.precision.dtype();
    Ok((images.to_dtype(dtype)?, embeddings.to_dtype(dtype)?))
}
