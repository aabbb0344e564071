//! Batch norm, ReLU and max-pooling in one pass, on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::batch_norm::cpu::{Affine, Affines, Planes, affine_plane, backward_sums};
use crate::batch_norm::{BatchNormGradients, BatchStatistics};
use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{SendPtr, filled_vec, tensor_from, with_numbers, with_scratch};
use crate::max_pool::cpu::{Split, backward_plane, forward_plane};

/// As [`super::normalize_relu_max_pool`].
pub(super) fn normalize_relu_max_pool(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let affines = Affines::new(statistics, weight, bias, true)?;
    in_format!(x, pooled(x, &affines))
}

fn pooled<T: Activation>(x: &Tensor, affines: &Affines) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let split = Split { h, w };
    let outputs = split.rows() * split.columns();
    with_numbers(x, "batch-norm-pool", |x: &[T]| {
        // SAFETY: every plane is written by one task, whole.
        let data = unsafe {
            filled_vec(b * c * outputs, |out| {
                (0..b * c).into_par_iter().for_each(|p| {
                    with_scratch(h * w + split.len(), |scratch| {
                        let (y, scratch) = scratch.split_at_mut(h * w);
                        affine_plane(&x[p * h * w..][..h * w], &affines.of(p % c), y);
                        forward_plane::<f32, T>(&split, y, scratch, out.slice(p * outputs, outputs));
                    });
                });
            })
        };
        tensor_from(data, (b, c, split.rows(), split.columns()))
    })
}

/// As [`super::normalize_relu_max_pool_backward`].
pub(super) fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let affines = Affines::new(statistics, weight, bias, true)?;
    in_format!(x, backward(x, &affines, grad))
}

fn backward<T: Activation>(x: &Tensor, affines: &Affines, grad: &Tensor) -> Result<BatchNormGradients> {
    let (b, c, h, w) = x.dims4()?;
    let (planes, split) = (Planes { b, c, hw: h * w }, Split { h, w });
    let mut sums = vec![(0.0f32, 0.0f32); c];
    let grad_x = with_numbers(x, "batch-norm-pool", |x: &[T]| {
        with_numbers(grad, "batch-norm-pool", |g| {
            let input = Backward { planes: &planes, split: &split, x, g };
            // SAFETY: each channel's planes are written by one task, and together they are all elements.
            let data = unsafe {
                filled_vec(x.len(), |out| {
                    sums.par_iter_mut().enumerate().for_each(|(channel, sums)| {
                        let affine = affines.of(channel);
                        // The result holds the gradient before the ReLU until the channel's sums are known.
                        *sums = input.before_relu(channel, &affine, out);
                        input.finish(channel, &affine, *sums, out);
                    });
                })
            };
            tensor_from(data, (b, c, h, w))
        })
    })?;
    BatchNormGradients::new(grad_x, &sums)
}

/// Input of the backward pass.
struct Backward<'a, T> {
    planes: &'a Planes,
    split: &'a Split,
    x: &'a [T],
    g: &'a [T],
}

impl<T: Activation> Backward<'_, T> {
    /// Writes the gradient before a channel's ReLU; returns the gradients of bias and weight.
    ///
    /// # Safety
    /// `out` is as long as `x`, and no other thread touches this channel's planes.
    unsafe fn before_relu(&self, channel: usize, affine: &Affine, out: SendPtr<T>) -> (f32, f32) {
        let Backward { planes, split, x, g } = *self;
        let outputs = split.rows() * split.columns();
        let (mut sum, mut dot) = (0.0, 0.0);
        with_scratch(2 * planes.hw + 2 * split.len() + split.columns(), |scratch| {
            let (y, scratch) = scratch.split_at_mut(planes.hw);
            let (room, scratch) = scratch.split_at_mut(planes.hw);
            for start in planes.starts(channel) {
                let x = &x[start..][..planes.hw];
                // SAFETY: the caller's promise.
                let out = unsafe { out.slice(start, planes.hw) };
                affine_plane(x, affine, y);
                T::write_by(out, room, |before| {
                    backward_plane(split, y, &g[start / planes.hw * outputs..][..outputs], scratch, before);
                    mask(y, before);
                    let (s, d) = backward_sums(x, before, affine.mean);
                    sum += s;
                    dot += d;
                });
            }
        });
        (sum as f32, (dot * f64::from(affine.inv_std)) as f32)
    }

    /// Replaces the gradient before a channel's ReLU by that of its input.
    ///
    /// # Safety
    /// As for [`Self::before_relu`], which has written the channel's planes.
    unsafe fn finish(&self, channel: usize, affine: &Affine, (sum, dot): (f32, f32), out: SendPtr<T>) {
        let Backward { planes, x, .. } = *self;
        let count = (planes.b * planes.hw) as f32;
        let coefficients = [affine.scale, sum / count, dot / count * affine.inv_std, affine.mean];
        for start in planes.starts(channel) {
            // SAFETY: the caller's promise.
            finish(&x[start..][..planes.hw], coefficients, unsafe { out.slice(start, planes.hw) });
        }
    }
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
    /// Replaces the gradient of batch norm's output by that of its input.
    fn finish<T: Activation>(x: &[T], coefficients: [f32; 4], g: &mut [T]) {
        let [scale, offset, slope, mean] = coefficients;
        for (g, x) in g.iter_mut().zip(x) {
            *g = T::nearest(scale * (g.value() - offset - (x.value() - mean) * slope));
        }
    }
}
