//! Batch norm, ReLU and max-pooling in one pass, on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use crate::batch_norm::cuda::{channel_parameters, gradient_numbers};
use crate::batch_norm::{BatchNormGradients, BatchStatistics, GradientSums};
use crate::device::{Arg, Gpu, Grid, Input, args_of, splits, suffix};
use crate::max_pool::cuda::{image_lens, moved, over_planes, pooled};

const MODULE: &str = "batch_norm_pool";

/// As [`super::normalize_relu_max_pool`], and where each window's maximum lies in it, as bytes in the shape of the result.
pub(super) fn normalize_relu_max_pool(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let x = x.contiguous()?;
    let tensors = channel_parameters(statistics, weight, bias)?;
    let pointers = args_of(&tensors.each_ref())?;
    let (out, input, (inner, outer)) = (pooled(&x)?, Input::new(&x)?.arg(), image_lens(&x)?);
    let (b, c, h, w) = x.dims4()?;
    let places = Gpu::of(&x).output(DType::U8, (b, c, h.div_ceil(2), w.div_ceil(2)))?;
    let args = |first: usize| {
        let results = [moved(out.arg(), first * outer, &x), places.arg_at(first * outer, DType::U8)];
        [&[moved(input, first * inner, &x)][..], &pointers, &results].concat()
    };
    // SAFETY: an image has `inner` elements before pooling and `outer` after it; the parameters have a number for each channel.
    unsafe { over_planes((MODULE, "norm_relu_max_pool"), &x, outer / c.max(1), args)? };
    Ok((out.tensor(), places.tensor()))
}

/// As [`super::normalize_relu_max_pool_backward`].
pub(super) fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    places: &Tensor,
    (grad, second): (&Tensor, Option<&Tensor>),
) -> Result<BatchNormGradients> {
    let in_format = |grad: &Tensor| grad.to_dtype(x.dtype())?.contiguous();
    let (x, grad, second) = (x.contiguous()?, in_format(grad)?, second.map(in_format).transpose()?);
    let (b, c, h, w) = x.dims4()?;
    let (gpu, (inner, outer)) = (Gpu::of(&x), image_lens(&x)?);
    if places.elem_count() != b * outer || grad.elem_count() != b * outer {
        bail!("batch_norm_pool: {:?} places and a gradient of {:?} are not those of {:?}", places.dims(), grad.dims(), x.dims());
    }
    let tensors = channel_parameters(statistics, weight, bias)?;
    let inputs = [Some(&x), Some(&grad), second.as_ref()].map(|tensor| tensor.map(Input::new).transpose());
    let [input, given, more] = inputs;
    let (input, given, more) = (input?, given?, more?);
    let aligned = [&input, &given, &more].into_iter().flatten().all(|input| input.is_aligned(x.dtype()));
    let arg = |input: &Option<Input<'_>>| input.as_ref().map_or(Arg::Pointer(0), Input::arg);
    let (input, given, more) = (arg(&input), arg(&given), arg(&more));
    let at = Input::new(places)?.arg();
    let [mean, inv_std, scale, _] = &tensors;
    let splits = splits(b * outer / c.max(1));
    let partial = gpu.output(DType::F64, (c, splits, 2))?;
    let fours = |n: usize| Arg::Int(i32::from(aligned && n.is_multiple_of(4)));
    let sizes = [b, c, h, w].map(|n| Arg::Int(n as i32));
    let args =
        [&[input, at, given, more, Input::new(mean)?.arg(), partial.arg()][..], &sizes, &[fours(outer / c.max(1))]].concat();
    let (kernel, grid) =
        (format!("norm_relu_max_pool_gradient_sums_{}", suffix(x.dtype())?), Grid::blocks([splits as u32, c as u32, 1]));
    // SAFETY: an image has `inner` elements before pooling and `outer` after it; the parameters have a number for each channel, `partial` two for
    // each channel and split; a second gradient that is absent is null.
    unsafe { gpu.launch(MODULE, &kernel, grid, &args)? };
    let numbers = gradient_numbers(&x, inv_std, &GradientSums::of(partial))?;
    let out = gpu.output(x.dtype(), x.shape())?;
    let parameters = args_of(&[mean, inv_std, scale, &numbers])?;
    let run = if aligned && w.is_multiple_of(4) { 4 } else { 1 };
    let args = |first: usize| {
        let more = if matches!(more, Arg::Pointer(0)) { more } else { moved(more, first * outer, &x) };
        let inputs = [moved(input, first * inner, &x), moved(at, first * outer, places), moved(given, first * outer, &x), more];
        [&inputs[..], &parameters, &[moved(out.arg(), first * inner, &x), fours(w)]].concat()
    };
    // SAFETY: as above, with four numbers for each channel and a gradient as the result; rows consist of whole runs.
    unsafe { over_planes((MODULE, "norm_relu_max_pool_gradient"), &x, inner / c.max(1) / run, args)? };
    Ok(BatchNormGradients { x: out.tensor(), weight: numbers.get(0)?, bias: numbers.get(1)? })
}
