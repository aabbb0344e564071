//! Convolutions by cuDNN. Where the host stands in for the GPU, by the CPU's own.

use candle_core::{DType, Result, Tensor};

use crate::conv2d::{Geometry, conv2d_backward_input, conv2d_backward_weight};
use crate::device::Node;

/// As [`crate::conv2d::conv2d`]. The weight is brought to the input's number format, its gradient is float32.
pub(crate) fn conv2d(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let (stride, padding) = (g.stride, g.padding);
    let y = forward(&x.detach().contiguous()?, &weight.detach().to_dtype(x.dtype())?.contiguous()?, g)?;
    Node::tensor("conv2d", y, &[x, weight], move |inputs, _, grad| {
        let &[x, weight] = inputs else { candle_core::bail!("conv2d: expected two inputs") };
        let (_, _, h, w) = x.dims4()?;
        let grad_x = x.track_op().then(|| conv2d_backward_input(grad, weight, (h, w), stride, padding)).transpose()?;
        let of_weight = || conv2d_backward_weight(x, grad, weight.dim(2)?, stride, padding)?.to_dtype(weight.dtype());
        let grad_weight = weight.track_op().then(of_weight).transpose()?;
        Ok([grad_x, grad_weight, None])
    })
}

fn forward(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<crate::device::Output> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cudnn::forward(x, weight, g);
    }
    emulated(x.dtype(), &[x, weight], |t| crate::conv2d::forward_f32(&t[0], &t[1], g))
}

/// As [`conv2d_backward_input`].
pub(crate) fn backward_input(grad: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let (grad, weight) = (grad.detach().contiguous()?, weight.detach().to_dtype(grad.dtype())?.contiguous()?);
    #[cfg(feature = "cuda")]
    if grad.device().is_cuda() {
        return super::cudnn::backward_input(&grad, &weight, g).map(crate::device::Output::tensor);
    }
    emulated(grad.dtype(), &[&grad, &weight], |t| crate::conv2d::backward_input_f32(&t[0], &t[1], g))
        .map(crate::device::Output::tensor)
}

/// As [`conv2d_backward_weight`].
pub(crate) fn backward_weight(x: &Tensor, grad: &Tensor, g: &Geometry) -> Result<Tensor> {
    let (x, grad) = (x.detach().contiguous()?, grad.detach().to_dtype(x.dtype())?.contiguous()?);
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cudnn::backward_weight(&x, &grad, g)?.tensor().to_dtype(DType::F32);
    }
    let found = emulated(x.dtype(), &[&x, &grad], |t| crate::conv2d::backward_weight_f32(&t[0], &t[1], g))?;
    found.tensor().to_dtype(DType::F32)
}

/// The CPU's float32 result, in the format of the GPU's.
fn emulated(dtype: DType, inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<crate::device::Output> {
    let inputs = inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    crate::device::Output::copy_of(&f(&inputs)?.to_dtype(dtype)?)
}
