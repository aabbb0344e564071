//! A 1×1 convolution with bias: from a side network's channels to SAM's 256; from those of embeddings of another encoder than SAM's, after the sum over
//! neighbouring slices and before the gate; or from a rung's to those of the side network. No published checkpoint has it; it starts at random values.

use candle_core::{DType, Result, Tensor};
use sam_ladder_ops::{Conv2d, Gradients, Tape, Value, record, to_format};

use super::error::ModelError;
use super::names::Names;
use super::parameters::{Parameters, Trainable};

/// That of a side network.
pub(super) const SIDE_PROJECTION: &str = "CNN_encoder.projection";
/// That of the embeddings.
pub(super) const EMBEDDING_PROJECTION: &str = "sam.embedding_projection";

/// A projection.
pub(super) struct Projection {
    /// [co, c, 1, 1]
    weight: Trainable,
    /// [co]
    bias: Trainable,
    conv: Conv2d,
}

impl Projection {
    pub(super) fn new(name: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Projection {
            weight: parameters.trainable_tensor(&format!("{name}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{name}.bias"))?,
            conv: Conv2d::new(1, 0).with_math(parameters.math()),
        })
    }

    /// `[b, c, g, g]` → `[b, co, g, g]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = to_format(&self.bias.tensor(), x.dtype())?.reshape((1, (), 1, 1))?;
        self.conv.forward(x, &self.weight.tensor())?.broadcast_add(&bias)
    }

    /// As [`Self::forward`], recorded.
    pub(super) fn forward_on(&self, x: &Value, tape: Option<&Tape>) -> Result<Value> {
        let (conv, input, weight) = (self.conv, x.tensor().clone(), self.weight.tensor());
        let (_, _, h, w) = input.dims4()?;
        record(self.forward(&input)?, &[x, &self.weight.on(tape), &self.bias.on(tape)], move |gradient, wanted| {
            Ok(vec![
                wanted[0].then(|| conv.backward_input(gradient, &weight, (h, w))).transpose()?,
                wanted[1].then(|| conv.backward_weight(&input, gradient, 1)).transpose()?,
                wanted[2].then(|| to_format(gradient, DType::F32)?.sum((0, 2, 3))).transpose()?,
            ])
        })
    }

    /// Returns the gradient of the input of [`Self::forward`], given the output's; those of weight and bias go to `gradients`.
    pub(super) fn backward(&self, x: &Tensor, gradient: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        gradients.insert(self.weight.var(), self.conv.backward_weight(x, gradient, 1)?);
        gradients.insert(self.bias.var(), to_format(gradient, DType::F32)?.sum((0, 2, 3))?);
        self.conv.backward_input(gradient, &self.weight.tensor(), (h, w))
    }
}

/// Names and shapes of a projection from and to so many channels.
pub(super) fn projection_names(list: &mut Names, prefix: &str, [from, to]: [usize; 2]) {
    list.add_affine(prefix, &[to, from, 1, 1]);
}
