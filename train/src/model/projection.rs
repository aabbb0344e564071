//! A 1×1 convolution with bias from a side network's channels to SAM's 256. No published checkpoint has it; it starts at random values.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use sam_ladder_ops::Conv2d;

use super::Mode;
use super::error::ModelError;
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable};

const PREFIX: &str = "CNN_encoder.projection";

/// `CNN_encoder.projection`.
pub(super) struct Projection {
    /// [256, c, 1, 1]
    weight: Trainable,
    /// [256]
    bias: Trainable,
    conv: Conv2d,
}

impl Projection {
    pub(super) fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Projection {
            weight: parameters.trainable_tensor(&format!("{PREFIX}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{PREFIX}.bias"))?,
            conv: Conv2d::new(1, 0).with_math(parameters.math()),
        })
    }

    /// `[b, c, g, g]` → `[b, 256, g, g]`, with candle's graph in training.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let bias = self.bias.get(mode).reshape((1, EMBED_DIM, 1, 1))?;
        self.conv.forward(x, &self.weight.get(mode))?.broadcast_add(&bias)
    }

    /// Returns the gradient of the input, given the output's; those of weight and bias go to `grads`.
    pub(super) fn backward(&self, x: &Tensor, grad: &Tensor, grads: &mut GradStore) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        grads.insert(self.weight.var(), self.conv.backward_weight(x, grad, 1)?);
        grads.insert(self.bias.var(), grad.sum((0, 2, 3))?);
        self.conv.backward_input(grad, &self.weight.get(Mode::Eval), (h, w))
    }
}

/// Names and shapes of a projection from `channels` channels.
pub(super) fn projection_names(list: &mut Names, channels: usize) {
    list.add_affine(PREFIX, &[EMBED_DIM, channels, 1, 1]);
}
