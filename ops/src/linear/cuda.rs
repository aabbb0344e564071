//! The linear layer: a matrix product by the device's library, and the bias in place.

use candle_core::{DType, Result, Tensor};

use crate::device::{Gpu, Node, Output};
use crate::elementwise::cuda::{Activation, add_bias};

/// As [`crate::linear::linear`]. The weight is brought to the input's number format, its gradient is of its own.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = product(x, weight, bias, Activation::None)?;
    let op = |inputs: &[&Tensor], _: &Tensor, grad: &Tensor| gradients(inputs, grad);
    match bias {
        Some(bias) => Node::tensor("linear", y, &[x, weight, bias], op),
        None => Node::tensor("linear", y, &[x, weight], op),
    }
}

/// `act(x·weightᵀ + bias)` without a graph.
pub(crate) fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Output> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.detach().contiguous()?.reshape(((), in_features))?;
    let y = Gpu::of(x).product(&rows, &weight.detach().to_dtype(x.dtype())?.contiguous()?.t()?)?; // [n, out]
    if let Some(bias) = bias {
        add_bias(&Gpu::of(x), &y, x.dtype(), bias, activation)?;
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    Ok(y.reshape(dims))
}

fn gradients(inputs: &[&Tensor], grad: &Tensor) -> Result<crate::device::Gradients> {
    let &[x, weight, ..] = inputs else { candle_core::bail!("linear: expected an input and a weight") };
    let (out_features, in_features) = weight.dims2()?;
    let grad = grad.contiguous()?.reshape(((), out_features))?; // [n, out]
    let grad_x = match x.track_op() {
        true => Some(grad.matmul(&weight.detach().to_dtype(grad.dtype())?.contiguous()?)?.reshape(x.dims())?),
        false => None,
    };
    let grad_weight = match weight.track_op() {
        true => {
            let rows = x.detach().contiguous()?.reshape(((), in_features))?;
            Some(grad.t()?.matmul(&rows)?.to_dtype(weight.dtype())?)
        }
        false => None,
    };
    let grad_bias = match inputs.get(2) {
        Some(bias) if bias.track_op() => Some(grad.to_dtype(DType::F32)?.sum(0)?.to_dtype(bias.dtype())?),
        _ => None,
    };
    Ok([grad_x, grad_weight, grad_bias])
}
