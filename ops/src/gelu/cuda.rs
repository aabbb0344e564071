//! GELU on a GPU.

use candle_core::{Result, Tensor};

use crate::device::{Node, map};

const MODULE: &str = "gelu";

/// As [`super::gelu`].
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    // SAFETY: `gelu` maps one input.
    let y = unsafe { map(MODULE, "gelu", &[&x], None)? };
    Node::tensor("gelu", y, &[&x], |inputs, _, grad| {
        // SAFETY: `gelu_backward` maps the gradient and the input.
        let grad = unsafe { map(MODULE, "gelu_backward", &[&grad.contiguous()?, inputs[0]], None)? };
        Ok([Some(grad.tensor()), None, None])
    })
}
