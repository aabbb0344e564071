//! Layer norm over the last axis, on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::{madd, multiversion, sum_by};
use crate::cpu::{SendPtr, filled_vec, sum_parts, tensor_from, with_f32, with_numbers, with_scratch};

/// Rows that one task works on.
const ROWS: usize = 64;

/// The norm of one tensor, or of the sum of two in float32; and that sum, or the one tensor.
pub(super) fn norm_of_sum(
    first: &Tensor,
    second: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    with_f32(weight, "layer norm", |weight| {
        with_f32(bias, "layer norm", |bias| match second {
            Some(second) => in_format!(first, norm_of_two(first, second, (weight, bias), eps as f32)),
            None => Ok((in_format!(first, norm_of(first, (weight, bias), eps as f32))?, first.clone())),
        })
    })
}

fn norm_of<T: Activation>(x: &Tensor, (weight, bias): (&[f32], &[f32]), eps: f32) -> Result<Tensor> {
    let chunk = ROWS * weight.len();
    let y = with_numbers(x, "layer norm", |x: &[T]| {
        let tasks = x.par_chunks(chunk).enumerate();
        let task = |x: &[T], y: &mut [T]| layer_norm_rows(x, weight, bias, eps, y);
        // SAFETY: the chunks are disjoint and all of the result, whose rows are as long as the weight; all rows are written.
        Ok(unsafe { filled_vec(x.len(), |y| tasks.for_each(|(i, x)| task(x, y.slice(i * chunk, x.len())))) })
    })?;
    tensor_from(y, x.shape())
}

fn norm_of_two<T: Activation>(first: &Tensor, second: &Tensor, norm: (&[f32], &[f32]), eps: f32) -> Result<(Tensor, Tensor)> {
    let (width, chunk) = (norm.0.len(), ROWS * norm.0.len());
    let mut sum = vec![T::zero(); first.elem_count()];
    let y = with_numbers(first, "layer norm", |first: &[T]| {
        with_numbers(second, "layer norm", |second: &[T]| {
            let tasks = first.par_chunks(chunk).zip(second.par_chunks(chunk)).zip(sum.par_chunks_mut(chunk)).enumerate();
            let task = |terms: (&[T], &[T]), sum: &mut [T], y: &mut [T]| {
                with_scratch(width, |row| sum_layer_norm_rows(terms, norm, eps, row, (sum, y)));
            };
            let each = |y: SendPtr<T>| {
                // SAFETY: as in `norm_of`.
                tasks.for_each(|(i, ((a, b), sum))| task((a, b), sum, unsafe { y.slice(i * chunk, a.len()) }));
            };
            // SAFETY: as in `norm_of`.
            Ok(unsafe { filled_vec(first.len(), each) })
        })
    })?;
    Ok((tensor_from(y, first.shape())?, tensor_from(sum, first.shape())?))
}

/// The gradient of x and, if `parameters`, those of weight and bias, `[2, c]`.
pub(super) fn layer_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    eps: f64,
    parameters: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    in_format!(x, backward_of(x, weight, gradient, eps as f32, parameters))
}

fn backward_of<T: Activation>(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    eps: f32,
    parameters: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let channels = weight.elem_count();
    let mut of_x = with_numbers(gradient, "layer norm", |gradient: &[T]| Ok(gradient.to_vec()))?;
    let chunk = ROWS * channels;
    // A part of the parameters' gradients for each task, so that the sum's order is fixed.
    let mut parts = vec![0f32; if parameters { of_x.len().div_ceil(chunk) * 2 * channels } else { 0 }];
    with_numbers(x, "layer norm", |x: &[T]| {
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
    pub(crate) fn layer_norm_rows<T: Activation, U: Activation>(x: &[T], weight: &[f32], bias: &[f32], eps: f32, y: &mut [U]) {
        let channels = weight.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            normalise::<_, _, FMA>(x, row_statistics(x, eps), (weight, bias), y);
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
            normalise::<_, _, FMA>(x, row_statistics(x, eps), (weight, bias), y);
        }
    }
}

multiversion! {
    /// The sum of each row of two terms, and its layer norm; `row` has room for one.
    fn sum_layer_norm_rows<T: Activation>(
        terms: (&[T], &[T]),
        norm: (&[f32], &[f32]),
        eps: f32,
        row: &mut [f32],
        out: (&mut [T], &mut [T]),
    ) {
        let (channels, (sums, normed)) = (row.len(), out);
        let terms = terms.0.chunks_exact(channels).zip(terms.1.chunks_exact(channels));
        for ((a, b), (sum, y)) in terms.zip(sums.chunks_exact_mut(channels).zip(normed.chunks_exact_mut(channels))) {
            for (((row, sum), a), b) in row.iter_mut().zip(sum).zip(a).zip(b) {
                *row = a.value() + b.value();
                *sum = T::nearest(*row);
            }
            normalise::<_, _, FMA>(row, row_statistics(row, eps), norm, y);
        }
    }
}

/// A row's layer norm, given its mean and 1/sqrt(variance + eps).
#[inline(always)]
fn normalise<T: Activation, U: Activation, const FMA: bool>(
    x: &[T],
    statistics: (f32, f32),
    norm: (&[f32], &[f32]),
    y: &mut [U],
) {
    for (((y, x), &weight), &bias) in y.iter_mut().zip(x).zip(norm.0).zip(norm.1) {
        *y = U::nearest(madd::<FMA>((x.value() - statistics.0) * statistics.1, weight, bias));
    }
}

/// Mean and 1/sqrt(variance + eps) of a row.
#[inline(always)]
fn row_statistics<T: Activation>(x: &[T], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_by(x, |v| v.value()) / n;
    let variance = sum_by(x, |v| (v.value() - mean) * (v.value() - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

multiversion! {
    /// Backward of [`layer_norm_rows`]: replaces the output's gradient in `grad` by the input's.
    fn layer_norm_rows_backward<T: Activation>(x: &[T], weight: &[f32], eps: f32, grad: &mut [T]) {
        let channels = weight.len();
        let n = channels as f32;
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            let (mut sum, mut dot) = ([0f32; 16], [0f32; 16]);
            for ((grad, x), weight) in grad.chunks(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
                for (i, ((grad, x), &weight)) in grad.iter().zip(x).zip(weight).enumerate() {
                    let scaled = grad.value() * weight;
                    sum[i] += scaled;
                    dot[i] = madd::<FMA>(scaled, (x.value() - mean) * inverse_deviation, dot[i]);
                }
            }
            let (sum, dot) = (sum.iter().sum::<f32>() / n, dot.iter().sum::<f32>() / n);
            for ((grad, x), &weight) in grad.iter_mut().zip(x).zip(weight) {
                let normalised = (x.value() - mean) * inverse_deviation;
                *grad = T::nearest((grad.value() * weight - sum - normalised * dot) * inverse_deviation);
            }
        }
    }
}

multiversion! {
    /// Adds `grad·normalised x` to `of_weight` and `grad` to `of_bias`, over all rows.
    fn layer_norm_parameter_sums<T: Activation>(x: &[T], grad: &[T], eps: f32, of_weight: &mut [f32], of_bias: &mut [f32]) {
        let channels = of_weight.len();
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((of_weight, of_bias), x), grad) in of_weight.iter_mut().zip(of_bias.iter_mut()).zip(x).zip(grad) {
                *of_weight = madd::<FMA>(grad.value(), (x.value() - mean) * inverse_deviation, *of_weight);
                *of_bias += grad.value();
            }
        }
    }
}
