//! Launches `pool.cu`.

use candle_core::{Result, Tensor};

use crate::batch_norm::cuda::channel_parameters;
use crate::batch_norm::{BatchNormGradients, BatchStatistics};
use crate::device::{Arg, Gpu, Grid, Input, Node, Output, THREADS, args_of, suffix};

const MODULE: &str = "max_pool";
/// Planes of one launch: a grid's second axis takes no more.
const PLANES: usize = 65_535;

/// Launches a kernel over the planes of `[b, c, h, w]`, as many as fit a grid at a time; `points` threads a plane.
fn over_planes(kernel: &str, x: &Tensor, points: usize, args: impl Fn(usize) -> Vec<Arg<'static>>) -> Result<()> {
    let (b, c, h, w) = x.dims4()?;
    let images = (PLANES / c.max(1)).max(1);
    for first in (0..b).step_by(images) {
        let planes = images.min(b - first) * c;
        let grid = Grid::blocks([points.div_ceil(THREADS as usize) as u32, planes as u32, 1]);
        let sizes = [c, h, w].map(|n| Arg::Int(n as i32));
        Gpu::of(x).launch(MODULE, &format!("{kernel}_{}", suffix(x.dtype())?), grid, &[&args(first)[..], &sizes].concat())?;
    }
    Ok(())
}

/// `pointer` moved on by `elements` of the type of `like`.
fn moved(arg: Arg<'static>, elements: usize, like: &Tensor) -> Arg<'static> {
    match arg {
        Arg::Pointer(pointer) => Arg::Pointer(pointer + (elements * like.dtype().size_in_bytes()) as u64),
        other => other,
    }
}

/// Elements of an image before and after pooling.
fn image_lens(x: &Tensor) -> Result<(usize, usize)> {
    let (_, c, h, w) = x.dims4()?;
    Ok((c * h * w, c * h.div_ceil(2) * w.div_ceil(2)))
}

fn pooled(x: &Tensor) -> Result<Output> {
    let (b, c, h, w) = x.dims4()?;
    Gpu::of(x).output(x.dtype(), (b, c, h.div_ceil(2), w.div_ceil(2)))
}

/// As [`crate::max_pool::max_pool2d_3x3_s2_p1`].
pub(crate) fn max_pool(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (out, input, (inner, outer)) = (pooled(&x)?, Input::new(&x)?.arg(), image_lens(&x)?);
    over_planes("max_pool", &x, outer / x.dim(1)?.max(1), |first| {
        vec![moved(input, first * inner, &x), moved(out.arg(), first * outer, &x)]
    })?;
    Node::tensor("max-pool2d", out, &[&x], |inputs, _, grad| {
        let (x, grad) = (inputs[0], grad.contiguous()?);
        let out = Gpu::of(x).output(x.dtype(), x.shape())?;
        let (input, given, (inner, outer)) = (Input::new(x)?.arg(), Input::new(&grad)?.arg(), image_lens(x)?);
        over_planes("max_pool_backward", x, inner / x.dim(1)?.max(1), |first| {
            vec![moved(input, first * inner, x), moved(given, first * outer, x), moved(out.arg(), first * inner, x)]
        })?;
        Ok([Some(out.tensor()), None, None])
    })
}

/// As [`crate::batch_norm_pool::normalize_relu_max_pool`].
pub(crate) fn normalize_relu_max_pool(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = args_of(&tensors.each_ref())?;
    let (out, input, (inner, outer)) = (pooled(&x)?, Input::new(&x)?.arg(), image_lens(&x)?);
    over_planes("norm_relu_max_pool", &x, outer / x.dim(1)?.max(1), |first| {
        [&[moved(input, first * inner, &x)][..], &pointers, &[moved(out.arg(), first * outer, &x)]].concat()
    })?;
    Ok(out.tensor())
}

/// As [`crate::batch_norm_pool::normalize_relu_max_pool_backward`].
pub(crate) fn normalize_relu_max_pool_backward(
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
    over_planes("norm_relu_max_pool_backward", &x, inner / x.dim(1)?.max(1), |first| {
        let inputs = [moved(input, first * inner, &x), moved(given, first * outer, &x)];
        [&inputs[..], &pointers, &[moved(before.arg(), first * inner, &x)]].concat()
    })?;
    crate::batch_norm::cuda::normalize_backward(&x, statistics, weight, bias, false, &before.tensor())
}
