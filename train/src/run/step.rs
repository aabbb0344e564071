//! One optimizer step: forward, loss, backward, update.

use super::tensors::BatchTensors;
use crate::error::{Result, internal};
use crate::loss::LadderLoss;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use candle_core::Tensor;

/// The losses of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLosses {
    /// (1 - λ)·CE + λ·Dice.
    pub total: f32,
    /// Cross-entropy, or what another loss has in its place.
    pub ce: f32,
    /// Dice loss, or what another loss has in its place.
    pub dice: f32,
}

impl StepLosses {
    /// Reads the losses of [`start_step`]; waits for the device.
    ///
    /// # Errors
    /// Any error on the device since the last wait.
    pub fn read(numbers: &Tensor) -> Result<Self> {
        match numbers.to_vec1::<f32>()?.as_slice() {
            &[total, ce, dice] => Ok(StepLosses { total, ce, dice }),
            other => Err(internal(format!("expected the three losses of a step, found {other:?}"))),
        }
    }

    /// Name and value of the first loss that is not finite.
    pub fn not_finite(&self) -> Option<(&'static str, f32)> {
        [("the loss", self.total), ("cross-entropy", self.ce), ("the Dice loss", self.dice)]
            .into_iter()
            .find(|(_, value)| !value.is_finite())
    }
}

/// The settings of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepSettings<'a> {
    /// The loss.
    pub loss: &'a LadderLoss,
    /// Learning rate.
    pub lr: f64,
}

/// Forward, loss, backward, update. If a loss is not finite, there is no update: see [`StepLosses::not_finite`].
///
/// # Errors
/// Those of the tensor operations.
pub fn train_step(
    model: &LadderSam,
    optimizer: &mut Optimizer,
    batch: &BatchTensors,
    settings: StepSettings<'_>,
) -> Result<StepLosses> {
    StepLosses::read(&start_step(model, optimizer, batch, settings)?)
}

/// As [`train_step`], but without waiting for the device: the losses `[3]` (total, cross-entropy, Dice) stay there. The update itself checks
/// them, and changes no variable if one is not finite.
///
/// # Errors
/// Those of the tensor operations.
pub fn start_step(
    model: &LadderSam,
    optimizer: &mut Optimizer,
    batch: &BatchTensors,
    settings: StepSettings<'_>,
) -> Result<Tensor> {
    let num_classes = model.config().num_classes;
    let _step = tracing::trace_span!("step").entered();
    let pass = tracing::trace_span!("forward").in_scope(|| model.forward_train(&batch.images, batch.of_sam()))?;
    let loss = tracing::trace_span!("loss").in_scope(|| settings.loss.of(&pass.low_res_logits, &batch.labels, num_classes))?;
    let gradients = tracing::trace_span!("backward").in_scope(|| pass.backward(loss.gradient))?;
    let update = || optimizer.step_unless_diverged(&gradients, settings.lr, Some(&loss.numbers));
    tracing::trace_span!("optimizer").in_scope(update)?;
    Ok(loss.numbers)
}
