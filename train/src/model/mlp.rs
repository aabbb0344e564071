//! Linear layers of frozen weights, and the perceptrons of the mask decoder.

use candle_core::{Result, Tensor};
use sam_ladder_ops::linear::linear;

use super::ModelError;
use super::parameters::Parameters;

/// A frozen linear layer.
pub(super) struct Linear {
    /// [out, in]
    pub(super) weight: Tensor,
    /// [out]
    pub(super) bias: Tensor,
}

impl Linear {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Linear {
            weight: parameters.frozen(&format!("{prefix}.weight"))?,
            bias: parameters.frozen(&format!("{prefix}.bias"))?,
        })
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    /// The same without the bias.
    pub(super) fn forward_without_bias(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, None)
    }
}

/// Linear layers with ReLU between them: SAM's `MLP` and, with two layers, its `MLPBlock`.
pub(super) struct Mlp(Vec<Linear>);

impl Mlp {
    /// Layers at these prefixes, in order.
    pub(super) fn new(prefixes: &[String], parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Mlp(prefixes.iter().map(|prefix| Linear::new(prefix, parameters)).collect::<std::result::Result<_, _>>()?))
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.0.iter().enumerate() {
            if i > 0 {
                x = x.relu()?;
            }
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}
