//! Layer norm over the last axis, on the CPU.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::contiguous_f32;
use crate::cpu::simd::{madd, multiversion, sum_by};

/// As [`super::layer_norm`].
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps: eps as f32 })
}

multiversion! {
    /// Layer norm of each row of `x` (rows as long as `weight`) into the same row of `y`.
    pub(crate) fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let channels = weight.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = madd::<FMA>((x - mean) * inverse_deviation, weight, bias);
            }
        }
    }
}

multiversion! {
    /// Adds `added` to each row of `x`, in place, then writes the row's layer norm to the same row of `y`: a linear layer's bias, the
    /// residual sum and the norm in one pass.
    pub(crate) fn add_layer_norm_rows(x: &mut [f32], added: &[f32], norm: (&[f32], &[f32]), eps: f32, y: &mut [f32]) {
        let (weight, bias) = norm;
        let channels = weight.len();
        for (x, y) in x.chunks_exact_mut(channels).zip(y.chunks_exact_mut(channels)) {
            for (x, &added) in x.iter_mut().zip(added) {
                *x += added;
            }
            let (mean, inverse_deviation) = row_statistics(x, eps);
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x.iter()).zip(weight).zip(bias) {
                *y = madd::<FMA>((x - mean) * inverse_deviation, weight, bias);
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

/// Rows that one task works on.
const ROWS: usize = 64;

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm"
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
        let _span = tracing::trace_span!("layer norm").entered();
        let x = contiguous_f32(s1, l1, "layer norm")?;
        let (weight, bias) = (contiguous_f32(s2, l2, "layer norm")?, contiguous_f32(s3, l3, "layer norm")?);
        let mut y = vec![0f32; x.len()];
        let chunk = ROWS * weight.len();
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| layer_norm_rows(x, weight, bias, self.eps, y));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("layer norm backward").entered();
        let channels = weight.elem_count();
        let grad = grad.contiguous()?;
        let grad_x = match x.track_op() {
            true => Some(x.apply_op3_no_bwd(weight, &grad, &LayerNormBackward { eps: self.eps })?),
            false => None,
        };
        let rows = (x.reshape(((), channels))?, grad.reshape(((), channels))?);
        let grad_weight = match weight.track_op() {
            true => {
                let centred = rows.0.broadcast_sub(&rows.0.mean_keepdim(1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(1)? + f64::from(self.eps))?.sqrt()?;
                Some((centred.broadcast_div(&deviation)? * &rows.1)?.sum(0)?)
            }
            false => None,
        };
        let grad_bias = if bias.track_op() { Some(rows.1.sum(0)?) } else { None };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

struct LayerNormBackward {
    eps: f32,
}

impl CustomOp3 for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer norm backward"
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
        let x = contiguous_f32(s1, l1, "layer norm backward")?;
        let weight = contiguous_f32(s2, l2, "layer norm backward")?;
        let mut grad = contiguous_f32(s3, l3, "layer norm backward")?.to_vec();
        let chunk = ROWS * weight.len();
        grad.par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk))
            .for_each(|(grad, x)| layer_norm_rows_backward(x, weight, self.eps, grad));
        Ok((CpuStorage::F32(grad), l1.shape().clone()))
    }
}
