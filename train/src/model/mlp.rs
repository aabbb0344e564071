//! Linear layers, and the MLPs of the mask decoder.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{F32Math, Tape, Value, linear, linear_groups, relu};

use super::error::ModelError;
use super::parameters::{Frozen, Parameters, Trainable};

/// A frozen linear layer.
pub(super) struct Linear {
    /// [out, in]
    weight: Frozen,
    /// [out]
    bias: Tensor,
    math: F32Math,
}

impl Linear {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Linear {
            weight: Frozen::new(parameters.frozen(&format!("{prefix}.weight"))?),
            bias: parameters.frozen(&format!("{prefix}.bias"))?,
            math: parameters.math(),
        })
    }

    /// The same with a constant `[1, 1, out]` added to its result.
    pub(super) fn plus(self, constant: &Tensor) -> Result<Self> {
        Ok(Linear { bias: (self.bias + constant.flatten_all()?)?, ..self })
    }

    /// `[.., in]` → `[.., out]`
    pub(super) fn forward(&self, x: &Value) -> Result<Value> {
        linear(x, &self.weight.like(x)?.into(), Some(&(&self.bias).into()), self.math)
    }
}

/// SAM's `MLPBlock`: two frozen linear layers with ReLU between them.
pub(super) struct Mlp {
    lin1: Linear,
    lin2: Linear,
}

impl Mlp {
    pub(super) fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Mlp {
            lin1: Linear::new(&format!("{prefix}.lin1"), parameters)?,
            lin2: Linear::new(&format!("{prefix}.lin2"), parameters)?,
        })
    }

    /// `[.., c]` → `[.., c]`
    pub(super) fn forward(&self, x: &Value) -> Result<Value> {
        self.lin2.forward(&relu(&self.lin1.forward(x)?)?)
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
    pub(super) fn forward(&self, x: &Value, tape: Option<&Tape>) -> Result<Value> {
        linear(x, &self.weight.on(tape), Some(&self.bias.on(tape)), self.math)
    }
}

/// `output_hypernetworks_mlps`: for each class an `MLP` of three layers with ReLU between them, frozen as published, or trained. All classes
/// are computed together.
pub(super) struct Hypernetworks {
    layers: Vec<GroupLayer>,
    math: F32Math,
}

/// One layer of all hypernetworks.
enum GroupLayer {
    Frozen {
        /// [C, out, in]
        weight: Frozen,
        /// [C, out]
        bias: Tensor,
    },
    /// Weight `[out, in]` and bias `[out]` of each class.
    Trained(Vec<(Trainable, Trainable)>),
}

impl Hypernetworks {
    const DEPTH: usize = 3;

    pub(super) fn new(
        prefix: &str,
        classes: usize,
        trained: bool,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(Self::DEPTH);
        let mut of_classes: Vec<Vec<(Trainable, Trainable)>> = (0..Self::DEPTH).map(|_| Vec::new()).collect();
        let name = |class: usize, layer: usize| format!("{prefix}.{class}.layers.{layer}");
        if trained {
            // In the order of the published names.
            for class in 0..classes {
                for (layer, of_classes) in of_classes.iter_mut().enumerate() {
                    let mut get = |what| parameters.trainable_tensor(&format!("{}.{what}", name(class, layer)));
                    of_classes.push((get("weight")?, get("bias")?));
                }
            }
            layers.extend(of_classes.into_iter().map(GroupLayer::Trained));
        } else {
            for layer in 0..Self::DEPTH {
                let mut all = |what| {
                    let of_class = |class| parameters.frozen(&format!("{}.{what}", name(class, layer)));
                    let tensors = (0..classes).map(of_class).collect::<std::result::Result<Vec<_>, _>>()?;
                    Ok::<_, ModelError>(Tensor::stack(&tensors, 0)?)
                };
                layers.push(GroupLayer::Frozen { weight: Frozen::new(all("weight")?), bias: all("bias")? });
            }
        }
        Ok(Hypernetworks { layers, math: parameters.math() })
    }

    /// The classes' tokens `[b, C, 256]` → `[b, C, 32]`
    pub(super) fn forward(&self, tokens: &Value, tape: Option<&Tape>) -> Result<Value> {
        let mut x = tokens.permute(&[1, 0, 2])?; // [C, b, 256]
        for (i, layer) in self.layers.iter().enumerate() {
            let (weight, bias) = match layer {
                GroupLayer::Frozen { weight, bias } => (weight.like(&x)?.into(), bias.into()),
                GroupLayer::Trained(of_classes) => {
                    let (weights, biases): (Vec<Value>, Vec<Value>) =
                        of_classes.iter().map(|(weight, bias)| (weight.on(tape), bias.on(tape))).unzip();
                    (Value::stack(&weights)?, Value::stack(&biases)?)
                }
            };
            x = linear_groups(&x, &weight, &bias, i + 1 < self.layers.len(), self.math)?;
        }
        x.permute(&[1, 0, 2])
    }
}
