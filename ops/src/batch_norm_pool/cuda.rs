//! Batch norm, ReLU and max-pooling in one pass, on a GPU.

use candle_core::{Result, Tensor};

use crate::batch_norm::cuda::{channel_parameters, normalize_backward};
use crate::batch_norm::{BatchNormGradients, BatchStatistics};
use crate::device::{Gpu, Input, args_of};
use crate::max_pool::cuda::{image_lens, moved, over_planes, pooled};

const MODULE: &str = "batch_norm_pool";

/// As [`super::normalize_relu_max_pool`].
pub(super) fn normalize_relu_max_pool(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = args_of(&tensors.each_ref())?;
    let (out, input, (inner, outer)) = (pooled(&x)?, Input::new(&x)?.arg(), image_lens(&x)?);
    let args =
        |first: usize| [&[moved(input, first * inner, &x)][..], &pointers, &[moved(out.arg(), first * outer, &x)]].concat();
    // SAFETY: an image has `inner` elements before pooling and `outer` after it; the parameters have a number for each channel.
    unsafe { over_planes((MODULE, "norm_relu_max_pool"), &x, outer / x.dim(1)?.max(1), args)? };
    Ok(out.tensor())
}

/// As [`super::normalize_relu_max_pool_backward`].
pub(super) fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let (x, grad) = (x.contiguous()?, grad.to_dtype(x.dtype())?.contiguous()?);
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = args_of(&tensors.each_ref())?;
    // The gradient before the ReLU.
    let before = Gpu::of(&x).output(x.dtype(), x.shape())?;
    let (input, given, (inner, outer)) = (Input::new(&x)?.arg(), Input::new(&grad)?.arg(), image_lens(&x)?);
    let args = |first: usize| {
        let inputs = [moved(input, first * inner, &x), moved(given, first * outer, &x)];
        [&inputs[..], &pointers, &[moved(before.arg(), first * inner, &x)]].concat()
    };
    // SAFETY: as above, with a gradient as the result.
    unsafe { over_planes((MODULE, "norm_relu_max_pool_backward"), &x, inner / x.dim(1)?.max(1), args)? };
    normalize_backward(&x, statistics, weight, bias, false, &before.tensor())
}
