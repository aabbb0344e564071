//! The gate of the paper's equation (1): x = g·x_sam + (1 - g)·x_cnn with g = sigmoid(α).

use candle_core::{Result, Tensor};
use sam_ladder_schemas::train::Arm;

use super::parameters::{Parameters, Trainable};
use super::{Mode, ModelError};

/// α and what it means in each arm.
pub(super) struct Gate {
    arm: Arm,
    alpha: Trainable,
}

impl Gate {
    pub(super) fn new(arm: Arm, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Gate { arm, alpha: parameters.trainable_tensor("sam.alpha")? })
    }

    /// `[b, c, g, g]` twice → `[b, c, g, g]`.
    pub(super) fn forward(&self, sam: &Tensor, cnn: &Tensor, mode: Mode) -> Result<Tensor> {
        let gate = sigmoid(&self.alpha.get(mode))?;
        // cnn + g·(sam - cnn)
        (sam - cnn)?.broadcast_mul(&gate)? + cnn
    }

    pub(super) fn alpha(&self) -> Result<f32> {
        self.alpha.get(Mode::Eval).get(0)?.to_scalar::<f32>()
    }

    pub(super) fn value(&self) -> Result<f32> {
        Ok(match self.arm {
            Arm::Full => 1.0 / (1.0 + (-self.alpha()?).exp()),
            Arm::CnnOnly => 0.0,
            Arm::SamOnly => 1.0,
        })
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
