//! Batches as tensors, for the model and the loss.

use crate::error::{Result, internal};
use crate::model::OfSam;
use candle_core::{DType, Device, Tensor, TensorId};
use sam_ladder_cache::{Batch, BatchParts};
use sam_ladder_ops::{Numerics, to_format};
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::rungs::Rungs;

/// Sizes and precision of a batch's tensors, which follow from the store and the run's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Pixels along the side of the network's input.
    pub image_size: usize,
    /// Classes including background.
    pub num_classes: usize,
    /// Channels of the images, 1 to 3.
    pub channels: usize,
    /// Channels of the embeddings: 256 of SAM's encoders.
    pub embed_channels: usize,
    /// How exactly a GPU computes.
    pub precision: Numerics,
    /// Pixels of the image along the side of one of the logits, and of the labels: 4, or 2 for logits at half the image's side.
    pub logits_stride: usize,
    /// Whether there are the embeddings of the slices around, too.
    pub neighbours: bool,
    /// The rungs, if the model takes them.
    pub rungs: Option<Rungs>,
}

impl BatchShape {
    /// The shape for a store of this config, in float32, for a model with logits at a quarter of the image's side,
    /// without neighbours and ladder.
    pub fn of(config: &PrecomputeConfig) -> Self {
        BatchShape {
            image_size: config.image_size,
            num_classes: config.num_classes(),
            channels: config.num_channels(),
            embed_channels: config.embed_channels(),
            precision: Numerics::F32,
            logits_stride: 4,
            neighbours: false,
            rungs: None,
        }
    }

    /// Tokens along the side of the embeddings.
    pub fn grid_size(self) -> usize {
        self.image_size / PATCH_SIZE
    }

    /// Pixels along the side of labels and low-resolution logits.
    pub fn low_res_size(self) -> usize {
        self.image_size / self.logits_stride
    }

    /// Whether the labels are those at half the image's side.
    pub fn takes_half_labels(self) -> bool {
        self.logits_stride == 2
    }

    /// What is read of a store for such batches.
    pub fn parts(self) -> BatchParts {
        BatchParts { rungs: self.rungs.is_some(), half_labels: self.takes_half_labels() }
    }
}

/// A batch as tensors, for the model and the loss.
#[derive(Debug, Clone)]
pub struct BatchTensors {
    /// `[b, c, s, s]`, in [0, 1].
    pub images: Tensor,
    /// `[b, 256, s/16, s/16]`, or with those of the slices before and after `[b, 3, 256, s/16, s/16]`; of another encoder than SAM's its channels.
    pub embeddings: Tensor,
    /// `[b, s/4, s/4]`, classes as u8; `[b, s/2, s/2]` for logits at half the image's side.
    pub labels: Tensor,
    /// `[b, rung, c, s/16, s/16]`, for a model that takes them.
    pub rungs: Option<Tensor>,
}

impl BatchTensors {
    /// Memory for `count` items, in the number format in which the network takes them.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn empty(count: usize, shape: BatchShape, device: &Device) -> Result<Self> {
        let BatchShape { image_size: s, channels, precision, .. } = shape;
        let (g, low) = (shape.grid_size(), shape.low_res_size());
        let embeddings =
            if shape.neighbours { vec![count, 3, shape.embed_channels, g, g] } else { vec![count, shape.embed_channels, g, g] };
        let of_rungs = |rungs: Rungs| Tensor::zeros((count, rungs.count(), rungs.channels(), g, g), precision.dtype(), device);
        Ok(BatchTensors {
            images: Tensor::zeros((count, channels, s, s), precision.dtype(), device)?,
            embeddings: Tensor::zeros(embeddings, precision.dtype(), device)?,
            labels: Tensor::zeros((count, low, low), DType::U8, device)?,
            rungs: shape.rungs.map(of_rungs).transpose()?,
        })
    }

    /// What the model takes of SAM.
    pub fn of_sam(&self) -> OfSam<'_> {
        OfSam { embeddings: &self.embeddings, rungs: self.rungs.as_ref() }
    }

    /// Images, embeddings and labels, and the rungs if there are any.
    pub(super) fn parts(&self) -> Vec<&Tensor> {
        [&self.images, &self.embeddings, &self.labels].into_iter().chain(&self.rungs).collect()
    }

    /// The same for clones, which share their memory.
    pub(super) fn ids(&self) -> Vec<TensorId> {
        self.parts().into_iter().map(Tensor::id).collect()
    }

    /// A copy with memory of its own.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn copied(&self) -> Result<Self> {
        Ok(BatchTensors {
            images: self.images.force_contiguous()?,
            embeddings: self.embeddings.force_contiguous()?,
            labels: self.labels.force_contiguous()?,
            rungs: self.rungs.as_ref().map(Tensor::force_contiguous).transpose()?,
        })
    }
}

