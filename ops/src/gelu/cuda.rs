//! GELU on a GPU.

use candle_core::{Result, Tensor};

use crate::device::map;

const MODULE: &str = "gelu";

/// As [`super::gelu`], of a contiguous tensor.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    // SAFETY: `gelu` maps one input.
    Ok(unsafe { map(MODULE, "gelu", &[x], None)? }.tensor())
}

/// The gradient of `x`, given that of its GELU.
pub(super) fn gelu_backward(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    // SAFETY: `gelu_backward` maps the gradient and the input.
    Ok(unsafe { map(MODULE, "gelu_backward", &[&gradient.contiguous()?, x], None)? }.tensor())
}
