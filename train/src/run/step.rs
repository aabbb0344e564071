//! One optimizer step, and the tensors that it works on.

use crate::error::{Result, TrainError};
use crate::loss::ladder_loss;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use candle_core::{Device, Tensor};
use sam_ladder_cache::Batch;
use sam_ladder_ops::gpu::has_kernels;
use sam_ladder_ops::precision::Precision;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};
use sam_ladder_schemas::precompute::PrecomputeConfig;

/// Sizes that follow from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Pixels along the side of the network's input.
    pub image_size: usize,
    /// Classes with background.
    pub num_classes: usize,
    /// Channels of the images, 1 to 3.
    pub channels: usize,
    /// How exactly a GPU computes.
    pub precision: Precision,
}

impl Geometry {
    /// The sizes of a store of this config.
    pub fn of(config: &PrecomputeConfig) -> Self {
        Geometry {
            image_size: config.image_size,
            num_classes: config.num_classes(),
            channels: config.num_channels(),
            precision: Precision::F32,
        }
    }

    /// The same sizes in another precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Geometry { precision, ..self }
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

/// A batch as the model and the loss take it.
#[derive(Debug, Clone)]
pub struct BatchTensors {
    /// `[b, c, s, s]`, in [0, 1].
    pub images: Tensor,
    /// `[b, 256, s/16, s/16]`.
    pub embeddings: Tensor,
    /// `[b, s/4, s/4]`, classes as u8.
    pub labels: Tensor,
}

/// Brings `count` slices that were read from a store onto `device`.
///
/// # Errors
/// When the buffers are of another size.
pub fn batch_tensors(batch: &Batch, count: usize, geometry: Geometry, device: &Device) -> Result<BatchTensors> {
    let low = geometry.low_res_size();
    let (images, embeddings) = input_tensors(batch, count, geometry, device)?;
    Ok(BatchTensors { images, embeddings, labels: Tensor::from_slice(&batch.labels, (count, low, low), device)? })
}

/// As [`batch_tensors`], images and embeddings alone.
///
/// # Errors
/// When the buffers are of another size.
pub fn input_tensors(batch: &Batch, count: usize, geometry: Geometry, device: &Device) -> Result<(Tensor, Tensor)> {
    let (s, g) = (geometry.image_size, geometry.grid_size());
    let images = Tensor::from_vec(batch.images.to_vec(), (count, geometry.channels, s, s), device)?;
    let embeddings = Tensor::from_vec(batch.embeddings.to_vec(), (count, EMBED_CHANNELS, g, g), device)?;
    let dtype = geometry.precision.dtype();
    Ok((images.to_dtype(dtype)?, embeddings.to_dtype(dtype)?))
}

/// The losses of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLosses {
    /// (1 - λ)·CE + λ·Dice.
    pub total: f32,
    /// Cross-entropy.
    pub ce: f32,
    /// Dice loss.
    pub dice: f32,
}

/// The losses of a step, known or still on the GPU.
#[derive(Debug)]
pub enum StepNumbers {
    /// Known.
    Read(StepLosses),
    /// `[3]`: total, cross-entropy, Dice.
    OnDevice(Tensor),
}

impl StepLosses {
    /// Reads what [`StepNumbers::OnDevice`] holds; waits for the device.
    ///
    /// # Errors
    /// Whatever went wrong on the device since it was last waited for.
    pub fn read(numbers: &Tensor) -> Result<Self> {
        match numbers.to_vec1::<f32>()?.as_slice() {
            &[total, ce, dice] => Ok(StepLosses { total, ce, dice }),
            other => Err(TrainError::Input(format!("expected the three losses of a step, found {other:?}"))),
        }
    }

    /// The first of the losses that is not finite, by name.
    pub fn not_finite(&self) -> Option<(&'static str, f32)> {
        [("the loss", self.total), ("cross-entropy", self.ce), ("the Dice loss", self.dice)]
            .into_iter()
            .find(|(_, value)| !value.is_finite())
    }
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// λ: weight of Dice in the loss.
    pub lambda: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Forward, loss, backward, update. When a loss is not finite there is no update: see [`StepLosses::not_finite`].
///
/// # Errors
/// Those of the tensor operations.
pub fn train_step(
    model: &LadderSam,
    optimizer: &mut Optimizer,
    batch: &BatchTensors,
    settings: StepSettings,
) -> Result<StepLosses> {
    match start_step(model, optimizer, batch, settings)? {
        StepNumbers::Read(losses) => Ok(losses),
        StepNumbers::OnDevice(numbers) => StepLosses::read(&numbers),
    }
}

/// As [`train_step`]; on a GPU without waiting for it. There the update itself looks at the losses, and leaves all variables alone when one is
/// not finite.
///
/// # Errors
/// Those of the tensor operations.
pub fn start_step(
    model: &LadderSam,
    optimizer: &mut Optimizer,
    batch: &BatchTensors,
    settings: StepSettings,
) -> Result<StepNumbers> {
    let num_classes = model.config().num_classes;
    let _step = tracing::trace_span!("step").entered();
    let pass = tracing::trace_span!("forward").in_scope(|| model.forward_train(&batch.images, &batch.embeddings))?;
    let loss = tracing::trace_span!("loss")
        .in_scope(|| ladder_loss(&pass.low_res_logits, &batch.labels, num_classes, settings.lambda))?;
    if has_kernels(pass.low_res_logits.device()) {
        let numbers = Tensor::stack(&[&loss.total.detach(), &loss.ce, &loss.dice], 0)?;
        let gradients = tracing::trace_span!("backward").in_scope(|| pass.backward(loss.total))?;
        tracing::trace_span!("optimizer").in_scope(|| optimizer.step_unless_diverged(&gradients, settings.lr, Some(&numbers)))?;
        return Ok(StepNumbers::OnDevice(numbers));
    }
    let losses = StepLosses { total: loss.total.to_scalar()?, ce: loss.ce.to_scalar()?, dice: loss.dice.to_scalar()? };
    if losses.not_finite().is_none() {
        let gradients = tracing::trace_span!("backward").in_scope(|| pass.backward(loss.total))?;
        tracing::trace_span!("optimizer").in_scope(|| optimizer.step(&gradients, settings.lr))?;
    }
    Ok(StepNumbers::Read(losses))
}