/// Converts `count` slices read from a store to tensors on `device`.
///
/// # Errors
/// When the buffers are of another size.
pub(crate) fn batch_tensors(batch: &Batch, count: usize, shape: BatchShape, device: &Device) -> Result<BatchTensors> {
    let low = shape.low_res_size();
    let (images, embeddings) = input_tensors(batch, count, shape, device)?;
    let rungs = rung_tensor(batch, count, shape, device)?;
    let labels = Tensor::from_slice(labels_of(batch, shape)?, (count, low, low), device)?;
    Ok(BatchTensors { images, embeddings, labels, rungs })
}

/// The labels that the loss sees.
///
/// # Errors
/// A batch that was read without them.
pub(super) fn labels_of(batch: &Batch, shape: BatchShape) -> Result<&[u8]> {
    match (&batch.half_labels, shape.takes_half_labels()) {
        (_, false) => Ok(&batch.labels),
        (Some(half_labels), true) => Ok(half_labels),
        (None, true) => Err(internal("a batch was read without labels at half the image's side".into())),
    }
}

/// The model's input for `count` slices: images `[count, c, s, s]` and embeddings `[count, 256, s/16, s/16]`, or with those of the slices before and
/// after `[count, 3, 256, s/16, s/16]`.
///
/// # Errors
/// When the buffers are of another size.
pub fn input_tensors(batch: &Batch, count: usize, shape: BatchShape, device: &Device) -> Result<(Tensor, Tensor)> {
    let (s, g) = (shape.image_size, shape.grid_size());
    let images = Tensor::from_vec(batch.images.to_vec(), (count, shape.channels, s, s), device)?;
    let mut embeddings = Tensor::from_vec(batch.embeddings.to_vec(), (count, shape.embed_channels, g, g), device)?;
    if shape.neighbours {
        let around = Tensor::from_vec(batch.around.to_vec(), (count, 2, shape.embed_channels, g, g), device)?;
        let [before, after] = [around.narrow(1, 0, 1)?, around.narrow(1, 1, 1)?];
        embeddings = Tensor::cat(&[&before, &embeddings.unsqueeze(1)?, &after], 1)?;
    }
    let dtype = shape.precision.dtype();
    Ok((to_format(&images, dtype)?, to_format(&embeddings, dtype)?))
}

/// The rungs of `count` slices, `[count, rung, c, s/16, s/16]`, for a model that takes them.
///
/// # Errors
/// A batch that was read without rungs, or with others.
pub fn rung_tensor(batch: &Batch, count: usize, shape: BatchShape, device: &Device) -> Result<Option<Tensor>> {
    let Some(rungs) = shape.rungs else { return Ok(None) };
    let g = shape.grid_size();
    let values = batch.rungs.as_ref().map(|values| values.to_vec()).unwrap_or_default();
    let tensor = Tensor::from_vec(values, (count, rungs.count(), rungs.channels(), g, g), device)?;
    Ok(Some(to_format(&tensor, shape.precision.dtype())?))
}
