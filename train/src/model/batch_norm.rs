//! Trainable batch norm, for the side network's residual blocks.

use candle_core::{Result, Tensor, Var};
use sam_ladder_ops::{
    BatchNormGradients, BatchNormParams, BatchStatistics, GradientSums, Gradients, NormalizedShortcut, Tail,
    batch_norm_inference, batch_statistics_followed, normalize, normalize_backward, normalize_backward_summed,
};

use super::error::ModelError;
use super::names::Names;
use super::parameters::{Parameters, Trainable};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Input of batch norm, with its statistics.
pub(super) struct Normalized {
    pub(super) x: Tensor,
    pub(super) statistics: BatchStatistics,
}

/// Batch norm with running statistics.
pub(super) struct BatchNorm {
    weight: Trainable,
    bias: Trainable,
    running_mean: Var,
    running_var: Var,
}

impl BatchNorm {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        parameters.counter(&format!("{prefix}.num_batches_tracked"))?;
        Ok(BatchNorm {
            weight: parameters.trainable_tensor(&format!("{prefix}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{prefix}.bias"))?,
            running_mean: parameters.buffer(&format!("{prefix}.running_mean"))?,
            running_var: parameters.buffer(&format!("{prefix}.running_var"))?,
        })
    }

    pub(super) fn parameters(&self) -> (Tensor, Tensor) {
        (self.weight.tensor(), self.bias.tensor())
    }

    /// Normalises `[b, c, h, w]` by the running statistics, followed by ReLU if `relu`.
    pub(super) fn infer(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        let params = BatchNormParams {
            weight: &weight,
            bias: &bias,
            running_mean: &self.running_mean.as_detached_tensor(),
            running_var: &self.running_var.as_detached_tensor(),
            eps: EPS,
        };
        batch_norm_inference(x, &params, relu)
    }

    /// Computes the statistics of a batch, and updates the running ones.
    pub(super) fn normalized(&self, x: Tensor) -> Result<Normalized> {
        let statistics = batch_statistics_followed(&x, EPS, (&self.running_mean, &self.running_var), MOMENTUM)?;
        Ok(Normalized { x, statistics })
    }

    /// Normalises by the statistics of the batch.
    pub(super) fn forward(&self, input: &Normalized, tail: Tail<'_>) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        normalize(&input.x, &input.statistics, &weight, &bias, tail)
    }

    /// Normalises by the statistics of the batch, adds a shortcut that ends in another batch norm, and takes the ReLU.
    pub(super) fn forward_with_shortcut(&self, input: &Normalized, norm: &BatchNorm, shortcut: &Normalized) -> Result<Tensor> {
        let (weight, bias) = norm.parameters();
        let shortcut = NormalizedShortcut { x: &shortcut.x, statistics: &shortcut.statistics, weight: &weight, bias: &bias };
        self.forward(input, Tail::AddNormalizedRelu(shortcut))
    }

    /// As [`Self::backward`] without ReLU, with the gradient's sums if they were taken before.
    pub(super) fn backward_summed(
        &self,
        input: Normalized,
        grad: &Tensor,
        sums: Option<&GradientSums>,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        let found = normalize_backward_summed(&input.x, &input.statistics, &weight, &bias, grad, sums)?;
        Ok(self.keep(found, grads))
    }

    /// Returns the gradient of the input; those of weight and bias go to `grads`.
    pub(super) fn backward(&self, input: Normalized, relu: bool, grad: &Tensor, grads: &mut Gradients) -> Result<Tensor> {
        let (weight, bias) = self.parameters();
        let found = normalize_backward(&input.x, &input.statistics, &weight, &bias, relu, grad)?;
        Ok(self.keep(found, grads))
    }

    pub(super) fn keep(&self, found: BatchNormGradients, grads: &mut Gradients) -> Tensor {
        grads.insert(self.weight.var(), found.weight);
        grads.insert(self.bias.var(), found.bias);
        found.x
    }
}

/// Names and shapes of a batch norm over `channels`.
pub(super) fn batch_norm_names(list: &mut Names, prefix: &str, channels: usize) {
    list.add_affine(prefix, &[channels]);
    list.add(format!("{prefix}.running_mean"), &[channels]);
    list.add(format!("{prefix}.running_var"), &[channels]);
    list.add(format!("{prefix}.num_batches_tracked"), &[]);
}
