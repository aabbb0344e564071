//! Elementwise sums: the end of a residual block with its backward pass, and the gate of equation (3).

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::dispatch::{Path, path};

/// `max(a + b, 0)`, the end of a residual block (He et al. 2016). NaN stays NaN, as in PyTorch. Differentiable with respect to both.
///
/// # Shapes
/// `a`, `b` and the result have the same shape.
///
/// # Errors
/// Other shapes.
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("add_relu: expected two tensors of one shape, found {:?} and {:?}", a.dims(), b.dims());
    }
    match path(&[a, b]) {
        Path::Cuda => cuda::add_relu(a, b),
        Path::Cpu => cpu::add_relu(a, b),
        Path::Composed => (a + b)?.relu(),
    }
}

/// `cnn + gate·(sam - cnn)`, the sum of the paper's equation (3), differentiable with respect to all three.
///
/// # Shapes
/// `sam`, `cnn` and the result have the same shape; `gate` has one element, float32.
///
/// # Errors
/// Other shapes.
pub fn mix(sam: &Tensor, cnn: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if sam.dims() != cnn.dims() || gate.elem_count() != 1 {
        bail!(
            "mix: expected two tensors of one shape and a number, found {:?}, {:?} and {:?}",
            sam.dims(),
            cnn.dims(),
            gate.dims()
        );
    }
    match path(&[sam, cnn, gate]) {
        Path::Cuda => cuda::mix(sam, cnn, gate),
        Path::Cpu | Path::Composed => (sam - cnn)?.broadcast_mul(gate)? + cnn,
    }
}

/// The gradient before a ReLU with the result `res`: `grad` where `res > 0` or `res` is NaN (as in PyTorch), otherwise 0.
///
/// # Shapes
/// Both and the result have the same shape.
///
/// # Errors
/// Those of the tensor library.
pub fn relu_backward(res: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let _span = tracing::trace_span!("relu backward").entered();
    match path(&[res, grad]) {
        Path::Cuda => cuda::relu_backward(res, grad),
        Path::Cpu => cpu::relu_backward(res, grad),
        Path::Composed => res.le(0.0)?.where_cond(&grad.zeros_like()?, grad),
    }
}

/// [`relu_backward`] for the sum of two gradients, in one pass.
///
/// # Shapes
/// All and the result have the same shape.
///
/// # Errors
/// Those of the tensor library.
pub fn relu_backward_sum(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _span = tracing::trace_span!("relu backward").entered();
    match path(&[res, a, b]) {
        Path::Cuda => cuda::relu_backward_sum(res, a, b),
        Path::Cpu => cpu::relu_backward_sum(res, a, b),
        Path::Composed => relu_backward(res, &(a + b)?),
    }
}
