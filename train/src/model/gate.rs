//! The gate of the paper's equation (3): x = g·x_sam + (1 - g)·x_cnn.
//!
//! | gate | g | parameters |
//! | --- | --- | --- |
//! | `scalar`, the published one | sigmoid(α) | `sam.alpha` `[1]` |
//! | `channel` | g\[c\] = sigmoid(α\[c\]) | `sam.alpha` `[256, 1, 1]` |
//! | `pixel` | g\[y, x\] = sigmoid(Σ_c (w\[c\]·x_sam\[c, y, x\] + w\[256 + c\]·x_cnn\[c, y, x\]) + b), a 1×1 convolution of both embeddings | `sam.alpha.weight` `[1, 512, 1, 1]`, `sam.alpha.bias` `[1]` |
//!
//! All parameters start at 0, so each gate starts at ½ everywhere, like the published one.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Result, Tensor};
use sam_ladder_ops::{Conv2d, Tape, Value, add_number, mix, sigmoid, write_gate_means};
use sam_ladder_schemas::train::{Arm, GateKind};

use super::error::ModelError;
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable};

const ALPHA: &str = "sam.alpha";

/// The gate's parameters, and the arm, which decides whether they are used.
pub(super) struct Gate {
    arm: Arm,
    kind: Kind,
}

enum Kind {
    /// `[1]`
    Scalar(Trainable),
    Channel {
        /// `[256, 1, 1]`
        alpha: Trainable,
        /// Memory for [`Gate::numbers`].
        means: Tensor,
    },
    Pixel {
        weight: Trainable,
        bias: Trainable,
        /// A 1×1 convolution.
        conv: Conv2d,
        /// Means of the logits and of the gate over the last batch, since this gate has no single value without one. Always in the same memory, so
        /// that a CUDA graph can write it.
        means: Tensor,
        /// Whether there was a batch.
        seen: AtomicBool,
    },
}

impl Gate {
    pub(super) fn new(arm: Arm, gate: GateKind, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let means = |parameters: &Parameters| Tensor::zeros(2, DType::F32, parameters.device());
        let kind = match gate {
            GateKind::Scalar => Kind::Scalar(parameters.trainable_tensor(ALPHA)?),
            GateKind::Channel => Kind::Channel { alpha: parameters.trainable_tensor(ALPHA)?, means: means(parameters)? },
            GateKind::Pixel => Kind::Pixel {
                weight: parameters.trainable_tensor(&format!("{ALPHA}.weight"))?,
                bias: parameters.trainable_tensor(&format!("{ALPHA}.bias"))?,
                conv: Conv2d::new(1, 0).with_math(parameters.math()),
                means: means(parameters)?,
                seen: AtomicBool::new(false),
            },
        };
        Ok(Gate { arm, kind })
    }

    /// `[b, c, g, g]` twice → `[b, c, g, g]`.
    pub(super) fn forward(&self, sam: &Value, cnn: &Value, tape: Option<&Tape>) -> Result<Value> {
        match &self.kind {
            Kind::Scalar(alpha) | Kind::Channel { alpha, .. } => mix(sam, cnn, &alpha.on(tape)),
            Kind::Pixel { weight, bias, conv, means, seen } => {
                let (c, weight) = (sam.tensor().dim(1)?, weight.on(tape));
                let of = |x: &Value, first: usize| conv.recorded(x, &weight.narrow(1, first, c)?);
                let logits = add_number(&of(sam, 0)?.add(&of(cnn, c)?)?, &bias.on(tape))?; // [b, 1, g, g]
                write_gate_means(logits.tensor(), means)?;
                seen.store(true, Ordering::Relaxed);
                mix(sam, cnn, &logits)
            }
        }
    }

    /// α, or the bias of a gate per pixel: what [`Self::alpha`] is of.
    fn alphas(&self) -> Tensor {
        match &self.kind {
            Kind::Scalar(alpha) | Kind::Channel { alpha, .. } => alpha.tensor(),
            Kind::Pixel { bias, .. } => bias.tensor(),
        }
    }

    /// α; its mean over channels for a gate per channel; the bias for a gate per pixel.
    pub(super) fn alpha(&self) -> Result<f32> {
        self.alphas().mean_all()?.to_scalar()
    }

    /// The weight of x_sam; its mean over channels for a gate per channel, its mean over the last batch for a gate per pixel.
    pub(super) fn value(&self) -> Result<f32> {
        match self.arm {
            Arm::CnnOnly => return Ok(0.0),
            Arm::SamOnly => return Ok(1.0),
            Arm::Full => {}
        }
        match &self.kind {
            Kind::Channel { alpha, .. } => sigmoid(&alpha.tensor())?.mean_all()?.to_scalar(),
            Kind::Pixel { means, seen, .. } if seen.load(Ordering::Relaxed) => means.get(1)?.to_scalar(),
            Kind::Pixel { .. } | Kind::Scalar(_) => Ok(1.0 / (1.0 + (-self.alpha()?).exp())),
        }
    }

    /// α as in [`Self::alpha`], and for a gate that is not one number its mean, as in [`Self::value`]: one or two numbers, on the device, without
    /// waiting for them and without new memory.
    pub(super) fn numbers(&self) -> Result<Vec<Tensor>> {
        Ok(match &self.kind {
            Kind::Scalar(alpha) => vec![alpha.tensor()],
            Kind::Channel { alpha, means } => {
                write_gate_means(&alpha.tensor(), means)?;
                vec![means.clone()]
            }
            Kind::Pixel { bias, means, .. } => vec![bias.tensor(), means.narrow(0, 1, 1)?],
        })
    }
}

/// Names and shapes of the gate's parameters.
pub(super) fn gate_names(list: &mut Names, gate: GateKind) {
    match gate {
        GateKind::Scalar => list.add(ALPHA, &[1]),
        GateKind::Channel => list.add(ALPHA, &[EMBED_DIM, 1, 1]),
        GateKind::Pixel => list.add_affine(ALPHA, &[1, 2 * EMBED_DIM, 1, 1]),
    }
}
