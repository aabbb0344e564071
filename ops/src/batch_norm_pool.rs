//! Batch norm, ReLU and max-pooling in one op: what follows ResNet's first convolution, where activations are largest.
//!
//! The normalised activations are made again in the backward, plane by plane in the caches, so that neither they nor their gradient, the two largest
//! tensors of a training step, are ever held.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::batch_norm::{
    Affine, BatchStatistics, Normalisation, Planes, affine_plane, backward_sums, batch_norm_train, batch_statistics,
    check_channels,
};
use crate::cpu::{contiguous_f32, filled_vec, is_native, multiversion, tensor_from, with_f32, with_scratch};
use crate::pool::{Split, backward_plane, forward_plane, max_pool2d_3x3_s2_p1};

/// [`batch_norm_train`] with ReLU, then [`max_pool2d_3x3_s2_p1`]. Differentiable by `x`, `weight` and `bias`.
///
/// # Shapes
/// `x` `[b, c, h, w]`, `weight` and `bias` `[c]` → `[b, c, ceil(h/2), ceil(w/2)]`.
///
/// # Errors
/// As [`batch_norm_train`] and [`max_pool2d_3x3_s2_p1`].
pub fn batch_norm_relu_max_pool(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    let (b, c, h, w) = x.dims4()?;
    check_channels(c, &[weight, bias])?;
    if b * h * w < 2 {
        bail!("batch_norm: expected more than one value a channel in training, found {:?}", x.dims());
    }
    if !is_native(&[x, weight, bias]) {
        let (y, statistics) = batch_norm_train(x, weight, bias, eps, true)?;
        return Ok((max_pool2d_3x3_s2_p1(&y)?, statistics));
    }
    let x = x.contiguous()?;
    let (statistics, normalisation) = batch_statistics(&x, eps)?;
    Ok((x.apply_op3(&weight.contiguous()?, &bias.contiguous()?, NormPool(normalisation))?, statistics))
}

struct NormPool(Normalisation);

impl NormPool {
    /// What a channel's activations are made with.
    fn affine(&self, channel: usize, weight: &[f32], bias: &[f32]) -> Affine {
        let Normalisation { mean, inv_std } = &self.0;
        Affine { scale: inv_std[channel] * weight[channel], mean: mean[channel], shift: bias[channel], relu: true }
    }
}

impl CustomOp3 for NormPool {
    fn name(&self) -> &'static str {
        "batch-norm-relu-max-pool"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = l1.shape().dims4()?;
        let x = contiguous_f32(s1, l1, self.name())?;
        let (weight, bias) = (contiguous_f32(s2, l2, self.name())?, contiguous_f32(s3, l3, self.name())?);
        let split = Split { h, w };
        let outputs = split.rows() * split.columns();
        // SAFETY: every plane is written by one task, whole.
        let data = unsafe {
            filled_vec(b * c * outputs, |out| {
                (0..b * c).into_par_iter().for_each(|p| {
                    with_scratch(h * w + split.len(), |scratch| {
                        let (y, scratch) = scratch.split_at_mut(h * w);
                        affine_plane(&x[p * h * w..][..h * w], &self.affine(p % c, weight, bias), y);
                        forward_plane(&split, y, scratch, out.slice(p * outputs, outputs));
                    });
                });
            })
        };
        Ok((CpuStorage::F32(data), Shape::from((b, c, split.rows(), split.columns()))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, c, h, w) = x.dims4()?;
        let (planes, split) = (Planes { b, c, hw: h * w }, Split { h, w });
        let outputs = split.rows() * split.columns();
        let (weight_values, bias_values) = (weight.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
        let mut sums = vec![(0.0f32, 0.0f32); c];
        let grad_x = with_f32(x, self.name(), |x_data| {
            with_f32(grad, self.name(), |g| {
                // SAFETY: each channel's planes are written by one task, and together they are all elements.
                let data = unsafe {
                    filled_vec(x_data.len(), |out| {
                        sums.par_iter_mut().enumerate().for_each(|(channel, sums)| {
                            let affine = self.affine(channel, &weight_values, &bias_values);
                            let inv_std = self.0.inv_std[channel];
                            let (mut sum, mut dot) = (0.0, 0.0);
                            with_scratch(planes.hw + 2 * split.len() + split.columns(), |scratch| {
                                let (y, scratch) = scratch.split_at_mut(planes.hw);
                                for start in planes.starts(channel) {
                                    let x = &x_data[start..][..planes.hw];
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
                            *sums = (sum as f32, (dot * inv_std as f64) as f32);
                            let count = (planes.b * planes.hw) as f32;
                            let coefficients = [affine.scale, sums.0 / count, sums.1 / count * inv_std, affine.mean];
                            for start in planes.starts(channel) {
                                finish(&x_data[start..][..planes.hw], coefficients, out.slice(start, planes.hw));
                            }
                        });
                    })
                };
                tensor_from(data, x.shape())
            })
        })?;
        let grad_weight = tensor_from(sums.iter().map(|s| s.1).collect(), c)?;
        let grad_bias = tensor_from(sums.iter().map(|s| s.0).collect(), c)?;
        Ok((x.track_op().then_some(grad_x), weight.track_op().then_some(grad_weight), bias.track_op().then_some(grad_bias)))
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
    /// Batch norm's gradient of the input from that of its result, in place.
    fn finish(x: &[f32], coefficients: [f32; 4], g: &mut [f32]) {
        let [scale, offset, slope, mean] = coefficients;
        for (g, x) in g.iter_mut().zip(x) {
            *g = scale * (*g - offset - (x - mean) * slope);
        }
    }
}
