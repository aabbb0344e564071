//! Convolutions by cuDNN.
#![cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "only cuDNN asks how float32 factors are taken"))]

use candle_core::{Result, Tensor};

use super::Conv2d;
#[cfg(feature = "cuda")]
use super::cudnn;
use super::shape::ConvShape;
#[cfg(feature = "cuda")]
use crate::device::Output;

/// As [`Conv2d::forward`]. The weight is converted to the input's number format, which its gradient has, too.
pub(super) fn forward(op: Conv2d, x: &Tensor, weight: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let (x, weight) = (x.detach().contiguous()?, weight.detach().to_dtype(x.dtype())?.contiguous()?);
    #[cfg(feature = "cuda")]
    return cudnn::forward(&x, &weight, g, op.math).map(Output::tensor);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("cuDNN is not part of this build")
}

/// As [`Conv2d::backward_input`].
pub(super) fn backward_input(op: Conv2d, grad: &Tensor, weight: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let (grad, weight) = (grad.detach().contiguous()?, weight.detach().to_dtype(grad.dtype())?.contiguous()?);
    #[cfg(feature = "cuda")]
    return cudnn::backward_input(&grad, &weight, g, op.math).map(Output::tensor);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("cuDNN is not part of this build")
}

/// As [`Conv2d::backward_weight`].
pub(super) fn backward_weight(op: Conv2d, x: &Tensor, grad: &Tensor, g: &ConvShape) -> Result<Tensor> {
    let (x, grad) = (x.detach().contiguous()?, grad.detach().to_dtype(x.dtype())?.contiguous()?);
    #[cfg(feature = "cuda")]
    return cudnn::backward_weight(&x, &grad, g, op.math).map(Output::tensor);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("cuDNN is not part of this build")
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::Result;

    use super::super::Conv2d;
    use crate::testing::kernels::{FORMATS, compare_results};
    use crate::testing::uniform;

    #[test]
    fn convolutions() -> Result<()> {
        for dtype in FORMATS {
            for (ci, co, k, stride, padding) in [(4, 8, 3, 1, 1), (8, 4, 3, 2, 1), (3, 8, 7, 2, 3), (4, 8, 1, 2, 0)] {
                let conv = Conv2d::new(stride, padding);
                let (x, weight) = (uniform(&[2, ci, 12, 14], 1)?, uniform(&[co, ci, k, k], 2)?);
                let grad = uniform(conv.forward(&x, &weight)?.dims(), 3)?;
                compare_results("convolution", &[x, weight, grad], &[0, 2], dtype, |t| {
                    let of_x = conv.backward_input(&t[2], &t[1], (12, 14))?;
                    Ok(vec![conv.forward(&t[0], &t[1])?, of_x, conv.backward_weight(&t[0], &t[2], k)?])
                })?;
            }
        }
        Ok(())
    }
}
