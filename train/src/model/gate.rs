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
use sam_ladder_ops::{Conv2d, Tape, Value, mix, record_composed, sigmoid};
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
    /// One α, or one per channel.
    Constant(Trainable),
    Pixel {
        weight: Trainable,
        bias: Trainable,
        /// A 1×1 convolution.
        conv: Conv2d,
        /// `[1]`: mean of the gate over the last batch, since this gate has no single value without one. Always in the same memory, so that
        /// a CUDA graph can write it.
        last_mean: Tensor,
        /// Whether there was a batch.
        seen: AtomicBool,
    },
}

impl Gate {
    pub(super) fn new(arm: Arm, gate: GateKind, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let kind = match gate {
            GateKind::Scalar | GateKind::Channel => Kind::Constant(parameters.trainable_tensor(ALPHA)?),
            GateKind::Pixel => {
                let bias = parameters.trainable_tensor(&format!("{ALPHA}.bias"))?;
                Kind::Pixel {
                    weight: parameters.trainable_tensor(&format!("{ALPHA}.weight"))?,
                    conv: Conv2d::new(1, 0).with_math(parameters.math()),
                    last_mean: Tensor::zeros(1, DType::F32, bias.var().device())?,
                    seen: AtomicBool::new(false),
                    bias,
                }
            }
        };
        Ok(Gate { arm, kind })
    }

    /// `[b, c, g, g]` twice → `[b, c, g, g]`.
    pub(super) fn forward(&self, sam: &Value, cnn: &Value, tape: Option<&Tape>) -> Result<Value> {
        match &self.kind {
            Kind::Constant(alpha) if alpha.var().elem_count() == 1 => mix(sam, cnn, &alpha.on(tape)),
            Kind::Constant(alpha) => record_composed(&[sam, cnn, &alpha.on(tape)], |t| blend(&t[0], &t[1], &sigmoid(&t[2])?)),
            Kind::Pixel { weight, bias, conv, last_mean, seen } => {
                let (c, weight) = (sam.tensor().dim(1)?, weight.on(tape));
                let of = |x: &Value, first: usize| conv.recorded(x, &weight.narrow(1, first, c)?);
                let logits = of(sam, 0)?.add(&of(cnn, c)?)?;
                let gate = record_composed(&[&logits, &bias.on(tape)], |t| {
                    sigmoid(&t[0].broadcast_add(&t[1].reshape((1, 1, 1, 1))?.to_dtype(t[0].dtype())?)?)
                })?; // [b, 1, g, g]
                last_mean.slice_set(&gate.tensor().to_dtype(DType::F32)?.mean_all()?.reshape(1)?, 0, 0)?;
                seen.store(true, Ordering::Relaxed);
                record_composed(&[sam, cnn, &gate], |t| blend(&t[0], &t[1], &t[2]))
            }
        }
    }

    /// α; its mean over channels for a gate per channel; the bias for a gate per pixel.
    pub(super) fn alpha(&self) -> Result<f32> {
        let alpha = match &self.kind {
            Kind::Constant(alpha) => alpha.tensor(),
            Kind::Pixel { bias, .. } => bias.tensor(),
        };
        if alpha.dims() == [1] { alpha.get(0)?.to_scalar::<f32>() } else { alpha.mean_all()?.to_scalar::<f32>() }
    }

    /// The weight of x_sam; its mean over channels for a gate per channel, its mean over the last batch for a gate per pixel.
    pub(super) fn value(&self) -> Result<f32> {
        match self.arm {
            Arm::CnnOnly => return Ok(0.0),
            Arm::SamOnly => return Ok(1.0),
            Arm::Full => {}
        }
        match &self.kind {
            Kind::Constant(alpha) if alpha.var().dims() != [1] => sigmoid(&alpha.tensor())?.mean_all()?.to_scalar::<f32>(),
            Kind::Pixel { last_mean, seen, .. } if seen.load(Ordering::Relaxed) => last_mean.get(0)?.to_scalar::<f32>(),
            Kind::Pixel { .. } | Kind::Constant(_) => Ok(1.0 / (1.0 + (-self.alpha()?).exp())),
        }
    }

    /// α as in [`Self::alpha`], and for a gate that is not one number its mean, as in [`Self::value`]: `[1]` or `[2]` on the device, without
    /// waiting for it.
    pub(super) fn numbers(&self) -> Result<Tensor> {
        let flat = |t: &Tensor| t.detach().to_dtype(DType::F32)?.flatten_all();
        match &self.kind {
            Kind::Constant(alpha) if alpha.var().elem_count() == 1 => flat(&alpha.tensor()),
            Kind::Constant(alpha) => {
                let alpha = alpha.tensor();
                Tensor::cat(&[&flat(&alpha)?.mean_keepdim(0)?, &flat(&sigmoid(&alpha)?)?.mean_keepdim(0)?], 0)
            }
            Kind::Pixel { bias, last_mean, .. } => Tensor::cat(&[&flat(&bias.tensor())?, last_mean], 0),
        }
    }
}

/// `cnn + gate·(sam - cnn)`
fn blend(sam: &Tensor, cnn: &Tensor, gate: &Tensor) -> Result<Tensor> {
    (sam - cnn)?.broadcast_mul(&gate.to_dtype(sam.dtype())?)? + cnn
}

/// Names and shapes of the gate's parameters.
pub(super) fn gate_names(list: &mut Names, gate: GateKind) {
    match gate {
        GateKind::Scalar => list.add(ALPHA, &[1]),
        GateKind::Channel => list.add(ALPHA, &[EMBED_DIM, 1, 1]),
        GateKind::Pixel => list.add_affine(ALPHA, &[1, 2 * EMBED_DIM, 1, 1]),
    }
}
