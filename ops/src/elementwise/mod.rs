//! Elementwise passes: the end of a residual block, and ReLU.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::dispatch::{Path, path};
use crate::tape::{Value, record};

/// `max(a + b, 0)`, the end of a residual block (He et al. 2016). NaN stays NaN, as in PyTorch. Keeps no graph: both have the gradient of
/// [`relu_backward`].
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
    let _span = tracing::trace_span!("add-relu").entered();
    match path(&[a, b]) {
        Path::Cuda => cuda::add_relu(a, b),
        Path::Cpu => cpu::add_relu(a, b),
        Path::Composed => (a + b)?.relu(),
    }
}

/// `max(x, 0)`, differentiable. NaN stays NaN, as in PyTorch.
///
/// # Shapes
/// any → the same
///
/// # Errors
/// Those of the tensor library.
pub fn relu(x: &Value) -> Result<Value> {
    let y = match path(&[x.tensor()]) {
        Path::Cuda => cuda::relu(x.tensor())?,
        Path::Cpu => cpu::relu(x.tensor())?,
        Path::Composed => x.tensor().relu()?,
    };
    let result = y.clone();
    record(y, &[x], move |gradient, _| Ok(vec![Some(relu_backward(&result, gradient)?)]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn relu_has_candles_gradient() -> Result<()> {
        assert_gradients_match(&[uniform(&[2, 3, 5], 1)?], |v| relu(&v[0]), |t| t[0].relu())
    }
}
