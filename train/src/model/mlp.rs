//! Linear layers, and the MLPs of the mask decoder.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{F32Math, linear};

use super::Mode;
use super::error::ModelError;
use super::parameters::{Parameters, Trainable};

/// A frozen linear layer.
pub(super) struct Linear {
    /// [out, in]
    weight: Tensor,
    /// [out]
    bias: Tensor,
    math: F32Math,
}

impl Linear {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Linear {
            weight: parameters.frozen(&format!("{prefix}.weight"))?,
            bias: parameters.frozen(&format!("{prefix}.bias"))?,
            math: parameters.math(),
        })
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias), self.math)
    }

    /// The same with a bias per row, `[n, out]`.
    pub(super) fn forward_with(&self, x: &Tensor, biases: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(biases), self.math)
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

/// A trainable linear layer.
pub(super) struct TrainedLinear {
    /// [out, in]
    weight: Trainable,
    /// [out]
    bias: Trainable,
    math: F32Math,
}

impl TrainedLinear {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(TrainedLinear {
            weight: parameters.trainable_tensor(&format!("{prefix}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{prefix}.bias"))?,
            math: parameters.math(),
        })
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        linear(x, &self.weight.get(mode), Some(&self.bias.get(mode)), self.math)
    }
}

/// `output_hypernetworks_mlps.{class}`: frozen, as published, or trained.
pub(super) enum Hypernetwork {
    Frozen(Mlp),
    Trained(Vec<TrainedLinear>),
}

impl Hypernetwork {
    /// Layers at these prefixes, in order.
    pub(super) fn new(prefixes: &[String], trained: bool, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        if !trained {
            return Ok(Hypernetwork::Frozen(Mlp::new(prefixes, parameters)?));
        }
        let layers = prefixes.iter().map(|prefix| TrainedLinear::new(prefix, parameters));
        Ok(Hypernetwork::Trained(layers.collect::<std::result::Result<_, _>>()?))
    }

    /// `[.., 256]` → `[.., 32]`
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let layers = match self {
            Hypernetwork::Frozen(mlp) => return mlp.forward(x),
            Hypernetwork::Trained(layers) => layers,
        };
        let mut x = x.clone();
        for (i, layer) in layers.iter().enumerate() {
            if i > 0 {
                x = x.relu()?;
            }
            x = layer.forward(&x, mode)?;
        }
        Ok(x)
    }
}
