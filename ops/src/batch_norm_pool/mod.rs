//! Batch norm, ReLU and max-pooling in one op: what follows ResNet's first convolution, where activations are largest.
//!
//! The normalised activations are made again in the backward, plane by plane in the caches, so that neither they nor their gradient, the two largest
//! tensors of a training step, are ever held.

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::batch_norm::{
    Affines, BatchNormGradients, BatchStatistics, Planes, Tail, affine_plane, backward_sums, check_channels, normalize,
    normalize_backward,
};
use crate::cpu::simd::multiversion;
use crate::cpu::{filled_vec, is_native, tensor_from, with_f32, with_scratch};
use crate::device;
use crate::max_pool::{Split, backward_plane, forward_plane, max_pool2d_3x3_s2_p1};

/// [`normalize`] with [`Tail::Relu`], then [`max_pool2d_3x3_s2_p1`]. No graph is kept: see [`normalize_relu_max_pool_backward`].
///
/// # Shapes
/// `x` `[b, c, h, w]`, `weight` and `bias` `[c]` → `[b, c, ceil(h/2), ceil(w/2)]`.
///
/// # Errors
/// As [`normalize`] and [`max_pool2d_3x3_s2_p1`].
pub fn normalize_relu_max_pool(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    check_channels(c, &[weight, bias])?;
    let _span = tracing::trace_span!("batch norm, max pool", shape = ?x.dims()).entered();
    if device::runs_on(&[x, weight, bias]) {
        return crate::max_pool::cuda::normalize_relu_max_pool(x, statistics, weight, bias);
    }
    if !is_native(&[x, weight, bias]) {
        return max_pool2d_3x3_s2_p1(&normalize(x, statistics, weight, bias, Tail::Relu)?);
    }
    let affine = Affines::new(statistics, weight, bias, true)?;
    let split = Split { h, w };
    let outputs = split.rows() * split.columns();
    with_f32(x, "batch-norm-pool", |x| {
        // SAFETY: every plane is written by one task, whole.
        let data = unsafe {
            filled_vec(b * c * outputs, |out| {
                (0..b * c).into_par_iter().for_each(|p| {
                    with_scratch(h * w + split.len(), |scratch| {
                        let (y, scratch) = scratch.split_at_mut(h * w);
                        affine_plane(&x[p * h * w..][..h * w], &affine.of(p % c), y);
                        forward_plane(&split, y, scratch, out.slice(p * outputs, outputs));
                    });
                });
            })
        };
        tensor_from(data, (b, c, split.rows(), split.columns()))
    })
}

/// The gradients of `x`, `weight` and `bias` from that of [`normalize_relu_max_pool`]'s result, through the statistics too.
///
/// # Shapes
/// As [`normalize_relu_max_pool`]'s; `grad` as its result.
pub fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let (b, c, h, w) = x.dims4()?;
    let _span = tracing::trace_span!("batch norm, max pool backward", shape = ?x.dims()).entered();
    if device::runs_on(&[x, weight, bias, grad]) {
        return crate::max_pool::cuda::normalize_relu_max_pool_backward(x, statistics, weight, bias, grad);
    }
    if !is_native(&[x, weight, bias, grad]) {
        let y = Var::from_tensor(&normalize(x, statistics, weight, bias, Tail::None)?)?;
        let sum = (max_pool2d_3x3_s2_p1(&y.as_tensor().relu()?)? * grad)?.sum_all()?;
        let Some(grad) = sum.backward()?.remove(&y) else { candle_core::bail!("batch_norm_pool: no gradient") };
        return normalize_backward(x, statistics, weight, bias, false, &grad);
    }
    let affine = Affines::new(statistics, weight, bias, true)?;
    let (planes, split) = (Planes { b, c, hw: h * w }, Split { h, w });
    let outputs = split.rows() * split.columns();
    let mut sums = vec![(0.0f32, 0.0f32); c];
    let grad_x = with_f32(x, "batch-norm-pool", |x| {
        with_f32(grad, "batch-norm-pool", |g| {
            // SAFETY: each channel's planes are written by one task, and together they are all elements.
            let data = unsafe {
                filled_vec(x.len(), |out| {
                    sums.par_iter_mut().enumerate().for_each(|(channel, sums)| {
                        let affine = affine.of(channel);
                        let (mut sum, mut dot) = (0.0, 0.0);
                        with_scratch(planes.hw + 2 * split.len() + split.columns(), |scratch| {
                            let (y, scratch) = scratch.split_at_mut(planes.hw);
                            for start in planes.starts(channel) {
                                let x = &x[start..][..planes.hw];
                                // The gradient before the ReLU stands in the result until the channel's sums are known.
                                let before = out.slice(start, planes.hw);
                                affine_plane(x, &affine, y);
                                backward_plane(&split, y, &g[start / planes.hw * outputs..][..outputs], scratch, before);
                                mask(y, before);
                                let (s, d) = backward_sums(x, before, affine.mean);
                                sum += s;
                                dot += d;
                            }
                        });
                        *sums = (sum as f32, (dot * f64::from(affine.inv_std)) as f32);
                        let count = (planes.b * planes.hw) as f32;
                        let coefficients = [affine.scale, sums.0 / count, sums.1 / count * affine.inv_std, affine.mean];
                        for start in planes.starts(channel) {
                            finish(&x[start..][..planes.hw], coefficients, out.slice(start, planes.hw));
                        }
                    });
                })
            };
            tensor_from(data, (b, c, h, w))
        })
    })?;
    Ok(BatchNormGradients {
        x: grad_x,
        weight: tensor_from(sums.iter().map(|s| s.1).collect(), c)?,
        bias: tensor_from(sums.iter().map(|s| s.0).collect(), c)?,
    })
}

multiversion! {
    /// The gradient before a ReLU with the result `y`, in place.
    fn mask(y: &[f32], g: &mut [f32]) {
        for (g, y) in g.iter_mut().zip(y) {
            *g = if *y <= 0.0 { 0.0 } else { *g };
        }
    }
}

multiversion! {
    /// Batch norm's gradient of the input from that of its result, in place.
    fn finish(x: &[f32], coefficients: [f32; 4], g: &mut [f32]) {
        let [scale, offset, slope, mean] = coefficients;
        for (g, x) in g.iter_mut().zip(x) {
            *g = scale * (*g - offset - (x - mean) * slope);
        }
    }
}
