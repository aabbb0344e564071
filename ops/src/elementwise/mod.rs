//! Elementwise passes: the end of a residual block, ReLU, and the gate of equation (3).

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

/// The paper's equation (3): `g·sam + (1 - g)·cnn` with `g = sigmoid(alpha)`, differentiable with respect to all three.
///
/// # Shapes
/// `sam`, `cnn` and the result have the same shape; `alpha` has one element, float32.
///
/// # Errors
/// Other shapes.
pub fn mix(sam: &Value, cnn: &Value, alpha: &Value) -> Result<Value> {
    let tensors = [sam.tensor().contiguous()?, cnn.tensor().contiguous()?, alpha.tensor().clone()];
    let [a, b, number] = &tensors;
    if a.dims() != b.dims() || number.elem_count() != 1 {
        bail!(
            "mix: expected two tensors of one shape and a number, found {:?}, {:?} and {:?}",
            a.dims(),
            b.dims(),
            number.dims()
        );
    }
    let by = path(&[a, b, number]);
    let y = match by {
        Path::Cuda => cuda::mix(a, b, number)?,
        Path::Cpu => cpu::mix(a, b, &sigmoid(number)?)?,
        Path::Composed => ((a - b)?.broadcast_mul(&sigmoid(number)?)? + b)?,
    };
    record(y, &[sam, cnn, alpha], move |gradient, wanted| {
        let ([sam, cnn, alpha], gradient) = (&tensors, gradient.contiguous()?);
        let of_sam = || match by {
            Path::Cpu => cpu::mix_backward_sam(&gradient, &sigmoid(alpha)?),
            Path::Cuda | Path::Composed => gradient.broadcast_mul(&sigmoid(alpha)?.to_dtype(gradient.dtype())?),
        };
        let of_cnn = || match by {
            Path::Cuda => cuda::mix_backward_cnn(&gradient, alpha),
            Path::Cpu => cpu::mix_backward_cnn(&gradient, &sigmoid(alpha)?),
            Path::Composed => &gradient - of_sam()?,
        };
        let of_alpha = || {
            let of_gate = match by {
                Path::Cuda => return cuda::mix_backward_alpha(&gradient, sam, cnn, alpha)?.reshape(alpha.shape()),
                Path::Cpu => cpu::mix_backward_gate(&gradient, sam, cnn)?,
                Path::Composed => (&gradient * (sam - cnn)?)?.sum_all()?.reshape(1)?,
            };
            let gate = sigmoid(alpha)?.flatten_all()?;
            (of_gate * (&gate - gate.sqr()?)?)?.reshape(alpha.shape())
        };
        let of_alpha = || of_alpha()?.to_dtype(alpha.dtype());
        Ok(vec![wanted[0].then(of_sam).transpose()?, wanted[1].then(of_cnn).transpose()?, wanted[2].then(of_alpha).transpose()?])
    })
}

/// `1 / (1 + exp(-x))`, on candle's graph.
///
/// # Errors
/// Those of the tensor library.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
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
    fn mix_and_relu_have_candles_gradients() -> Result<()> {
        let inputs = [uniform(&[2, 3, 5], 1)?, uniform(&[2, 3, 5], 2)?, uniform(&[1], 3)?];
        assert_gradients_match(
            &inputs,
            |v| relu(&mix(&v[0], &v[1], &v[2])?),
            |t| ((&t[0] - &t[1])?.broadcast_mul(&sigmoid(&t[2])?)? + &t[1])?.relu(),
        )?;
        let [a, b] = [&[2, 3][..], &[3]].map(|shape| uniform(shape, 1).map(Value::from));
        let (a, b) = (a?, b?);
        assert!(mix(&a, &a, &b).unwrap_err().to_string().contains("a number"));
        Ok(())
    }
}
