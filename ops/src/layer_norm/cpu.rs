//! Layer norm over the last axis, on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::activation::Activation;
use crate::cpu::simd::{madd, multiversion, sum_by};
use crate::cpu::{sum_parts, tensor_from, with_f32};

/// Rows that one task works on.
const ROWS: usize = 64;

/// As [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (mut y, chunk) = (vec![0f32; x.elem_count()], ROWS * weight.elem_count());
    with_f32(x, "layer norm", |x| {
        with_f32(weight, "layer norm", |weight| {
            with_f32(bias, "layer norm", |bias| {
                let tasks = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk));
                tasks.for_each(|(y, x)| layer_norm_rows(x, weight, bias, eps as f32, y));
                Ok(())
            })
        })
    })?;
    tensor_from(y, x.shape())
}

/// The gradient of x and, if `parameters`, those of weight and bias, `[2, c]`.
pub(super) fn layer_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    eps: f64,
    parameters: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (channels, eps) = (weight.elem_count(), eps as f32);
    let mut of_x = with_f32(gradient, "layer norm", |gradient| Ok(gradient.to_vec()))?;
    let chunk = ROWS * channels;
    // A part of the parameters' gradients for each task, so that the sum's order is fixed.
    let mut parts = vec![0f32; if parameters { of_x.len().div_ceil(chunk) * 2 * channels } else { 0 }];
    with_f32(x, "layer norm", |x| {
        with_f32(weight, "layer norm", |weight| {
            let tasks = of_x.par_chunks_mut(chunk).zip(x.par_chunks(chunk));
            if parameters {
                let tasks = tasks.zip(parts.par_chunks_mut(2 * channels));
                tasks.for_each(|((gradient, x), part)| {
                    let (of_weight, of_bias) = part.split_at_mut(channels);
                    layer_norm_parameter_sums(x, gradient, eps, of_weight, of_bias);
                    layer_norm_rows_backward(x, weight, eps, gradient);
                });
            } else {
                tasks.for_each(|(gradient, x)| layer_norm_rows_backward(x, weight, eps, gradient));
            }
            Ok(())
        })
    })?;
    let of_parameters = parameters.then(|| tensor_from(sum_parts(&parts, 2 * channels), (2, channels))).transpose()?;
    Ok((tensor_from(of_x, x.shape())?, of_parameters))
}

multiversion! {
    /// Layer norm of each row of `x` (rows as long as `weight`) into the same row of `y`.
    pub(crate) fn layer_norm_rows<T: Activation>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [T]) {
        let channels = weight.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = T::nearest(madd::<FMA>((x - mean) * inverse_deviation, weight, bias));
            }
        }
    }
}

multiversion! {
    /// Adds `added` to each row of `x`, in place, then writes the row's layer norm to the same row of `y`: a linear layer's bias, the
    /// residual sum and the norm in one pass.
    pub(crate) fn add_layer_norm_rows<T: Activation>(x: &mut [f32], added: &[f32], norm: (&[f32], &[f32]), eps: f32, y: &mut [T]) {
        let (weight, bias) = norm;
        let channels = weight.len();
        for (x, y) in x.chunks_exact_mut(channels).zip(y.chunks_exact_mut(channels)) {
            for (x, &added) in x.iter_mut().zip(added) {
                *x += added;
            }
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x.iter()).zip(weight).zip(bias) {
                *y = T::nearest(madd::<FMA>((x - mean) * inverse_deviation, weight, bias));
            }
        }
    }
}

/// Mean and 1/sqrt(variance + eps) of a row.
#[inline(always)]
fn row_statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_by(x, |v| v) / n;
    let variance = sum_by(x, |v| (v - mean) * (v - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

multiversion! {
    /// Backward of [`layer_norm_rows`]: replaces the output's gradient in `grad` by the input's.
    fn layer_norm_rows_backward(x: &[f32], weight: &[f32], eps: f32, grad: &mut [f32]) {
        let channels = weight.len();
        let n = channels as f32;
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            let (mut sum, mut dot) = ([0f32; 16], [0f32; 16]);
            for ((grad, x), weight) in grad.chunks_mut(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
                for (i, ((grad, &x), &weight)) in grad.iter_mut().zip(x).zip(weight).enumerate() {
                    *grad *= weight;
                    sum[i] += *grad;
                    dot[i] = madd::<FMA>(*grad, (x - mean) * inverse_deviation, dot[i]);
                }
            }
            let (sum, dot) = (sum.iter().sum::<f32>() / n, dot.iter().sum::<f32>() / n);
            for (grad, &x) in grad.iter_mut().zip(x) {
                let normalised = (x - mean) * inverse_deviation;
                *grad = (*grad - sum - normalised * dot) * inverse_deviation;
            }
        }
    }
}

multiversion! {
    /// Adds `grad·normalised x` to `of_weight` and `grad` to `of_bias`, over all rows.
    fn layer_norm_parameter_sums(x: &[f32], grad: &[f32], eps: f32, of_weight: &mut [f32], of_bias: &mut [f32]) {
        let channels = of_weight.len();
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((of_weight, of_bias), &x), &grad) in of_weight.iter_mut().zip(of_bias.iter_mut()).zip(x).zip(grad) {
                *of_weight = madd::<FMA>(grad, (x - mean) * inverse_deviation, *of_weight);
                *of_bias += grad;
            }
        }
    }
}
